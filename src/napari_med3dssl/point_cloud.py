"""Many points in a plot, drawn by writing their pixels: tens of thousands follow the mouse without a graphics card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyqtgraph as pg
from qtpy.QtCore import QEvent, QObject, QPointF, QRectF, Qt, Signal
from qtpy.QtGui import QColor, QImage

from napari_med3dssl._plot import plot_widget

Places = npt.NDArray[np.float32]

MANY = 4000
"""More points than these are drawn small."""
REACH_PX = 9
"""Pixels around a point in which the mouse finds it."""
CORNERS = 96
"""Most corners of a lasso; more are thinned out."""
STEP_PX = 3
"""Pixels that the mouse moves before a lasso gets a further corner."""


class PointCloud(pg.GraphicsObject):
    """Points in groups, each with a colour and a symbol; chosen ones are larger and in front."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Places = np.zeros((0, 2), np.float32)
        self.groups = np.zeros(0, np.int64)
        self.chosen = np.zeros(0, bool)
        self._inks: list[tuple[int, str]] = []
        self._front = 0xFFFFFFFF
        self._bounds = QRectF()

    def show_points(
        self,
        places: Places,
        groups: npt.NDArray[Any],
        inks: Sequence[tuple[str, str]],
        chosen: npt.NDArray[np.bool_],
        front: str = "#ffffff",
    ) -> None:
        """Draw points.

        Args:
            places: [N, 2].
            groups: [N], number of the group of each.
            inks: ``#rrggbb`` and symbol (of pyqtgraph) of each group.
            chosen: [N], points that are drawn with a rim.
            front: ``#rrggbb`` of the rim.
        """
        self.prepareGeometryChange()
        self.places, self.groups, self.chosen = places.astype(np.float32), groups, chosen
        self._inks = [(QColor(ink).rgba(), symbol) for ink, symbol in inks]
        self._front = QColor(front).rgba()
        self._bounds = _around(self.places)
        self.informViewBoundsChanged()
        self.update()

    def boundingRect(self) -> QRectF:  # noqa: N802
        """Around all points."""
        return self._bounds

    def pixels_of(self) -> npt.NDArray[np.float32]:
        """Where the points lie on the screen, [N, 2] (x, y)."""
        view = self.getViewWidget()
        if view is None:
            return np.zeros((len(self.places), 2), np.float32)
        to = self.sceneTransform() * view.viewportTransform()
        return self.places * np.array([to.m11(), to.m22()], np.float32) + np.array([to.dx(), to.dy()], np.float32)

    def nearest(self, position: QPointF) -> int | None:
        """Point under a place of the scene, or None."""
        if not len(self.places):
            return None
        away = self.pixels_of() - np.array([position.x(), position.y()], np.float32)
        distance = (away**2).sum(axis=1)
        row = int(distance.argmin())
        return row if distance[row] <= REACH_PX**2 else None

    def paint(self, painter: Any, *_rest: Any) -> None:
        """Write the pixels of all points that can be seen."""
        view = self.getViewWidget()
        if view is None or not len(self.places):
            return
        width, height = view.viewport().width(), view.viewport().height()
        canvas = np.zeros((height, width), np.uint32)
        radius = 2 if len(self.places) > MANY else 4
        x, y = np.rint(self.pixels_of()).astype(np.int32).T
        edge = radius + 1
        inside = (x >= edge) & (x < width - edge) & (y >= edge) & (y < height - edge)
        middle = y * width + x
        for number, (ink, symbol) in enumerate(self._inks):
            _stamp(canvas, middle[inside & (self.groups == number)], _offsets(symbol, radius), ink)
        picked = inside & self.chosen
        if picked.any():
            _stamp(canvas, middle[picked], _offsets("s", edge), self._front)
            for number, (ink, symbol) in enumerate(self._inks):
                _stamp(canvas, middle[picked & (self.groups == number)], _offsets(symbol, radius), ink)
        painter.save()
        painter.resetTransform()
        painter.drawImage(0, 0, QImage(canvas.data, width, height, 4 * width, QImage.Format.Format_ARGB32))
        painter.restore()


class PointPlot(QObject):
    """A plot of a point cloud with hover, click and lasso.

    Signals:
        hovered: row under the mouse, or -1.
        clicked: row that was clicked.
        caught: bool [N], points inside a lasso that was drawn.
    """

    hovered = Signal(int)
    clicked = Signal(int)
    caught = Signal(object)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.widget = plot_widget(name)
        self.widget.setMouseTracking(True)
        for edge in ("left", "bottom"):
            self.widget.getAxis(edge).setStyle(showValues=False)
        self.cloud = PointCloud()
        self.widget.addItem(self.cloud)
        self._line = pg.PlotCurveItem(pen=pg.mkPen("#e69f00", width=2, style=Qt.PenStyle.DashLine))
        self.widget.addItem(self._line, ignoreBounds=True)
        self._corners: list[QPointF] = []
        self._lasso = self._drawing = False
        self.widget.scene().sigMouseMoved.connect(self._moved)
        self.widget.scene().sigMouseClicked.connect(self._on_click)
        self.widget.viewport().installEventFilter(self)

    def lasso(self, on: bool) -> None:
        """Let the mouse draw a lasso in place of moving the view."""
        self._lasso, self._drawing = on, False
        self.widget.viewport().setCursor(Qt.CursorShape.CrossCursor if on else Qt.CursorShape.ArrowCursor)

    def eventFilter(self, _watched: Any, event: QEvent) -> bool:  # noqa: N802
        """Take the mouse while a lasso is drawn."""
        kind = event.type()
        if not self._lasso:
            return False
        if kind == QEvent.Type.MouseButtonPress and event.button() == Qt.MouseButton.LeftButton:  # type: ignore[attr-defined]
            self._corners, self._drawing = [self._scene_place(event)], True
            return True
        if kind == QEvent.Type.MouseMove and self._drawing:
            place = self._scene_place(event)
            if (place - self._corners[-1]).manhattanLength() >= STEP_PX:
                self._corners.append(place)
                self._line.setData(*self._polygon().T)
            return True
        if kind == QEvent.Type.MouseButtonRelease and self._drawing:
            self._drawing = False
            polygon = self._polygon()
            self._line.setData([], [])
            self.caught.emit(within(self.cloud.places, polygon))
            return True
        return False

    def _scene_place(self, event: Any) -> QPointF:
        return self.widget.mapToScene(event.position().toPoint())

    def _polygon(self) -> npt.NDArray[np.float64]:
        box = self.widget.getViewBox()
        return np.array([[place.x(), place.y()] for place in map(box.mapSceneToView, self._corners)])

    def _moved(self, position: QPointF) -> None:
        if not self._drawing:
            row = self.cloud.nearest(position)
            self.hovered.emit(-1 if row is None else row)

    def _on_click(self, event: Any) -> None:
        row = self.cloud.nearest(event.scenePos())
        if row is not None and not self._lasso and event.button() == Qt.MouseButton.LeftButton:
            self.clicked.emit(row)


def within(places: npt.NDArray[Any], polygon: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of `places` [N, 2] lie in a polygon [K, 2] (even-odd rule); none in one of fewer than three corners."""
    found = np.zeros(len(places), bool)
    if len(polygon) < 3:
        return found
    corners = polygon[:: max(1, -(-len(polygon) // CORNERS))]
    near = np.flatnonzero(((places >= corners.min(axis=0)) & (places <= corners.max(axis=0))).all(axis=1))
    x, y = places[near].T
    odd = np.zeros(len(near), bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 != y2:
            odd ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    found[near] = odd
    return found


def _around(places: Places) -> QRectF:
    """Box of all points, with a margin."""
    if not len(places):
        return QRectF()
    (left, low), (right, high) = places.min(axis=0).tolist(), places.max(axis=0).tolist()
    margin = 0.05 * max(right - left, high - low, 1e-6)
    return QRectF(left, low, right - left, high - low).adjusted(-margin, -margin, margin, margin)


def _stamp(canvas: npt.NDArray[np.uint32], middle: npt.NDArray[np.int32], offsets: Any, ink: int) -> None:
    """Colour the pixels around each of `middle`, places in the flat canvas, that belong to a symbol."""
    flat, width = canvas.reshape(-1), canvas.shape[1]
    for down, right in offsets:
        flat[middle + (down * width + right)] = ink


def _offsets(symbol: str, radius: int) -> list[tuple[int, int]]:
    """Pixels (down, right) of a symbol."""
    span = range(-radius, radius + 1)
    inside = {
        "s": lambda y, x: True,
        "t": lambda y, x: 2 * abs(x) <= radius - y,
        "t1": lambda y, x: 2 * abs(x) <= radius + y,
        "d": lambda y, x: abs(x) + abs(y) <= radius,
        "+": lambda y, x: x == 0 or y == 0,
        "star": lambda y, x: x == 0 or y == 0 or abs(x) == abs(y),
    }.get(symbol, lambda y, x: x * x + y * y <= radius * radius)
    return [(y, x) for y in span for x in span if inside(y, x)]
