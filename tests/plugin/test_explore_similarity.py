"""Similarity in a real window: clicks in 3D, seeds taken back, labels that follow, changed scans, other visits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QPushButton

from napari_med3dssl import _compat, explore
from napari_med3dssl._layers import add, facts_of, geometry_of, volume_layer
from napari_med3dssl.explore import ExplorePanel
from napari_med3dssl.explore_visits import NO_DATASET
from tests.model_kit import untrained
from tests.plugin.explore_kit import click, finish, work_done
from training_backend.config import IngestConfig
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import Phantom, thorax_ct
from training_backend.data.write import write_volume

pytestmark = pytest.mark.gl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model of CT."""
    folder = Path(untrained(tmp_path_factory.mktemp("models") / "untrained"))
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card["profile"]["modality"] = "CT"
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return str(folder)


@pytest.fixture
def ready(panel: ExplorePanel, phantom: Phantom, model: str) -> ExplorePanel:
    add(panel.viewer, volume_layer(phantom.volume, name="sub-01_ses-1"))
    panel.state.model = model
    return panel


def press(notice: Any, label: str) -> None:
    """Click a button of a notice."""
    next(one for one in notice.findChildren(QPushButton) if one.text() == label and one.isEnabled()).click()


def test_a_click_on_the_canvas_in_3d_picks_the_voxel_that_shines_there(computed: ExplorePanel, qtbot: Any) -> None:
    viewer, scan = computed.viewer, computed.scan
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 200, scan.data.shape).astype(scan.data.dtype)
    array[11, 20, 7] = 3000
    scan.data, scan.contrast_limits, scan.interpolation3d = array, (1500, 3000), "nearest"
    computed.compute_features()
    finish(computed, qtbot)
    viewer.dims.ndisplay = 3
    viewer.reset_view()
    _compat.camera(viewer).angles = (10, 35, 60)
    _compat.camera(viewer).zoom *= 0.6  # so that there is something beside the scan
    canvas = viewer.window._qt_viewer.canvas
    computed.similarity.pick_button.click()
    qtbot.wait(300)
    shown = viewer.window.screenshot(canvas_only=True, flash=False, size=None)[..., :3].astype(int).sum(axis=-1)
    rows, columns = shown.shape
    inner = shown[rows // 8 : -rows // 8, columns // 8 : -columns // 8]  # letters stand at the edges
    y, x = np.argwhere(inner > 0.8 * inner.max()).mean(axis=0) + np.array([rows // 8, columns // 8])
    scale = canvas.native.width() / columns
    place = QPoint(int(x * scale), int(y * scale))
    qtbot.mouseMove(canvas.native, place)
    qtbot.mouseClick(canvas.native, Qt.MouseButton.LeftButton, pos=place)
    assert computed.similarity._pick.seeds.positive == [(11, 20, 7)]
    corner = QPoint(3, canvas.native.height() // 2)  # beside the scan
    qtbot.mouseMove(canvas.native, corner)
    qtbot.mouseClick(canvas.native, Qt.MouseButton.LeftButton, pos=corner)
    assert "lies outside sub-01_ses-1" in computed.notice.text
    assert computed.similarity._pick.seeds.positive == [(11, 20, 7)]


def test_seeds_and_labels_are_taken_back_and_the_label_follows(computed: ExplorePanel, qtbot: Any) -> None:
    viewer, section = computed.viewer, computed.similarity
    assert not section.undo_button.isEnabled()
    section.pick_button.click()
    click(computed, (9, 16, 12))
    one = viewer.layers["similarity"].data.copy()
    click(computed, (10, 20, 20), "Shift")
    click(computed, (2, 2, 2), "Control")
    section.undo_button.click()
    section.undo_button.click()
    assert section.seeds_text.text() == "Like 1, unlike 0 picked."
    np.testing.assert_allclose(viewer.layers["similarity"].data, one)
    section.clear_button.click()
    assert "similarity" not in viewer.layers
    section.undo_button.click()
    np.testing.assert_allclose(viewer.layers["similarity"].data, one)
    section.threshold.setValue(60)
    section.labels_button.click()
    label = viewer.layers["sub-01_ses-1 · similar"]
    few = int(label.data.sum())
    section.threshold.setValue(20)
    qtbot.waitUntil(lambda: int(label.data.sum()) > few)
    section.undo_button.click()  # of the label, which still follows
    assert label not in viewer.layers
    section.labels_button.click()
    label = viewer.layers["sub-01_ses-1 · similar"]
    label.selected_label = 2
    label.paint((9.0, 16.0, 12.0), 2)
    painted = label.data.copy()
    section.threshold.setValue(90)
    qtbot.wait(300)
    np.testing.assert_array_equal(label.data, painted)  # what was painted is the user's
    section.undo_button.click()
    assert label in viewer.layers
    assert "similarity" not in viewer.layers  # the first click was taken back
    click(computed, (200, 16, 12))
    assert computed.notice.text == "This place lies outside sub-01_ses-1, and nothing was picked; click inside."


def test_a_scan_that_changed_is_told_of_and_computed_again(computed: ExplorePanel, qtbot: Any) -> None:
    viewer, section, scan = computed.viewer, computed.similarity, computed.scan
    section.pick_button.click()
    work_done(qtbot)
    click(computed, (9, 16, 12))
    first = viewer.layers["similarity"].data.copy()
    assert computed.notice.text.startswith("Features ")
    scan.data = scan.data[::-1].copy()
    told = "sub-01_ses-1 was changed after its features were computed, so they do not belong to it any more."
    assert computed.notice.text == told
    assert computed.features is None
    assert not section.pick_button.isChecked()
    press(computed.notice, "Compute again")
    finish(computed, qtbot)
    assert computed.notice.text.startswith("Features computed")  # nothing stale came from the disk
    assert section.seeds_text.text() == "Like 1, unlike 0 picked."
    assert not np.allclose(viewer.layers["similarity"].data, first)
    scan.data[5:9] = 0  # in place, of which napari tells nothing
    section.pick_button.click()
    qtbot.waitUntil(lambda: computed.notice.text == told, timeout=30_000)
    assert computed.features is None


def test_another_modality_warns_and_does_not_stop(
    panel: ExplorePanel, phantom: Phantom, model: str, qtbot: Any
) -> None:
    add(panel.viewer, volume_layer(replace(phantom.volume, modality="MR", name="knee")))
    panel.state.model = model
    panel.compute_button.click()
    finish(panel, qtbot)
    assert panel.warning.text.startswith("This model learnt from CT, but knee is MR.")
    assert panel.features is not None
    add(panel.viewer, volume_layer(phantom.volume, name="chest"))
    panel.scan_box.setCurrentIndex(1)
    assert not panel.warning.text
    panel.compute_button.click()
    finish(panel, qtbot)
    assert not panel.warning.text


def test_what_features_take_is_told_asked_and_refused(
    ready: ExplorePanel, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore, "FULL", 1e-9)
    ready.compute_button.click()
    finish(ready, qtbot)
    assert ready.notice.text.startswith("The features of this scan do not fit. At most 5 × 9 × 7 places")
    assert ready.features is None
    monkeypatch.setattr(explore, "FULL", 0.9)
    monkeypatch.setattr(explore, "ASKED_FROM", 1e-9)
    ready.compute_button.click()
    finish(ready, qtbot)
    assert ready.notice.text.startswith("The features of this scan take much of the memory.")
    assert ready.features is None
    press(ready.notice, "Leave it")
    assert not ready.notice.text
    ready.compute_button.click()
    finish(ready, qtbot)
    press(ready.notice, "Compute")
    finish(ready, qtbot)
    assert ready.features is not None
    assert ready.estimate.isVisibleTo(ready)
    assert "GiB are free" in ready.estimate.text()


def test_an_image_of_other_origin_is_asked_for_its_place(ready: ExplorePanel, phantom: Phantom) -> None:
    viewer = ready.viewer
    array = phantom.volume.array.astype(np.float32)
    foreign = viewer.add_image(array, name="foreign", scale=(2, 1, 1), units="mm", axis_labels=("z", "y", "x"))
    assert not ready.where_asked.text
    ready.scan_box.setCurrentIndex(1)
    assert ready.where_asked.text.startswith(
        "foreign does not say where its voxels lie. By its scale they are 2 × 1 × 1"
    )
    ready.where_asked.set_spacing("two 3")
    assert "Three millimetres above 0 are expected" in ready.where_asked.text
    assert facts_of(foreign) is None
    ready.where_asked.set_spacing("2.5, 0.8, 0.7")
    assert geometry_of(foreign).spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert list(foreign.scale) == pytest.approx([-2.5, 0.8, 0.7])
    assert not ready.where_asked.text
    assert ready.scan is foreign
    second = viewer.add_image(array, name="second", units="mm", axis_labels=("z", "y", "x"))
    ready.scan_box.setCurrentIndex(2)
    press(ready.where_asked, "As sub-01_ses-1")
    assert geometry_of(second).same_grid(phantom.volume.geometry)


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one patient with two visits."""
    root = tmp_path_factory.mktemp("bids")
    (root / "dataset_description.json").write_text('{"Name": "visits", "BIDSVersion": "1.8.0"}')
    for session in (1, 2):
        folder = root / "sub-01" / f"ses-{session}" / "ct"
        folder.mkdir(parents=True)
        write_volume(thorax_ct(2 + session, (19, 34, 26)).volume, folder / f"sub-01_ses-{session}_ct.nii.gz")
    ingest(root, root.parent / "visits", IngestConfig(workers=0, splits=(1.0, 0.0, 0.0)), name="visits")
    return root.parent / "visits"


def test_seeds_are_carried_to_the_next_visit_and_back(computed: ExplorePanel, visits: Path, qtbot: Any) -> None:
    section, state = computed.similarity, computed.state
    state.dataset = None
    section.after_button.click()
    assert computed.notice.text == NO_DATASET
    state.dataset = visits
    section.pick_button.click()
    click(computed, (9, 16, 12))
    section.after_button.click()
    qtbot.waitUntil(lambda: section.where.currentText() == "sub-01_ses-2", timeout=60_000)
    qtbot.waitUntil(lambda: section.looked_in is not None and not computed.busy, timeout=120_000)
    second = computed.viewer.layers["sub-01_ses-2"]
    assert section.target is second
    assert computed.scan.name == "sub-01_ses-1"
    assert section.seeds_text.text() == "Like 1, unlike 0 picked."
    assert section.match_text.text().startswith("Most alike in sub-01_ses-2: voxel z, y, x = ")
    names = [layer.name for layer in computed.viewer.layers]
    assert names.index("sub-01_ses-2") < names.index("similarity")
    section.after_button.click()
    work_done(qtbot)
    assert "sub-01_ses-2 is the last visit of sub-01" in computed.notice.text
    section.before_button.click()
    qtbot.waitUntil(lambda: section.target is computed.scan, timeout=60_000)
    assert [layer.name for layer in computed.viewer.layers] == names  # nothing was opened twice


def test_features_of_a_scan_that_is_left_meanwhile_are_not_taken_for_the_next(
    ready: ExplorePanel, phantom: Phantom, qtbot: Any
) -> None:
    add(ready.viewer, volume_layer(phantom.volume, name="chest"))
    ready.compute_button.click()
    ready.scan_box.setCurrentIndex(1)
    finish(ready, qtbot)
    assert ready.scan.name == "chest"
    assert ready.features is None
    assert ready.notice.text.startswith("Another scan or model was chosen meanwhile")
