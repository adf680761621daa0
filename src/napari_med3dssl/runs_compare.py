"""A window that puts runs beside each other: their curves, a table, statistics of pairs, settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, QTimer, QUrl
from qtpy.QtGui import QCloseEvent, QDesktopServices
from qtpy.QtWidgets import (
    QDialog,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QSplitter,
    QTableWidget,
    QTableWidgetItem,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from napari_med3dssl import _work
from napari_med3dssl._widgets import Notice, button, button_row, combo, copy_text, wrapping
from napari_med3dssl.commands import compare_command
from napari_med3dssl.curves_plot import CurvesPlot
from training_backend.jobs.run_texts import MEAN, case_cells, pair_cells, run_cells, setting_cells

if TYPE_CHECKING:
    from napari_med3dssl._state import State
    from training_backend.jobs.monitor import Monitor, Update
    from training_backend.jobs.registry import RunSummary

LOOK_MS = 2000
"""Milliseconds between two looks at runs that still train."""
NO_PAIRS = "Pairs are compared when two runs have scored cases. Runs score their cases when they finish."
NO_DIFFERENCES = "These runs have the same settings."
NO_CASES = "No run has scored cases."
ALL = "mean over all"
NUMERIC = tuple("0123456789+-–")
"""How texts begin that are aligned as numbers."""


class RunsCompareDialog(QDialog):
    """Curves above, tables below; whatever takes long is done by the model process.

    Args:
        owner: parent widget.
        state: what the panels of the viewer share.
        runs: the runs, the reference first.
    """

    def __init__(self, owner: QWidget, state: State, runs: Sequence[RunSummary]) -> None:
        super().__init__(owner)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"Compare {len(runs)} runs")
        self.state = state
        self.runs = list(runs)
        self.found: dict[str, Any] = {}
        self._monitors: list[Monitor] = []
        self._look: _work.Job | None = None
        self._job: _work.Job | None = None
        self._alive = 0
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self.look)
        self.look()
        self.compare()

    def look(self) -> None:
        """Read what the runs have reported since the last look, in a thread."""
        if self._look is None or not self._look.running:
            paths = [run.path for run in self.runs]
            self._look = _work.start(self, _read, self._monitors, paths, done=self._draw, failed=self._complain)

    def compare(self) -> None:
        """Have the runs compared by the chosen metric and structure."""
        client, asked = self.state.client, self._asked()
        self._begin(
            "Waiting for the model process" if client.busy else "Comparing",
            lambda progress: client.request("compare_runs", progress=progress, **asked),
            self._show,
        )

    def save_tables(self) -> None:
        """Ask where to, and write the table of runs, of pairs beside it, and of cases."""
        path, _ = QFileDialog.getSaveFileName(self, "Save the tables", self._start("csv"), "Table (*.csv)")
        if path:
            _work.start(self, _write_tables, Path(path), self.found, done=self._saved, failed=self._complain)

    def save_report(self) -> None:
        """Ask where to, and have a page with curves, tables and pictures written."""
        path, _ = QFileDialog.getSaveFileName(self, "Save a report", self._start("html"), "Page (*.html)")
        if not path:
            return
        client = self.state.client
        asked = {**self._asked(), "path": path, "smoothing": self.curves.smoothing}
        self._begin(
            "Writing the report",
            lambda progress: client.request("report_runs", progress=progress, **asked),
            lambda values: self._written(Path(values["path"])),
        )

    def copy_command(self) -> None:
        """Put the command that prints the same numbers on the clipboard."""
        asked = self._asked()
        copy_text(compare_command(asked["runs"], asked["metric"], asked["structure"]))
        self.notice.say("ok", "The command is on the clipboard.")

    def cancel(self) -> None:
        """Stop what the model process does for this window."""
        if self._job is not None:
            self._job.stop()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Stop work before the window goes."""
        self._timer.stop()
        self.cancel()
        self.state.viewer.events.theme.disconnect(self.curves.follow_theme)
        super().closeEvent(event)

    def _build(self) -> None:
        self.notice = Notice()
        self.curves = CurvesPlot(self.state.viewer)
        self.metric, self.structure = combo("Metric"), combo("Structure")
        self.metric.setToolTip("What the cases are compared by. Distances are measured on the label volumes first.")
        self.structure.setToolTip("The class that is compared, or the mean over all classes of a case.")
        for box in (self.metric, self.structure):
            box.setMinimumContentsLength(14)
            box.setEnabled(False)
            box.activated.connect(lambda _: self.compare())
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Progress")
        self.bar.setRange(0, 100)
        self.bar.setFixedWidth(280)
        self.cancel_button = button("Cancel", self.cancel)
        choices = QHBoxLayout()
        choices.setContentsMargins(0, 0, 0, 0)
        for widget in (QLabel("Metric"), self.metric, QLabel("Structure"), self.structure):
            choices.addWidget(widget)
        choices.addStretch(1)
        choices.addWidget(self.bar)
        choices.addWidget(self.cancel_button)
        self.table = _table("Runs")
        self.pairs, self.pair_text = _table("Pairs of runs"), wrapping(NO_PAIRS)
        self.pairs.currentCellChanged.connect(lambda row, *_: self._tell_pair(row))
        self.settings, self.settings_text = _table("Settings that differ"), wrapping(NO_DIFFERENCES)
        self.cases, self.cases_text = _table("Cases"), wrapping(NO_CASES)
        self.tabs = QTabWidget()
        self.tabs.addTab(self.table, "Runs")
        for name, table, text in (
            ("Pairs", self.pairs, self.pair_text),
            ("Settings", self.settings, self.settings_text),
            ("Cases", self.cases, self.cases_text),
        ):
            self.tabs.addTab(_page(table, text), name)
        lower = QWidget()
        column = QVBoxLayout(lower)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(choices)
        column.addWidget(self.tabs, 1)
        split = QSplitter(Qt.Orientation.Vertical)
        split.addWidget(self.curves)
        split.addWidget(lower)
        split.setChildrenCollapsible(False)
        split.setStretchFactor(0, 3)
        split.setStretchFactor(1, 2)
        self.csv_button = button("Save CSV…", self.save_tables, "Tables of the runs, of the pairs and of the cases.")
        self.report_button = button("Save report…", self.save_report, "One page for a browser, with pictures of cases.")
        self.copy_button = button("Copy command", self.copy_command, "The same numbers from a terminal.")
        layout = QVBoxLayout(self)
        layout.addWidget(split, 1)
        layout.addWidget(self.notice)
        row = button_row(self.csv_button, self.report_button, self.copy_button, button("Close", self.close))
        layout.addWidget(row)
        self._busy(False)
        self.resize(1000, 700)

    def _asked(self) -> dict[str, Any]:
        return {
            "runs": [str(run.path) for run in self.runs],
            "metric": str(self.metric.currentData() or ""),
            "structure": str(self.structure.currentData() or ""),
        }

    def _begin(self, text: str, function: Any, done: Any) -> None:
        if self._job is not None:
            return
        self._busy(True)
        self._tell(0.0, text)
        self._job = _work.start(
            self,
            function,
            done=done,
            failed=self._complain,
            cancelled=lambda: self.notice.say("info", "Stopped; the tables show what was compared before."),
            progressed=self._tell,
            ended=self._ended,
        )

    def _ended(self) -> None:
        self._job = None
        self._busy(False)

    def _busy(self, on: bool) -> None:
        for widget in (self.bar, self.cancel_button):
            widget.setVisible(on)
        for button_ in (self.csv_button, self.report_button):
            button_.setEnabled(not on and bool(self.found))
        for box in (self.metric, self.structure):
            box.setEnabled(not on and box.count() > 1)

    def _tell(self, share: float, text: str) -> None:
        self.bar.setValue(round(100 * share))
        self.bar.setFormat(f"{text} %p %")

    def _draw(self, updates: list[Update]) -> None:
        """Draw the curves; a run that has ended since the last look may have scores now."""
        names = _labels([update.summary.name for update in updates], self.found)
        self.curves.show_runs(dict(zip(names, (monitor.series for monitor in self._monitors), strict=True)))
        alive = sum(update.summary.alive for update in updates)
        if alive < self._alive:
            self.compare()
        self._alive = alive
        if alive and not self._timer.isActive():
            self._timer.start()
        elif not alive:
            self._timer.stop()

    def _show(self, found: dict[str, Any]) -> None:
        self.found = found
        metric = found["metric"]
        _offer(self.metric, [(entry["title"], entry["name"]) for entry in found["metrics"]], metric and metric["name"])
        chosen = "" if found["structure"] == MEAN else found["structure"]
        structures = found["structures"] if len(found["structures"]) > 1 else []
        _offer(self.structure, [(ALL, ""), *((name, name) for name in structures)], chosen)
        _fill(self.table, *run_cells(found))
        _fill(self.pairs, *pair_cells(found))
        self.pairs.setVisible(self.pairs.rowCount() > 0)
        self._tell_pair(0)
        _fill(self.settings, *setting_cells(found))
        _either(self.settings, self.settings_text)
        _fill(self.cases, *case_cells(found))
        _either(self.cases, self.cases_text)
        self._busy(False)  # there is something to save, and to choose from
        self.notice.clear()
        if found["notes"]:
            self.notice.say("warning", "\n".join(found["notes"]))
        self.look()  # with names that tell them apart

    def _tell_pair(self, row: int) -> None:
        sentences = self.found.get("sentences", [])
        self.pair_text.setText(sentences[max(row, 0)] if sentences else NO_PAIRS)

    def _start(self, ending: str) -> str:
        return str(Path.home() / f"comparison.{ending}")

    def _saved(self, paths: list[Path]) -> None:
        self.notice.say("ok", f"Saved {', '.join(path.name for path in paths)} in {paths[0].parent}.")

    def _written(self, path: Path) -> None:
        url = QUrl.fromLocalFile(str(path))
        self.notice.say("ok", f"Saved {path}.", [("Open in browser", lambda: QDesktopServices.openUrl(url))])

    def _complain(self, sentence: str) -> None:
        self.notice.say("error", sentence)


def _read(monitors: list[Monitor], paths: list[Path]) -> list[Update]:
    """What is new of each run; the monitors are made at the first call."""
    from training_backend.jobs.monitor import Monitor

    if not monitors:
        monitors += [Monitor(path) for path in paths]
    return [monitor.update() for monitor in monitors]


def _labels(names: list[str], found: dict[str, Any]) -> list[str]:
    """Names as the tables have them; before these are there, a number tells runs of one name apart."""
    if found:
        return [str(run["run"]) for run in found["runs"]]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _write_tables(path: Path, found: dict[str, Any]) -> list[Path]:
    from training_backend.jobs.run_compare import save

    written = []
    for ending, name in (("", "runs_csv"), ("-pairs", "pairs_csv"), ("-cases", "cases_csv")):
        target = path.with_name(f"{path.stem}{ending}{path.suffix or '.csv'}")
        written.append(save(target, found[name]))
    return written


def _table(name: str) -> QTableWidget:
    table = QTableWidget()
    table.setAccessibleName(name)
    table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
    table.setSelectionBehavior(QTableWidget.SelectionBehavior.SelectRows)
    table.setTabKeyNavigation(False)
    table.setWordWrap(False)
    table.verticalHeader().hide()
    return table


def _page(table: QTableWidget, text: QWidget) -> QWidget:
    page = QWidget()
    column = QVBoxLayout(page)
    column.setContentsMargins(0, 0, 0, 0)
    column.addWidget(table, 1)
    column.addWidget(text)
    column.addStretch(0)
    return page


def _fill(table: QTableWidget, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table.clear()
    table.setColumnCount(len(heads))
    table.setRowCount(len(rows))
    table.setHorizontalHeaderLabels(list(heads))
    for row, texts in enumerate(rows):
        for column, text in enumerate(texts):
            item = QTableWidgetItem(text)
            item.setToolTip(text)
            if column and text[:1] in NUMERIC:
                item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            table.setItem(row, column, item)
    table.resizeColumnsToContents()
    if rows:
        table.setCurrentCell(0, 0)


def _either(table: QTableWidget, text: QWidget) -> None:
    """The table where it has rows, else the sentence that says why it has none."""
    table.setVisible(table.rowCount() > 0)
    text.setVisible(table.rowCount() == 0)


def _offer(box: Any, entries: Sequence[tuple[str, str]], chosen: str | None) -> None:
    box.clear()
    for text, data in entries:
        box.addItem(text, data)
    box.setCurrentIndex(max(0, box.findData(chosen)))
