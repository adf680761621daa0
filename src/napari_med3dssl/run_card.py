"""The card of one run: progress, time left, curves, buttons and the tail of the log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QTextCursor
from qtpy.QtWidgets import QCheckBox, QLabel, QPlainTextEdit, QProgressBar, QSplitter, QVBoxLayout, QWidget

from napari_med3dssl._plot import LossPlot
from napari_med3dssl._widgets import Notice, button, button_row, fill_row, wrapping

if TYPE_CHECKING:
    from training_backend.jobs.monitor import Series, Update
    from training_backend.jobs.registry import RunSummary

LOG_LINES = 500
ACTIONS = {
    "pause": ("Pause", "Save and wait; a long pause gives the device back."),
    "resume": ("Resume", "Go on from the last saved step."),
    "stop": ("Stop", "Save and end. The run can be resumed later."),
    "preview": ("Preview now", "Ask the run for new pictures at its next step."),
    "buffers": ("Buffers…", "The cases that are kept for rehearsal, and the features of all of them."),
    "open": ("Open results", "Predictions beside the ground truth, or the newest pictures, as layers."),
    "clone": ("Clone", "Fill the form with the settings of this run."),
    "copy": ("Copy command", "The same run from a terminal."),
    "delete": ("Delete", "Remove the run with all its files."),
}
"""Every button of the card: its text and what it does."""
WAITING = ("queued", "starting")


class RunCard(QWidget):
    """Shows what a `Monitor` found; `asked` tells which button was pressed."""

    asked = Signal(str)

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._allowed: tuple[str, ...] = ()
        self.name = QLabel()
        self.name.setStyleSheet("font-weight: bold;")
        self.state = wrapping("")
        self.state.setAccessibleName("State of the run")
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Progress of the run")
        self.facts = wrapping("")
        self.pictured = wrapping("")
        self.pictured.hide()
        self.notice = Notice()
        self.plot = LossPlot(viewer)
        self.previews = QCheckBox("Live previews")
        self.previews.setToolTip("Draw the run's pictures over its scan and renew them in place.")
        self.buttons = {
            action: button(label, lambda action=action: self.asked.emit(action), tip)  # type: ignore[misc]
            for action, (label, tip) in ACTIONS.items()
        }
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(LOG_LINES)
        self.log.setMinimumHeight(60)
        self.log.setAccessibleName("Log of the run")
        self.log.setLineWrapMode(QPlainTextEdit.LineWrapMode.WidgetWidth)
        self.log.setPlaceholderText("The log is empty so far.")
        self._row = button_row(*self.buttons.values(), self.previews)
        self._split = split = _Split(Qt.Orientation.Vertical)
        split.addWidget(self.plot)
        split.addWidget(self.log)
        split.setChildrenCollapsible(False)
        split.setStretchFactor(0, 3)
        split.setStretchFactor(1, 2)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        for widget in (self.name, self.bar, self.state, self.facts, self.pictured, self.notice):
            column.addWidget(widget)
        column.addWidget(self._row)
        column.addWidget(split, 1)

    def add_box(self, box: QWidget) -> None:
        """Add something that takes the place of the curves while it is visible."""
        self._split.insertWidget(1, box)
        self._split.setStretchFactor(1, 3)
        box.hide()

    def begin(self, run: RunSummary) -> None:
        """Show another run, of which nothing has been read yet."""
        self.plot.setVisible(run.kind != "plan")
        self.log.clear()
        self.facts.setText("")
        self.notice.clear()
        self.tell_pictures("")
        self.plot.show_series({})
        self.show_summary(run)

    def show_update(self, update: Update, series: dict[str, Series], warnings: list[str]) -> None:
        """Show what is new."""
        self.show_summary(update.summary, _last_step(update.events))
        if update.events:
            self.plot.show_series(series)
        if warnings and not self.notice.text:
            self.notice.say("warning", warnings[-1])
        if update.log:
            self._append(update.log)

    def show_summary(self, run: RunSummary, step: dict[str, Any] | None = None) -> None:
        """Show state, progress and the buttons that are allowed now."""
        self.name.setText(run.name)
        self.state.setText(f"{run.state}: {run.sentence}")
        self.bar.setMaximum(max(run.steps, 1) if run.steps or run.state not in WAITING else 0)
        self.bar.setValue(min(run.step, max(run.steps, 1)))
        self.bar.setFormat(f"step {run.step} / {run.steps}" if run.steps else run.state)
        if step is not None or not run.alive:
            self.facts.setText(facts_line(run, step or {}))
        more = ("buffers",) if run.method == "medcoss" and run.task is None else ()
        results = () if run.kind == "plan" else ("open",)
        allowed = tuple(action for action in ACTIONS if action in (*run.actions, *more, *results, "copy"))
        if allowed != self._allowed:
            self._allowed = allowed
            fill_row(self._row, [*(self.buttons[action] for action in allowed), self.previews])

    def tell_pictures(self, sentence: str) -> None:
        """Say what the pictures that lie in the viewer are of."""
        self.pictured.setText(sentence)
        self.pictured.setVisible(bool(sentence))

    def _append(self, text: str) -> None:
        """Add to the log; it follows its end until the reader scrolls up."""
        scroll = self.log.verticalScrollBar()
        follows = scroll is None or scroll.value() >= scroll.maximum() - 4
        cursor = QTextCursor(self.log.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.insertText("\n".join(text.splitlines()[-LOG_LINES:]) + ("\n" if text.endswith("\n") else ""))
        if follows and scroll is not None:
            scroll.setValue(scroll.maximum())


class _Split(QSplitter):
    """Curves above the log; wants little height, so that the page need not scroll, and takes all there is."""

    def sizeHint(self) -> QSize:  # noqa: N802
        """A height that suffices."""
        return QSize(200, 260)


def facts_line(run: RunSummary, step: dict[str, Any]) -> str:
    """``ETA 1 h 12 min · ends 14:35 · 1.8 steps/s · 6.2 GB · lr 3.1e-04``, without what is not known."""
    parts = []
    if run.eta_s is not None and run.state == "running":
        ends = time.strftime("%H:%M", time.localtime(time.time() + run.eta_s))
        parts += [f"ETA {duration(run.eta_s)}", f"ends {ends}"]
    if step.get("step_s"):
        parts.append(f"{1 / step['step_s']:.2g} steps/s")
    if run.memory_mb:
        parts.append(f"{run.memory_mb / 1024:.1f} GB")
    if "lr" in step:
        parts.append(f"lr {step['lr']:.1e}")
    if run.score is not None:
        told = "forgotten on average: loss" if run.kind == "plan" else "best"
        parts.append(f"{told} {run.score:.4g}")
    if run.started and run.ended:
        parts.append(f"took {duration(run.ended - run.started)}")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``1 h 12 min``, ``3 days 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def _last_step(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    steps = [event for event in events if event["type"] == "metrics" and event.get("split") == "train"]
    return steps[-1] if steps else None
