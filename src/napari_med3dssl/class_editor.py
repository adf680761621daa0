"""The class table of a segmentation: index, colour and name of each label found; names can be changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QHeaderView, QTableWidget, QTableWidgetItem

if TYPE_CHECKING:
    from training_backend.data.manifest import ClassEntry

ROW_HEIGHT = 24
MOST_ROWS = 6


class ClassEditor(QTableWidget):
    """Rows of classes; `names` are the task's, background first, or empty while nothing was changed."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__(0, 3)
        self._entries: tuple[ClassEntry, ...] = ()
        self.setAccessibleName("Classes")
        self.setHorizontalHeaderLabels(["Value", "Colour", "Name"])
        self.setTabKeyNavigation(False)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        self.itemChanged.connect(lambda _: self.changed.emit())

    @property
    def names(self) -> tuple[str, ...]:
        """Names by label value, for the task's settings; empty when they are the dataset's."""
        entered = {entry.index: self.item(row, 2).text().strip() for row, entry in enumerate(self._entries)}
        if all(entered[entry.index] == entry.name for entry in self._entries):
            return ()
        return tuple(entered.get(i, "background" if i == 0 else f"unused {i}") for i in range(max(entered) + 1))

    def show_classes(self, entries: Sequence[ClassEntry]) -> None:
        """Show these classes; names that were entered stay as long as the classes do."""
        shown = tuple(entry for entry in entries if entry.index != 0)
        if shown and shown == self._entries:
            return
        self._entries = shown
        self.blockSignals(True)
        self.setRowCount(len(self._entries))
        for row, entry in enumerate(self._entries):
            swatch = QTableWidgetItem(entry.colour)
            swatch.setBackground(QColor(entry.colour))
            swatch.setForeground(QColor("#000000"))
            for column, item in enumerate((QTableWidgetItem(str(entry.index)), swatch)):
                item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
                self.setItem(row, column, item)
            self.setItem(row, 2, QTableWidgetItem(entry.name))
        self.blockSignals(False)
        self.setFixedHeight(30 + ROW_HEIGHT * max(1, min(MOST_ROWS, len(self._entries))))
