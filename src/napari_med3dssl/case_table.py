"""The table of cases of a folder or a dataset: size, spacing, labels, split, and what is wrong in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from napari_med3dssl._widgets import SIGNS

if TYPE_CHECKING:
    from training_backend.data.dataset import Quarantined
    from training_backend.data.manifest import CaseRecord

COLUMNS = ("", "Case", "Voxels", "mm", "Label", "Split")
NAME_WIDTH = 90
"""Pixels that the names of cases get at least; what then has no room is reached by scrolling."""


@dataclass(frozen=True)
class Row:
    """One line: a case that can be used, or something that was left out."""

    case: CaseRecord | None
    left_out: Quarantined | None = None
    split_drawn: bool = False
    """Whether the split will be drawn by subject when the dataset is saved."""

    @property
    def sign(self) -> str:
        """Sign of the row's state, so that colour is not needed."""
        if self.case is None:
            return SIGNS["error"]
        if self.case.excluded:
            return "–"
        return SIGNS["warning"] if self.case.problems else SIGNS["ok"]

    @property
    def sentence(self) -> str:
        """What there is to say about the row."""
        if self.case is None:
            return self.left_out.reason if self.left_out is not None else ""
        state = "Excluded by you. " if self.case.excluded else ""
        return (state + " ".join(self.case.problems)).strip() or "Nothing unusual was found."

    def texts(self) -> tuple[str, ...]:
        """Texts of the columns."""
        if self.case is None:
            name = (self.left_out.case or self.left_out.path) if self.left_out is not None else ""
            return (self.sign, name, "", "", "left out", "")
        image = self.case.images[0] if self.case.images else None
        if image is None:
            voxels, spacing = f"{len(self.case.report.split())} words", ""
        else:
            voxels = "×".join(map(str, image.shape)) if image.shape else "?"
            spacing = in_mm(image.spacing_mm) if image.spacing_mm else "?"
        target = "" if self.case.target is None else ", ".join(f"{value:g}" for value in self.case.target)
        label = "mask" if self.case.label is not None else f"value {target}" if target else "none"
        split = "excluded" if self.case.excluded else "drawn" if self.split_drawn else self.case.split
        return (self.sign, self.case.id, voxels, spacing, label, split)


class CaseTable(QTableWidget):
    """Rows of cases; the tooltip of each says what was found."""

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.rows: list[Row] = []
        self.setAccessibleName("Cases")
        self.setHorizontalHeaderLabels(list(COLUMNS))
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setTabKeyNavigation(False)
        self.setWordWrap(False)
        self.setMinimumHeight(150)
        self.verticalHeader().hide()
        header = self.horizontalHeader()
        header.setMinimumSectionSize(24)
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.Interactive)

    def show_rows(self, rows: Sequence[Row]) -> None:
        """Show these rows, those with something wrong first; the chosen cases stay chosen."""
        chosen = {case.id for case in self.chosen()}
        self.rows = sorted(rows, key=lambda row: "✗!".find(row.sign) if row.sign in "✗!" else 2)
        self.setRowCount(len(self.rows))
        self.clearSelection()
        self.setSelectionMode(QAbstractItemView.SelectionMode.MultiSelection)
        for index, row in enumerate(self.rows):
            for column, text in enumerate(row.texts()):
                item = QTableWidgetItem(text)
                item.setToolTip(row.sentence)
                self.setItem(index, column, item)
            if row.case is not None and row.case.id in chosen:
                self.selectRow(index)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self._fit_names()

    def chosen(self) -> list[CaseRecord]:
        """Cases of the selected rows."""
        model = self.selectionModel()
        rows = sorted({index.row() for index in model.selectedRows()}) if model is not None else []
        found = [self.rows[row].case for row in rows if row < len(self.rows)]
        return [case for case in found if case is not None]

    def current(self) -> Row | None:
        """The row with the keyboard focus."""
        return self.rows[self.currentRow()] if 0 <= self.currentRow() < len(self.rows) else None

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        """Give the names of cases all the room that the other columns leave."""
        super().resizeEvent(event)
        self._fit_names()

    def _fit_names(self) -> None:
        header, view = self.horizontalHeader(), self.viewport()
        if header is None or view is None:
            return
        others = header.length() - header.sectionSize(1)
        header.resizeSection(1, max(NAME_WIDTH, view.width() - others))


def in_mm(spacing: Sequence[float]) -> str:
    """``0.625`` for cubes, ``5×0.7×0.7`` for all others, whose numbers are shorter so that they fit."""
    exact, short = ([f"{mm:.{digits}g}" for mm in spacing] for digits in (3, 2))
    return exact[0] if len(set(exact)) == 1 else "×".join(short)
