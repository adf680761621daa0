"""Two label maps of a scan against each other: agreement as a layer, numbers per class, a way through the places."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QFormLayout, QHeaderView, QTableWidget, QTableWidgetItem, QWidget

from napari_med3dssl import _compat, _work
from napari_med3dssl._layers import classes_of, volume_of
from napari_med3dssl._widgets import Section, button, button_row, combo, wrapping
from napari_med3dssl.explore_pictures import PictureLayers, see
from training_backend.files import write_text

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

COLUMNS = (
    ("class", "class_name"),
    ("Dice", "dice"),
    ("HD95 mm", "hd95_mm"),
    ("NSD", "nsd"),
    ("A ml", "volume_ml"),
    ("B ml", "truth_ml"),
)
"""Heads of the table, and the field of a score below each."""
NEEDS_TWO = "Open two label maps of one scan: a prediction and a truth, or the results of two models."
NO_PLACE = "The maps agree everywhere."
NAMED_APART = "Same values are compared, not names: {} is {} in A but {} in B."
HIDDEN = "A and B are hidden now, so that the agreement is seen."
ROW_HEIGHT, MOST_ROWS = 22, 7


class CompareSection(Section):
    """Two layers to choose, a map of their agreement, a table, and buttons that lead from place to place."""

    def __init__(self, panel: ExplorePanel) -> None:
        super().__init__("Compare masks", folded=True, tip="Where two segmentations of a scan agree, and where not.")
        self.panel = panel
        self._maps = PictureLayers(panel.viewer)
        self._layers: list[Any] = []
        self._scores: list[dict[str, Any]] = []
        self._places: list[dict[str, Any]] = []
        self._at = -1
        self._left_out = 0
        self._said: list[str] = []
        self._job: _work.Job | None = None
        self._build()
        self.offer()

    def _build(self) -> None:
        self.one, self.other, self.chosen = combo("A"), combo("B"), combo("Class")
        self.one.setToolTip("The first label map; the other one is put on its grid.")
        self.other.setToolTip("The label map that it is compared with.")
        self.chosen.setToolTip("What map and places are about; the table has all classes.")
        for box in (self.one, self.other):
            box.currentIndexChanged.connect(self._offer_classes)
        self.compare_button = button("Compare", self.compare, "Measure how far the two agree, and where they do not.")
        self.next_button = button("Next disagreement", self.go_next, "Show the next largest place where they differ.")
        self.back_button = button("Previous", self.go_back, "Show the place before.")
        self.save_button = button("Save CSV…", self.save, "Keep the table.")
        self.table = QTableWidget(0, len(COLUMNS))
        self.table.setAccessibleName("Agreement per class")
        self.table.setHorizontalHeaderLabels([head for head, _ in COLUMNS])
        self.table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.table.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.told = wrapping("")
        self.body = QWidget()
        form = QFormLayout(self.body)
        form.setContentsMargins(0, 4, 0, 0)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("A", self.one)
        form.addRow("B", self.other)
        form.addRow("Class", self.chosen)
        form.addRow(button_row(self.compare_button, self.save_button))
        form.addRow(self.table)
        form.addRow(button_row(self.next_button, self.back_button))
        self.column.addWidget(self.body)
        self.column.addWidget(self.told)

    def offer(self) -> None:
        """List the label maps that are open."""
        chosen = self._chosen()
        ours = self._maps["agreement"]
        self._layers = [
            layer
            for layer in self.panel.viewer.layers
            if type(layer).__name__ == "Labels" and layer.ndim == 3 and layer is not ours
        ]
        for number, box in enumerate((self.one, self.other)):
            box.blockSignals(True)
            box.clear()
            box.addItems([layer.name for layer in self._layers])
            kept = chosen[number]
            if kept in self._layers and (not number or kept is not self._chosen()[0]):
                box.setCurrentIndex(self._layers.index(kept))
            elif len(self._layers) > number:
                box.setCurrentIndex(number)
            box.blockSignals(False)
        self._offer_classes()

    def compare(self) -> None:
        """Have the two maps compared by the model process."""
        one, other = self._chosen()
        if one is None or other is None or self._job is not None:
            return
        of_one, of_other = ({entry.index: entry.name for entry in classes_of(layer)} for layer in (one, other))
        names = of_other | of_one
        apart = [value for value, name in sorted(of_one.items()) if value and of_other.get(value, name) != name]
        self._said = [NAMED_APART.format(value, of_one[value], of_other[value]) for value in apart[:1]]
        params = {"one": volume_of(one), "other": volume_of(other), "names": names, "chosen": self.chosen.currentData()}
        client = self.panel.state.client
        self.told.tell("Comparing…")
        self._job = _work.start(
            self,
            lambda: client.request("compare_masks", **params),
            done=lambda values: self._show(values, (one, other)),
            failed=self.told.tell,
            ended=self._ended,
        )
        self._refresh()

    def go_next(self) -> None:
        """Show the next disagreement; after the last comes the first again."""
        self._go(1)

    def go_back(self) -> None:
        """Show the disagreement before."""
        self._go(-1)

    def save(self) -> None:
        """Ask where to, and write the table."""
        path, _ = QFileDialog.getSaveFileName(self, "Save the agreement", "agreement.csv", "Table (*.csv)")
        if path:
            write_text(Path(path), self.as_csv())
            self.told.tell(f"Saved {Path(path).name}.")

    def as_csv(self) -> str:
        """The table as text."""
        made = io.StringIO()
        writer = csv.writer(made)
        writer.writerow([head for head, _ in COLUMNS])
        writer.writerows([[score[field] for _, field in COLUMNS] for score in self._scores])
        return made.getvalue()

    def _chosen(self) -> tuple[Any, Any]:
        found = [
            self._layers[box.currentIndex()] if 0 <= box.currentIndex() < len(self._layers) else None
            for box in (self.one, self.other)
        ]
        return found[0], found[1]

    def _offer_classes(self) -> None:
        known = self.chosen.currentData()
        names = {
            entry.index: entry.name for layer in self._chosen() if layer is not None for entry in classes_of(layer)
        }
        self.chosen.clear()
        self.chosen.addItem("all classes", None)
        for value, name in sorted(names.items()):
            if value:
                self.chosen.addItem(name, value)
        self.chosen.setCurrentIndex(max(0, self.chosen.findData(known)))
        self._refresh()

    def _show(self, values: dict[str, Any], compared: tuple[Any, Any]) -> None:
        first = self._maps["agreement"] is None
        picture = {"name": "agreement", "array": values["labels"], "geometry": values["geometry"], "role": "labels"}
        self._maps.show([{**picture, "classes": values["classes"], "facts": {"derived": True}}])
        self.offer()  # without that layer
        self._scores, self._places, self._at = values["scores"], values["places"], -1
        self._left_out = values["left_out"]
        self.table.setRowCount(len(self._scores))
        for row, score in enumerate(self._scores):
            for column, (_, field) in enumerate(COLUMNS):
                item = QTableWidgetItem(_said(score[field]))
                if column:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.table.setItem(row, column, item)
        self.table.setFixedHeight(30 + ROW_HEIGHT * max(1, min(MOST_ROWS, len(self._scores))))
        count = len(self._places) + self._left_out
        said = [f"{count:,} places differ, the largest first." if count else NO_PLACE, *self._said]
        if first:  # later on they are as the user wants them
            for layer in compared:
                see(layer, False)
            said.append(HIDDEN)
        self.told.tell(" ".join(said))
        self._refresh()

    def _go(self, by: int) -> None:
        layer = self._maps["agreement"]
        if not self._places or layer is None:
            return
        self._at = (self._at + by) % len(self._places) if self._at >= 0 or by > 0 else len(self._places) - 1
        place = self._places[self._at]
        z, y, x = (int(n) for n in place["voxel"])
        self._look_at(layer, (z, y, x))
        names = {entry.index: entry.name for entry in classes_of(layer)}
        beyond = f" ({self._left_out:,} smaller ones are not listed)" if self._left_out else ""
        self.told.tell(
            f"Place {self._at + 1} of {len(self._places)}{beyond}: {names[place['kind']]}, {_said(place['ml'])} ml, "
            f"voxel z, y, x = {z}, {y}, {x}."
        )

    def _look_at(self, layer: Any, voxel: tuple[int, int, int]) -> None:
        """Slices through the voxel, which comes to the middle of the canvas."""
        viewer = self.panel.viewer
        world = layer.data_to_world(voxel)
        layer.visible = True
        viewer.dims.set_point(range(3), world)
        shown = viewer.dims.displayed
        _compat.camera(viewer).center = tuple(world[axis] for axis in shown)

    def _ended(self) -> None:
        self._job = None
        self._refresh()

    def _refresh(self) -> None:
        one, other = self._chosen()
        possible = one is not None and other is not None and one is not other
        self.compare_button.setEnabled(possible and self._job is None)
        if not possible and not self._scores:
            self.told.setText(NEEDS_TWO)
        elif self.told.text() == NEEDS_TWO:
            self.told.setText("")
        for widget in (self.next_button, self.back_button):
            widget.setEnabled(bool(self._places))
        self.save_button.setEnabled(bool(self._scores))
        self.table.setVisible(bool(self._scores))


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "–" if value is None or math.isnan(value) else f"{value:.3f}" if value < 100 else f"{value:.0f}"
