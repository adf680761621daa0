"""Layers side by side: up to four in a grid that moves as one, and the three planes through one point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QFormLayout, QListWidget, QListWidgetItem, QWidget

from napari_med3dssl import _compat
from napari_med3dssl._layers import KEY, add
from napari_med3dssl._widgets import Section, button, button_row, combo, wrapping
from napari_med3dssl.explore_pictures import enter_grid, leave_grid
from napari_med3dssl.three_planes import ThreePlanes

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

MOST = 4
NEEDS_TWO = "Tick two to four layers: contrasts of a scan, or label maps of several models."
TOO_MANY = "A grid has four cells; untick some layers."
OTHER_PLACE = "{} lies at another place than {}; side by side, they would not show the same tissue."


class BesideSection(Section):
    """A list of layers to tick, and buttons for the grid and for the three planes."""

    def __init__(self, panel: ExplorePanel) -> None:
        super().__init__("Side by side", folded=True, tip="Contrasts or models in a grid; the three planes.")
        self.panel = panel
        self._layers: list[Any] = []
        self._made: list[Any] = []
        self._linked: list[Any] = []
        self._in_grid: list[Any] = []
        self._planes: ThreePlanes | None = None
        self.list = QListWidget()
        self.list.setAccessibleName("Layers to show side by side")
        self.list.setFixedHeight(96)
        self.list.itemChanged.connect(lambda _: self._refresh())
        self.over = combo("Under or over")
        self.over.setToolTip("What label maps lie on, or which label map lies on scans.")
        self.link = QCheckBox("Link contrast")
        self.link.setToolTip("Let all scans in the grid share contrast limits and gamma.")
        self.link.toggled.connect(self._link)
        self.grid_button = button("2 × 2 view", self.toggle, "Side by side with one camera and one slice, and back.")
        self.planes_button = button("Three planes", self.toggle_planes, "Axial, coronal and sagittal, with cross-hair.")
        self.planes_button.setCheckable(True)
        self.told = wrapping("")
        self.body = QWidget()
        form = QFormLayout(self.body)
        form.setContentsMargins(0, 4, 0, 0)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(self.list)
        form.addRow("Label map", self.over)
        form.addRow(self.link)
        form.addRow(button_row(self.grid_button, self.planes_button))
        form.addRow(self.told)
        self.column.addWidget(self.body)
        self.offer()

    @property
    def chosen(self) -> list[Any]:
        """The ticked layers, in the order of the list."""
        rows = range(self.list.count())
        return [self._layers[row] for row in rows if self.list.item(row).checkState() == Qt.CheckState.Checked]

    @property
    def in_grid(self) -> bool:
        """Whether the viewer shows the grid of this section."""
        layers = self.panel.viewer.layers
        return bool(_compat.grid(self.panel.viewer).enabled) and any(layer in layers for layer in self._in_grid)

    def offer(self) -> None:
        """List scans and label maps that are open; what was ticked stays so."""
        ticked, chosen = self.chosen, self.over.currentText()
        self._layers = [layer for layer in self.panel.viewer.layers if _can_stand(layer) and layer not in self._made]
        self.list.blockSignals(True)
        self.list.clear()
        for layer in self._layers:
            item = QListWidgetItem(layer.name)
            item.setFlags(Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsEnabled)
            item.setCheckState(Qt.CheckState.Checked if layer in ticked else Qt.CheckState.Unchecked)
            self.list.addItem(item)
        self.list.blockSignals(False)
        self.over.clear()
        self.over.addItems(["none", *(layer.name for layer in self._layers if _is_labels(layer))])
        self.over.setCurrentIndex(max(0, self.over.findText(chosen)))
        self._refresh()

    def toggle(self) -> None:
        """Show the ticked layers side by side, or everything as it was."""
        if self.in_grid:
            self.leave()
            return
        chosen = self.chosen
        apart = self._apart(chosen)
        if apart:
            self.told.setText(apart)
            return
        self.leave()
        label = next((one for one in self._layers if one.name == self.over.currentText() and _is_labels(one)), None)
        viewer = self.panel.viewer
        if label is None and not any(_is_labels(layer) for layer in chosen):
            self._in_grid = chosen
            enter_grid(viewer, chosen)
        else:
            cells = self._cells(chosen, label)
            self._in_grid = [layer for cell in cells for layer in cell if layer is not None]
            enter_grid(viewer, self._in_grid, self._made, stride=-2)
            for below, above in cells:
                _compat.show_name(below, above is None)  # one name to a cell
            self.offer()  # without these
        self._link()
        self._refresh()

    def leave(self) -> None:
        """Put everything back as it was."""
        viewer = self.panel.viewer
        self._unlink()
        if self.in_grid:
            leave_grid(viewer, [layer for layer in self._in_grid if layer in viewer.layers])
        made, self._made, self._in_grid = self._made, [], []
        for layer in made:
            if layer in viewer.layers:
                viewer.layers.remove(layer)
        self.offer()

    def toggle_planes(self) -> None:
        """Dock the three planes below the canvas, or close them."""
        window = self.panel.viewer.window
        if self._planes is not None and isalive(self._planes):
            planes, self._planes = self._planes, None
            window.remove_dock_widget(planes)
            planes.close()
            planes.deleteLater()
        else:
            self._planes = ThreePlanes(self.panel.viewer)
            self._planes.destroyed.connect(self._planes_gone)
            window.add_dock_widget(self._planes, name="Three planes", area="bottom")
        self.planes_button.setChecked(self._planes is not None)

    def _planes_gone(self, _object: Any = None) -> None:
        self._planes = None
        if isalive(self) and isalive(self.planes_button):
            self.planes_button.setChecked(False)

    def _cells(self, chosen: list[Any], label: Any) -> list[tuple[Any, Any]]:
        """For each cell, the last first, what lies below and the label map on it, or None; all share their voxels."""
        viewer, scan = self.panel.viewer, self.panel.scan
        cells = []
        for layer in reversed(chosen):
            below, above = (scan, layer) if _is_labels(layer) else (layer, label)
            if below is None or above is None:
                cells.append((self._twin(layer, layer.name), None))
                self._twin(layer, f"{layer.name} again").visible = False  # keeps two layers to a cell
            else:
                cells.append((self._twin(below, f"below {layer.name}"), self._twin(above, layer.name)))
        viewer.layers.selection.active = chosen[0]
        return cells

    def _twin(self, layer: Any, name: str) -> Any:
        """A layer that draws the same voxels once more."""
        data, options, kind = layer.as_layer_data_tuple()
        facts = {**options.get("metadata", {}).get(KEY, {}), "derived": True}
        options |= {"name": f"{name} · beside", "visible": True, "metadata": {KEY: facts} if len(facts) > 1 else {}}
        twin = add(self.panel.viewer, (data, options, kind))
        self._made.append(twin)
        return twin

    def _link(self) -> None:
        """Let the scans in the grid share their contrast, if so wished."""
        self._unlink()
        images = [layer for layer in self._in_grid if not _is_labels(layer)]
        if self.in_grid and self.link.isChecked() and len(images) > 1:
            for layer in images[1:]:
                layer.contrast_limits_range = _wider(layer.contrast_limits_range, images[0].contrast_limits_range)
                layer.contrast_limits = images[0].contrast_limits
            self.panel.viewer.layers.link_layers(images, ("contrast_limits", "gamma"))
            self._linked = images

    def _unlink(self) -> None:
        left = [layer for layer in self._linked if layer in self.panel.viewer.layers]
        self._linked = []
        if len(left) > 1:
            self.panel.viewer.layers.unlink_layers(left, ("contrast_limits", "gamma"))

    def _apart(self, chosen: list[Any]) -> str:
        """A sentence when the ticked layers have no place in common."""
        for layer in chosen[1:]:
            if not _overlap(chosen[0], layer):
                return OTHER_PLACE.format(layer.name, chosen[0].name)
        return ""

    def _refresh(self) -> None:
        count, shown = len(self.chosen), self.in_grid
        self.grid_button.setEnabled(shown or 2 <= count <= MOST)
        self.grid_button.setText("Back" if shown else "2 × 2 view")
        self.planes_button.setEnabled(bool(self._layers))
        self.told.setText("" if shown or 2 <= count <= MOST else TOO_MANY if count > MOST else NEEDS_TWO)


def _can_stand(layer: Any) -> bool:
    return type(layer).__name__ in ("Image", "Labels") and layer.ndim == 3


def _is_labels(layer: Any) -> bool:
    return type(layer).__name__ == "Labels"


def _overlap(one: Any, other: Any) -> bool:
    """Whether two layers cover a common part of the patient's space."""
    boxes = [np.sort(np.asarray(layer.extent.world)[:, -3:], axis=0) for layer in (one, other)]
    return bool((np.maximum(boxes[0][0], boxes[1][0]) < np.minimum(boxes[0][1], boxes[1][1])).all())


def _wider(one: Any, other: Any) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])
