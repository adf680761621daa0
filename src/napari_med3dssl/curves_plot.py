"""Curves of several runs over each other: one quantity at a time, told apart by colour, line style and symbol."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyqtgraph as pg
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLabel, QSlider, QVBoxLayout, QWidget

from napari_med3dssl._plot import plot_widget, take_theme
from napari_med3dssl._widgets import combo, wrapping
from napari_med3dssl.forgetting_plot import INKS, legend_entry
from training_backend.jobs.curves import offered, smoothed, title

if TYPE_CHECKING:
    from training_backend.jobs.monitor import Series

STYLES = (
    Qt.PenStyle.SolidLine,
    Qt.PenStyle.DashLine,
    Qt.PenStyle.DotLine,
    Qt.PenStyle.DashDotLine,
    Qt.PenStyle.DashDotDotLine,
)
MARKED = 10
"""Points of a long line that get its symbol."""
MOST_SMOOTHING = 99
"""End of the slider, in hundredths."""
NO_CURVE = "No run has reported anything yet."

Drawn = tuple[list[float], list[float]]
"""Steps and values."""


class CurvesPlot(QWidget):
    """One line per run.

    Args:
        viewer: whose theme is followed.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._light = False
        self._runs: Mapping[str, Mapping[str, Series]] = {}
        self.plot = plot_widget("Curves of the runs")
        self.plot.setLabel("bottom", "step")
        self.quantity = combo("Curve")
        self.quantity.setMinimumContentsLength(18)
        self.quantity.currentIndexChanged.connect(lambda _: self._draw())
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setAccessibleName("Smoothing")
        self.slider.setToolTip("How much of the past each point holds: an exponential moving mean.")
        self.slider.setRange(0, MOST_SMOOTHING)
        self.slider.setMaximumWidth(160)
        self.slider.valueChanged.connect(lambda _: self._draw())
        self.weight = QLabel("0.00")
        self.log = QCheckBox("log")
        self.log.setToolTip("Logarithmic axis; values of zero and below are left out.")
        self.log.toggled.connect(lambda _: self._draw())
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.empty = wrapping(NO_CURVE)
        top = QHBoxLayout()
        top.setContentsMargins(0, 0, 0, 0)
        for widget in (QLabel("Curve"), self.quantity, QLabel("Smoothing"), self.slider, self.weight, self.log):
            top.addWidget(widget)
        top.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 4)
        layout.setSpacing(2)
        layout.addLayout(top)
        layout.addWidget(self.legend)
        layout.addWidget(self.empty)
        layout.addWidget(self.plot, 1)
        viewer.events.theme.connect(self.follow_theme)
        self.follow_theme()

    @property
    def smoothing(self) -> float:
        """Weight of the past, 0 to below 1."""
        return self.slider.value() / 100

    def show_runs(self, runs: Mapping[str, Mapping[str, Series]]) -> None:
        """Draw the curves of these runs by name; the chosen curve stays chosen."""
        self._runs = runs
        names = offered(runs.values())
        if names != [self.quantity.itemData(row) for row in range(self.quantity.count())]:
            chosen = self.quantity.currentData()
            self.quantity.blockSignals(True)
            self.quantity.clear()
            for name in names:
                self.quantity.addItem(title(name), name)
            self.quantity.setCurrentIndex(max(0, self.quantity.findData(chosen)))
            self.quantity.blockSignals(False)
        self._draw()

    def lines(self) -> dict[str, Drawn]:
        """What is drawn of each run; runs without the curve have no points."""
        name = str(self.quantity.currentData() or "")
        found: dict[str, Drawn] = {}
        for run, series in self._runs.items():
            steps, values = (series[name].steps, series[name].values) if name in series else ([], [])
            lowest = 0.0 if self.log.isChecked() else -math.inf
            known = [
                (float(step), value)
                for step, value in zip(steps, smoothed(values, self.smoothing), strict=True)
                if math.isfinite(value) and value > lowest
            ]
            found[run] = ([step for step, _ in known], [value for _, value in known])
        return found

    def follow_theme(self, event: Any = None) -> None:
        """Take background and colours from the viewer's theme."""
        self._light = take_theme(self.plot, self._viewer)
        self._draw()

    def _draw(self) -> None:
        self.weight.setText(f"{self.smoothing:.2f}")
        self.plot.clear()
        self.plot.setLogMode(y=self.log.isChecked())
        lines = self.lines()
        for number, (steps, values) in enumerate(lines.values()):
            dark, light, symbol = INKS[number % len(INKS)]
            ink = light if self._light else dark
            pen = pg.mkPen(ink, width=2, style=STYLES[number % len(STYLES)])
            curve = self.plot.plot(steps, values, pen=pen)
            curve.setDownsampling(auto=True, method="peak")
            stride = max(1, len(steps) // MARKED)
            self.plot.plot(
                steps[::stride],
                values[::stride],
                pen=None,
                symbol=symbol,
                symbolSize=8,
                symbolBrush=ink,
                symbolPen=None,
            )
        self.plot.enableAutoRange()
        self.legend.setText(" &nbsp; ".join(self._entry(*entry) for entry in enumerate(lines.items())))
        self.legend.setAccessibleName(f"Lines: {', '.join(lines)}")
        self.empty.setVisible(bool(self._runs) and not self.quantity.count())

    def _entry(self, number: int, line: tuple[str, Drawn]) -> str:
        name, (steps, _) = line
        told = name if steps else f"{name} (has no such curve)"
        return legend_entry(number, html.escape(told), light=self._light)
