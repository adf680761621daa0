"""Sample data: generated patients, made in a second, with a marker on their left side."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_med3dssl._layers import LayerData
    from training_backend.data.phantoms import Phantom


def ct_phantom() -> list[LayerData]:
    """Chest CT with organs and nodules, and its label map."""
    from training_backend.data.phantoms import thorax_ct

    return _layers(thorax_ct(7, (80, 128, 128)))


def mr_phantom() -> list[LayerData]:
    """Head MR with two contrasts of one patient, and their label map."""
    from training_backend.data.phantoms import mr_contrasts

    return _layers(mr_contrasts(7))


def oblique_phantom() -> list[LayerData]:
    """Head MR whose slices are rotated against the patient, and its label map."""
    from training_backend.data.phantoms import oblique

    return _layers(oblique(7))


def _layers(phantom: Phantom) -> list[LayerData]:
    from napari_med3dssl._layers import labels_layer, layers_of_volumes

    labels = phantom.labels
    return [
        *layers_of_volumes(list(phantom.volumes)),
        labels_layer(labels.array, labels.geometry, labels.name, phantom.classes, provenance=dict(labels.meta)),
    ]
