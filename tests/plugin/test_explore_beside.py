"""Layers side by side and the three planes, in a real window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.compat import isalive
from qtpy.QtCore import Qt

from napari_med3dssl import _compat
from napari_med3dssl._layers import add, labels_layer, volume_layer
from napari_med3dssl.explore import ExplorePanel
from napari_med3dssl.explore_beside import IN_3D, NEEDS_TWO, TOO_MANY, BesideSection
from napari_med3dssl.three_planes import ThreePlanes
from training_backend.data.phantoms import Phantom
from training_backend.data.volume import Geometry, Volume

pytestmark = pytest.mark.gl


@pytest.fixture
def section(panel: ExplorePanel, phantom: Phantom) -> BesideSection:
    for name, gain in (("T1", 1), ("T2", 2), ("PD", 3)):
        volume = phantom.volume.with_array(phantom.volume.array * np.float32(gain))
        add(panel.viewer, volume_layer(volume, name=name))
    panel.beside.fold(False)
    return panel.beside


def tick(section: BesideSection, *names: str) -> None:
    for row in range(section.list.count()):
        item = section.list.item(row)
        item.setCheckState(Qt.CheckState.Checked if item.text() in names else Qt.CheckState.Unchecked)


def press(section: BesideSection, qtbot: Any) -> None:
    """Press the button of the grid, and wait for what it makes or clears away."""
    section.grid_button.click()
    qtbot.waitUntil(lambda: not section.busy, timeout=60_000)


def add_labels(section: BesideSection, phantom: Phantom, *names: str) -> None:
    for name in names:
        layer = labels_layer(phantom.labels.array, phantom.volume.geometry, name, phantom.classes)
        add(section.panel.viewer, layer)


def test_contrasts_in_a_grid_and_back(section: BesideSection, qtbot: Any) -> None:
    viewer = section.panel.viewer
    assert section.told.text() == NEEDS_TWO
    assert not section.grid_button.isEnabled()
    viewer.layers["PD"].visible = True
    viewer.layers["T2"].visible = False
    before = {layer.name: layer.visible for layer in viewer.layers}
    tick(section, "T1", "PD")
    press(section, qtbot)
    grid = _compat.grid(viewer)
    assert grid.enabled
    assert {layer.name for layer in viewer.layers if layer.visible} == {"T1", "PD"}
    assert len({grid.position(viewer.layers.index(name), viewer.layers) for name in ("T1", "PD")}) == 2
    press(section, qtbot)
    assert not grid.enabled
    assert {layer.name: layer.visible for layer in viewer.layers} == before


def test_linked_contrast_follows_and_ends_with_the_grid(section: BesideSection, qtbot: Any) -> None:
    layers = section.panel.viewer.layers
    tick(section, "T1", "T2")
    press(section, qtbot)
    layers["T1"].contrast_limits = (0, 100)
    assert tuple(layers["T2"].contrast_limits) != (0, 100)
    section.link.setChecked(True)
    layers["T2"].contrast_limits = (-50, 150)
    assert tuple(layers["T1"].contrast_limits) == (-50, 150)
    press(section, qtbot)
    layers["T1"].contrast_limits = (0, 90)
    assert tuple(layers["T2"].contrast_limits) == (-50, 150)


def test_models_lie_on_their_scan_one_to_a_cell(section: BesideSection, phantom: Phantom, qtbot: Any) -> None:
    viewer = section.panel.viewer
    add_labels(section, phantom, "model A", "model B", "model C")
    before = [layer.name for layer in viewer.layers]
    tick(section, "model A", "model B", "model C")
    press(section, qtbot)
    grid = _compat.grid(viewer)
    cells: dict[Any, list[Any]] = {}
    for number, layer in enumerate(viewer.layers):
        if layer.visible:
            cells.setdefault(grid.position(number, viewer.layers), []).append(layer)
    assert len(cells) == 3
    for _, (below, above) in sorted(cells.items()):
        assert [type(layer).__name__ for layer in (below, above)] == ["Image", "Labels"]
        assert np.shares_memory(below.data, section.panel.scan.data)
    assert [sorted(cells)[k] for k in range(3)] == [(0, 0), (0, 1), (1, 0)]
    assert [cells[at][1].name.partition(" ·")[0] for at in sorted(cells)] == ["model A", "model B", "model C"]
    press(section, qtbot)
    assert [layer.name for layer in viewer.layers] == before
    assert not section.in_grid


def test_a_label_map_lies_on_every_contrast(section: BesideSection, phantom: Phantom, qtbot: Any) -> None:
    add_labels(section, phantom, "truth")
    section.over.setCurrentText("truth")
    tick(section, "T1", "T2")
    press(section, qtbot)
    shown = [layer for layer in section.panel.viewer.layers if layer.visible]
    assert [type(layer).__name__ for layer in shown] == ["Image", "Labels"] * 2
    assert section.panel.viewer.layers["truth"] in shown  # painted in the grid, it is painted
    press(section, qtbot)


def test_bad_choices_get_a_sentence(section: BesideSection, phantom: Phantom, qtbot: Any) -> None:
    add_labels(section, phantom, "a", "b")
    tick(section, "T1", "T2", "PD", "a", "b")
    assert section.told.text() == TOO_MANY
    far = Volume(
        phantom.volume.array, Geometry.from_spacing(phantom.volume.array.shape, (2, 2, 2), (9e3, 0, 0)), "CT", ""
    )
    add(section.panel.viewer, volume_layer(far, name="elsewhere"))
    tick(section, "T1", "elsewhere")
    press(section, qtbot)
    assert "elsewhere lies at another place than T1" in section.told.text()
    assert not _compat.grid(section.panel.viewer).enabled


def planes_of(section: BesideSection, qtbot: Any) -> ThreePlanes:
    section.planes_button.click()
    assert section._planes is not None
    qtbot.wait(50)
    return section._planes


def test_planes_show_the_point_where_the_viewer_stands(section: BesideSection, qtbot: Any) -> None:
    viewer, layer = section.panel.viewer, section.panel.viewer.layers["T1"]
    for name in ("T2", "PD"):
        viewer.layers[name].visible = False
    planes = planes_of(section, qtbot)
    viewer.dims.set_point(range(3), layer.data_to_world((5, 20, 8)))
    qtbot.wait(50)
    expected = {"axial": layer.data[5], "coronal": layer.data[:, 20], "sagittal": layer.data[:, :, 8]}
    for name, pane in planes.panes.items():
        (item,) = pane.items.values()
        assert np.array_equal(item.image, expected[name])
        assert [pane.lines[axis].value() for axis in (pane.down, pane.right)] == pytest.approx(
            [viewer.dims.point[axis] for axis in (pane.down, pane.right)]
        )
    section.planes_button.click()


def test_planes_beside_a_view_in_3d(section: BesideSection, qtbot: Any) -> None:
    viewer, layer = section.panel.viewer, section.panel.viewer.layers["T1"]
    viewer.dims.ndisplay = 3
    planes = planes_of(section, qtbot)
    assert section.told.text() == IN_3D
    viewer.dims.set_point(range(3), layer.data_to_world((5, 20, 8)))
    qtbot.wait(50)
    item = planes.panes["axial"].items[id(layer)]
    assert np.array_equal(item.image, layer.data[5])
    section.planes_button.click()


def test_voxels_lie_at_their_millimetres_and_sides_are_right(section: BesideSection, qtbot: Any) -> None:
    planes = planes_of(section, qtbot)
    layer = section.panel.viewer.layers["T1"]
    item = planes.panes["coronal"].items[id(layer)]
    corner = item.transform().map(3 + 0.5, 7 + 0.5)  # middle of row 7, column 3
    world = layer.data_to_world((7, 0, 3))
    assert corner == pytest.approx((world[2], world[0]))
    assert planes.panes["axial"].letters == {"top": "A", "bottom": "P", "left": "R", "right": "L"}
    assert planes.panes["coronal"].letters == {"top": "S", "bottom": "I", "left": "R", "right": "L"}
    assert planes.panes["sagittal"].letters == {"top": "S", "bottom": "I", "left": "A", "right": "P"}
    section.planes_button.click()


def test_a_dragged_line_moves_the_viewer(section: BesideSection, qtbot: Any) -> None:
    planes = planes_of(section, qtbot)
    viewer, layer = section.panel.viewer, section.panel.viewer.layers["T1"]
    world = layer.data_to_world((3, 11, 4))
    pane = planes.panes["sagittal"]
    pane.lines[0].setValue(world[0])
    pane.lines[1].setValue(world[1])
    qtbot.wait(50)
    assert [round(n) for n in layer.world_to_data(viewer.dims.point)][:2] == [3, 11]
    section.planes_button.click()


def test_painting_is_seen_at_once(section: BesideSection, phantom: Phantom, qtbot: Any) -> None:
    add_labels(section, phantom, "painted")
    layer = section.panel.viewer.layers["painted"]
    planes = planes_of(section, qtbot)
    section.panel.viewer.dims.set_point(range(3), layer.data_to_world((6, 6, 6)))
    qtbot.wait(50)
    item = planes.panes["sagittal"].items[id(layer)]
    before = item.image.copy()
    layer.paint((6, 6, 6), 5)
    qtbot.wait(80)
    assert not np.array_equal(item.image, before)
    section.planes_button.click()


def test_closed_planes_leave_nothing_behind(section: BesideSection, qtbot: Any) -> None:
    viewer = section.panel.viewer
    listeners = len(viewer.dims.events.point.callbacks)
    planes = planes_of(section, qtbot)
    assert len(viewer.dims.events.point.callbacks) == listeners + 1
    section.planes_button.click()
    assert len(viewer.dims.events.point.callbacks) == listeners
    assert all(not pane.items for pane in planes.panes.values())
    assert planes._viewer is None
    qtbot.wait(100)
    assert not isalive(planes)
    assert not section.planes_button.isChecked()
