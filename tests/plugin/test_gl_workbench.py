"""The workbench in a real viewer with a real run: clicked through, closed in mid-run, found again, stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QComboBox,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QScrollBar,
    QWidget,
)

from napari_med3dssl import _samples, _work
from napari_med3dssl.__main__ import dock_workbench, open_files
from napari_med3dssl._layers import add
from napari_med3dssl._widgets import Section
from tests.plugin.stalls import Stalls
from training_backend.data.write import write_volume
from training_backend.jobs import launcher
from training_backend.jobs.registry import list_runs, summary

pytestmark = [pytest.mark.gl, pytest.mark.usefixtures("source_path")]

STALL_MS = 100
"""Longest pause of the Qt loop that is allowed while a run is active."""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs and settings shared by the viewers of this module, and by nothing else."""
    folder = tmp_path_factory.mktemp("home ä")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MED3DSSL_RUNS", str(folder / "runs"))
        patch.setenv("NAPARI_CONFIG", str(folder / "napari.yaml"))
        yield folder
        for run in list_runs(folder / "runs"):
            if run.alive:
                launcher.cancel(launcher.RunDirectory(run.path), patience_s=10)


@pytest.fixture(autouse=True)
def _same_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MED3DSSL_RUNS", str(home / "runs"))


def open_viewer() -> tuple[Any, Any]:
    import napari

    viewer = napari.Viewer(show=True)
    viewer.window.resize(1280, 800)
    return viewer, dock_workbench(viewer)


@pytest.fixture(scope="module")
def opened(qapp: Any, home: Path) -> Iterator[tuple[Any, Any]]:
    """One viewer for all tests until the one that closes it."""
    viewer, workbench = open_viewer()
    yield viewer, workbench
    _work.wait_all()
    try:
        viewer.close()
    except RuntimeError:  # closed by a test
        assert workbench is not None


def test_every_tab_explains_itself_at_first(opened: tuple[Any, Any], wait: Callable[..., None]) -> None:
    _, workbench = opened
    panels = workbench.panels
    workbench.show_tab("Data")
    assert panels["Data"].empty.isVisible()
    workbench.show_tab("Pre-train")
    wait(lambda: "Data tab" in panels["Pre-train"].launch.list.text())
    workbench.show_tab("Fine-tune")
    wait(lambda: "No fine-tuned model yet" in panels["Fine-tune"].predict.notice.text)
    workbench.show_tab("Explore")
    assert "Open a scan" in panels["Explore"].notice.text
    workbench.show_tab("Runs")
    wait(lambda: panels["Runs"].empty.isVisible())
    wait(lambda: "GB" in workbench.device.text())


def overflowing(workbench: Any) -> list[str]:
    """Widgets wider than the viewport that scrolls them, and buttons whose text is cut."""
    wrong = []
    for area in workbench.findChildren(QScrollArea):
        viewport, inner = area.viewport(), area.widget()
        if not area.isVisible() or inner is None:
            continue
        for child in inner.findChildren(QWidget):
            if not child.isVisible() or isinstance(child, QScrollBar) or inside_table(child, inner):
                continue
            right = child.mapTo(viewport, child.rect().topRight()).x()
            if right > viewport.width():
                wrong.append(f"{type(child).__name__} {child.accessibleName() or child.objectName()} ends at {right}")
            if isinstance(child, QAbstractButton) and child.width() < child.fontMetrics().horizontalAdvance(
                child.text()
            ):
                wrong.append(f"button {child.text()!r} is cut")
    return wrong


def inside_table(child: QWidget, end: QWidget) -> bool:
    """Tables and plots scroll by themselves."""
    parent = child.parentWidget()
    while parent is not None and parent is not end:
        if parent.inherits("QAbstractScrollArea"):
            return True
        parent = parent.parentWidget()
    return False


def settle(workbench: Any, wait: Callable[..., None], qtbot: Any) -> None:
    """Wait until work has ended and no widget has moved for a while; layouts settle in several turns of the loop."""

    def places() -> list[Any]:
        return [widget.geometry() for widget in workbench.findChildren(QWidget) if widget.isVisible()]

    def calm() -> bool:
        before = places()
        for _ in range(4):
            qtbot.wait(25)
            if _work._running or places() != before:
                return False
        return True

    wait(calm, 30, "for the layout to settle")


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("width", [400, 320])
def test_nothing_is_cut(
    theme: str, width: int, opened: tuple[Any, Any], dataset: Path, wait: Callable[..., None], qtbot: Any
) -> None:
    viewer, workbench = opened
    viewer.theme = theme
    workbench.state.dataset = dataset
    window = workbench.window()
    window.resizeDocks([workbench.parentWidget()], [width], Qt.Orientation.Horizontal)
    for name, panel in workbench.panels.items():
        workbench.show_tab(name)
        for section in panel.findChildren(Section):
            section.fold(False)
        settle(workbench, wait, qtbot)
        assert overflowing(workbench) == [], name
        for section in panel.findChildren(Section):
            section.fold(name not in ("Fine-tune",))
    viewer.theme = "dark"
    assert workbench.minimumSizeHint().height() <= 400


def test_the_search_for_what_is_cut_finds_it(opened: tuple[Any, Any], wait: Callable[..., None], qtbot: Any) -> None:
    _, workbench = opened
    workbench.show_tab("Data")
    wide = QPushButton("as wide as a poster")
    wide.setFixedWidth(900)
    workbench.panels["Data"].saving.layout().addWidget(wide)
    workbench.panels["Data"].saving.show()
    settle(workbench, wait, qtbot)
    found = overflowing(workbench)
    workbench.panels["Data"].saving.hide()
    wide.setParent(None)
    wide.deleteLater()
    assert any(line.startswith("QPushButton") for line in found)


def test_everything_is_reached_by_keyboard_and_has_a_name(opened: tuple[Any, Any]) -> None:
    _, workbench = opened
    for name in workbench.panels:
        workbench.show_tab(name)
        for kind in (QAbstractButton, QLineEdit, QComboBox):
            for widget in workbench.panels[name].findChildren(kind):
                if not widget.isVisible() or isinstance(widget.parentWidget(), QComboBox | QAbstractSpinBox):
                    continue
                if widget.inherits("QTableCornerButton") or widget.objectName().startswith("qt_"):
                    continue
                assert widget.focusPolicy() & Qt.FocusPolicy.TabFocus, (name, widget.accessibleName())
                text = widget.text() if isinstance(widget, QAbstractButton) else ""
                assert widget.accessibleName() or text, (name, type(widget).__name__, widget.objectName())


def test_files_open_with_letters_and_a_damaged_one_is_told(opened: tuple[Any, Any], tmp_path: Path, qtbot: Any) -> None:
    viewer, _ = opened
    from training_backend.data.phantoms import mr_contrasts

    good = write_volume(mr_contrasts(0, (16, 24, 20)).volume, tmp_path / "good.nii.gz")
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"\x1f\x8b\x08nothing")
    assert open_files(viewer, [good, bad]) == [bad]
    assert viewer.canvas.overlays["med3dssl_right"].text == "L"
    viewer.layers.clear()


def test_a_stall_of_the_plugin_s_own_making_is_measured(qapp: Any, qtbot: Any) -> None:
    stalls = Stalls()
    qtbot.wait(50)
    QTimer.singleShot(0, lambda: time.sleep(0.4))
    qtbot.wait(600)
    stalls.end()
    assert stalls.longest > STALL_MS


def test_a_run_is_started_watched_left_alone_found_again_and_stopped(
    opened: tuple[Any, Any], dataset: Path, wait: Callable[..., None], qtbot: Any, record_property: Callable[..., None]
) -> None:
    viewer, workbench = opened
    panels = workbench.panels
    add(viewer, _samples.ct_phantom()[0])
    workbench.state.dataset = dataset
    workbench.show_tab("Pre-train")
    form = panels["Pre-train"].form
    changes = {"data.size": (16, 16, 16), "optim.max_steps": 100_000, "optim.batch_size": 2, "engine.threads": 1}
    changes |= {"engine.val_steps": 200, "engine.preview_minutes": 0.05, "data.workers": 0, "engine.device": "cpu"}
    for path, value in changes.items():
        form.editor(path).show_value(value)
    panels["Pre-train"].launch.check()
    wait(panels["Pre-train"].launch.start_button.isEnabled, 60, panels["Pre-train"].launch.list.text)
    qtbot.mouseClick(panels["Pre-train"].launch.start_button, Qt.MouseButton.LeftButton)
    runs = panels["Runs"]
    wait(lambda: workbench.tabs.currentWidget() is runs)
    wait(lambda: runs.chosen is not None and runs.chosen.state == "running" and runs.chosen.step > 3, 180)
    wait(lambda: "step" in runs.card.log.toPlainText())
    wait(lambda: len(runs.card.plot.points("train")[0]) > 2)
    assert "steps/s" in runs.card.facts.text()
    runs._drawn = (None, -1e9)
    runs.card.previews.setChecked(True)
    wait(lambda: any(layer.name.endswith("live") for layer in viewer.layers), 60)
    wait(lambda: not runs._pending)
    measured = []
    for _ in range(6):  # a busy machine may spoil a measurement; what the plugin does itself it does in every one
        stalls = Stalls()
        qtbot.wait(3000)
        stalls.end()
        measured.append((stalls.longest, stalls.work))
        if measured[-1][0] < STALL_MS:
            break
    record_property("longest_stall_ms", measured[-1])
    assert measured[-1][0] < STALL_MS, measured
    assert max(work for _, work in measured) < STALL_MS, measured
    assert "torch" not in viewer_modules()
    path = runs.chosen.path
    runs.act("pause")
    wait(lambda: runs.chosen.state == "paused", 60, lambda: runs.card.state.text())
    runs.act("resume")
    wait(lambda: runs.chosen.state == "running", 60, lambda: runs.card.state.text())
    viewer.close()
    before = summary(path)
    assert before.alive
    other, again = open_viewer()
    try:
        again.show_tab("Runs")
        found = again.panels["Runs"]
        wait(lambda: found.chosen is not None and found.chosen.path.resolve() == path.resolve())
        wait(lambda: found.chosen.step > before.step, 60)
        found.card.buttons["stop"].click()
        wait(lambda: found.chosen.state == "cancelled" and not found.chosen.alive, 60, lambda: found.card.state.text())
        assert {"resume", "clone", "delete"} <= set(found.chosen.actions)
        assert found.card.buttons["resume"].isVisible()
        assert list((path / "checkpoints").glob("step_*"))
    finally:
        _work.wait_all()
        other.close()


def viewer_modules() -> set[str]:
    """Packages that the plugin has brought into this process; the tests' own imports of torch do not count."""
    code = (
        "import sys; from napari_med3dssl import workbench, data_panel, pretrain_panel, finetune_panel, runs_panel\n"
        "from napari_med3dssl import explore, doctor_panel, results, _reader, _writer, _samples\n"
        "from training_backend.jobs import launcher, sources\n"
        "from training_backend.config.registry import methods, tasks; methods(); tasks(); sources.zoo_sources(); "
        "print(' '.join({name.split('.')[0] for name in sys.modules}))"
    )
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return set(result.stdout.split())
