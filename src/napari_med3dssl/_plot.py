"""The live curves of a run: train and validation, told apart by line style and symbol as well as by colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyqtgraph as pg
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from napari_med3dssl import _compat
from napari_med3dssl._widgets import combo

if TYPE_CHECKING:
    from training_backend.jobs.monitor import Series

STYLES = {
    "train": {"colour": "#56b4e9", "style": Qt.PenStyle.SolidLine, "symbol": None},
    "val": {"colour": "#e69f00", "style": Qt.PenStyle.DashLine, "symbol": "o"},
}
LIGHT = {"train": "#0072b2", "val": "#b35c00"}
"""The same hues dark enough for a light background."""
FIRST = ("loss", "score")
"""Curves offered first."""
OWN = ("reconstruction", "words")
"""Curves offered before these where steps of several kinds take turns, whose losses are not alike."""
TURNS = "distillation "
"""Begins the names of curves of such runs."""


class LossPlot(QWidget):
    """One quantity of a run over its steps."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._series: Mapping[str, Series] = {}
        self._plot = plot_widget("Curves of the run")
        self._curves = {split: self._plot.plot([], []) for split in STYLES}
        for curve in self._curves.values():
            curve.setDownsampling(auto=True, method="peak")
            curve.setClipToView(True)
        self._quantity = combo("Quantity")
        self._quantity.currentTextChanged.connect(lambda _: self._draw())
        self._log = QCheckBox("log")
        self._log.setToolTip("Logarithmic axis")
        self._log.toggled.connect(self._set_log)
        self._legend = QLabel()
        self._legend.setAccessibleName("Legend: train solid line, validation dashed line with dots")
        top = QHBoxLayout()
        top.setContentsMargins(0, 0, 0, 0)
        top.addWidget(self._quantity)
        top.addWidget(self._legend, 1)
        top.addWidget(self._log)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addLayout(top)
        layout.addWidget(self._plot)
        viewer.events.theme.connect(self.follow_theme)
        self.follow_theme()

    def show_series(self, series: Mapping[str, Series]) -> None:
        """Draw these curves by "split/quantity"; the chosen quantity stays chosen."""
        self._series = series
        names = {name.partition("/")[2] for name in series}
        first = (*OWN, *FIRST) if any(name.startswith(TURNS) for name in names) else FIRST
        ordered = [name for name in first if name in names] + sorted(names - set(first))
        if ordered != [self._quantity.itemText(row) for row in range(self._quantity.count())]:
            chosen = self._quantity.currentText()
            self._quantity.blockSignals(True)
            self._quantity.clear()
            self._quantity.addItems(ordered)
            self._quantity.setCurrentIndex(max(0, ordered.index(chosen) if chosen in ordered else 0))
            self._quantity.blockSignals(False)
        self._draw()

    def follow_theme(self, event: Any = None) -> None:
        """Take background and text colour from the viewer's theme."""
        light = take_theme(self._plot, self._viewer)
        inks = {split: LIGHT[split] if light else style["colour"] for split, style in STYLES.items()}
        for split, style in STYLES.items():
            curve = self._curves[split]
            curve.setPen(pg.mkPen(inks[split], width=2, style=style["style"]))
            curve.setSymbol(style["symbol"])
            curve.setSymbolSize(6)
            curve.setSymbolBrush(inks[split])
            curve.setSymbolPen(None)
        self._legend.setText(
            f"<span style='color:{inks['train']}'>━━ train</span>&nbsp; "
            f"<span style='color:{inks['val']}'>╍●╍ val</span>"
        )

    def points(self, split: str) -> tuple[list[float], list[float]]:
        """Steps and values drawn for a split."""
        series = self._series.get(f"{split}/{self._quantity.currentText()}")
        return (list(series.steps), list(series.values)) if series is not None else ([], [])

    def _draw(self) -> None:
        for split, curve in self._curves.items():
            curve.setData(*self.points(split))

    def _set_log(self, on: bool) -> None:
        self._plot.setLogMode(y=on)


def plot_widget(name: str) -> pg.PlotWidget:
    """An empty plot without pyqtgraph's own menu and buttons; `name` is what a screen reader says."""
    plot = pg.PlotWidget()
    plot.setMinimumHeight(120)
    plot.setMinimumWidth(60)
    plot.setAccessibleName(name)
    plot.setMenuEnabled(False)
    plot.hideButtons()
    return plot


def take_theme(plot: pg.PlotWidget, viewer: Any) -> bool:
    """Give a plot background and text colour of the viewer's theme; answers whether that is light."""
    colours = _compat.theme_colours(viewer)
    plot.setBackground(colours["background"])
    for name in ("left", "bottom"):
        axis = plot.getAxis(name)
        axis.setPen(colours["text"])
        axis.setTextPen(colours["text"])
    return sum(int(colours["background"][i : i + 2], 16) for i in (1, 3, 5)) > 3 * 128
