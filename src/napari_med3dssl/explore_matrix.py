"""Matrices as pictures of coloured squares in a panel: what a network compares and that lies nowhere in the scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QEvent, QSize, Qt
from qtpy.QtGui import QColor, QHelpEvent, QPainter, QPaintEvent
from qtpy.QtWidgets import QHBoxLayout, QSizePolicy, QToolTip, QVBoxLayout, QWidget

from napari_med3dssl._widgets import wrapping

SQUARE = 14
"""Pixels of an element's side, where there is room."""
SMALLEST, WIDEST = 3, 320
"""Pixels of a side at least, and of all columns if they can be as small."""
NUMBERED = 10
"""Pixels from which rows and columns have numbers."""
MARGIN = 16
"""Pixels of the numbers of rows and columns."""


class MatrixPicture(QWidget):
    """Squares from dark (low) to bright (high); rows and columns are numbered from 1, and hovering tells the value.

    Args:
        name: of the matrix, also for screen readers.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setObjectName(name)
        self.setAccessibleName(name)
        self.values: npt.NDArray[Any] = np.zeros((1, 1), np.float32)
        self._limits, self._sides = (0.0, 1.0), ("row", "column")
        self._names: tuple[list[str], list[str]] = ([], [])
        self._colours: npt.NDArray[Any] = np.zeros((1, 1, 3), np.uint8)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)

    def show_matrix(self, picture: Mapping[str, Any]) -> None:
        """Draw a picture of role "matrix"."""
        from napari.utils.colormaps import ensure_colormap

        self.values = np.asarray(picture["array"])
        limits = picture.get("limits") or (float(self.values.min()), float(self.values.max()))
        self._limits = (float(limits[0]), float(limits[1]))
        first, second = picture.get("sides", self._sides)
        self._sides = (str(first), str(second))
        rows, columns = picture.get("names") or ((), ())
        self._names = (list(rows), list(columns))
        low, high = self._limits
        scaled = np.clip((self.values - low) / max(high - low, 1e-9), 0, 1)
        colours = ensure_colormap("viridis").map(scaled.ravel())[:, :3]
        self._colours = np.round(255 * colours).astype(np.uint8).reshape(*self.values.shape, 3)
        self.setAccessibleDescription(self.summary())
        self.updateGeometry()
        self.update()

    @property
    def square(self) -> int:
        """Pixels of an element's side."""
        return max(SMALLEST, min(SQUARE, WIDEST // max(1, self.values.shape[1])))

    def summary(self) -> str:
        """What the squares say, in words."""
        rows, columns = self.values.shape
        return (
            f"{rows} rows ({self._sides[0]}), {columns} columns ({self._sides[1]}); values from "
            f"{self.values.min():.2f} to {self.values.max():.2f}."
        )

    def value_at(self, x: float, y: float) -> str:
        """The element at a pixel in words, or nothing beside the squares."""
        column, row = int((x - MARGIN) // self.square), int((y - MARGIN) // self.square)
        if not (0 <= row < self.values.shape[0] and 0 <= column < self.values.shape[1]):
            return ""
        told = [
            names[index] if index < len(names) else f"{side} {index + 1}"
            for names, side, index in zip(self._names, self._sides, (row, column), strict=True)
        ]
        return f"{', '.join(told)}: {self.values[row, column]:.2f}"

    def sizeHint(self) -> QSize:  # noqa: N802
        """Room for all squares and the numbers."""
        rows, columns = self.values.shape
        return QSize(MARGIN + columns * self.square + 1, MARGIN + rows * self.square + 1)

    def event(self, event: QEvent) -> bool:
        """Tell the value under the mouse."""
        if isinstance(event, QHelpEvent):
            QToolTip.showText(event.globalPos(), self.value_at(event.pos().x(), event.pos().y()), self)
            return True
        return bool(super().event(event))

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802
        """Numbers and squares."""
        painter = QPainter(self)
        font = painter.font()
        side = self.square
        font.setPixelSize(max(1, side - 5))
        painter.setFont(font)
        rows, columns = self.values.shape
        centred = Qt.AlignmentFlag.AlignCenter
        gap = 1 if side >= NUMBERED else 0
        for row in range(rows):
            if gap:
                painter.drawText(0, MARGIN + row * side, MARGIN, side, centred, str(row + 1))
            for column in range(columns):
                colour = QColor(*(int(part) for part in self._colours[row, column]))
                painter.fillRect(MARGIN + column * side, MARGIN + row * side, side - gap, side - gap, colour)
        for column in range(columns if gap else 0):
            painter.drawText(MARGIN + column * side, 0, side, MARGIN, centred, str(column + 1))
        painter.end()


class Matrices(QWidget):
    """Matrices below each other, each with its name and the range of its colours; made once, updated in place."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: dict[str, MatrixPicture] = {}
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self.hide()

    def show_all(self, pictures: list[Mapping[str, Any]]) -> None:
        """Draw exactly these pictures of role "matrix"."""
        if [picture["name"] for picture in pictures] != list(self.pictures):
            while (item := self._column.takeAt(0)) is not None:
                if (widget := item.widget()) is not None:  # which the item forgets with its parent
                    widget.setParent(None)
                    widget.deleteLater()
            self.pictures = {}
            for picture in pictures:
                self._add(picture)
        for picture in pictures:
            self.pictures[picture["name"]].show_matrix(picture)
        self.setVisible(bool(pictures))

    def _add(self, picture: Mapping[str, Any]) -> None:
        low, high = picture.get("limits") or (np.min(picture["array"]), np.max(picture["array"]))
        cell, made = QWidget(), MatrixPicture(str(picture["name"]))
        column = QVBoxLayout(cell)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(1)
        column.addWidget(wrapping(f"{picture['name']} ({float(low):g} dark, {float(high):g} bright)"))
        row = QHBoxLayout()
        row.addWidget(made)
        row.addStretch(1)
        column.addLayout(row)
        self.pictures[str(picture["name"])] = made
        self._column.addWidget(cell)
