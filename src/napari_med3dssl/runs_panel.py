"""The Runs panel: every run of this user, live or dead, told from the disk; the chosen one followed closely."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QItemSelectionModel, QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QMessageBox,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_med3dssl import _work
from napari_med3dssl._previews import BELOW, picture_line, read_pictures
from napari_med3dssl._settings import preference
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Notice, Page, button, button_row, copy_text, wrapping
from napari_med3dssl.buffer_gallery import BuffersDialog
from napari_med3dssl.commands import plan_command, training_command
from napari_med3dssl.explore_pictures import PictureLayers
from napari_med3dssl.plan_box import PlanBox
from napari_med3dssl.plan_files import KIND as PLAN
from napari_med3dssl.plan_files import limited, plan_of, with_stages
from napari_med3dssl.results import open_results
from napari_med3dssl.run_card import RunCard
from napari_med3dssl.runs_compare import RunsCompareDialog
from training_backend.errors import Med3dError

if TYPE_CHECKING:
    from training_backend.jobs.monitor import Monitor, Update
    from training_backend.jobs.registry import RunSummary

LOOK_MS = 700
"""Milliseconds between two looks at the disk."""
SIGNS = {
    "queued": "○",
    "starting": "…",
    "running": "▶",
    "pausing": "…",
    "paused": "‖",
    "stopping": "…",
    "finished": "✓",
    "cancelled": "■",
    "failed": "✗",
    "damaged": "✗",
}
"""Sign before each state; a question mark for all others."""
COLUMNS = ("Run", "Task", "State", "Best")
EMPTY = (
    "No runs yet. Start one in Pre-train or Fine-tune, or try the tiny demo: it makes a few generated patients, "
    "and learns from them on the CPU in about two minutes."
)
MARK_SOME = "Choose two or more runs in the list: hold Ctrl and click, or Shift for all in between."


class RunsPanel(QWidget):
    """Table of all runs and the card of the chosen one.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self.runs: list[RunSummary] = []
        self.monitor: Monitor | None = None
        self._look: _work.Job | None = None
        self._wanted: Path | None = None
        self._finished: set[Path] = set()
        self._marked: tuple[Path, ...] = ()
        self._drawn: tuple[Path | None, float] = (None, 0.0)
        self._pending: list[dict[str, Any]] = []
        self._pictures = PictureLayers(state.viewer, " · live")
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self.look)
        self._timer.start()
        state.follow(self, state.runs_changed, self.look)
        self.look()

    @property
    def chosen(self) -> RunSummary | None:
        """The run whose card is shown."""
        path = self.monitor.run.path if self.monitor is not None else None
        return next((run for run in self.runs if run.path == path), None)

    def choose(self, path: Path) -> None:
        """Show the card of the run in this folder, now or as soon as it is found."""
        self._wanted = Path(path).resolve()
        self._show_wanted()
        self.look()

    def look(self) -> None:
        """Look at the disk in a thread; the widgets change when it has answered."""
        if self._look is None or not self._look.running:
            self._look = _work.start(self, _look_at_disk, self.monitor, done=self._show, failed=self._complain)

    def act(self, action: str) -> None:
        """Do what a button of the card says."""
        run = self.chosen
        if run is None:
            return
        if action == "buffers":
            BuffersDialog(self, self.state.viewer, run.name, run.path).show()
        elif action == "open":
            open_results(self, self.state.viewer, run, self.notice)
        elif action == "copy":
            self._copy_command(run)
        elif action == "clone":
            self.state.tab_wanted.emit("Pre-train" if run.kind == "pretrain" else "Fine-tune", run.path)
        elif action == "delete" and not self._agreed(run):
            return
        else:
            _work.start(self, _ask_run, action, run.path, done=lambda _: self.look(), failed=self._complain)

    def _build(self) -> None:
        self.notice = Notice()
        self.empty = QWidget()
        column = QVBoxLayout(self.empty)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(wrapping(EMPTY))
        self.demo = button("Start tiny demo", self.start_demo, "Generated patients, pre-training on the CPU.")
        self.demo_cancel = button("Cancel", self._cancel_demo)
        column.addWidget(button_row(self.demo, self.demo_cancel))
        self.demo_cancel.hide()
        self.table = QTableWidget(0, len(COLUMNS))
        self.table.setAccessibleName("Runs")
        self.table.setHorizontalHeaderLabels(list(COLUMNS))
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setTabKeyNavigation(False)
        self.table.setWordWrap(False)
        self.table.setFixedHeight(140)
        self.table.verticalHeader().hide()
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.table.currentCellChanged.connect(lambda row, *_: self._choose_row(row))
        self.table.itemSelectionChanged.connect(self._mark)
        self.compare_button = button("Compare…", self.compare, "Curves, scores and settings of the marked runs.")
        self.card = RunCard(self.state.viewer)
        self.card.asked.connect(self.act)
        self.plan = PlanBox(self.state.viewer)
        self.card.add_box(self.plan)
        self.card.hide()
        page = Page()
        self.below = button_row(self.compare_button)
        for widget in (self.notice, self.empty, self.table, self.below):
            page.column.addWidget(widget)
        page.column.addWidget(self.card, 100)
        page.column.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(page)
        for widget in (self.table, self.below, self.empty):
            widget.hide()

    def compare(self) -> None:
        """Open a window that compares the marked runs; the one that is highest in the list comes last."""
        marked = [run for run in self.runs if run.path in self._marked][::-1]
        plans = [run.name for run in marked if run.kind == PLAN]
        if len(marked) < 2:
            self.notice.say("info", MARK_SOME)
        elif plans:
            self.notice.say(
                "info", f"{plans[0]} is a plan of several runs. Choose its stages, which are listed below it."
            )
        else:
            self.notice.clear()
            RunsCompareDialog(self, self.state, marked).show()

    def start_demo(self) -> None:
        """Make a phantom cohort and a dataset in a child process, then launch a tiny pre-training run."""
        from napari_med3dssl.tiny_demo import start_tiny_demo

        self.demo.setEnabled(False)
        self.demo_cancel.show()
        self._demo = _work.start(
            self,
            start_tiny_demo,
            done=self._demo_started,
            failed=self._complain,
            progressed=lambda share, text: self.notice.say("busy", f"{text} ({share:.0%})"),
            cancelled=lambda: self.notice.say("info", "The demo was not started."),
            ended=self._demo_ended,
        )

    def _demo_ended(self) -> None:
        self.demo.setEnabled(True)
        self.demo_cancel.hide()

    def _cancel_demo(self) -> None:
        self._demo.stop()

    def _demo_started(self, started: tuple[Path, Path]) -> None:
        dataset, run = started
        self.notice.say("ok", "The demo runs. It goes on when napari is closed, and is listed here again afterwards.")
        self.state.dataset = dataset
        self.choose(run)

    def _show(self, found: tuple[list[RunSummary], Update | None]) -> None:
        """Bring table and card up to date after a look at the disk."""
        self.runs, update = found
        finished = {run.path for run in self.runs if run.state == "finished"}
        if finished != self._finished:
            self._finished = finished
            self.state.runs_changed.emit()  # there is a model more, or less, to choose
        self._fill_table()
        self.empty.setVisible(not self.runs)
        self.table.setVisible(bool(self.runs))
        self.below.setVisible(len(self.runs) > 1)
        self._show_wanted()
        if self.monitor is None and self.runs:
            self._follow(self.runs[0])
        elif self.chosen is None and self.monitor is not None:
            self.monitor = None
            self.card.hide()
        elif update is not None and self.monitor is not None and update.summary.path == self.monitor.run.path:
            self.card.show_update(update, self.monitor.series, self.monitor.warnings)
            self._draw_preview()
            if any(event["type"] in ("forgetting", "stage", "done") for event in update.events):
                self.plan.look()

    def _show_wanted(self) -> None:
        run = next((run for run in self.runs if run.path.resolve() == self._wanted), None)
        if run is not None:
            self._wanted = None
            self._follow(run)

    def _follow(self, run: RunSummary) -> None:
        from training_backend.jobs.monitor import Monitor

        self.monitor = Monitor(run.path)
        self.card.begin(run)
        self.plan.follow(run.path if run.kind == PLAN else None)
        self.card.show()
        self._select_row()
        self.look()

    def _choose_row(self, row: int) -> None:
        if 0 <= row < len(self.runs) and self.runs[row] is not self.chosen:
            self._follow(self.runs[row])

    def _fill_table(self) -> None:
        self.table.blockSignals(True)
        self.table.setRowCount(len(self.runs))
        for row, run in enumerate(self.runs):
            best = "–" if run.score is None or run.kind == PLAN else f"{run.score:.4g}"
            task = run.task or (PLAN if run.kind == PLAN else "pre-train")
            name, task = (run.name, task) if plan_of(run) is None else (f"    {run.name}", "stage")
            texts = (name, task, f"{SIGNS.get(run.state, '?')} {run.state}", best)
            for column, text in enumerate(texts):
                item = self.table.item(row, column)
                if item is None:
                    item = QTableWidgetItem()
                    self.table.setItem(row, column, item)
                if item.text() != text:
                    item.setText(text)
                    item.setToolTip(f"{run.name}: {run.sentence}\n{run.path}")
        self._select_row()
        self._mark_again()
        self.table.blockSignals(False)

    def _select_row(self) -> None:
        run = self.chosen
        if run is not None and self.table.currentRow() != self.runs.index(run):
            index = self.table.model().index(self.runs.index(run), 0)
            flags = QItemSelectionModel.SelectionFlag  # a method of the table would ask which keys are held
            self.table.selectionModel().setCurrentIndex(index, flags.ClearAndSelect | flags.Rows)

    def _mark(self) -> None:
        rows = {index.row() for index in self.table.selectedIndexes()}
        self._marked = tuple(run.path for row, run in enumerate(self.runs) if row in rows)

    def _mark_again(self) -> None:
        """Keep several runs selected although the list has changed."""
        rows = [row for row, run in enumerate(self.runs) if run.path in self._marked]
        if len(rows) < 2 or rows == sorted({index.row() for index in self.table.selectedIndexes()}):
            return
        model, flags = self.table.selectionModel(), QItemSelectionModel.SelectionFlag
        for number, row in enumerate(rows):
            first = flags.Clear if number == 0 else flags.Select
            model.select(self.table.model().index(row, 0), first | flags.Select | flags.Rows)

    def _draw_preview(self) -> None:
        """Renew the picture layers when the run has new ones, at most every few seconds."""
        if not self.card.previews.isChecked() or self.monitor is None or self.monitor.preview is None:
            return
        folder, when = self._drawn
        pause = float(preference("view.preview_seconds", 10.0))
        if folder == self.monitor.preview or time.monotonic() - when < pause:
            return
        self._drawn = (self.monitor.preview, time.monotonic())
        _work.start(self, _read_preview, self.monitor.preview, done=self._begin_drawing, failed=lambda _: None)

    def _begin_drawing(self, found: tuple[list[dict[str, Any]], str]) -> None:
        pictures, sentence = found
        self.card.tell_pictures(sentence)
        first = not self._pending
        self._pending = list(pictures)
        if first:
            self._draw_one()

    def _draw_one(self) -> None:
        """Draw one picture per turn of the event loop: making a layer takes napari a tenth of a second."""
        if self._pending:
            picture = self._pending.pop(0)
            is_new = self._pictures[picture["name"]] is None
            [layer] = self._pictures.show([picture])
            if is_new and picture["role"] in BELOW:
                layer.visible = False
            QTimer.singleShot(20, self._draw_one)

    def _copy_command(self, run: RunSummary) -> None:
        from training_backend.config import RunConfig

        try:
            if run.kind == PLAN:
                copy_text(plan_command(run.path / "plan.yaml", run.path))
            else:
                copy_text(training_command(RunConfig.load(run.path / "config.yaml"), f"{run.path.name}-2"))
        except Med3dError as error:
            self._complain(str(error))
            return
        self.notice.say("ok", "The command is on the clipboard.")

    def _agreed(self, run: RunSummary) -> bool:
        text = f"Delete the run {run.name} with its checkpoints, pictures and model in\n{run.path}?"
        answer = QMessageBox.question(self, "Delete a run", text)
        if answer != QMessageBox.StandardButton.Yes:
            return False
        _work.start(self, _ask_run, "delete", run.path, done=lambda _: self.look(), failed=self._complain)
        return True

    def _complain(self, sentence: str) -> None:
        self.notice.say("error", sentence)


def _look_at_disk(monitor: Monitor | None) -> tuple[list[RunSummary], Update | None]:
    from training_backend.jobs.registry import list_runs

    update = monitor.update() if monitor is not None else None
    return with_stages(list_runs()), update and replace(update, summary=limited(update.summary))


def _read_preview(folder: Path) -> tuple[list[dict[str, Any]], str]:
    return read_pictures(folder), picture_line(folder)


def _ask_run(action: str, path: Path) -> None:
    from training_backend.jobs import launcher, registry

    run = launcher.RunDirectory(path)
    {"delete": registry.delete}.get(action, getattr(launcher, action, None))(run)  # type: ignore[misc]
