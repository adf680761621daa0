"""In 3D the voxel that is seen is picked: what the rendering shows, or the first label in front of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_med3dssl._layers import add, labels_layer, volume_layer
from napari_med3dssl.explore_pick import PickMode
from napari_med3dssl.explore_rays import picked_voxel
from training_backend.data.volume import Geometry, Volume

GRID = Geometry.from_spacing((12, 20, 16), (3.0, 1.0, 1.5), (5.0, -7.0, 40.0))


@pytest.fixture
def viewer() -> Any:
    viewer = ViewerModel()
    array = np.zeros(GRID.shape, np.int16)
    array[6, 15, 8], array[6, 4, 8], array[6, 10, 8] = 100, 60, -50
    add(viewer, volume_layer(Volume(array, GRID, "MR", "scan")))
    viewer.dims.ndisplay = 3
    return viewer


def looked(viewer: Any, z: int, x: int, backwards: bool = False) -> Any:
    """Voxel picked by a ray through the scan along y, from the front of the patient or from behind."""
    layer = viewer.layers["scan"]
    event = SimpleNamespace(
        position=np.array(layer.data_to_world((z, 10, x))),
        view_direction=np.array([0.0, -1.0 if backwards else 1.0, 0.0]),
        dims_displayed=[0, 1, 2],
    )
    return picked_voxel(viewer, layer, event)


@pytest.mark.parametrize(
    ("rendering", "backwards", "row"),
    [
        ("mip", False, 15),
        ("mip", True, 15),
        ("minip", False, 10),
        ("iso", False, 4),
        ("iso", True, 15),
        ("attenuated_mip", False, 4),
        ("attenuated_mip", True, 15),
        ("translucent", False, 15),
    ],
)
def test_what_a_rendering_shows(viewer: Any, rendering: str, backwards: bool, row: int) -> None:
    layer = viewer.layers["scan"]
    layer.contrast_limits = (0, 100)
    layer.rendering, layer.iso_threshold, layer.attenuation = rendering, 50, 2.0
    assert looked(viewer, 6, 8, backwards) == (6, row, 8)


def test_the_first_label_is_in_front_of_the_scan(viewer: Any) -> None:
    fine = Geometry.from_spacing((24, 20, 16), (1.5, 1.0, 1.5), (5.0, -7.0, 40.0))
    organs = np.zeros(fine.shape, np.uint8)
    organs[12, 7:9, 8], organs[12, 12, 8] = 3, 5
    layer = add(viewer, labels_layer(organs, fine, "organs"))
    assert looked(viewer, 6, 8) == (6, 7, 8)
    assert looked(viewer, 6, 8, backwards=True) == (6, 12, 8)
    layer.selected_label, layer.show_selected_label = 5, True
    assert looked(viewer, 6, 8) == (6, 12, 8)
    layer.visible = False
    assert looked(viewer, 6, 8) == (6, 15, 8)
    near = add(viewer, labels_layer((np.arange(20)[None, :, None] == 2) * np.ones(GRID.shape, np.uint8), GRID, "skin"))
    layer.visible = True
    assert looked(viewer, 6, 8) == (6, 2, 8)  # nearer to the eye than the organs
    near.opacity = 0
    assert looked(viewer, 6, 8) == (6, 12, 8)


def test_beside_the_scan_nothing_is_picked(viewer: Any) -> None:
    assert looked(viewer, 40, 8) is None


def test_in_3d_a_drag_beside_the_scan_turns_the_view_and_a_click_is_told(viewer: Any) -> None:
    told: list[str] = []
    pick = PickMode(viewer, lambda _: told.append("picked"), lambda: None, outside=lambda: told.append("outside"))
    pick.enter(viewer.layers["scan"])
    for kind, z, expected in (
        ("mouse_move", 40, []),
        ("mouse_release", 40, ["outside"]),
        ("mouse_release", 6, ["picked"]),
    ):
        told.clear()
        event = SimpleNamespace(
            type="mouse_press",
            button=1,
            modifiers=[],
            position=np.array(viewer.layers["scan"].data_to_world((z, 10, 8))),
            view_direction=np.array([0.0, 1.0, 0.0]),
            dims_displayed=[0, 1, 2],
            handled=False,
        )
        following = pick._on_mouse(viewer, event)
        next(following)
        assert event.handled == (z == 6)  # what is not handled reaches the camera
        event.type = kind
        next(following, None)
        assert told == expected
    pick.leave()
