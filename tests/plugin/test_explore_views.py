"""Views of AR-SSL4M in a real viewer, with a real model process and a real (untrained) network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractSlider, QLabel, QPushButton, QScrollBar, QWidget

from napari_med3dssl import _compat
from napari_med3dssl._layers import add, geometry_of, volume_layer
from napari_med3dssl._widgets import Section
from napari_med3dssl.explore import ExplorePanel
from napari_med3dssl.explore_maths import token_at
from napari_med3dssl.explore_views import ViewSection
from tests.plugin.explore_kit import click, finish, work_done
from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method
from training_backend.data.phantoms import Phantom, thorax_ct
from training_backend.data.prepare import InputProfile

pytestmark = pytest.mark.gl

SIZE = (16, 24, 24)


def saved(folder: Path, name: str, size: tuple[int, int, int] = SIZE, **changes: Any) -> str:
    """A freshly initialised network, saved like the result of a run."""
    import torch

    from training_backend.weights.save import save_model

    torch.manual_seed(0)
    config = pretrain_config(name, "tiny", Path(), {"data": {"size": size}, "method": {"depth": 2, **changes}})
    profile = InputProfile(size=size, crop_body=False, intensity=config.data.intensity).model_dump(mode="json")
    card = {"kind": "pretrain", "config": config.model_dump(mode="json"), "profile": profile}
    save_model(folder, method(name).build(config), card)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "next-patch", "ar", patch_size=(4, 4, 4))


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """More patches than are drawn within any test."""
    folder = tmp_path_factory.mktemp("models") / "slow"
    return saved(folder, "ar", (48, 64, 64), patch_size=(4, 4, 4), depth=4)


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "masked", "mae3d", patch_size=(4, 4, 4), decoder_depth=1)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return thorax_ct(3, (20, 30, 28))


@pytest.fixture
def ready(panel: ExplorePanel, phantom: Phantom, model: str) -> ExplorePanel:
    """Panel with a scan and a next-patch model chosen."""
    add(panel.viewer, volume_layer(phantom.volume))
    panel.state.model = model
    return panel


def section(panel: ExplorePanel, name: str) -> ViewSection:
    """The section of a view, unfolded."""
    found = next(one for one in panel.views if one.view.name == name)
    found.fold(False)
    return found


def layer(panel: ExplorePanel, name: str) -> Any:
    return panel.viewer.layers[name]


def test_the_model_decides_which_views_there_are(
    ready: ExplorePanel, masked_model: str, model: str, tmp_path: Path, qtbot: Any
) -> None:
    names = [one.view.name for one in ready.views]
    assert names == ["next-patch", "roll-out", "predictability", "sequence", "token-attention"]  # known from the card
    assert not ready.masking.isVisibleTo(ready)
    ready.state.model = masked_model
    assert [one.view.name for one in ready.views] == ["token-attention"]
    assert ready.masking.isVisibleTo(ready)
    file = tmp_path / "weights.safetensors"  # only the weights of a lone file tell what it is
    file.write_bytes((Path(model) / "model.safetensors").read_bytes())
    ready.state.model = str(file)
    assert ready.views == []
    assert ready.load_button.isVisibleTo(ready)
    ready.state.model = model
    assert len(ready.views) == 5
    assert not ready.load_button.isVisibleTo(ready)


def test_the_slider_draws_again_and_the_newest_wish_wins(ready: ExplorePanel, qtbot: Any) -> None:
    view = section(ready, "next-patch")
    slider = view.settings.editor("prefix").bar
    slider.setValue(0.9)
    assert not ready.busy  # nothing is shown yet
    slider.setValue(0.25)
    qtbot.mouseClick(view.show_button, Qt.MouseButton.LeftButton)
    assert ready.busy
    finish(ready, qtbot)
    assert "36 of 144 patches are given" in view.text.text()
    assert "without brightness and contrast" in view.text.text()
    names = [f"{name} · next-patch" for name in ("original", "prediction", "error", "loss")]
    assert [one.name for one in ready.viewer.layers if one.visible] == names
    assert _compat.grid(ready.viewer).enabled
    assert _compat.grid(ready.viewer).actual_shape(ready.viewer.layers) == (2, 2)
    original, first = layer(ready, names[0]), layer(ready, names[1]).data.copy()
    assert original.data.shape == SIZE
    same = np.isclose(first, original.data, atol=1e-3).reshape(4, 4, 6, 4, 6, 4).all(axis=(1, 3, 5))
    assert 36 <= same.sum() < 144  # the context, and patches of nothing but air
    original.contrast_limits = (-500, 300)
    for share in (0.4, 0.6, 0.5, 0.75):
        slider.setValue(share)
        qtbot.wait(20)
    assert view.body.isEnabled()
    qtbot.waitUntil(lambda: "108 of 144" in view.text.text(), timeout=30_000)
    finish(ready, qtbot)
    assert not view.wanted
    assert np.isnan(layer(ready, names[3]).data).sum() == 108
    assert not np.array_equal(layer(ready, names[1]).data, first)
    assert list(original.contrast_limits) == [-500, 300]  # the user set it
    qtbot.mouseClick(view.grid_button, Qt.MouseButton.LeftButton)
    assert not _compat.grid(ready.viewer).enabled
    assert [one.name for one in ready.viewer.layers if one.visible] == [ready.scan.name]


def test_a_roll_out_is_seen_growing_and_can_be_stopped(
    ready: ExplorePanel, model: str, slow_model: str, qtbot: Any
) -> None:
    ready.state.model = slow_model
    view = section(ready, "roll-out")
    view.settings.editor("prefix").bar.setValue(0.1)
    drawn: list[int] = []
    show = view._show

    def watch(values: dict[str, Any]) -> None:
        show(values)
        shown = layer(ready, "continuation · roll-out").data
        drawn.append(int((shown > shown.min()).sum()))

    view._show = watch
    qtbot.mouseClick(view.show_button, Qt.MouseButton.LeftButton)
    assert view.stop_button.isEnabled()
    qtbot.waitUntil(lambda: len(drawn) >= 3, timeout=30_000)
    assert drawn[0] < drawn[-1]
    stopped = time.monotonic()
    qtbot.mouseClick(view.stop_button, Qt.MouseButton.LeftButton)
    finish(ready, qtbot)
    assert time.monotonic() - stopped < 2
    assert ready.notice.text == "Stopped; what was drawn so far stays."
    assert "drawn, each from those before it" in view.text.text()
    assert "307 of 3072 patches are given" in view.text.text()
    assert not view.stop_button.isEnabled()
    ready.state.model = model
    view = section(ready, "roll-out")
    view.settings.editor("prefix").bar.setValue(0.1)
    qtbot.mouseClick(view.show_button, Qt.MouseButton.LeftButton)
    finish(ready, qtbot)
    assert "14 of 144 patches are given, 130 drawn" in view.text.text()
    assert layer(ready, "continuation · roll-out").data.shape == SIZE
    assert len([one for one in ready.viewer.layers if one.name.startswith("continuation")]) == 1


def test_a_click_shows_where_its_patch_looks(ready: ExplorePanel, qtbot: Any) -> None:
    view = section(ready, "token-attention")
    ready.similarity.leave()
    qtbot.mouseClick(view.pick_button, Qt.MouseButton.LeftButton)
    assert ready.viewer.cursor.style == "cross"
    click(ready, (10, 15, 14))
    finish(ready, qtbot)
    shown = layer(ready, "attention · token-attention")
    assert shown.data.shape == (4, 6, 6)
    text, first = view.text.text(), shown.data.copy()
    assert "Block 2, mean of 6 heads" in text
    cell = token_at((10, 15, 14), geometry_of(ready.scan), geometry_of(shown))
    assert f"z, y, x = {', '.join(str(n + 1) for n in cell)} looks" in text
    assert not _compat.grid(ready.viewer).enabled  # a map over the scan
    assert shown.visible
    assert ready.scan.visible
    view.settings.editor("mode").box.setCurrentText("causal")
    qtbot.waitUntil(lambda: (layer(ready, "attention · token-attention").data == 0).any(), timeout=30_000)
    finish(ready, qtbot)
    click(ready, (3, 3, 3))
    finish(ready, qtbot)
    assert not np.array_equal(layer(ready, "attention · token-attention").data, first)
    seeds = layer(ready, f"{ready.scan.name} · seeds")
    np.testing.assert_array_equal(seeds.data, [[3, 3, 3]])
    view.settings.editor("block").edit.setText("9")
    view.settings.editor("block").edit.textEdited.emit("9")
    qtbot.waitUntil(lambda: "has 2 blocks, so block 9 does not exist" in ready.notice.text, timeout=30_000)
    qtbot.keyClick(ready.viewer.window._qt_viewer.canvas.native, Qt.Key.Key_Escape)
    assert not view.pick_button.isChecked()
    assert ready.viewer.cursor.style == "standard"


def test_only_one_section_takes_the_clicks(ready: ExplorePanel, qtbot: Any) -> None:
    view = section(ready, "token-attention")
    ready.compute_button.click()
    finish(ready, qtbot)
    before = len(ready.viewer.mouse_drag_callbacks)
    qtbot.mouseClick(ready.similarity.pick_button, Qt.MouseButton.LeftButton)
    qtbot.mouseClick(view.pick_button, Qt.MouseButton.LeftButton)
    assert (ready.similarity.pick_button.isChecked(), view.pick_button.isChecked()) == (False, True)
    assert len(ready.viewer.mouse_drag_callbacks) == before + 1
    ready.similarity.toggle()
    assert (ready.similarity.pick_button.isChecked(), view.pick_button.isChecked()) == (True, False)
    assert len(ready.viewer.mouse_drag_callbacks) == before + 1
    view.leave()
    ready.leave_picking()
    assert len(ready.viewer.mouse_drag_callbacks) == before


def test_features_of_a_next_patch_model_serve_the_other_sections(ready: ExplorePanel, qtbot: Any) -> None:
    ready.compute_button.click()
    finish(ready, qtbot)
    assert "5 × 8 × 7 tokens of 192 numbers" in ready.notice.text
    ready.similarity.pick_button.click()
    click(ready, (10, 15, 14))
    token = token_at((10, 15, 14), geometry_of(ready.scan), ready.features.geometry)
    ready.similarity.body_only.setChecked(False)
    similar = layer(ready, "similarity").data
    assert similar[token] == pytest.approx(1, abs=1e-3) == similar.max()
    ready.embedding.show_button.click()
    work_done(qtbot)
    assert layer(ready, "embedding").data.shape == (5, 8, 7, 4)
    ready.attention.show_button.click()
    finish(ready, qtbot)
    assert layer(ready, "attention").data.mean() == pytest.approx(1, abs=0.2)


def test_sequence_and_predictability(ready: ExplorePanel, qtbot: Any) -> None:
    view = section(ready, "sequence")
    view.show_button.click()
    finish(ready, qtbot)
    order = layer(ready, "order · sequence").data
    assert sorted(order.ravel()) == list(range(144))
    part = layer(ready, "part · sequence").data
    assert (part == 1).sum() == 36
    assert (part == 2).sum() == 1
    np.testing.assert_array_equal(part[order < 36], 1)
    assert set(np.unique(layer(ready, "slab · sequence").data)) == {1, 2, 3, 4}
    other = section(ready, "predictability")
    other.settings.editor("prefixes").bar.setValue(4)
    other.show_button.click()
    finish(ready, qtbot)
    assert "over 4 of 4 contexts" in other.text.text()
    surprise = layer(ready, "surprise · predictability")
    shown = [one.name for one in ready.viewer.layers if one.visible]
    assert shown == [ready.scan.name, "surprise · predictability"]  # over the scan; the grid is left
    assert not _compat.grid(ready.viewer).enabled
    view.show_button.click()
    finish(ready, qtbot)
    assert _compat.grid(ready.viewer).enabled
    assert not surprise.visible
    assert np.isfinite(surprise.data).all()
    assert surprise.units == ready.scan.units


def test_another_scan_is_not_drawn_into_by_old_wishes(ready: ExplorePanel, phantom: Phantom, qtbot: Any) -> None:
    view = section(ready, "next-patch")
    view.show_button.click()
    finish(ready, qtbot)
    ready.toggle_grid()
    add(ready.viewer, volume_layer(thorax_ct(4, (20, 30, 28)).volume, name="second"))
    ready.scan_box.setCurrentText("second")
    view.settings.editor("prefix").bar.setValue(0.6)
    qtbot.wait(400)
    assert not ready.busy
    assert "36 of 144" in view.text.text()


def test_nothing_is_cut_at_400_pixels_and_everything_has_a_name(ready: ExplorePanel, qtbot: Any) -> None:
    view = section(ready, "next-patch")
    view.show_button.click()
    finish(ready, qtbot)
    for one in ready.findChildren(Section):
        one.fold(False)
    ready.setFixedWidth(400)
    qtbot.wait(50)
    for widget in ready.findChildren(QWidget):
        if widget.isVisibleTo(ready) and widget.parent() is not None:
            assert widget.mapTo(ready, widget.rect().topRight()).x() <= 400, (
                type(widget).__name__,
                widget.objectName(),
            )
    for made in ready.findChildren(QPushButton):
        if made.isVisibleTo(ready):
            assert made.width() >= made.minimumSizeHint().width(), made.text()
    for label in ready.findChildren(QLabel):
        if label.isVisibleTo(ready) and label.wordWrap():
            assert label.height() >= label.heightForWidth(label.width()), label.text()
    for slider in ready.findChildren(QAbstractSlider):
        assert slider.width() > 40 or isinstance(slider, QScrollBar) or not slider.isVisibleTo(ready)
