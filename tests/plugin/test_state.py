"""What panels share, what is remembered, and work off the Qt thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from napari.components import ViewerModel
from napari.utils._proxies import PublicOnlyProxy
from qtpy.QtWidgets import QWidget

from napari_med3dssl import _work
from napari_med3dssl._settings import Settings
from napari_med3dssl._state import State, state_of
from training_backend.errors import DataError, ResourceError


def test_one_state_per_viewer_also_through_napari_s_proxy() -> None:
    one, other = ViewerModel(), ViewerModel()
    assert state_of(one) is state_of(PublicOnlyProxy(one))
    assert state_of(one) is not state_of(other)


def test_the_dataset_is_announced_and_remembered(state: State, dataset: Path) -> None:
    heard: list[Path | None] = []
    state.dataset_changed.connect(heard.append)
    state.dataset = dataset
    state.dataset = dataset
    assert heard == [dataset]
    assert state_of(ViewerModel()).dataset == dataset
    assert state.settings.get("datasets") == [str(dataset)]


def test_a_remembered_dataset_that_is_gone_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MED3DSSL_RUNS", str(tmp_path / "runs"))
    Settings().set("dataset", str(tmp_path / "gone"))
    assert state_of(ViewerModel()).dataset is None


def test_damaged_settings_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "workbench.json"
    path.write_text("{half", encoding="utf-8")
    settings = Settings(path)
    assert settings.get("a", 1) == 1
    settings.set("a", [2])
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [2]}


def test_widgets_that_are_gone_hear_nothing(state: State, qtbot: Any) -> None:
    heard: list[object] = []
    widget = QWidget()
    state.follow(widget, state.model_changed, heard.append)
    state.model = "one"
    with qtbot.waitSignal(widget.destroyed):
        widget.deleteLater()
    state.model = "two"
    assert heard == ["one"]


def test_work_runs_in_a_thread_and_answers_in_the_qt_thread(qtbot: Any, wait: Callable[..., None]) -> None:
    owner = QWidget()
    qtbot.addWidget(owner)
    seen: dict[str, object] = {}

    def work(progress: Any) -> str:
        seen["worker"] = threading.get_ident()
        progress(0.5, "half")
        return "done"

    job = _work.start(
        owner,
        work,
        done=lambda result: seen.update(result=result, thread=threading.get_ident()),
        progressed=lambda share, text: seen.update(progress=(share, text)),
    )
    wait(lambda: not job.running)
    assert seen["result"] == "done"
    assert seen["progress"] == (0.5, "half")
    assert seen["thread"] == threading.get_ident() != seen["worker"]


@pytest.mark.parametrize("fails", [False, True])
def test_whoever_hears_the_outcome_sees_no_sign_of_work_any_more(
    fails: bool, qtbot: Any, wait: Callable[..., None]
) -> None:
    owner, heard = QWidget(), []
    qtbot.addWidget(owner)

    def work() -> int:
        if fails:
            raise DataError("The scan is empty.")
        return 7

    def note(outcome: object) -> None:
        heard.extend(["running" if job.running else "idle", outcome])

    job = _work.start(owner, work, done=note, failed=note, ended=lambda: heard.append("ended"))
    wait(lambda: not job.running)
    assert heard == ["ended", "idle", "The scan is empty." if fails else 7]


def test_work_is_cancelled_at_its_next_report(qtbot: Any, wait: Callable[..., None]) -> None:
    owner = QWidget()
    qtbot.addWidget(owner)
    heard: list[str] = []

    def work(progress: Any) -> None:
        while True:
            progress(0.1)
            time.sleep(0.01)

    job = _work.start(owner, work, cancelled=lambda: heard.append("cancelled"), progressed=lambda *_: None)
    job.stop()
    wait(lambda: not job.running)
    assert heard == ["cancelled"]


def test_answers_to_a_widget_that_is_gone_are_dropped(qtbot: Any, wait: Callable[..., None]) -> None:
    owner, heard = QWidget(), []
    job = _work.start(owner, time.sleep, 0.1, done=heard.append)
    with qtbot.waitSignal(owner.destroyed):
        owner.deleteLater()
    wait(lambda: not job.running)
    assert heard == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (DataError("The scan is empty.", "Choose another one."), "The scan is empty. Choose another one."),
        (ResourceError("The disk is full."), "The disk is full."),
        (PermissionError(13, "Permission denied", "/x/y"), "Permission denied: /x/y."),
        (KeyError("a"), "Something went wrong that should not: KeyError"),
        (MemoryError(), "The memory did not suffice."),
    ],
)
def test_every_error_becomes_a_sentence(error: Exception, sentence: str, qtbot: Any, wait: Callable[..., None]) -> None:
    owner, heard = QWidget(), []
    qtbot.addWidget(owner)

    def work() -> None:
        raise error

    job = _work.start(owner, work, failed=heard.append)
    wait(lambda: not job.running)
    assert len(heard) == 1
    assert heard[0].startswith(sentence)
    assert "Traceback" not in heard[0]
