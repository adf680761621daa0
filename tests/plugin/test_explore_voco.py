"""Views of VoCo, and looking for a place of one scan in another, in a real viewer with a real model process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QEvent, QPoint
from qtpy.QtGui import QHelpEvent

from napari_med3dssl import _compat
from napari_med3dssl._layers import add, geometry_of, volume_layer
from napari_med3dssl.explore import ExplorePanel
from napari_med3dssl.explore_maths import token_at
from napari_med3dssl.explore_matrix import MARGIN, SQUARE, Matrices, MatrixPicture
from tests.plugin.explore_kit import click, finish
from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method
from training_backend.data.phantoms import thorax_ct
from training_backend.data.prepare import InputProfile

pytestmark = pytest.mark.gl

SLAB = (64, 64, 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A freshly initialised network, saved like the result of a run."""
    import torch

    from training_backend.weights.save import save_model

    torch.manual_seed(0)
    small = {"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 16, "projected": 8}
    config = pretrain_config("voco", "tiny", Path(), {"method": small})
    profile = InputProfile(size=SLAB, crop_body=False, intensity=config.data.intensity).model_dump(mode="json")
    folder = tmp_path_factory.mktemp("models") / "voco"
    card = {"kind": "pretrain", "config": config.model_dump(mode="json"), "profile": profile}
    save_model(folder, method("voco").build(config), card)
    return str(folder)


@pytest.fixture
def ready(panel: ExplorePanel, model: str) -> ExplorePanel:
    """Panel with two scans, of which the first is explored, and a model chosen."""
    add(panel.viewer, volume_layer(thorax_ct(3, (48, 60, 56)).volume, name="first"))
    add(panel.viewer, volume_layer(thorax_ct(4, (50, 52, 64)).volume, name="second"))
    panel.scan_box.setCurrentText("first")
    panel.state.model = model
    return panel


def shown(panel: ExplorePanel, name: str) -> Any:
    section = next(one for one in panel.views if one.view.name == name)
    section.fold(False)
    return section


def test_positions_matrices_and_the_map_of_positions(ready: ExplorePanel, qtbot: Any) -> None:
    names = ["positions", "position-map", "likeness", "organs", "scales", "likeness-across", "teacher"]
    assert [one.view.name for one in ready.views] == names
    view = shown(ready, "positions")
    view.show_button.click()
    finish(ready, qtbot)
    names = [f"{name} · positions" for name in ("original", "places", "overlap", "prediction")]
    assert [one.name for one in ready.viewer.layers if one.visible] == names
    assert _compat.grid(ready.viewer).enabled
    assert list(view.matrices.pictures) == ["overlap of every crop", "prediction of every crop"]
    assert view.matrices.isVisibleTo(ready)
    matrix = view.matrices.pictures["overlap of every crop"]
    assert matrix.values.shape == (4, 4)
    np.testing.assert_allclose(matrix.values.sum(axis=1), 1, atol=1e-6)
    told = f"crop 2, cell 3: {matrix.values[1, 2]:.2f}"
    assert matrix.value_at(MARGIN + 2.5 * SQUARE, MARGIN + 1.5 * SQUARE) == told
    point = QPoint(int(MARGIN + 2.5 * SQUARE), int(MARGIN + 1.5 * SQUARE))
    assert matrix.event(QHelpEvent(QEvent.Type.ToolTip, point, matrix.mapToGlobal(point)))
    assert "4 rows (crop), 4 columns (cell)" in matrix.accessibleDescription()
    before = matrix.values.copy()
    view.settings.editor("crops").bar.setValue(6)
    qtbot.waitUntil(lambda: view.matrices.pictures["overlap of every crop"].values.shape == (6, 4), timeout=60_000)
    finish(ready, qtbot)
    assert view.matrices.pictures["overlap of every crop"] is matrix  # updated in place
    np.testing.assert_array_equal(matrix.values[:4], before)
    other = shown(ready, "position-map")
    other.settings.editor("steps").box.setCurrentText("1")
    other.show_button.click()
    finish(ready, qtbot)
    cells = ready.viewer.layers["predicted cell · position-map"]
    assert cells.data.shape == (1, 2, 2)
    assert tuple(np.abs(cells.scale) / np.abs(ready.viewer.layers[names[0]].scale)) == pytest.approx((64, 32, 32))
    assert "of 4 places of the crop" in other.text.text()


def test_arrows_lie_over_the_predicted_cells_in_every_slice(ready: ExplorePanel, qtbot: Any) -> None:
    view = shown(ready, "position-map")
    view.settings.editor("steps").box.setCurrentText("1")
    view.show_button.click()
    finish(ready, qtbot)
    arrows = ready.viewer.layers["to the centroid · position-map"]
    assert (type(arrows).__name__, arrows.vector_style) == ("Vectors", "arrow")
    cells = ready.viewer.layers["predicted cell · position-map"]
    assert [one for one in ready.viewer.layers if one.visible and "position-map" in one.name] == [cells, arrows]
    assert len(arrows.data) == np.count_nonzero(cells.data) > 0
    begins = [arrows.data_to_world(one)[1:] for one in arrows.data[:, 0]]
    centres = [cells.data_to_world(place)[1:] for place in np.argwhere(cells.data)]
    np.testing.assert_allclose(sorted(map(tuple, begins)), sorted(map(tuple, centres)), atol=1e-3)
    np.testing.assert_allclose(arrows.features["length (mm)"], np.linalg.norm(arrows.data[:, 1] * arrows.scale, axis=1))
    for share in (0.1, 0.9):  # a slab is one element deep
        ready.viewer.dims.set_point(0, arrows.extent.world[0, 0] + share * np.ptp(arrows.extent.world[:, 0]))
        assert len(arrows._view_data) == len(arrows.data)
    kept = arrows
    view.settings.editor("steps").box.setCurrentText("2")
    qtbot.waitUntil(lambda: len(ready.viewer.layers["predicted cell · position-map"].data[0]) == 3, timeout=60_000)
    finish(ready, qtbot)
    assert ready.viewer.layers["to the centroid · position-map"] is kept  # more arrows in the same layer
    assert len(kept.features) == len(kept.data) > 4
    view.grid_button.click()
    assert _compat.grid(ready.viewer).enabled
    view.grid_button.click()
    assert not _compat.grid(ready.viewer).enabled
    assert kept.visible


def test_base_crops_of_two_open_scans_are_compared(ready: ExplorePanel, qtbot: Any) -> None:
    view = shown(ready, "likeness-across")
    assert [view.where.itemText(k) for k in range(view.where.count())] == ["second"]
    view.show_button.click()
    finish(ready, qtbot)
    assert list(view.matrices.pictures) == [
        "this scan and other scan",
        "this scan and itself",
        "other scan and itself",
    ]
    assert view.matrices.pictures["this scan and other scan"].values.shape == (4, 4)
    first, second = (ready.viewer.layers[f"{name} · likeness-across"] for name in ("cells", "cells of the other scan"))
    assert not geometry_of(first).same_grid(geometry_of(second))
    before = view.matrices.pictures["this scan and other scan"].values.copy()
    add(ready.viewer, volume_layer(thorax_ct(9, (48, 60, 56)).volume, name="third"))
    assert view.other.name == "second"
    view.where.setCurrentText("third")  # draws again by itself
    qtbot.waitUntil(lambda: not np.allclose(view.matrices.pictures["this scan and other scan"].values, before))
    finish(ready, qtbot)
    ready.scan_box.setCurrentText("third")
    assert [view.where.itemText(k) for k in range(view.where.count())] == ["first", "second"]
    for name in ("first", "second"):
        ready.viewer.layers.remove(name)
    finish(ready, qtbot)
    view.show_button.click()
    assert not ready.busy
    assert "Open a second scan to compare with" in ready.notice.text


def test_a_model_without_a_teacher_says_so(ready: ExplorePanel, qtbot: Any) -> None:
    view = shown(ready, "teacher")
    view.show_button.click()
    finish(ready, qtbot)
    assert "no teacher that labelled for it" in ready.notice.text
    assert "omni and semi" in ready.notice.text


def test_features_of_a_chosen_scale(ready: ExplorePanel, qtbot: Any) -> None:
    box = ready.scale_box
    names = [box.itemText(k) for k in range(box.count())]
    assert (names[:3], names[-1]) == (["tokens", "map 1: every voxel", "map 2: 2 voxels"], "map 6: 32 voxels")
    ready.compute_button.click()
    finish(ready, qtbot)
    coarse = ready.features
    box.setCurrentIndex(4)
    assert ready.features is None
    ready.compute_button.click()
    finish(ready, qtbot)
    assert ready.features.tokens.shape[3] == 12
    assert "places of 12 numbers" in ready.notice.text
    ratio = np.array(coarse.geometry.spacing_mm) / ready.features.geometry.spacing_mm
    np.testing.assert_allclose(ratio, 2)
    ready.embedding.fold(False)
    ready.embedding.show_button.click()
    qtbot.waitUntil(lambda: "of the variance" in ready.embedding.explained.text())
    shown_map = ready.viewer.layers["embedding"]
    assert shown_map.data.shape[:3] == ready.features.tokens.shape[:3]
    section = ready.similarity
    section.pick_button.click()
    click(ready, (20, 30, 20))
    section.where.setCurrentIndex(1)  # the other scan is computed at the same scale
    finish(ready, qtbot)
    assert section.looked_in.tokens.shape[3] == 12
    ready.state.model = ""
    assert not box.isVisibleTo(ready)
    assert ready.level == 0


def test_no_line_is_cut_off_a_text_that_grows(ready: ExplorePanel, qtbot: Any) -> None:
    view = shown(ready, "positions")
    for words in (1, 20, 45, 60, 3, 30):
        view.text.setText("of two " * words)
        qtbot.wait(20)
        assert view.text.height() >= view.text.heightForWidth(view.text.width()), words


def test_a_matrix_alone_is_shown_in_the_panel_only(ready: ExplorePanel, qtbot: Any) -> None:
    view = shown(ready, "likeness")
    view.show_button.click()
    finish(ready, qtbot)
    assert list(view.matrices.pictures) == ["student and itself", "student and teacher", "embeddings"]
    assert "cells · likeness" in ready.viewer.layers
    assert not any(one.name.startswith("student") for one in ready.viewer.layers)
    matrix = view.matrices.pictures["student and itself"]
    assert matrix.values.diagonal() == pytest.approx(1, abs=1e-4)
    matrix.resize(matrix.sizeHint())
    corner = matrix.grab().toImage().pixelColor(MARGIN + SQUARE // 2, MARGIN + SQUARE // 2)
    assert min(corner.red(), corner.green()) > 200  # alike to itself: the brightest colour, yellow


def test_the_darkest_and_the_brightest_square() -> None:
    made = MatrixPicture("likeness")
    made.show_matrix({"array": np.array([[0.0, 1.0]]), "limits": [0.0, 1.0], "sides": ["row", "column"]})
    dark, bright = made._colours[0].astype(int).sum(axis=1)
    assert dark < bright
    assert made.value_at(0, 0) == ""


def test_other_matrices_replace_those_before_them(qtbot: Any) -> None:
    made = Matrices()
    qtbot.addWidget(made)
    values = {"array": np.eye(2), "limits": [0.0, 1.0], "sides": ["row", "column"]}
    for names in (["a", "b"], ["c"], [], ["a"]):
        made.show_all([{**values, "name": name} for name in names])
        assert list(made.pictures) == names
        assert made.isVisibleTo(made.parentWidget()) == bool(names)
        qtbot.wait(1)


def test_a_place_picked_in_one_scan_is_looked_for_in_another(ready: ExplorePanel, qtbot: Any) -> None:
    ready.compute_button.click()
    finish(ready, qtbot)
    section = ready.similarity
    assert [section.where.itemText(k) for k in range(section.where.count())] == ["this scan", "second"]
    section.body_only.setChecked(False)
    section.pick_button.click()
    click(ready, (20, 30, 20))
    here = ready.viewer.layers["similarity"]
    token = token_at((20, 30, 20), geometry_of(ready.scan), ready.features.geometry)
    assert here.data[token] == pytest.approx(1, abs=1e-3)
    section.where.setCurrentIndex(1)
    assert ready.busy
    finish(ready, qtbot)
    second, found = ready.viewer.layers["second"], section.looked_in
    there = ready.viewer.layers["similarity"]
    assert geometry_of(there).same_grid(found.geometry)
    assert there.data.shape == found.tokens.shape[:3]
    mine = ready.features.tokens[token].astype(np.float32)
    others = found.tokens.astype(np.float32)
    cosine = others @ mine / np.linalg.norm(others, axis=-1) / np.linalg.norm(mine)
    np.testing.assert_allclose(there.data, cosine, atol=1e-3)
    voxel, best = section.best_match()
    assert best == pytest.approx(there.data.max())
    assert there.data[token_at(voxel, geometry_of(second), found.geometry)] == pytest.approx(best)
    z, y, x = voxel
    assert section.match_text.text() == f"Most alike in second: voxel z, y, x = {z}, {y}, {x}, {best:.2f}."
    section.match_button.click()
    np.testing.assert_allclose(ready.viewer.dims.point, second.data_to_world(voxel), atol=3.0)  # a slice
    section.back_button.click()
    np.testing.assert_allclose(ready.viewer.dims.point, ready.scan.data_to_world((20, 30, 20)), atol=3.0)
    click(ready, (30, 20, 40))  # still picked in the first scan, without asking again
    assert not ready.busy
    assert not np.allclose(ready.viewer.layers["similarity"].data, cosine, atol=1e-3)
    section.to_labels()
    assert geometry_of(ready.viewer.layers["second · similar"]).same_grid(geometry_of(second))
    section.where.setCurrentIndex(0)
    assert ready.viewer.layers["similarity"].data.shape == ready.features.tokens.shape[:3]
    assert section.best_match() is None
    assert not section.match_button.isVisibleTo(ready)
    section.where.setCurrentIndex(1)  # known by now
    assert not ready.busy
    ready.viewer.layers.remove(second)
    assert section.where.count() == 1
    assert section.target is ready.scan
