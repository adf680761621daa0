"""Cases of the dataset in use that fit words or the present scan, with their reports; a hit opens beside the scan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QAbstractItemView, QComboBox, QHeaderView, QPlainTextEdit, QTableWidget, QTableWidgetItem

from napari_med3dssl import _work
from napari_med3dssl._layers import add
from napari_med3dssl._widgets import button, button_row, combo, wrapping
from napari_med3dssl.data_panel import layers_of_case
from napari_med3dssl.explore_cases import LACKING
from napari_med3dssl.explore_sections import ExploreSection

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

TASKS = ("retrieval",)
"""Tasks whose networks find scans."""
TOP = 20
"""Hits that are listed."""


class RetrievalSection(ExploreSection):
    """Text to scans, and scan to scans; the list shows the report of the chosen hit."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Words, or the scan above, and the cases of the dataset in use that fit them best."
        super().__init__(panel, "Find cases", tip, folded=True, needs=f"Choose a model first. {LACKING}")
        self.words: QComboBox = combo("Words to find cases for")
        self.words.setEditable(True)
        line = self.words.lineEdit()
        assert line is not None  # of an editable box
        line.setPlaceholderText("pleural effusion on the right")
        line.returnPressed.connect(self.by_text)
        self.text_button = button("Find by words", self.by_text, "Cases whose scans fit the words.")
        self.scan_button = button("Find like this scan", self.by_scan, "Cases whose scans resemble the scan above.")
        self.about = wrapping("")
        self.table = QTableWidget(0, 3)
        self.table.setAccessibleName("Cases that were found")
        self.table.setHorizontalHeaderLabels(["Case", "Cosine", "Split"])
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.table.setFixedHeight(170)
        self.table.currentCellChanged.connect(lambda *_: self._show_report())
        self.table.cellDoubleClicked.connect(lambda *_: self.open_hit())
        self.report = QPlainTextEdit()
        self.report.setReadOnly(True)
        self.report.setTabChangesFocus(True)
        self.report.setAccessibleName("Report of the chosen case")
        self.report.setFixedHeight(90)
        self.open_button = button("Open case", self.open_hit, "Open the chosen case beside the scan.")
        self.form.addRow("Words", self.words)
        self.form.addRow(button_row(self.text_button, self.scan_button))
        self.rows.addWidget(self.about)  # not into the form: it would cut lines off
        form = self.add_form()
        form.addRow(self.table)
        form.addRow(self.report)
        form.addRow(button_row(self.open_button))
        self.hits: list[dict[str, Any]] = []
        panel.state.follow(self, panel.state.dataset_changed, lambda _: self.forget())
        self.forget()

    def allow(self, possible: bool) -> None:
        """A model and a dataset are needed; a scan only to find what resembles it."""
        state = self.panel.state
        super().allow(bool(state.model) and state.dataset is not None and not self.panel.busy)
        self.scan_button.setEnabled(self.panel.scan is not None)

    def by_text(self) -> None:
        """Find cases for the words."""
        text = " ".join(self.words.currentText().split())
        if not text:
            self.panel.notice.say("info", "Type what to look for, such as: pleural effusion on the right.")
            return
        self._find(scanless=True, text=text)

    def by_scan(self) -> None:
        """Find cases like the scan."""
        self._find()

    def open_hit(self) -> None:
        """Open the chosen case beside the scan, and look at it."""
        hit, folder = self._chosen(), self.panel.state.dataset
        if hit is None or folder is None:
            return
        self.open_button.setEnabled(False)
        _work.start(
            self,
            layers_in,
            folder,
            hit["case"],
            done=self._open,
            failed=lambda sentence: self.panel.notice.say("error", sentence),
            ended=self._show_report,
        )

    def forget(self) -> None:
        """Show no hits, of another model or dataset."""
        self.hits = []
        self.table.setRowCount(0)
        self.about.setText("")
        self._show_report()

    def _find(self, **asked: Any) -> None:
        dataset = self.panel.state.dataset
        if dataset is not None:
            self.panel.ask("find_cases", self._show, "Finding cases…", dataset=str(dataset), top=TOP, **asked)

    def _show(self, values: dict[str, Any]) -> None:
        self.hits = list(values["hits"])
        self.table.setRowCount(len(self.hits))
        for row, hit in enumerate(self.hits):
            for column, text in enumerate((hit["case"], f"{hit['score']:.3f}", hit["split"])):
                self.table.setItem(row, column, QTableWidgetItem(text))
        self.about.setText(f"Best {len(self.hits)} of {values['searched']} cases.")
        if self.hits:
            self.table.setCurrentCell(0, 0)
        self._show_report()

    def _chosen(self) -> dict[str, Any] | None:
        row = self.table.currentRow()
        return self.hits[row] if 0 <= row < len(self.hits) else None

    def _show_report(self) -> None:
        hit = self._chosen()
        self.report.setPlainText("" if hit is None else hit["report"])
        self.report.setVisible(bool(hit and hit["report"]))
        self.open_button.setEnabled(hit is not None)

    def _open(self, layers: list[Any]) -> None:
        """Show the case alone; the scan that was looked at stays chosen."""
        viewer = self.panel.viewer
        known = {layer.name for layer in viewer.layers}
        made = [add(viewer, layer) for layer in layers if layer[1]["name"] not in known]
        names = [layer[1]["name"] for layer in layers]
        for layer in viewer.layers:
            layer.visible = layer.name in names
        scans = [layer for layer in (made or viewer.layers) if layer.name in names]
        if scans:
            viewer.fit_to_view(layers=scans)
        self.panel.notice.say("ok", f"{names[0]} is open; choose it as the scan above to go on with it.")


def layers_in(folder: Path, name: str) -> list[Any]:
    """Layers of a case of a dataset, its scans first."""
    from training_backend.data.dataset import Dataset

    dataset = Dataset.open(folder)
    root = (dataset.folder / dataset.info.root).resolve()
    return list(layers_of_case(dataset.case(name), root, dataset.info.classes))
