"""The preview of sequences in the Pre-train tab, in a real window with a real model process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_med3dssl._layers import add, geometry_of, volume_layer
from napari_med3dssl._state import State
from napari_med3dssl.pretrain_panel import PretrainPanel
from tests.plugin.explore_kit import work_done
from training_backend.data.phantoms import thorax_ct

pytestmark = pytest.mark.gl


@pytest.fixture
def pretrain(window_state: State, qtbot: Any) -> Iterator[PretrainPanel]:
    window_state.dataset = None
    panel = PretrainPanel(window_state)
    dock = window_state.viewer.window.add_dock_widget(panel, name="Pre-train", area="right")
    work_done(qtbot)
    yield panel
    work_done(qtbot)
    window_state.viewer.window.remove_dock_widget(dock)


def choose(panel: PretrainPanel, method: str) -> None:
    panel.method.setCurrentIndex(panel.method.findData(method))
    panel.preset.setCurrentIndex(panel.preset.findData("tiny"))
    panel._restart()


def test_an_example_sequence_lies_beside_the_open_scan_with_its_slabs(pretrain: PretrainPanel, qtbot: Any) -> None:
    viewer = pretrain.state.viewer
    choose(pretrain, "mae3d")
    assert pretrain.preview_button.text() == "Preview masking"
    choose(pretrain, "ar")
    assert pretrain.preview_button.text() == "Preview sequences"
    qtbot.mouseClick(pretrain.preview_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "open a scan" in pretrain.launch.notice.text, timeout=60_000)
    work_done(qtbot)
    add(viewer, volume_layer(thorax_ct(1, (40, 60, 56)).volume, name="scan"))
    qtbot.mouseClick(pretrain.preview_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=60_000)
    work_done(qtbot)
    scan, image, slabs = viewer.layers
    assert (image.name, slabs.name) == ("spatial · sequence", "spatial slabs · sequence")
    assert image.data.shape == slabs.data.shape == (32, 48, 48)
    assert slabs.contour == 1
    assert list(slabs.features["class"]) == ["background", "slab 1", "slab 2", "slab 3", "slab 4"]
    assert image.extent.world[0][2] > scan.extent.world[1][2]  # to the left of the patient
    assert geometry_of(image).same_grid(geometry_of(slabs))
    assert "4 slabs of 8 slices, 4 apart" in pretrain.launch.notice.text
    first = image.data.copy()
    pretrain.form.editor("seed").show_value(5)
    qtbot.mouseClick(pretrain.preview_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not np.array_equal(image.data, first), timeout=60_000)
    work_done(qtbot)
    assert len(viewer.layers) == 3
    pretrain.form.editor("data.size").show_value((30, 48, 48))
    qtbot.mouseClick(pretrain.preview_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "cannot be glued from 4 equal slabs" in pretrain.launch.notice.text, timeout=60_000)
