"""Which layers of a viewer are scans, and which of them belong together."""

from __future__ import annotations

from typing import Any

from napari_med3dssl._layers import facts_of, geometry_of, volume_of
from training_backend.data.volume import Volume
from training_backend.errors import DataError


def is_scan(layer: Any) -> bool:
    """Whether a layer is a scan opened by this plugin, and not something computed from one."""
    facts = facts_of(layer) if layer is not None else None
    return facts is not None and facts.get("role") == "image" and not facts.get("derived")


def may_be_scan(layer: Any) -> bool:
    """Whether a layer is a scan, or a 3D image of other origin whose scale can be trusted."""
    if type(layer).__name__ != "Image" or layer.rgb or layer.ndim != 3 or layer.multiscale:
        return False
    return is_scan(layer) or facts_of(layer) is None


def selected_scan(viewer: Any) -> Any | None:
    """The selected scan, else the topmost visible one."""
    candidates = [viewer.layers.selection.active, *(layer for layer in reversed(viewer.layers) if layer.visible)]
    return next((layer for layer in candidates if layer is not None and may_be_scan(layer)), None)


def contrasts(viewer: Any, layer: Any) -> list[Any]:
    """The scan `layer`, then all other scans of the viewer on its grid, which a model of several contrasts may want."""
    here = geometry_of(layer)
    others = [each for each in viewer.layers if each is not layer and is_scan(each)]
    return [layer, *(each for each in others if geometry_of(each).same_grid(here))]


def visible_case(viewer: Any) -> tuple[list[Volume], Volume | None]:
    """Visible scans of one grid, and the topmost visible label map on it, as volumes.

    Raises:
        DataError: no scan is visible, or the labels lie on another grid.
    """
    shown = [layer for layer in viewer.layers if layer.visible]
    scans = [layer for layer in shown if may_be_scan(layer)]
    labels = [layer for layer in shown if type(layer).__name__ == "Labels" and layer.ndim == 3]
    if not scans:
        raise DataError("No scan is visible in the viewer.", "Open one, or File › Open Sample › Med3D SSL.")
    first = geometry_of(scans[0])
    volumes = [volume_of(layer) for layer in scans if geometry_of(layer).same_grid(first)]
    label = volume_of(labels[-1]) if labels else None
    if label is not None and not label.geometry.same_grid(first):
        raise DataError(
            f"The labels {label.name!r} lie on another grid than {scans[0].name!r}.",
            "Hide the labels, or resample them onto the scan first.",
        )
    return volumes, label
