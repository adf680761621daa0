"""Runs compared by clicks: two really trained runs in the Runs panel, their window, and what it writes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QApplication, QFileDialog, QPushButton, QWidget

from napari_med3dssl._state import State
from napari_med3dssl.curves_plot import NO_CURVE, CurvesPlot
from napari_med3dssl.runs_compare import NO_CASES, RunsCompareDialog
from napari_med3dssl.runs_panel import MARK_SOME, RunsPanel
from tests.run_kit import eight_patients, scored_run, write_events
from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.engine.events import EventWriter
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.jobs.client import ServeClient
from training_backend.jobs.monitor import Series
from training_backend.jobs.registry import remember
from training_backend.jobs.run_compare import compare_runs, pair_sentence

TINY: dict[str, Any] = {
    "data": {"size": (16, 16, 16), "crops_per_volume": 1, "workers": 0},
    "optim": {"max_steps": 4, "batch_size": 1, "warmup": 0.0},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0},
}


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eight_patients(tmp_path_factory.mktemp("eight"))


@pytest.fixture(scope="module")
def trained(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that were trained for four steps, and scored on eight patients."""
    folder = tmp_path_factory.mktemp("trained")
    made = []
    for name, rate in (("slow", 1e-4), ("fast", 1e-2)):
        changes = {**TINY, "optim": {**TINY["optim"], "lr": rate}}
        run = RunDirectory.create(folder / name, finetune_config("segmentation", "tiny", patients, changes=changes))
        assert execute(run) == 0
        made.append(run.path)
    return made


@pytest.fixture
def serving(state: State, client: ServeClient) -> State:
    """State of a viewer with a model process."""
    state._client = client
    return state


@pytest.fixture
def panel(serving: State, shown: Callable[[QWidget], QWidget]) -> Iterator[Callable[[list[Path]], RunsPanel]]:
    """Makes the panel over these runs."""

    def make(paths: list[Path]) -> RunsPanel:
        for path in paths:
            remember(RunDirectory(path))
        return shown(RunsPanel(serving))

    yield make
    serving._client = None


def row_of(panel: RunsPanel, name: str) -> int:
    return next(row for row in range(panel.table.rowCount()) if panel.table.item(row, 0).text() == name)


def click_row(qtbot: Any, panel: RunsPanel, name: str, *, more: bool = False) -> None:
    item = panel.table.item(row_of(panel, name), 0)
    panel.table.scrollToItem(item)
    place = panel.table.visualItemRect(item).center()
    keys = Qt.KeyboardModifier.ControlModifier if more else Qt.KeyboardModifier.NoModifier
    qtbot.mouseClick(panel.table.viewport(), Qt.MouseButton.LeftButton, keys, QPoint(place))


def compared(qtbot: Any, panel: RunsPanel, wait: Callable[..., None], first: str, second: str) -> RunsCompareDialog:
    """The window after two runs of a list of two were marked and compared."""
    wait(lambda: panel.table.rowCount() == 2 and panel.below.isVisible())
    click_row(qtbot, panel, first)
    click_row(qtbot, panel, second, more=True)
    press(qtbot, panel.compare_button)
    dialog = panel.findChild(RunsCompareDialog)
    wait(lambda: ready(dialog), what=lambda: dialog.notice.text)
    return dialog


def press(qtbot: Any, widget: QWidget) -> None:
    assert widget.isVisible()
    assert widget.isEnabled()
    qtbot.mouseClick(widget, Qt.MouseButton.LeftButton)


def texts(table: Any) -> list[list[str]]:
    return [
        [table.item(row, column).text() for column in range(table.columnCount())] for row in range(table.rowCount())
    ]


def opened(panel: RunsPanel) -> RunsCompareDialog:
    return panel.findChild(RunsCompareDialog)


def ready(dialog: RunsCompareDialog) -> bool:
    return bool(dialog.found) and dialog._job is None


def test_two_trained_runs_are_marked_compared_and_written(
    qtbot: Any,
    panel: Callable[[list[Path]], RunsPanel],
    trained: list[Path],
    wait: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = panel(trained)
    wait(lambda: shown.table.rowCount() == 2 and shown.below.isVisible())
    press(qtbot, shown.compare_button)
    assert shown.notice.text == MARK_SOME
    click_row(qtbot, shown, "slow")
    click_row(qtbot, shown, "fast", more=True)
    shown.look()
    wait(lambda: not shown._look.running)
    assert len(shown.table.selectionModel().selectedRows()) == 2  # a look at the disk leaves them marked
    press(qtbot, shown.compare_button)
    dialog = opened(shown)
    wait(lambda: ready(dialog), what=lambda: dialog.notice.text)
    assert dialog.metric.isEnabled()
    assert dialog.structure.isEnabled()
    assert dialog.csv_button.isEnabled()
    assert not dialog.bar.isVisible()
    expected = compare_runs(trained)
    rows = texts(dialog.table)
    assert [row[0] for row in rows] == ["slow", "fast"]
    assert [row[5:7] for row in rows] == [["finished", "4 / 4"]] * 2
    mean = expected.runs[0].mean
    assert rows[0][-1] == f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
    assert texts(dialog.settings) == [["optim.lr", "0.0001", "0.01"]]
    assert dialog.pair_text.text() == pair_sentence(expected.pairs[0], expected.metric)
    assert dialog.cases.rowCount() == len(expected.case_rows()) - 1

    lines = dialog.curves.lines()
    assert list(lines) == ["slow", "fast"]
    assert lines["slow"][0] == [1, 2, 3, 4]
    assert len(dialog.curves.plot.listDataItems()) == 4  # a line and its symbols, twice
    dialog.curves.quantity.setCurrentIndex(1)
    assert dialog.curves.lines()["fast"][0] == [2, 4]

    dialog.structure.setCurrentIndex(dialog.structure.findData("heart"))
    dialog.structure.activated.emit(dialog.structure.currentIndex())
    wait(lambda: ready(dialog) and dialog.found["structure"] == "heart")
    dialog.metric.setCurrentIndex(dialog.metric.findData("hd95_mm"))
    dialog.metric.activated.emit(dialog.metric.currentIndex())
    wait(lambda: ready(dialog) and dialog.found["metric"]["name"] == "hd95_mm", 120)
    hearts = compare_runs(trained, "hd95_mm", "heart")
    assert texts(dialog.pairs)[0][4].startswith(f"{hearts.pairs[0].difference.mean:+.3f} [")
    assert dialog.structure.currentData() == "heart"
    press(qtbot, dialog.copy_button)
    command = QApplication.clipboard().text()
    assert command == f"med3dssl runs compare {trained[0]} {trained[1]} --metric hd95_mm --structure heart"

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "out.csv"), ""))
    press(qtbot, dialog.csv_button)
    wait(lambda: "Saved out.csv, out-pairs.csv, out-cases.csv" in dialog.notice.text)
    with (tmp_path / "out-cases.csv").open(newline="", encoding="utf-8") as stream:
        cases = [row for row in csv.DictReader(stream) if row["structure"] == "heart"]
    assert {row["case"]: float(row["fast"]) for row in cases} == pytest.approx(dict(hearts.runs[1].values))

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "out.html"), ""))
    opened_urls: list[str] = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: opened_urls.append(url.toLocalFile()))
    press(qtbot, dialog.report_button)
    wait(lambda: "out.html" in dialog.notice.text, 120, lambda: dialog.notice.text)
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 9
    assert dialog.pair_text.text() in page.replace("&#x27;", "'")
    press(qtbot, next(one for one in dialog.notice.findChildren(QPushButton) if one.text() == "Open in browser"))
    assert opened_urls == [str(tmp_path / "out.html")]

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "no" / "out.html"), ""))
    press(qtbot, dialog.report_button)
    wait(lambda: "there is no such folder" in dialog.notice.text)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "no" / "out.csv"), ""))
    press(qtbot, dialog.csv_button)
    wait(lambda: "out.csv cannot be written" in dialog.notice.text)
    dialog.close()


def test_a_run_that_trains_is_followed_and_scored_when_it_ends(
    qtbot: Any,
    panel: Callable[[list[Path]], RunsPanel],
    patients: Path,
    tmp_path: Path,
    wait: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from napari_med3dssl import runs_compare
    from training_backend.engine.identity import identity

    monkeypatch.setattr(runs_compare, "LOOK_MS", 50)
    done = scored_run(tmp_path / "done", patients, 1)
    going = RunDirectory.create(tmp_path / "going", finetune_config("segmentation", "tiny", patients))
    write_events(going, 3.0)
    going.update(state="running", **identity())
    dialog = compared(qtbot, panel([done.path, going.path]), wait, "going", "done")
    assert "going: It has no scored validation cases" in dialog.notice.text
    assert dialog.found["pairs"] == []
    wait(lambda: dialog.curves.lines().get("going", ([],))[0] == list(range(1, 11)))
    events = EventWriter(going.events_path)
    events.write("metrics", 11, split="train", epoch=0.2, values={"loss": 0.1}, lr=1e-3, steps=20)
    events.close()
    wait(lambda: dialog.curves.lines()["going"][0][-1] == 11)
    twin = scored_run(tmp_path / "twin", patients, 2)
    twin.predictions.rename(going.predictions)
    going.update(state="finished", pid=None)
    wait(lambda: ready(dialog) and len(dialog.found["pairs"]) == 1)
    assert dialog.notice.text == ""
    assert len(Dataset.open(patients).cases(split="val")) == dialog.found["pairs"][0]["cases"]
    dialog.close()


def test_runs_without_scores_say_so_in_each_tab(
    qtbot: Any, panel: Callable[[list[Path]], RunsPanel], patients: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    runs = [RunDirectory.create(tmp_path / name, finetune_config("segmentation", "tiny", patients)) for name in "ab"]
    dialog = compared(qtbot, panel([run.path for run in runs]), wait, "a", "b")
    assert "fewer than two have scored cases" in dialog.notice.text
    assert dialog.curves.empty.isVisible()
    assert dialog.curves.empty.text() == NO_CURVE
    assert "same settings" in dialog.settings_text.text()
    dialog.tabs.setCurrentIndex(3)
    assert dialog.cases_text.isVisible()
    assert dialog.cases_text.text() == NO_CASES
    assert not dialog.metric.isEnabled()
    dialog.close()


def test_marks_stay_on_their_runs_when_the_list_changes(
    qtbot: Any, panel: Callable[[list[Path]], RunsPanel], patients: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    runs = [scored_run(tmp_path / name, patients, 0) for name in "ab"]
    shown = panel([run.path for run in runs])
    wait(lambda: shown.table.rowCount() == 2)
    click_row(qtbot, shown, "a")
    click_row(qtbot, shown, "b", more=True)
    newer = scored_run(tmp_path / "newer", patients, 0)
    remember(newer)
    shown.look()
    wait(lambda: shown.table.rowCount() == 3)
    marked = {shown.table.item(index.row(), 0).text() for index in shown.table.selectionModel().selectedRows()}
    assert marked == {"a", "b"}
    shown.choose(newer.path)
    wait(lambda: shown.chosen is not None and shown.chosen.name == "newer")
    press(qtbot, shown.compare_button)
    assert shown.notice.text == MARK_SOME
    assert opened(shown) is None


def test_lines_are_smoothed_and_never_drawn_where_a_logarithm_does_not_exist(
    state: State, shown: Callable[[QWidget], QWidget]
) -> None:
    plot = shown(CurvesPlot(state.viewer))
    plot.show_runs(
        {
            "<b>one</b>": {"train/loss": Series([1, 2, 3], [4.0, 0.0, 2.0])},
            "two": {"val/score": Series([2], [0.5])},
        }
    )
    assert plot.lines() == {"<b>one</b>": ([1, 2, 3], [4, 0, 2]), "two": ([], [])}
    assert "&lt;b&gt;one" in plot.legend.text()
    assert "two (has no such curve)" in plot.legend.text()
    plot.log.setChecked(True)
    assert plot.lines()["<b>one</b>"] == ([1, 3], [4, 2])
    plot.log.setChecked(False)
    plot.slider.setValue(50)
    assert plot.lines()["<b>one</b>"][1] == pytest.approx([4.0, 4 / 3, 12 / 7])
    assert plot.weight.text() == "0.50"
    state.viewer.theme = "light"
    assert plot._light
