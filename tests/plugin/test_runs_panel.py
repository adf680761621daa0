"""The Runs panel over run directories on disk: what is shown, what can be asked, and that nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication, QMessageBox, QWidget

from napari_med3dssl._state import State
from napari_med3dssl.run_card import duration
from napari_med3dssl.runs_panel import RunsPanel
from training_backend.config.presets import pretrain_config
from training_backend.data.volume import Geometry
from training_backend.engine.events import EventWriter
from training_backend.engine.rundir import RunDirectory
from training_backend.files import write_json
from training_backend.jobs.registry import new_run


def make_run(name: str, state: str, steps: int = 5, **record: Any) -> RunDirectory:
    """A run directory as a process left it."""
    run = new_run(pretrain_config("mae3d", "tiny", Path("data")), name)
    events = EventWriter(run.events_path)
    events.write("state", 0, state="running", reason="")
    for step in range(1, steps + 1):
        train = {
            "split": "train",
            "epoch": 0.1,
            "lr": 1e-3,
            "step_s": 0.5,
            "memory_mb": 2048,
            "steps": 100,
            "eta_s": 50,
        }
        events.write("metrics", step, values={"loss": 1 / step}, **train)
    events.write("metrics", steps, split="val", epoch=0.1, values={"loss": 0.4}, score=0.4, best_score=0.4)
    events.close()
    run.log_path.write_text("".join(f"step {step}\n" for step in range(1, steps + 1)), encoding="utf-8")
    run.update(state=state, started=time.time() - 60, ended=time.time(), **record)
    return run


@pytest.fixture
def panel(state: State, shown: Callable[[QWidget], QWidget], wait: Callable[..., None]) -> Callable[[], RunsPanel]:
    """Makes the panel, after the test has made the runs it is to find."""

    def make() -> RunsPanel:
        made = shown(RunsPanel(state))
        wait(lambda: bool(made.runs) or made.empty.isVisible())
        return made

    return make


def test_without_runs_there_is_an_explanation_and_a_demo(panel: Callable[[], RunsPanel]) -> None:
    shown = panel()
    assert shown.empty.isVisible()
    assert shown.demo.isEnabled()
    assert not shown.table.isVisible()
    assert not shown.card.isVisible()


def test_table_and_card_show_what_the_disk_says(panel: Callable[[], RunsPanel], wait: Callable[..., None]) -> None:
    make_run("first ä", "finished")
    shown = panel()
    wait(lambda: shown.card.log.toPlainText() != "")
    assert [shown.table.item(0, column).text() for column in range(4)] == ["first ä", "pre-train", "✓ finished", "0.4"]
    assert "model is saved" in shown.card.state.text()
    assert "step 5" in shown.card.log.toPlainText()
    assert shown.card.plot.points("train") == ([1, 2, 3, 4, 5], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert shown.card.plot.points("val") == ([5], [0.4])
    assert shown.card.bar.format() == "step 5 / 100"
    assert "best 0.4" in shown.card.facts.text()
    assert "2.0 GB" in shown.card.facts.text()


@pytest.mark.parametrize(
    ("recorded", "visible"),
    [
        ("queued", {"stop", "clone", "delete", "open", "copy"}),
        ("finished", {"clone", "delete", "open", "copy"}),
        ("cancelled", {"resume", "clone", "delete", "open", "copy"}),
        ("failed", {"resume", "clone", "delete", "open", "copy"}),
        ("running", {"resume", "clone", "delete", "open", "copy"}),
    ],
)
def test_only_what_is_possible_can_be_pressed(
    recorded: str, visible: set[str], panel: Callable[[], RunsPanel], wait: Callable[..., None]
) -> None:
    make_run("run", recorded, pid=999_999, pid_created=1.0)
    shown = panel()
    wait(lambda: shown.card.isVisible())
    assert {name for name, button in shown.card.buttons.items() if button.isVisible()} == visible
    if recorded == "running":
        assert shown.chosen.state == "lost"
        assert "without a word" in shown.card.state.text()


def test_new_events_and_log_lines_are_followed(panel: Callable[[], RunsPanel], wait: Callable[..., None]) -> None:
    run = make_run("run", "finished")
    shown = panel()
    wait(lambda: len(shown.card.plot.points("train")[0]) == 5)
    events = EventWriter(run.events_path)
    events.write("metrics", 6, split="train", epoch=0.2, values={"loss": 0.1}, lr=1e-3, step_s=0.5, steps=100)
    events.write("warning", 6, message="The loss was not finite once.", category="nan", cases=[])
    events.close()
    with run.log_path.open("a") as log:
        log.write("something new\n")
    with run.events_path.open("ab") as stream:
        stream.write(b'{"type": "metrics", "half a li')
    wait(lambda: len(shown.card.plot.points("train")[0]) == 6)
    wait(lambda: "something new" in shown.card.log.toPlainText())
    assert "not finite once" in shown.card.notice.text


def test_a_new_run_is_shown_when_asked_for(panel: Callable[[], RunsPanel], wait: Callable[..., None]) -> None:
    make_run("old", "finished")
    shown = panel()
    wait(lambda: shown.chosen is not None)
    run = make_run("new", "finished")
    shown.choose(run.path)
    wait(lambda: shown.chosen is not None and shown.chosen.name == "new")
    assert shown.table.currentRow() == 0
    shown.table.selectRow(1)
    wait(lambda: shown.chosen.name == "old")


def test_copy_clone_and_delete(
    panel: Callable[[], RunsPanel], state: State, wait: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("run", "finished")
    shown = panel()
    wait(lambda: shown.chosen is not None)
    shown.act("copy")
    command = QApplication.clipboard().text()
    assert command.startswith("med3dssl pretrain --method mae3d --preset tiny --data ")
    assert command.endswith(" --output run-2")
    wanted: list[Any] = []
    state.tab_wanted.connect(lambda *what: wanted.append(what))
    shown.act("clone")
    assert wanted == [("Pre-train", run.path.resolve())]
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.No)
    shown.act("delete")
    assert run.path.exists()
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    shown.act("delete")
    wait(lambda: not run.path.exists())
    wait(lambda: shown.empty.isVisible())
    assert not shown.card.isVisible()


def test_an_action_that_fails_is_told(panel: Callable[[], RunsPanel], wait: Callable[..., None]) -> None:
    make_run("run", "finished")
    shown = panel()
    wait(lambda: shown.chosen is not None)
    shown.act("pause")
    wait(lambda: "cannot be asked to pause" in shown.notice.text)


def test_results_of_a_run_without_any_are_explained(panel: Callable[[], RunsPanel], wait: Callable[..., None]) -> None:
    make_run("run", "cancelled")
    shown = panel()
    wait(lambda: shown.chosen is not None)
    shown.act("open")
    assert "no results yet" in shown.notice.text


def write_preview(run: RunDirectory, step: int, value: float) -> None:
    """Pictures as a run writes them: an image of 8 x 8 x 8 voxels and a token map of 2 x 2 x 2."""
    folder = run.previews / f"step_{step:08d}"
    folder.mkdir(parents=True)
    geometry = Geometry.from_spacing((8, 8, 8), (2.0, 1.0, 1.0), (3.0, 4.0, 5.0))
    np.save(folder / "original.npy", np.full((8, 8, 8), value, np.float32))
    np.save(folder / "mask.npy", np.zeros((2, 2, 2), np.uint8))
    entry = {"limits": [0.0, 1.0], "classes": {}}
    arrays = [
        {"name": "original", "file": "original.npy", "role": "image", "voxels": [1, 1, 1], **entry},
        {"name": "mask", "file": "mask.npy", "role": "mask", "voxels": [4, 4, 4], **entry},
    ]
    write_json(folder / "preview.json", {"step": step, "case": "a", "geometry": geometry.to_dict(), "arrays": arrays})
    events = EventWriter(run.events_path)
    events.write("preview", step, folder=f"previews/{folder.name}", case="a")
    events.close()


def test_live_previews_are_layers_on_the_scan_s_grid_renewed_in_place(
    panel: Callable[[], RunsPanel], state: State, wait: Callable[..., None]
) -> None:
    run = make_run("run", "finished")
    write_preview(run, 10, 0.25)
    shown = panel()
    shown._drawn = (None, -1e9)
    shown.card.previews.setChecked(True)
    wait(lambda: len(state.viewer.layers) == 2)
    image, mask = state.viewer.layers
    assert image.visible
    assert not mask.visible  # it would hide the pictures below
    assert shown.card.pictured.text() == "Pictures of a at step 10."
    np.testing.assert_allclose(image.data_to_world((0, 0, 0)), (-5, 4, 3))
    np.testing.assert_allclose(mask.data_to_world((0, 0, 0)), image.data_to_world((1.5, 1.5, 1.5)))
    write_preview(run, 20, 0.75)
    shown._drawn = (shown._drawn[0], -1e9)
    wait(lambda: float(state.viewer.layers[0].data[0, 0, 0]) == 0.75)
    assert list(state.viewer.layers) == [image, mask]


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (720, "12 min"), (4320, "1 h 12 min"), (273_600, "3 days 4 h")]
)
def test_durations_are_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
