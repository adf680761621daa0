"""The Explore panel in a real viewer, with a real model process and a real (untrained) model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractSlider, QLabel, QPushButton, QScrollBar, QWidget

from napari_med3dssl import _compat
from napari_med3dssl._layers import add, geometry_of, labels_layer, volume_layer
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Section
from napari_med3dssl.explore import EMPTY_MODEL, EMPTY_SCAN, ExplorePanel
from napari_med3dssl.explore_maths import token_at
from tests.plugin.explore_kit import click, finish, work_done
from training_backend.config.presets import pretrain_config
from training_backend.data.phantoms import Phantom, oblique

pytestmark = pytest.mark.gl


@pytest.fixture
def state(window_state: State) -> State:
    return window_state


@pytest.fixture
def ready(panel: ExplorePanel, phantom: Phantom, model: str) -> ExplorePanel:
    """Panel with a scan and a model chosen."""
    add(panel.viewer, volume_layer(phantom.volume))
    panel.state.model = model
    return panel


def similarity_of(panel: ExplorePanel) -> Any:
    return panel.viewer.layers["similarity"]


def test_first_run_says_what_to_do(panel: ExplorePanel, phantom: Phantom) -> None:
    assert panel.notice.text == EMPTY_SCAN
    assert not panel.compute_button.isEnabled()
    add(panel.viewer, volume_layer(phantom.volume))
    assert panel.notice.text == EMPTY_MODEL
    assert not panel.masking.body.isEnabled()


def test_scans_are_offered_and_our_own_maps_are_not(computed: ExplorePanel, phantom: Phantom, qtbot: Any) -> None:
    viewer = computed.viewer
    add(viewer, labels_layer(phantom.labels.array, phantom.labels.geometry, "organs", phantom.classes))
    viewer.add_image(np.zeros((4, 5, 6)), name="foreign", units="mm", axis_labels=("z", "y", "x"))
    computed.embedding.show_map()
    work_done(qtbot)
    names = [computed.scan_box.itemText(index) for index in range(computed.scan_box.count())]
    assert names == [phantom.volume.name, "foreign (geometry from the layer)"]
    viewer.layers.remove(computed.scan)
    assert computed.scan.name == "foreign"
    assert computed.features is None


def test_the_newest_finished_run_is_suggested_and_files_can_be_chosen(
    panel: ExplorePanel, model: str, qtbot: Any, tmp_path: Path
) -> None:
    from training_backend.engine.rundir import RunDirectory

    run = RunDirectory.create(tmp_path / "runs" / "läuft gut", pretrain_config("mae3d", "tiny", tmp_path))
    RunDirectory.create(tmp_path / "runs" / "unfinished", pretrain_config("mae3d", "tiny", tmp_path))
    run.model_path.write_bytes(b"weights")
    panel.state.runs_changed.emit()
    qtbot.waitUntil(lambda: panel.state.model == str(run.path))
    qtbot.waitUntil(lambda: panel.model.box.currentText() == "läuft gut")
    assert panel.model.box.findText("unfinished") < 0
    panel.model.choose(model)
    assert panel.state.model == model
    panel.state.model = str(run.path)
    assert panel.model.source == str(run.path)


def test_features_then_similarity(computed: ExplorePanel) -> None:
    assert "5 × 9 × 7 tokens of 192 numbers" in computed.notice.text
    computed.similarity.pick_button.click()
    voxel = (18, 33, 25)  # the corner where the patches reach beyond the scan
    click(computed, voxel)
    computed.similarity.body_only.setChecked(False)
    layer = similarity_of(computed)
    features = computed.features
    assert layer.data.shape == (5, 9, 7)
    token = token_at(voxel, geometry_of(computed.scan), features.geometry)
    assert token == (4, 8, 6)
    assert layer.data[token] == pytest.approx(1, abs=1e-3) == layer.data.max()
    drawn = np.floor(np.array(layer.world_to_data(computed.scan.data_to_world(voxel))) + 0.5)
    assert tuple(drawn.astype(int)) == token
    assert layer.units == computed.scan.units


def test_another_model_forgets_what_the_first_one_saw(computed: ExplorePanel, tmp_path: Path) -> None:
    section = computed.similarity
    section.pick_button.click()
    click(computed, (9, 16, 12))
    computed.state.model = str(tmp_path / "other")
    assert computed.features is None
    assert not section.pick_button.isChecked()
    assert section.seeds_text.text() == "No voxel picked yet."
    assert not section.labels_button.isEnabled()


def test_every_voxel_lies_under_its_own_token_for_an_oblique_scan(
    state: State, panel: ExplorePanel, model: str, qtbot: Any
) -> None:
    volume = oblique(2, (18, 21, 23)).volume
    add(panel.viewer, volume_layer(volume))
    state.model = model
    panel.compute_features()
    finish(panel, qtbot)
    panel.similarity.pick_button.click()
    click(panel, (0, 0, 0))
    layer = similarity_of(panel)
    for voxel in [(0, 0, 0), (17, 20, 22), (7, 11, 3), (12, 4, 16)]:
        drawn = np.floor(np.array(layer.world_to_data(panel.scan.data_to_world(voxel))) + 0.5).astype(int)
        assert tuple(drawn) == tuple(n // 4 for n in voxel)


def test_seeds_add_exclude_drag_and_clear(computed: ExplorePanel) -> None:
    section = computed.similarity
    section.pick_button.click()
    click(computed, (2, 2, 2))
    one = similarity_of(computed).data.copy()
    click(computed, (10, 20, 20), "Shift")
    assert section.seeds_text.text() == "Like 2, unlike 0 picked."
    click(computed, (16, 5, 20), "Control")
    assert section.seeds_text.text() == "Like 2, unlike 1 picked."
    assert not np.allclose(similarity_of(computed).data, one)
    seeds = computed.viewer.layers[f"{computed.scan.name} · seeds"]
    assert list(seeds.features["kind"]) == ["like this", "like this", "unlike this"]
    assert len({str(symbol) for symbol in seeds.symbol}) == 2
    click(computed, (10, 20, 20), drag_to=(2, 2, 2))  # a plain click starts anew, dragging moves the seed
    assert section.seeds_text.text() == "Like 1, unlike 0 picked."
    np.testing.assert_allclose(similarity_of(computed).data, one)
    section.clear_button.click()
    assert "similarity" not in computed.viewer.layers
    assert len(computed.viewer.layers) == 1


def test_only_picking_takes_clicks_and_the_mode_can_be_left(computed: ExplorePanel, qtbot: Any) -> None:
    viewer, section = computed.viewer, computed.similarity
    before = len(viewer.mouse_drag_callbacks)
    window = viewer.window._qt_viewer.canvas.native
    window.setFocus()
    qtbot.keyClick(window, Qt.Key.Key_X, Qt.KeyboardModifier.AltModifier)
    assert section.pick_button.isChecked()
    assert viewer.cursor.style == "cross"
    banner = _compat.canvas_text(viewer, "med3dssl_pick", "bottom_center")
    assert banner.visible
    assert "Esc: leave" in banner.text
    assert len(viewer.mouse_drag_callbacks) == before + 1
    qtbot.keyClick(window, Qt.Key.Key_Escape)
    assert not section.pick_button.isChecked()
    assert not banner.visible
    assert viewer.cursor.style == "standard"
    assert len(viewer.mouse_drag_callbacks) == before


def test_in_3d_the_brightest_voxel_on_the_ray_is_picked(computed: ExplorePanel) -> None:
    viewer, scan = computed.viewer, computed.scan
    viewer.dims.ndisplay = 3
    computed.similarity.pick_button.click()
    z, y, x = 9, 16, 12
    event = SimpleNamespace(
        type="mouse_press",
        button=1,
        modifiers=[],
        position=np.array(scan.data_to_world((z, y, x))),
        dims_displayed=[0, 1, 2],
        view_direction=np.array([0.0, 1.0, 0.0]),
        handled=False,
    )
    for callback in viewer.mouse_drag_callbacks:
        next(callback(viewer, event), None)
    seed = computed.similarity._pick.seeds.positive[0]
    assert (seed[0], seed[2]) == (z, x)
    assert scan.data[seed] == scan.data[z, :, x].max()


def test_contrast_and_labels(computed: ExplorePanel) -> None:
    section = computed.similarity
    section.pick_button.click()
    click(computed, (9, 16, 12))
    body = computed.features.body
    inside = similarity_of(computed).data[body]
    np.testing.assert_array_equal(similarity_of(computed).data[~body], inside.min())
    np.testing.assert_allclose(similarity_of(computed).contrast_limits, np.percentile(inside, [2, 98]), rtol=1e-5)
    section.contrast.setValue((10, 50))
    np.testing.assert_allclose(similarity_of(computed).contrast_limits, np.percentile(inside, [10, 50]), rtol=1e-5)
    low, high = similarity_of(computed).contrast_limits
    section.threshold.setValue(30)
    section.labels_button.click()
    labels = computed.viewer.layers[f"{computed.scan.name} · similar"]
    assert labels.data.shape == computed.scan.data.shape
    assert labels.data[9, 16, 12] == 1
    grid, shown = geometry_of(computed.scan), similarity_of(computed).data
    for voxel in [(0, 0, 0), (18, 33, 25), (5, 20, 11)]:
        token = token_at(voxel, grid, computed.features.geometry)
        assert labels.data[voxel] == (shown[token] >= low + 0.3 * (high - low))
    np.testing.assert_allclose(labels.scale, computed.scan.scale)


def test_embedding_map(computed: ExplorePanel, qtbot: Any) -> None:
    computed.embedding.show_button.click()
    work_done(qtbot)
    layer = computed.viewer.layers["embedding"]
    assert layer.data.shape == (5, 9, 7, 4)
    np.testing.assert_array_equal(layer.data[..., 3] > 0, computed.features.body)
    assert "% of the variance" in computed.embedding.explained.text()
    first = layer.data.copy()
    computed.embedding.body_only.setChecked(False)
    computed.embedding.show_button.click()
    work_done(qtbot)
    assert computed.viewer.layers["embedding"] is layer
    assert not np.array_equal(layer.data, first)


def test_one_colour_map_is_seen_at_a_time(ready: ExplorePanel, qtbot: Any) -> None:
    layers = ready.viewer.layers
    ready.compute_button.click()
    finish(ready, qtbot)
    ready.similarity.pick_button.click()
    click(ready, (12, 24, 24))
    ready.attention.show_button.click()
    finish(ready, qtbot)
    assert layers["attention"].visible
    assert not layers["similarity"].visible
    click(ready, (12, 24, 20))
    assert layers["similarity"].visible
    assert not layers["attention"].visible


def test_a_grid_comes_to_pictures_that_the_slices_miss(ready: ExplorePanel, qtbot: Any) -> None:
    scan, dims = ready.scan, ready.viewer.dims
    units = {"units": scan.units, "axis_labels": scan.axis_labels}
    far = ready.viewer.add_image(np.zeros((20, 24, 22)), translate=(2000, 2000, 2000), **units)
    assert ready.scan is scan
    dims.set_point(range(3), far.data_to_world((10, 12, 11)))
    ready.masking.show_button.click()
    finish(ready, qtbot)
    low, high = np.sort(ready.viewer.layers["original"].extent.world, axis=0)
    assert (low <= dims.point).all()
    assert (dims.point <= high).all()


def test_masked_reconstruction_in_a_grid_of_four(ready: ExplorePanel, qtbot: Any) -> None:
    viewer, section = ready.viewer, ready.masking
    section.ratio.setValue(50)
    section.show_button.click()
    assert ready.busy
    finish(ready, qtbot)
    grid = _compat.grid(viewer)
    assert grid.enabled
    assert [layer.name for layer in viewer.layers if layer.visible] == ["original", "masked", "reconstruction", "error"]
    assert grid.actual_shape(viewer.layers) == (2, 2)
    original = viewer.layers["original"]
    original.contrast_limits = (-500, 300)
    assert list(viewer.layers["reconstruction"].contrast_limits) == [-500, 300]
    assert list(viewer.layers["error"].contrast_limits) != [-500, 300]
    assert "HU" in section.error.text()
    masked = viewer.layers["masked"].data.copy()
    section.new_button.click()
    finish(ready, qtbot)
    assert section.seed.value() == 1
    assert not np.array_equal(viewer.layers["masked"].data, masked)
    assert list(original.contrast_limits) == [-500, 300]  # kept: the user set it
    section.grid_button.click()
    assert not grid.enabled
    assert [layer.name for layer in viewer.layers if layer.visible] == [ready.scan.name]


def test_the_crop_follows_the_view(ready: ExplorePanel, qtbot: Any) -> None:
    viewer, scan = ready.viewer, ready.scan
    world = scan.data_to_world((17, 30, 24))
    viewer.dims.set_point(range(3), world)
    _compat.camera(viewer).center = world
    ready.masking.reconstruct()
    finish(ready, qtbot)
    original = viewer.layers["original"]
    inside = np.array(original.world_to_data(world))
    assert ((inside >= -0.5) & (inside < 15.5)).all()


def test_class_attention(ready: ExplorePanel, qtbot: Any) -> None:
    ready.attention.show_button.click()
    finish(ready, qtbot)
    layer = ready.viewer.layers["attention"]
    assert layer.data.shape == (5, 9, 7)
    assert (ready.attention.block.maximum(), ready.attention.head.maximum()) == (2, 6)


def test_a_request_can_be_cancelled(ready: ExplorePanel, qtbot: Any) -> None:
    ready.compute_button.click()
    assert not ready.compute_button.isEnabled()
    assert ready.cancel_button.isVisible()
    ready.cancel_button.click()
    finish(ready, qtbot)
    assert ready.notice.text == "Cancelled; nothing was changed."
    assert ready.features is None
    assert ready.compute_button.isEnabled()
    assert not ready.cancel_button.isVisible()


def test_errors_are_sentences_on_the_panel(ready: ExplorePanel, qtbot: Any, tmp_path: Path) -> None:
    ready.state.model = str(tmp_path / "gone.pth")
    ready.compute_button.click()
    finish(ready, qtbot)
    assert "gone.pth" in ready.notice.text
    assert ready.compute_button.isEnabled()


def test_nothing_is_cut_at_400_pixels_and_everything_has_a_name(computed: ExplorePanel, qtbot: Any) -> None:
    for section in computed.findChildren(Section):
        section.fold(False)
    computed.setFixedWidth(400)
    qtbot.wait(50)
    for widget in computed.findChildren(QWidget):
        if widget.isVisibleTo(computed) and widget.parent() is not None:
            right = widget.mapTo(computed, widget.rect().topRight()).x()
            assert right <= 400, (type(widget).__name__, widget.accessibleName())
    for made in computed.findChildren(QPushButton):
        if made.isVisibleTo(computed):
            assert made.width() >= made.minimumSizeHint().width(), made.text()
            assert made.text() or made.accessibleName()
    for label in computed.findChildren(QLabel):
        if label.isVisibleTo(computed) and label.wordWrap():
            assert label.height() >= label.heightForWidth(label.width()), label.text()
    for slider in computed.findChildren(QAbstractSlider):
        assert slider.width() > 40 or isinstance(slider, QScrollBar) or not slider.isVisibleTo(computed)


def test_a_closed_panel_gives_its_keys_back(state: State, qtbot: Any) -> None:
    viewer = state.viewer
    for _ in range(2):
        panel = ExplorePanel(state)
        dock = viewer.window.add_dock_widget(panel, name="Explore", area="right")
        work_done(qtbot)
        assert "Alt+X" in {str(key) for key in viewer.keymap}
        viewer.window.remove_dock_widget(dock)
        panel.deleteLater()
        qtbot.waitUntil(lambda: "Alt+X" not in {str(key) for key in viewer.keymap})
    viewer.add_image(np.zeros((4, 4, 4)), units="mm", axis_labels=("z", "y", "x"))  # nobody listens any more
