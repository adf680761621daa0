"""Forgetting as a chart: what each modality's own probe finds after every stage of a plan."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyqtgraph as pg
from qtpy.QtWidgets import QFileDialog, QLabel, QVBoxLayout, QWidget

from napari_med3dssl._plot import plot_widget, take_theme
from napari_med3dssl._widgets import Notice, button, button_row, combo, copy_text, wrapping
from training_backend.files import write_text

INKS = (
    ("#56b4e9", "#0072b2", "o"),
    ("#e69f00", "#b35c00", "s"),
    ("#009e73", "#00704f", "t"),
    ("#cc79a7", "#9c3f74", "d"),
    ("#f0e442", "#7a6f00", "star"),
    ("#d55e00", "#a84a00", "t1"),
    ("#b9b9b9", "#555555", "+"),
)
"""Colour on a dark and on a light background, and symbol, of each modality in the order in which they are taught."""
MARKS = {"o": "●", "s": "■", "t": "▼", "d": "◆", "star": "★", "t1": "▲", "+": "✚"}
"""The same symbols as text."""
CHANGE = "change"
"""What follows the name of a quantity whose change since the modality was taught is drawn."""


@dataclass(frozen=True)
class Forgetting:
    """What was measured after each stage.

    Attributes:
        stages: names of the stages that have ended, in their order.
        modalities: those that were measured, in the order in which they are taught.
        values: by quantity ("loss", ...), then by (stage, modality).
    """

    stages: Sequence[str] = ()
    modalities: Sequence[str] = ()
    values: Mapping[str, Mapping[tuple[str, str], float]] = field(default_factory=dict)

    def curve(self, quantity: str, modality: str) -> list[float]:
        """Value after each stage, not a number where the modality was not known yet."""
        found = self.values.get(quantity, {})
        return [found.get((stage, modality), math.nan) for stage in self.stages]

    def changes(self, quantity: str, modality: str) -> list[float]:
        """Change since the modality was taught, in per cent of what it was then."""
        curve = self.curve(quantity, modality)
        first = next((value for value in curve if not math.isnan(value)), math.nan)
        return [100 * (value / first - 1) if first else math.nan for value in curve]

    def to_csv(self) -> str:
        """One row per stage and quantity, one column per modality."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["stage", "quantity", *self.modalities])
        for quantity in self.values:
            for number, stage in enumerate(self.stages):
                row = [self.curve(quantity, modality)[number] for modality in self.modalities]
                writer.writerow([stage, quantity, *("" if math.isnan(value) else f"{value:.6g}" for value in row)])
        return text.getvalue()

    def sentence(self, quantity: str) -> str:
        """What became of every modality that was not taught last."""
        told = []
        for modality in self.modalities:
            known = [value for value in self.curve(quantity, modality) if not math.isnan(value)]
            if len(known) > 1:
                change = self.changes(quantity, modality)[-1]
                told.append(f"{modality} {known[0]:.3g} → {known[-1]:.3g} ({change:+.1f} %)")
        if not told:
            return "Forgetting shows when a second stage has ended."
        return f"From its own stage until {self.stages[-1]}: {'; '.join(told)}."


class ForgettingPlot(QWidget):
    """One line per modality over the stages; colour, symbol and legend tell them apart.

    Args:
        viewer: whose theme is followed.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._light = False
        self.found = Forgetting()
        self._plot = plot_widget("Forgetting: value of each modality after each stage")
        self._plot.setMinimumHeight(150)
        self.quantity = combo("Quantity")
        self.quantity.currentIndexChanged.connect(lambda _: self._draw())
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.text = wrapping("")
        self.notice = Notice()
        self.copy_button = button("Copy CSV", self.copy, "The numbers of this chart, for a spreadsheet.")
        self.save_button = button("Save CSV…", self.save, "The numbers of this chart as a file.")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self.quantity)
        column.addWidget(self._plot, 1)
        for widget in (self.legend, self.text, button_row(self.copy_button, self.save_button), self.notice):
            column.addWidget(widget)
        viewer.events.theme.connect(self.follow_theme)
        self.follow_theme()

    def show_forgetting(self, found: Forgetting) -> None:
        """Draw what was measured; the chosen quantity stays chosen."""
        if found == self.found:
            return
        self.found = found
        names = [(f"{CHANGE} of {name} in %", f"{name} {CHANGE}") for name in found.values]
        names += [(name, name) for name in found.values]
        if [self.quantity.itemData(row) for row in range(self.quantity.count())] != [data for _, data in names]:
            chosen = self.quantity.currentData()
            self.quantity.blockSignals(True)
            self.quantity.clear()
            for text, data in names:
                self.quantity.addItem(text, data)
            self.quantity.setCurrentIndex(max(0, self.quantity.findData(chosen)))
            self.quantity.blockSignals(False)
        self._draw()

    def follow_theme(self, event: Any = None) -> None:
        """Take background and colours from the viewer's theme."""
        self._light = take_theme(self._plot, self._viewer)
        self._draw()

    def lines(self) -> dict[str, list[float]]:
        """What is drawn: one value per stage for each modality."""
        chosen = str(self.quantity.currentData() or "")
        quantity = chosen.removesuffix(f" {CHANGE}")
        of = self.found.curve if quantity == chosen else self.found.changes
        return {modality: of(quantity, modality) for modality in self.found.modalities}

    def copy(self) -> None:
        """Put the numbers on the clipboard."""
        copy_text(self.found.to_csv())
        self.notice.say("ok", "The numbers are on the clipboard.")

    def save(self) -> None:
        """Write the numbers to a file of the user's choice."""
        start = str(Path.home() / "forgetting.csv")
        path, _ = QFileDialog.getSaveFileName(self, "Save the numbers", start, "CSV (*.csv)")
        if path:
            write_text(Path(path), self.found.to_csv())
            self.notice.say("ok", f"Saved {path}.")

    def _draw(self) -> None:
        self._plot.clear()
        legend = []
        for number, (modality, values) in enumerate(self.lines().items()):
            dark, light, symbol = INKS[number % len(INKS)]
            ink = light if self._light else dark
            pen = pg.mkPen(ink, width=2)
            shown = [(place, value) for place, value in enumerate(values) if not math.isnan(value)]
            self._plot.plot(
                *zip(*shown, strict=True) if shown else ([], []),
                pen=pen,
                symbol=symbol,
                symbolSize=9,
                symbolBrush=ink,
                symbolPen=None,
            )
            legend.append(legend_entry(number, modality, light=self._light))
        ticks = [list(enumerate(_short(stage) for stage in self.found.stages))]
        self._plot.getAxis("bottom").setTicks(ticks)
        self._plot.setXRange(-0.5, max(len(self.found.stages) - 0.5, 0.5), padding=0)  # room for the labels
        self._plot.enableAutoRange(axis="y")
        self.legend.setText(" &nbsp; ".join(legend))
        quantity = str(self.quantity.currentData() or "").removesuffix(f" {CHANGE}")
        self.text.setText(self.found.sentence(quantity))
        self.legend.setAccessibleName(f"Lines: {', '.join(self.found.modalities)}")
        for widget in (self.copy_button, self.save_button):
            widget.setEnabled(bool(self.found.stages))


def legend_entry(number: int, name: str, *, light: bool) -> str:
    """Symbol and name of the line or points with a number, in their colour, that do not break apart."""
    ink = INKS[number % len(INKS)]
    return f"<span style='color:{ink[int(light)]}'>{MARKS[ink[2]]}&nbsp;{name}</span>"


def _short(stage: str) -> str:
    """``after 3D_CT`` in as little room as the axis has."""
    return stage if len(stage) <= 12 else f"{stage[:11]}…"
