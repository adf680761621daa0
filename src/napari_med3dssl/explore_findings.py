"""Findings that are asked for by words: a table of names, prompts that can be edited, and probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QProgressBar, QTableWidget, QTableWidgetItem

from napari_med3dssl._widgets import button, button_row
from napari_med3dssl.explore_views import ViewSection

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

COLUMNS = ("Finding", "Probability", "Prompt", "Against")
NAME, SURE, YES, NO = range(4)
HEIGHT = 300
"""Pixels of the table."""


class FindingsSection(ViewSection):
    """Probabilities of findings; a double click changes a name or a prompt, and a chosen row is drawn over the scan."""

    def __init__(self, panel: ExplorePanel, view: Any, maps: Any) -> None:
        super().__init__(panel, view, maps)
        self.table = QTableWidget(0, len(COLUMNS))
        self.table.setAccessibleName("Findings with probabilities and prompts")
        self.table.setHorizontalHeaderLabels(list(COLUMNS))
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setTabKeyNavigation(False)
        self.table.setFixedHeight(HEIGHT)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setMinimumSectionSize(24)
        self.table.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)  # words are whole
        header = self.table.horizontalHeader()
        header.setMinimumSectionSize(40)
        for column, width in ((NAME, 92), (SURE, 80)):
            header.resizeSection(column, width)
        for column in (YES, NO):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Stretch)
        self.show_button.setText("Ask")
        self.add_button = button("Add finding", self.add_finding, "An empty row, to name a finding of your own.")
        self.drop_button = button("Remove", self.remove_finding, "Remove the chosen row.")
        self.reset_button = button("Reset", self.reset, "The findings and prompts of the model, or the 18 of CT-RATE.")
        self.draw_button = button(
            "Draw", self.show_pictures, "Lay what speaks for the chosen finding, or its gates, over the scan."
        )
        self.form.addRow(self.table)
        self.form.addRow(button_row(self.add_button, self.drop_button, self.reset_button, self.draw_button))

    @property
    def probabilities(self) -> dict[str, float]:
        """What the table shows, by name."""
        found = {}
        for row in range(self.table.rowCount()):
            bar = self.table.cellWidget(row, SURE)
            if bar is not None:
                found[self._cell(row, NAME)] = bar.value() / 1000
        return found

    def add_finding(self) -> None:
        """An empty row, ready to be typed into."""
        row = self.table.rowCount()
        self._put(row, "", "", "", None)
        self.table.setCurrentCell(row, NAME)
        self.table.editItem(self.table.item(row, NAME))

    def remove_finding(self) -> None:
        """Leave the chosen finding out."""
        if self.table.currentRow() >= 0:
            self.table.removeRow(self.table.currentRow())

    def reset(self) -> None:
        """Ask for what the model itself would."""
        self.table.setRowCount(0)
        self.show_pictures()

    def _beside(self) -> dict[str, Any] | None:
        beside = super()._beside()
        if beside is None:
            return None
        rows = [row for row in range(self.table.rowCount()) if self._cell(row, NAME)]
        chosen = self.table.currentRow()
        return {
            **beside,
            "options": {
                "findings": [self._cell(row, NAME) for row in rows],
                "present": [self._cell(row, YES) for row in rows],
                "absent": [self._cell(row, NO) for row in rows],
                "sentence": 1 + rows.index(chosen) if chosen in rows else 0,
            },
        }

    def _tell(self, values: dict[str, Any]) -> None:
        chosen = self.table.currentRow()
        self.table.setRowCount(0)
        for row, passage in enumerate(values["passages"]):
            yes, no = (piece["text"] for piece in passage["pieces"])
            self._put(row, passage["title"], yes, no, passage["value"])
        if 0 <= chosen < self.table.rowCount():
            self.table.setCurrentCell(chosen, NAME)

    def _put(self, row: int, name: str, yes: str, no: str, sure: float | None) -> None:
        self.table.insertRow(row)
        for column, text in ((NAME, name), (YES, yes), (NO, no)):
            item = QTableWidgetItem(text)
            item.setToolTip(text)
            self.table.setItem(row, column, item)
        blank = QTableWidgetItem("")
        blank.setFlags(Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsEnabled)
        self.table.setItem(row, SURE, blank)
        if sure is not None:
            bar = QProgressBar()
            bar.setRange(0, 1000)
            bar.setValue(round(1000 * sure))
            bar.setFormat(f"{sure:.0%}")
            bar.setAccessibleName(f"Probability of {name}")
            self.table.setCellWidget(row, SURE, bar)

    def _cell(self, row: int, column: int) -> str:
        item = self.table.item(row, column)
        return "" if item is None else str(item.text()).strip()
