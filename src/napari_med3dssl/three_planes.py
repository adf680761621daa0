"""Axial, coronal and sagittal slices through one point, with a cross-hair that can be dragged.

Drawn from the layers of the viewer at their places in millimetres, without a second canvas: there is nothing of OpenGL
to keep in step or to leak. Scans, heat maps, colours and label maps are shown as the viewer shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QPainter, QTransform
from qtpy.QtWidgets import QHBoxLayout, QWidget

from napari_med3dssl._canvas import side
from napari_med3dssl.layer_looks import Look, has_voxels, look_of

PLANES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""Of each plane the world axis that it cuts, the one that points down, and the one that points right."""
INKS = ("#e69f00", "#56b4e9", "#009e73")
"""Colours of the lines that stand for a place along z, y and x; the plane's name has that of its own."""
WATCHED = (
    "visible",
    "data",
    "set_data",
    "contrast_limits",
    "gamma",
    "colormap",
    "opacity",
    "blending",
    "labels_update",
)
SETTLE_MS = 10


class ThreePlanes(QWidget):
    """The three planes beside each other; a click or a dragged line moves the point, in the viewer too.

    Args:
        viewer: whose layers are drawn, and whose slices follow.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._watched: list[Any] = []
        self.panes = {name: Pane(name, self._go) for name in PLANES}
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for pane in self.panes.values():
            row.addWidget(pane)
        self.setMinimumHeight(160)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE_MS)
        self._timer.timeout.connect(self.draw)
        self._events: tuple[Any, ...] = (
            viewer.dims.events.point,
            viewer.layers.events.inserted,
            viewer.layers.events.removed,
            viewer.layers.events.reordered,
        )
        for event in self._events:
            event.connect(self._later)
        self.draw()

    def closeEvent(self, event: Any) -> None:  # noqa: N802
        """Follow the viewer no more."""
        self.release()
        super().closeEvent(event)

    def release(self) -> None:
        """Let go of the viewer and of its layers."""
        if self._viewer is None:
            return
        self._timer.stop()
        for event in (*self._events, *self._layer_events()):
            event.disconnect(self._later)
        self._events, self._watched, self._viewer = (), [], None
        for pane in self.panes.values():
            pane.show_looks({}, (0.0, 0.0, 0.0))

    def draw(self) -> None:
        """Show the slices through the point where the viewer stands."""
        if self._viewer is None:
            return
        self._watch()
        layers = [layer for layer in self._viewer.layers if layer.visible and has_voxels(layer)]
        looks = {id(layer): look_of(layer) for layer in layers}
        z, y, x = (float(value) for value in np.asarray(self._viewer.dims.point, float)[-3:]) if layers else (0, 0, 0)
        for pane in self.panes.values():
            pane.show_looks(looks, (z, y, x))

    def _later(self, _event: Any = None) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _go(self, axis: int, place: float) -> None:
        if self._viewer is not None and self._viewer.dims.ndim >= 3:
            self._viewer.dims.set_point(self._viewer.dims.ndim - 3 + axis, place)

    def _watch(self) -> None:
        """Follow the layers that there are now."""
        now = [layer for layer in self._viewer.layers if has_voxels(layer)]
        if now == self._watched:
            return
        for event in self._layer_events():
            event.disconnect(self._later)
        self._watched = now
        for event in self._layer_events():
            event.connect(self._later)

    def _layer_events(self) -> list[Any]:
        return [
            getattr(layer.events, name) for layer in self._watched for name in WATCHED if hasattr(layer.events, name)
        ]


class Pane(pg.PlotWidget):
    """One plane.

    Args:
        name: of the plane, see `PLANES`.
        go: told a world axis and the millimetre to go to along it.
    """

    def __init__(self, name: str, go: Any) -> None:
        super().__init__()
        self.cut, self.down, self.right = PLANES[name]
        self._go, self._fitted, self._moving = go, False, False
        self.items: dict[int, pg.ImageItem] = {}
        self.setAccessibleName(f"{name} slice")
        self.setBackground("#000000")  # as scans are looked at, whatever the theme
        self.setMenuEnabled(False)
        self.hideButtons()
        self.setMinimumWidth(80)
        for edge in ("left", "bottom"):
            self.hideAxis(edge)
        box = self.getViewBox()
        box.setAspectLocked(True)
        box.invertY(True)
        self.lines = {}
        for axis, angle in ((self.down, 0), (self.right, 90)):
            pen = pg.mkPen(INKS[axis], width=1.2)
            line = pg.InfiniteLine(angle=angle, movable=True, pen=pen, hoverPen=pg.mkPen(INKS[axis], width=3))
            line.setZValue(1000)
            line.sigPositionChanged.connect(lambda line, axis=axis: self._dragged(axis, line.value()))
            self.addItem(line, ignoreBounds=True)
            self.lines[axis] = line
        top, right = side(-_unit(self.down)), side(_unit(self.right))
        bottom, left = side(_unit(self.down)), side(-_unit(self.right))
        self.letters = {"top": top, "right": right, "bottom": bottom, "left": left}
        self._labels = {
            edge: pg.LabelItem(letter, size="11pt", bold=True, color="#ffffff") for edge, letter in self.letters.items()
        }
        anchors = {"top": (0.5, 0), "bottom": (0.5, 1), "left": (0, 0.5), "right": (1, 0.5)}
        for edge, label in self._labels.items():
            label.setParentItem(box)
            label.setZValue(2000)
            label.anchor(itemPos=anchors[edge], parentPos=anchors[edge])
        title = pg.LabelItem(name, size="9pt", color=INKS[self.cut])
        title.setParentItem(box)
        title.anchor(itemPos=(0, 0), parentPos=(0, 0))
        self.scene().sigMouseClicked.connect(self._clicked)

    def show_looks(self, looks: Mapping[int, Look], point: tuple[float, float, float]) -> None:
        """Draw the slices of layers through a world point (z, y, x); `looks` by the id of the layer, lowest first."""
        drawn = set()
        for height, (key, look) in enumerate(looks.items()):
            found = look.cut(self.cut, point[self.cut])
            if found is None:
                continue
            drawn.add(key)
            item = self.items.get(key)
            if item is None:
                item = self.items[key] = pg.ImageItem(axisOrder="row-major")
                self.addItem(item)
            item.setZValue(height)
            _paint(item, look, found)
            item.setTransform(_placed(look, self.down, self.right))
        for key in set(self.items) - drawn:
            self.removeItem(self.items.pop(key))
        self._moving = True
        for axis, line in self.lines.items():
            line.setValue(point[axis])
            line.setVisible(bool(looks))
        self._moving = False
        if drawn and not self._fitted:
            self.getViewBox().autoRange(padding=0.02)
        self._fitted = bool(drawn)

    def _dragged(self, axis: int, place: float) -> None:
        if not self._moving:
            self._go(axis, float(place))

    def _clicked(self, event: Any) -> None:
        if event.button() == Qt.MouseButton.LeftButton and self.items:
            place = self.getViewBox().mapSceneToView(event.scenePos())
            self._go(self.down, place.y())
            self._go(self.right, place.x())


def _unit(axis: int) -> Any:
    return np.eye(3)[axis]


def _placed(look: Look, down: int, right: int) -> QTransform:
    """From elements of a slice to world millimetres (right, down); voxels lie around their centres."""
    step = [look.scale[axis] for axis in (right, down)]
    first = [look.translate[axis] - size / 2 for axis, size in zip((right, down), step, strict=True)]
    return QTransform.fromTranslate(*first).scale(*step)


def _paint(item: pg.ImageItem, look: Look, values: Any) -> None:
    """Give an item the values of a slice in the colours of its layer."""
    if look.table is None:
        item.setLookupTable(None)
        values = values if look.kind == "colours" else _bytes(look.coloured(values))
        item.setImage(values, autoLevels=False, levels=(0, 255) if values.dtype == np.uint8 else (0, 1))
    else:
        item.setLookupTable(_bytes(look.table))
        item.setImage(values, autoLevels=False, levels=look.limits)
    item.setOpacity(look.opacity)
    modes = QPainter.CompositionMode
    plus = look.blending == "additive"
    item.setCompositionMode(modes.CompositionMode_Plus if plus else modes.CompositionMode_SourceOver)


def _bytes(colours: Any) -> Any:
    return np.round(255 * np.asarray(colours, np.float32)).astype(np.uint8)
