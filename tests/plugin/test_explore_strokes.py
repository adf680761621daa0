"""Strokes in a real viewer: painting fills the region, undo is followed, models are kept, a crash loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_med3dssl import stroke_store
from napari_med3dssl._layers import add, labels_layer, volume_layer, volume_of
from napari_med3dssl._state import State
from napari_med3dssl.explore import ExplorePanel
from napari_med3dssl.explore_strokes import BACKGROUND, StrokesSection
from tests.model_kit import untrained
from tests.plugin.explore_kit import finish, work_done
from training_backend.data.phantoms import Phantom

pytestmark = pytest.mark.gl


@pytest.fixture
def state(window_state: State) -> State:
    return window_state


@pytest.fixture
def section(panel: ExplorePanel, phantom: Phantom, model: str, qtbot: Any) -> StrokesSection:
    """The section with a scan that is ready to be painted on."""
    add(panel.viewer, volume_layer(phantom.volume))
    panel.state.model = model
    panel.strokes.fold(False)
    panel.strokes.paint_button.click()
    finish(panel, qtbot)
    assert panel.strokes.fill_button.isEnabled(), panel.notice.text
    work_done(qtbot)
    return panel.strokes


def painted(section: StrokesSection) -> Any:
    return next(layer for layer in section.panel.viewer.layers if layer.name.endswith(" · painted"))


def filled(section: StrokesSection) -> Any:
    names = [layer.name for layer in section.panel.viewer.layers]
    return section.panel.viewer.layers["filled · strokes"] if "filled · strokes" in names else None


def paint(section: StrokesSection, phantom: Phantom, value: int, inside: bool, count: int = 12) -> None:
    """Dab on voxels of the lungs (class 1 of the phantom) or on others, as a brush of one voxel would."""
    layer = painted(section)
    layer.brush_size, layer.n_edit_dimensions = 1, 3
    found = np.argwhere((phantom.labels.array == 1) == inside)
    for voxel in found[np.random.default_rng(value).choice(len(found), count, replace=False)]:
        layer.paint(tuple(voxel), value)


def keep(section: StrokesSection, phantom: Phantom, qtbot: Any, path: Path) -> None:
    """Paint background and lungs, and save what was learnt."""
    paint(section, phantom, BACKGROUND, inside=False)
    paint(section, phantom, BACKGROUND + 1, inside=True)
    qtbot.waitUntil(lambda: filled(section) is not None, timeout=20_000)
    work_done(qtbot)
    section.save_to(path)
    qtbot.waitUntil(lambda: "Saved" in section.panel.notice.text, timeout=20_000)


def test_painting_two_classes_fills_the_region(section: StrokesSection, phantom: Phantom, qtbot: Any) -> None:
    paint(section, phantom, BACKGROUND, inside=False)
    qtbot.waitUntil(lambda: "second class" in section.told.text(), timeout=20_000)
    assert filled(section) is None  # one class teaches nothing
    paint(section, phantom, BACKGROUND + 1, inside=True)
    qtbot.waitUntil(lambda: filled(section) is not None, timeout=20_000)
    answer, truth = np.asarray(filled(section).data) == 1, phantom.labels.array == 1
    assert 2 * (answer & truth).sum() / (answer.sum() + truth.sum()) > 0.6
    assert "structure 1 12" in section.told.text()
    assert section.panel.viewer.layers[-1] is painted(section)  # the brush stays on top
    assert section.panel.viewer.layers.selection.active is painted(section)


def test_undo_is_followed(section: StrokesSection, phantom: Phantom, qtbot: Any) -> None:
    paint(section, phantom, BACKGROUND, inside=False)
    paint(section, phantom, BACKGROUND + 1, inside=True)
    qtbot.waitUntil(lambda: "structure 1 12" in section.told.text(), timeout=20_000)
    painted(section).undo()
    qtbot.waitUntil(lambda: "structure 1 11" in section.told.text(), timeout=20_000)


def test_the_whole_scan_and_a_kept_model_agree(
    section: StrokesSection, phantom: Phantom, qtbot: Any, tmp_path: Path
) -> None:
    paint(section, phantom, BACKGROUND, inside=False)
    paint(section, phantom, BACKGROUND + 1, inside=True)
    qtbot.waitUntil(lambda: filled(section) is not None, timeout=20_000)
    work_done(qtbot)
    section.whole_button.click()
    qtbot.waitUntil(lambda: section._job is None, timeout=20_000)
    work_done(qtbot)
    whole = np.array(filled(section).data)
    assert whole.shape == phantom.labels.array.shape
    section.save_to(tmp_path / "lungs")
    qtbot.waitUntil(lambda: "Saved lungs.safetensors" in section.panel.notice.text, timeout=20_000)
    section.panel.viewer.layers.remove(filled(section))
    section.apply_from(tmp_path / "lungs.safetensors")
    finish(section.panel, qtbot)
    np.testing.assert_array_equal(np.asarray(filled(section).data), whole)
    paint(section, phantom, BACKGROUND + 1, inside=True, count=20)  # the brush goes on after that
    qtbot.waitUntil(lambda: "structure 1 12" not in section.told.text(), timeout=20_000)
    assert "Filled in" in section.told.text()


def test_strokes_are_kept_while_the_model_is_not_ready(
    section: StrokesSection, phantom: Phantom, qtbot: Any, panel: ExplorePanel
) -> None:
    section.forget()
    paint(section, phantom, BACKGROUND + 1, inside=True)
    qtbot.waitUntil(lambda: "Press Paint" in section.told.text(), timeout=20_000)
    before = stroke_store.strokes_in(np.asarray(painted(section).data))
    qtbot.waitUntil(lambda: stroke_store.find(volume_of(panel.scan)) == before, timeout=20_000)


def test_strokes_come_back_after_a_crash(
    section: StrokesSection, phantom: Phantom, qtbot: Any, panel: ExplorePanel
) -> None:
    paint(section, phantom, BACKGROUND + 1, inside=True)
    before = stroke_store.strokes_in(np.asarray(painted(section).data))
    qtbot.waitUntil(lambda: stroke_store.find(volume_of(panel.scan)) == before, timeout=20_000)
    panel.viewer.layers.remove(painted(section))
    section.begin()
    assert stroke_store.strokes_in(np.asarray(painted(section).data)) == before
    finish(panel, qtbot)


def test_a_kept_model_is_compared_with_another_mask(
    section: StrokesSection, phantom: Phantom, qtbot: Any, tmp_path: Path
) -> None:
    keep(section, phantom, qtbot, tmp_path / "lungs")
    section.apply_from(tmp_path / "lungs.safetensors")
    finish(section.panel, qtbot)
    panel, truth = section.panel, (phantom.labels.array == 1).astype(np.uint8)
    add(panel.viewer, labels_layer(truth, phantom.volume.geometry, "prediction", phantom.classes[:1]))
    comparison = panel.comparison
    comparison.fold(False)
    comparison.one.setCurrentText("filled · strokes")
    comparison.other.setCurrentText("prediction")
    comparison.compare_button.click()
    qtbot.waitUntil(lambda: comparison._job is None and comparison.table.rowCount() > 0, timeout=60_000)
    answer = np.asarray(filled(section).data) == 1
    dice = 2 * (answer & (truth == 1)).sum() / (answer.sum() + truth.sum())
    assert comparison.table.item(0, 1).text() == f"{dice:.3f}"


def test_a_painted_layer_of_another_shape_is_refused(
    section: StrokesSection, phantom: Phantom, qtbot: Any, panel: ExplorePanel
) -> None:
    paint(section, phantom, BACKGROUND + 1, inside=True)
    before = stroke_store.strokes_in(np.asarray(painted(section).data))
    qtbot.waitUntil(lambda: stroke_store.find(volume_of(panel.scan)) == before, timeout=20_000)
    painted(section).data = np.ones((4, 5, 6), np.uint8)
    section.fill_region()
    assert "has 4 × 5 × 6 voxels, but" in panel.notice.text
    work_done(qtbot)
    assert stroke_store.find(volume_of(panel.scan)) == before


def test_a_model_of_another_scale_is_refused(
    section: StrokesSection, phantom: Phantom, qtbot: Any, tmp_path: Path
) -> None:
    keep(section, phantom, qtbot, tmp_path / "lungs")
    section.panel.state.model = untrained(tmp_path / "other", seed=1)
    section.apply_from(tmp_path / "lungs.safetensors")
    finish(section.panel, qtbot)
    assert "taught with the features of another model or scale" in section.panel.notice.text


def test_what_cannot_be_applied_is_said(section: StrokesSection, qtbot: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no model")
    section.apply_from(tmp_path / "broken.safetensors")
    finish(section.panel, qtbot)
    assert "damaged" in section.panel.notice.text
    section.fill_region()
    qtbot.waitUntil(lambda: "Nothing is painted yet" in section.panel.notice.text, timeout=20_000)


def test_kept_strokes_that_are_damaged_are_as_good_as_none(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED3DSSL_RUNS", str(tmp_path / "runs"))
    strokes = stroke_store.Strokes(np.array([[1, 2, 3]]), np.array([2], np.uint8))
    stroke_store.keep(phantom.volume, strokes)
    assert stroke_store.find(phantom.volume) == strokes
    [path] = (tmp_path / "strokes").glob("*.npz")
    path.write_bytes(path.read_bytes()[:30])
    assert stroke_store.find(phantom.volume) is None
    stroke_store.keep(phantom.volume, stroke_store.EMPTY)
    assert not path.exists()
