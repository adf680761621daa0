"""Layers side by side: up to four in a grid that moves as one, and the three planes through one point."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.compat import isalive
from qtpy.QtCore import Qt, QTimer
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
IN_3D = "The planes move the slices, which the canvas shows again in 2D."
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
        self._order: list[Any] = []
        self._steps: Iterator[None] = iter(())
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._step)
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
        self.column.addWidget(self.body)
        self.column.addWidget(self.told)  # not into the form: it would cut lines off a text that grows
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
        label = next((one for one in self._layers if one.name == self.over.currentText() and _is_labels(one)), None)
        self._go(chain(self._leaving(), self._entering(chosen, label)))

    def leave(self) -> None:
        """Put everything back as it was."""
        self._go(self._leaving())

    @property
    def busy(self) -> bool:
        """Whether a grid is being made or cleared away."""
        return self._timer.isActive()

    def _go(self, steps: Iterator[None]) -> None:
        """Take the first step now and each further one when the window has had its turn: layers take long to make."""
        self._steps = steps
        self._timer.start(0)
        self._step()

    def _step(self) -> None:
        if next(self._steps, self._steps) is self._steps:  # the last one was taken
            self._timer.stop()
            self.offer()

    def _entering(self, chosen: list[Any], label: Any) -> Iterator[None]:
        """Make what the cells need besides the layers that there are, one at a time, and show them."""
        viewer = self.panel.viewer
        self._order = list(viewer.layers)
        if label is None and not any(_is_labels(layer) for layer in chosen):
            self._in_grid = chosen
            enter_grid(viewer, chosen)
        else:
            placed: list[Any] = []
            empty: list[Any] = []  # keep two layers to a cell
            cells = self._cells(chosen, label)
            spare = [layer for layer in self._order if not any(layer in cell for cell in cells)]
            for layer in [layer for cell in cells for layer in cell]:
                if layer is None:
                    empty.append(spare.pop() if spare else self._twin(placed[-1]))
                    placed.append(empty[-1])
                else:
                    placed.append(self._twin(layer) if layer in placed else layer)
                if placed[-1] in self._made:
                    yield
            if all(layer in viewer.layers for layer in placed):
                yield from self._show_cells(placed, empty)
            else:
                yield from self._leaving()  # one was closed meanwhile
                return
        viewer.layers.selection.active = chosen[0]
        self._link()

    def _show_cells(self, placed: list[Any], empty: list[Any]) -> Iterator[None]:
        """Show a grid of two layers to a cell, in the order of the cells; of these, `empty` are not seen."""
        viewer = self.panel.viewer
        self._in_grid = [layer for layer in placed if layer not in empty]
        named = [below if above in empty else above for below, above in zip(placed[::2], placed[1::2], strict=True)]
        on_top = [layer for k in reversed(range(0, len(placed), 2)) for layer in placed[k : k + 2]]
        _arrange(viewer, [layer for layer in viewer.layers if layer not in on_top] + on_top)
        yield
        enter_grid(viewer, self._in_grid, self._made, stride=-2, named=named)

    def _leaving(self) -> Iterator[None]:
        viewer = self.panel.viewer
        self._unlink()
        if self.in_grid:
            leave_grid(viewer, [layer for layer in self._in_grid if layer in viewer.layers])
        self._in_grid = []
        if self._made:
            yield
            with _compat.at_once(viewer):
                for layer in self._made:
                    if layer in viewer.layers:
                        viewer.layers.remove(layer)
            self._made = []
            yield
        kept, self._order = [layer for layer in self._order if layer in viewer.layers], []
        _arrange(viewer, kept + [layer for layer in viewer.layers if layer not in kept])

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
            if self.panel.viewer.dims.ndisplay == 3:
                self.told.setText(IN_3D)
        self.planes_button.setChecked(self._planes is not None)

    def _planes_gone(self, _object: Any = None) -> None:
        self._planes = None
        if isalive(self) and isalive(self.planes_button):
            self.planes_button.setChecked(False)

    def _cells(self, chosen: list[Any], label: Any) -> list[tuple[Any, Any]]:
        """For each cell what lies below and the label map on it, or None."""
        scan = self.panel.scan
        cells = [(scan, layer) if _is_labels(layer) else (layer, label) for layer in chosen]
        return [(above, None) if below is None else (below, above) for below, above in cells]

    def _twin(self, layer: Any) -> Any:
        """A hidden layer that draws the same voxels once more."""
        data, options, kind = layer.as_layer_data_tuple()
        facts = {**options.get("metadata", {}).get(KEY, {}), "derived": True}
        options |= {
            "name": f"{layer.name} · beside",
            "visible": False,
            "metadata": {KEY: facts} if len(facts) > 1 else {},
        }
        active = self.panel.viewer.layers.selection.active
        twin = add(self.panel.viewer, (data, options, kind))
        self.panel.viewer.layers.selection.active = active
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
        self.grid_button.setEnabled(not self.busy and (shown or 2 <= count <= MOST))
        self.grid_button.setText("Back" if shown else "2 × 2 view")
        self.planes_button.setEnabled(bool(self._layers))
        self.told.setText("" if shown or 2 <= count <= MOST else TOO_MANY if count > MOST else NEEDS_TWO)


def _arrange(viewer: Any, layers: list[Any]) -> None:
    """Bring the layers of a viewer, all of them, into this order."""
    for place, layer in enumerate(layers):
        if viewer.layers[place] is not layer:
            viewer.layers.move(viewer.layers.index(layer), place)


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
