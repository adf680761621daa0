"""Letters, badge and status text against positions known from the phantoms."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_med3dssl import _canvas, _layers, _samples
from training_backend.data.phantoms import oblique, thorax_ct


@pytest.fixture(scope="module")
def phantom():
    return thorax_ct(0, (24, 32, 32))


@pytest.fixture
def viewer(phantom):
    viewer = ViewerModel()
    _layers.add(viewer, _layers.volume_layer(phantom.volume))
    labels = phantom.labels
    _layers.add(viewer, _layers.labels_layer(labels.array, labels.geometry, "organs", phantom.classes))
    return viewer


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((0, 1, 2), {"top": "A", "bottom": "P", "left": "R", "right": "L"}),
        ((1, 0, 2), {"top": "S", "bottom": "I", "left": "R", "right": "L"}),
        ((2, 0, 1), {"top": "S", "bottom": "I", "left": "A", "right": "P"}),
    ],
    ids=["axial", "coronal", "sagittal"],
)
def test_letters_of_the_three_planes(viewer, order, expected) -> None:
    view = _canvas.attach(viewer)
    viewer.dims.order = order
    assert view.letters() == expected
    drawn = viewer.canvas.overlays
    assert {edge: drawn[f"med3dssl_{edge}"].text for edge in expected} == expected
    assert drawn["med3dssl_top"].visible


def test_letters_follow_the_camera_in_3d(viewer) -> None:
    view = _canvas.attach(viewer)
    viewer.dims.ndisplay = 3
    assert view.letters() == {"top": "A", "bottom": "P", "left": "R", "right": "L"}
    viewer.scene.camera.set_view_direction(view_direction=(0, 1, 0), up_direction=(-1, 0, 0))
    assert view.letters() == {"top": "S", "bottom": "I", "left": "R", "right": "L"}


def test_no_letters_without_a_scan_of_known_orientation() -> None:
    viewer = ViewerModel()
    view = _canvas.attach(viewer)
    viewer.add_image(np.zeros((4, 4, 4)))
    assert set(view.letters().values()) == {""}


def test_status_names_voxel_millimetres_value_and_class(viewer, phantom) -> None:
    voxel = tuple(int(n) for n in np.argwhere(phantom.labels.array == 3)[0])
    text = _canvas.below_cursor(viewer, viewer.layers[0].data_to_world(voxel))
    left, posterior, superior = (phantom.volume.geometry.to_lps @ (*voxel, 1))[:3]
    assert f"voxel {voxel[0]} {voxel[1]} {voxel[2]}" in text
    assert f"L {left:.1f}  P {posterior:.1f}  S {superior:.1f} mm" in text
    assert f"{phantom.volume.array[voxel]:g} HU" in text
    assert "organs: liver" in text
    assert _canvas.below_cursor(viewer, (1e4, 0, 0)) == ""


def test_the_status_bar_shows_it(viewer) -> None:
    _canvas.attach(viewer)
    viewer.cursor.position = viewer.layers[0].data_to_world((3, 4, 5))
    viewer.status = {"layer_base": "x", "source_type": "", "plugin": "", "coordinates": "[1 2 3]"}
    assert viewer.status["coordinates"].startswith("voxel 3 4 5")
    viewer.status = "Ready"
    assert viewer.status == "Ready"


def test_oblique_scans_are_named_and_their_millimetres_are_exact() -> None:
    phantom = oblique(0, (12, 16, 14))
    viewer = ViewerModel()
    view = _canvas.attach(viewer)
    layer = _layers.add(viewer, _layers.volume_layer(phantom.volume))
    assert f"{phantom.volume.geometry.oblique_deg:.1f}".removesuffix(".0") in view.badge()
    if view._badge is not None:
        assert max(map(len, view._badge.text.splitlines())) < 30  # ends before the letter in the middle
    left = (phantom.volume.geometry.to_lps @ (3, 4, 5, 1))[0]
    assert f"L {left:.1f} " in _canvas.below_cursor(viewer, layer.data_to_world((3, 4, 5)))


def test_scans_of_other_obliqueness_are_not_parallel() -> None:
    viewer = ViewerModel()
    layers = [_layers.add(viewer, layer) for layer in (*_samples.mr_phantom(), *_samples.oblique_phantom())]
    assert _canvas.parallel(layers[0], layers[1])
    assert not _canvas.parallel(layers[0], layers[-1])
