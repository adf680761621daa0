"""Pictures of the canvas for papers and talks: figures at 300 dots per inch with a scale bar, and animations.

Drawing belongs to the Qt thread; files are written off it, by `write_figure` and `write_animation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QObject, QTimer

from napari_med3dssl import _compat
from training_backend.files import atomic

Picture = npt.NDArray[np.uint8]
"""[h, w, 3]."""

DPI = 300
MM_PER_INCH = 25.4
LARGEST_SIDE = 640
"""Pixels of an animation along its longer side."""
FRAME_MS = 80


def figure(viewer: Any, width_mm: float) -> Picture:
    """The canvas as it is seen, as wide in print as asked for, with a scale bar; letters grow with the picture."""
    seen = viewer.canvas.size if hasattr(viewer, "canvas") else viewer.screenshot(flash=False).shape[:2]
    height, width = (int(n) for n in seen)
    wanted = round(width_mm / MM_PER_INCH * DPI)
    grown = wanted / width
    camera, bar = _compat.camera(viewer), _compat.scale_bar(viewer)
    with _kept(bar, "visible"), _kept(camera, "zoom"):
        bar.visible = True
        texts = _compat.texts_on_canvas(viewer)
        sizes = [text.font_size for text in texts]
        camera.zoom *= grown
        try:
            for text, size in zip(texts, sizes, strict=True):
                text.font_size = size * grown
            drawn = viewer.screenshot(size=(round(height * grown), wanted), canvas_only=True, flash=False)
        finally:
            for text, size in zip(texts, sizes, strict=True):
                text.font_size = size
    return np.ascontiguousarray(drawn[..., :3])


def write_figure(picture: Picture, path: Path) -> Path:
    """Write a figure as PNG or TIFF that knows its size in print."""
    from PIL import Image

    kind = "TIFF" if path.suffix.lower() in (".tif", ".tiff") else "PNG"
    with atomic(path) as stream:
        Image.fromarray(picture).save(stream, format=kind, dpi=(DPI, DPI))
    return path


def write_animation(frames: Sequence[Picture], path: Path) -> Path:
    """Write frames as a GIF that repeats, at most `LARGEST_SIDE` pixels wide and high."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    for picture in pictures:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    with atomic(path) as stream:
        pictures[0].save(
            stream, format="GIF", save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0, optimize=False
        )
    return path


class Filming(QObject):
    """Takes frames one by one with time for the window between them, then puts the view back.

    In 2D the frames go through the slices, in 3D once around the patient's long axis.

    Args:
        viewer: what is filmed.
        count: of the frames.
        done: gets the frames.
        progressed: told the share taken.
    """

    def __init__(
        self, viewer: Any, count: int, done: Callable[[list[Picture]], None], progressed: Callable[[float], None]
    ) -> None:
        super().__init__()
        self._viewer, self._done, self._progressed = viewer, done, progressed
        camera = _compat.camera(viewer)
        self._before = (viewer.dims.point, camera.center, camera.zoom, camera.angles)
        self._steps = self._turn(count) if viewer.dims.ndisplay == 3 else self._slices(count)
        self._count, self._frames = count, [np.empty(0, np.uint8)][:0]
        self._timer = QTimer(self)
        self._timer.setInterval(1)
        self._timer.timeout.connect(self._take)
        self._timer.start()

    @property
    def running(self) -> bool:
        """Whether frames are still to come."""
        return self._timer.isActive()

    def stop(self) -> None:
        """End without result; the view is put back."""
        self._timer.stop()
        point, center, zoom, angles = self._before
        camera = _compat.camera(self._viewer)
        self._viewer.dims.set_point(range(len(point)), point)
        camera.angles, camera.center, camera.zoom = angles, center, zoom

    def _take(self) -> None:
        if next(self._steps, None) is None:
            self.stop()
            self._done(self._frames)
            return
        drawn = self._viewer.screenshot(canvas_only=True, flash=False)
        self._frames.append(np.ascontiguousarray(drawn[..., :3]))
        self._progressed(len(self._frames) / self._count)

    def _slices(self, count: int) -> Iterator[int]:
        dims = self._viewer.dims
        axis = next(axis for axis in range(dims.ndim) if axis not in dims.displayed)
        first, last, _ = dims.range[axis]
        for number, place in enumerate(np.linspace(first, last, count)):
            dims.set_point(axis, float(place))
            yield number

    def _turn(self, count: int) -> Iterator[int]:
        camera = _compat.camera(self._viewer)
        for number in range(count):
            angle = 2 * math.pi * number / count
            camera.set_view_direction((0.0, math.cos(angle), math.sin(angle)), up_direction=(-1.0, 0.0, 0.0))
            yield number


@contextmanager
def _kept(model: Any, field: str) -> Iterator[None]:
    """Puts a field of a model of the viewer back at the end."""
    before = getattr(model, field)
    try:
        yield
    finally:
        setattr(model, field, before)
