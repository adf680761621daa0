"""What the canvas shows of slices, drawn anew at any size without OpenGL, and so off the Qt thread.

`view_of` takes down what is seen, in milliseconds; `CanvasView.drawn` draws it in any thread. Where something is seen
that only OpenGL draws, `only_opengl` says what.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_med3dssl import _compat
from napari_med3dssl.layer_looks import BLENDINGS, SMOOTHINGS, Floats, Look, has_voxels, look_of

Picture = npt.NDArray[np.uint8]
"""[h, w, 3]."""
Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels of the canvas."""

EDGE = 10.0
"""Pixels of the canvas between its edge and what is written."""
LONGEST_BAR = 150.0
"""Pixels of the canvas."""
PIXELS_PER_POINT = (96 / 72) ** 2
"""As napari draws its texts."""
BAR_LENGTHS = (1, 2, 5, 10, 15, 20, 25, 50, 75, 100, 125, 150, 200, 500, 750)
"""Of scale bars, times a power of a thousand; napari's own."""
PADDING, SHADE = 4.0, 0.8
"""Pixels around a text, and opacity, of the box behind it."""
TICK, THICK = 8.0, 2.0
"""Pixels of the ends and of the line of the scale bar."""
SMALLEST_CELL = 20
"""Pixels of a cell in napari's grid, whatever the space between the cells."""
BAND = 128
"""Rows that are drawn at a time, which bounds the memory."""
DRAWN_TEXTS = ("scale_bar", "text", "current_slice")
"""Overlays of napari that are drawn here; ours are besides."""


@dataclass(frozen=True)
class Cell:
    """A part of the canvas with layers of its own, the lowest first; left, top, width and height in its pixels."""

    box: Box
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Mark:
    """A text at an edge or corner of a part of the canvas; its size in pixels of the canvas.

    The scale bar has a length in world units; its text is told by that.
    """

    text: str
    position: str
    size: float
    box: Box
    shaded: bool
    length: float = 0.0


@dataclass(frozen=True)
class CanvasView:
    """What is seen of slices.

    Args:
        size: height and width of the canvas in pixels.
        zoom: pixels of the canvas per millimetre.
        centre: world (down, right) in the middle of each cell.
        axes: world axes that are cut, point down and point right.
        place: world millimetre of the slice.
        flipped: whether the world runs up, and to the left.
        ground: RGB of the bare canvas, 0 to 1.
        ink: RGB of what is written.
        cells: parts of the canvas.
        marks: texts and the scale bar.
    """

    size: tuple[int, int]
    zoom: float
    centre: tuple[float, float]
    axes: tuple[int, int, int]
    place: float
    flipped: tuple[bool, bool]
    ground: tuple[float, float, float]
    ink: tuple[float, float, float]
    cells: tuple[Cell, ...]
    marks: tuple[Mark, ...]

    def drawn(self, width: int, place: float | None = None) -> Picture:
        """The view as wide as asked for in pixels, at the slice that is seen or at another."""
        grown = width / self.size[1]
        height = round(self.size[0] * grown)
        picture = np.empty((height, width, 3), np.uint8)
        picture[:] = _bytes(np.asarray(self.ground))
        for cell in self.cells:
            self._draw_cell(picture, cell, grown, self.place if place is None else place)
        _write(picture, self, grown)
        return picture

    def _draw_cell(self, picture: Picture, cell: Cell, grown: float, place: float) -> None:
        left, top, width, height = cell.box
        rows = np.arange(max(0, round(top * grown)), min(picture.shape[0], round((top + height) * grown)))
        columns = np.arange(max(0, round(left * grown)), min(picture.shape[1], round((left + width) * grown)))
        cut, *seen = self.axes
        middle = (top + height / 2, left + width / 2)
        worlds = [
            self.centre[k] + (-1 if self.flipped[k] else 1) * ((at + 0.5) / grown - middle[k]) / self.zoom
            for k, at in enumerate((rows, columns))
        ]
        slices = []
        for look in cell.looks:
            found = look.cut(cut, place)
            if found is not None:
                found = found if seen[0] < seen[1] else np.ascontiguousarray(found.swapaxes(0, 1))
                placed = zip(worlds, seen, strict=True)
                at = [(world - look.translate[axis]) / look.scale[axis] for world, axis in placed]
                slices.append((look, found, at))
        for begin in range(0, len(rows), BAND):
            band = slice(begin, begin + BAND)
            colours = np.empty((len(rows[band]), len(columns), 3), np.float32)
            colours[:] = self.ground
            for height_in_cell, (look, found, (down, right)) in enumerate(slices):
                sampled = look.sampled(found, down[band], right)
                colours = look.laid_on(colours, sampled, height_in_cell == 0)
            picture[rows[band][0] : rows[band][-1] + 1, columns[0] : columns[-1] + 1] = _bytes(colours)


def only_opengl(viewer: Any) -> str:
    """What is seen that `view_of` cannot take down, as the subject of a sentence; empty where it can."""
    if not hasattr(viewer, "canvas"):
        return "The canvas of this version of napari"
    if viewer.dims.ndisplay == 3:
        return "The view in 3D"
    if viewer.dims.ndim != 3 or any(viewer.dims.thickness):
        return "A view of more than three dimensions, or of thick slices,"
    shown = [layer for layer in viewer.layers if layer.visible]
    if len({tuple(str(unit) for unit in layer.units) for layer in shown}) > 1:
        return "A view of layers with different units"
    overlays = [key for key, overlay in viewer.canvas.overlays.items() if overlay.visible and not key.startswith("_")]
    if any(key not in DRAWN_TEXTS and not key.startswith("med3dssl_") for key in overlays):
        return "What is drawn over the layers"
    return next((f"The layer {layer.name!r}" for layer in shown if not _can_be_drawn(layer)), "")


def view_of(viewer: Any, bar: bool = False) -> CanvasView:
    """What a viewer's canvas shows; `bar` adds a scale bar where there is none. See `only_opengl` first."""
    dims, camera, grid = viewer.dims, _compat.camera(viewer), _compat.grid(viewer)
    height, width = (int(n) for n in viewer.canvas.size)
    layers = list(viewer.layers)
    whole = (0.0, 0.0, float(width), float(height))
    boxes = _boxes(grid, layers, (height, width)) if grid.enabled else {(0, 0): whole}
    inside: dict[tuple[int, int], list[Any]] = {}
    for number, layer in enumerate(layers):
        if layer.visible:
            inside.setdefault(grid.position(number, layers), []).append(layer)
    cells = tuple(
        Cell(boxes[at], tuple(look_of(layer) for layer in found)) for at, found in inside.items() if at in boxes
    )
    shown = [(layer, boxes[at]) for at, found in inside.items() if at in boxes for layer in found]
    marks = [*_texts(viewer, whole, [boxes[at] for at in inside if at in boxes]), *_names(shown)]
    scale_bar = _compat.scale_bar(viewer)
    if bar or scale_bar.visible:
        length = scale_bar.length or bar_length(camera.zoom)
        text = f"{length:g} {_unit([layer for layer, _ in shown])}".strip()
        marks.append(_mark(scale_bar, text, whole, float(length)))
    orientation = [str(getattr(way, "value", way)) for way in camera.orientation2d]
    ground = np.asarray(viewer.canvas.background_color, float)[:3]
    cut, down, right = (int(axis) for axis in dims.order)
    return CanvasView(
        size=(height, width),
        zoom=float(camera.zoom),
        centre=(float(camera.center[-2]), float(camera.center[-1])),
        axes=(cut, down, right),
        place=float(dims.point[cut]),
        flipped=(orientation[0] == "up", orientation[1] == "left"),
        ground=_triple(ground),
        ink=_triple(np.clip(0.5 + (0.5 - ground) * 1.2, 0, 1)),
        cells=cells,
        marks=tuple(marks),
    )


def bar_length(zoom: float) -> float:
    """Length of a scale bar in millimetres: the longest of `BAR_LENGTHS` that is at most `LONGEST_BAR` pixels."""
    longest = LONGEST_BAR / zoom
    power = 1000.0 ** math.floor(math.log(longest, 1000))
    return power * max(length for length in BAR_LENGTHS if length * power <= longest or length == 1)


def _can_be_drawn(layer: Any) -> bool:
    if not has_voxels(layer) or str(layer.blending) not in BLENDINGS:
        return False
    if not (np.allclose(layer.rotate, np.eye(3)) and np.allclose(layer.shear, 0)):
        return False
    if not np.allclose(layer.affine.affine_matrix, np.eye(4)):
        return False
    lines = (layer.bounding_box, getattr(layer, "colorbar", None))
    if any(overlay is not None and overlay.visible for overlay in lines) or str(layer.mode) == "transform":
        return False
    if type(layer).__name__ == "Labels":
        return layer.contour == 0 and str(layer.blending) != "opaque"
    marked = (layer.colormap.high_color, layer.colormap.low_color) if not layer.rgb else (None, None)
    return str(layer.interpolation2d) in SMOOTHINGS and marked == (None, None)


def _boxes(grid: Any, layers: list[Any], size: tuple[int, int]) -> dict[tuple[int, int], Box]:
    """Left, top, width and height of each cell of the grid."""
    rows, columns = grid.actual_shape(layers)
    spacing = float(grid.spacing)
    if spacing < 1:
        spacing *= (size[1] / columns + size[0] / rows) / 2
    most = [(n - k * SMALLEST_CELL) / max(1, k - 1) for n, k in zip(size, (rows, columns), strict=True)]
    spacing = min(int(spacing), max(0, int(min(most))))
    height = (size[0] - (rows - 1) * spacing) / rows
    width = (size[1] - (columns - 1) * spacing) / columns
    return {
        (row, column): (column * (width + spacing), row * (height + spacing), width, height)
        for row in range(rows)
        for column in range(columns)
    }


def _texts(viewer: Any, whole: Any, boxes: list[Any]) -> Iterator[Mark]:
    for key, overlay in viewer.canvas.overlays.items():
        if not overlay.visible or not (key.startswith("med3dssl_") or key in ("text", "current_slice")):
            continue
        text = _slice_text(viewer.dims) if key == "current_slice" else overlay.text
        for box in boxes if overlay.gridded and boxes else [whole]:
            yield _mark(overlay, text, box)


def _slice_text(dims: Any) -> str:
    """What napari's own overlay says of the slice."""
    return "\n".join(f"{dims.axis_labels[axis]} = {dims.point[axis]:.5g}" for axis in dims.not_displayed)


def _names(shown: list[tuple[Any, Any]]) -> Iterator[Mark]:
    for layer, box in shown:
        overlay = getattr(layer, "name_overlay", None)
        if overlay is not None and overlay.visible:
            yield _mark(overlay, layer.name, box)


def _mark(overlay: Any, text: str, box: Box, length: float = 0.0) -> Mark:
    size = float(overlay.font_size) * PIXELS_PER_POINT
    return Mark(text, str(overlay.position), size, box, bool(overlay.box), length)


def _unit(layers: list[Any]) -> str:
    unit = f"{layers[0].units[-1]:~}" if layers else "mm"
    return "px" if unit == "pixel" else unit


def _write(picture: Picture, view: CanvasView, grown: float) -> None:
    """Letters, names and the scale bar into a picture."""
    used: dict[tuple[Any, str], float] = {}  # texts at one place stand one after the other
    for mark in view.marks:
        stamp = _stamp(mark, grown, view)
        key = (mark.box, mark.position)
        _put(picture, stamp, mark.position, mark.box, grown, used.get(key, 0.0))
        used[key] = used.get(key, 0.0) + stamp.shape[0]


def _put(picture: Picture, stamp: Floats, position: str, box: Any, grown: float, used: float) -> None:
    """Blend RGBA `stamp` into a picture at an edge or corner of a box of the canvas; what sticks out is left off."""
    vertical, _, horizontal = position.partition("_")
    left, top, width, height = (value * grown for value in box)
    free_rows, free_columns = height - stamp.shape[0], width - stamp.shape[1]
    edge = (EDGE - PADDING) * grown
    down = {"top": edge + used, "middle": free_rows / 2 + used, "bottom": free_rows - edge - used}[vertical]
    right = {"left": edge, "center": free_columns / 2, "right": free_columns - edge}[horizontal]
    row, column = round(top + down), round(left + right)
    rows = slice(max(0, row), max(0, min(picture.shape[0], row + stamp.shape[0])))
    columns = slice(max(0, column), max(0, min(picture.shape[1], column + stamp.shape[1])))
    kept = stamp[rows.start - row : rows.stop - row, columns.start - column : columns.stop - column]
    below = picture[rows, columns].astype(np.float32) / 255
    picture[rows, columns] = _bytes(kept[..., :3] * kept[..., 3:] + below * (1 - kept[..., 3:]))


def _stamp(mark: Mark, grown: float, view: CanvasView) -> Floats:
    """RGBA of a text, or of a scale bar below its text, painted by Qt, which knows all scripts."""
    from qtpy.QtCore import QRectF, Qt
    from qtpy.QtGui import QColor, QFont, QFontMetricsF, QImage, QPainter
    from superqt.utils import qimage_to_array

    font = QFont()
    font.setPixelSize(max(1, round(mark.size * grown)))
    metrics, padding = QFontMetricsF(font), PADDING * grown
    lines, long = mark.text.split("\n"), mark.length * view.zoom * grown
    tick = TICK * grown if mark.length else 0.0
    written = len(lines) * metrics.lineSpacing()
    width = max(long, *(metrics.horizontalAdvance(line) for line in lines)) + 2 * padding
    image = QImage(math.ceil(width), math.ceil(written + tick + 2 * padding), QImage.Format.Format_ARGB32)
    ground, ink = QColor.fromRgbF(*view.ground, SHADE if mark.shaded else 0.0), QColor.fromRgbF(*view.ink)
    image.fill(ground)
    painter = QPainter(image)
    painter.setFont(font)
    painter.setPen(ink)
    middle = {"left": Qt.AlignmentFlag.AlignLeft, "right": Qt.AlignmentFlag.AlignRight}
    aligned = Qt.AlignmentFlag.AlignHCenter if mark.length else middle.get(mark.position.partition("_")[2])
    painter.drawText(
        QRectF(padding, padding, width - 2 * padding, written), aligned or Qt.AlignmentFlag.AlignHCenter, mark.text
    )
    left, top, thick = (width - long) / 2, padding + written, THICK * grown
    if mark.length:
        painter.fillRect(QRectF(left, top + (tick - thick) / 2, long, thick), ink)
        for at in (0.0, long - thick):
            painter.fillRect(QRectF(left + at, top, thick, tick), ink)
    painter.end()
    return np.asarray(qimage_to_array(image) / np.float32(255), np.float32)


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _bytes(colours: Any) -> Picture:
    return np.asarray(np.round(255 * np.clip(colours, 0, 1)), np.uint8)
