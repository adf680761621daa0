"""Pictures of the canvas for papers and talks: figures at 300 dots per inch with a scale bar, and animations.

Slices are drawn by `canvas_views`, off the Qt thread. What only OpenGL draws belongs to the Qt thread: `figure` and
`Filming` ask the canvas for it. Files are written off it in any case, by `write_figure` and `write_animation`.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer

from napari_med3dssl import _compat
from napari_med3dssl.canvas_views import CanvasView, Picture
from training_backend.errors import ConfigError, Med3dError, ResourceError
from training_backend.files import atomic

DPI = 300
MM_PER_INCH = 25.4
LARGEST_SIDE = {".gif": 640, ".mp4": 1280}
"""Pixels of an animation along its longer side, by the kind of file."""
FRAME_MS = 80
QUALITY = 8
"""Of MP4 files, at most 10."""
NEEDS_FFMPEG = "MP4 needs the package imageio-ffmpeg."
HOW_TO_FFMPEG = "Install it with: pip install 'napari-med3dssl[animation]', or save a GIF."

NOT_WRITTEN = "The film {} could not be written to {}."


def dots(width_mm: float) -> int:
    """Pixels of a figure this wide in print."""
    return round(width_mm / MM_PER_INCH * DPI)


def figure(viewer: Any, width_mm: float) -> Picture:
    """The canvas as OpenGL draws it, as wide in print as asked for, with a scale bar; letters grow with the picture.

    Takes seconds of the Qt thread; slices are drawn without it, see `canvas_views`.
    """
    seen = viewer.canvas.size if hasattr(viewer, "canvas") else viewer.screenshot(flash=False).shape[:2]
    height, width = (int(n) for n in seen)
    wanted = dots(width_mm)
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


def write_animation(frames: Iterable[Picture], path: Path) -> Path:
    """Write frames as a GIF that repeats or as an MP4, at most `LARGEST_SIDE` pixels wide and high.

    Raises:
        ConfigError: an MP4 without imageio-ffmpeg.
    """
    if path.suffix.lower() == ".mp4":
        return _write_mp4(frames, path)
    from PIL import Image

    small = (Image.fromarray(fitting(frame, ".gif")) for frame in frames)
    first, *others = [picture.convert("P", palette=Image.Palette.ADAPTIVE) for picture in small]
    with atomic(path) as stream:
        first.save(stream, format="GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0, optimize=False)
    return path


def fitting(frame: Picture, suffix: str) -> Picture:
    """A frame that is no larger than animations of this kind are, with an even number of rows and columns for MP4."""
    from PIL import Image

    side = LARGEST_SIDE[suffix]
    if max(frame.shape) > side:
        picture = Image.fromarray(frame)
        picture.thumbnail((side, side))
        frame = np.asarray(picture)
    return frame if suffix == ".gif" else frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]


def can_write_mp4() -> bool:
    """Whether the package for MP4 files is installed."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def slices_of(
    view: CanvasView, first: float, last: float, count: int, suffix: str, progress: Callable[[float, str], object]
) -> Iterator[Picture]:
    """Frames through the slices of a view between two places; draws nothing on the canvas."""
    width = round(view.size[1] * min(1.0, LARGEST_SIDE[suffix] / max(view.size)))
    for number, place in enumerate(np.linspace(first, last, count)):
        progress(number / count, "")
        yield view.drawn(width, float(place))


def _write_mp4(frames: Iterable[Picture], path: Path) -> Path:
    if not can_write_mp4():
        raise ConfigError(NEEDS_FFMPEG, HOW_TO_FFMPEG)
    import imageio_ffmpeg

    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".mp4", dir=path.parent)
    os.close(handle)
    writer: Any = None
    try:
        for frame in frames:
            fits = np.ascontiguousarray(fitting(frame, ".mp4"))
            if writer is None:
                size = (fits.shape[1], fits.shape[0])
                options = {"fps": 1000 / FRAME_MS, "quality": QUALITY, "macro_block_size": 2}
                writer = imageio_ffmpeg.write_frames(temporary, size, **options)
                writer.send(None)
            writer.send(fits)
        writer.close()
        if not Path(temporary).stat().st_size:
            raise OSError
        Path(temporary).replace(path)
    except OSError as error:  # those of ffmpeg have no number
        raise ResourceError(NOT_WRITTEN.format(path.name, path.parent), "Is there space on the disk?") from error
    finally:
        if writer is not None:
            writer.close()
        Path(temporary).unlink(missing_ok=True)
    return path


class Filming(QObject):
    """Takes frames from the canvas one by one with time for the window between them, then puts the view back.

    Args:
        viewer: what is filmed.
        way: changes the view at each step.
        count: of the steps.
        suffix: of the file, which decides how large frames are.
        done: gets the frames.
        failed: gets the sentence when a step cannot be taken.
        progressed: told the share taken.
        undo: called at the end, before point and camera are put back.
    """

    def __init__(
        self,
        viewer: Any,
        way: Iterator[int],
        count: int,
        suffix: str,
        done: Callable[[list[Picture]], object],
        failed: Callable[[str], object],
        progressed: Callable[[float], object],
        undo: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__()
        self._undo = undo
        self._viewer, self._way, self._count, self._suffix = viewer, way, count, suffix
        self._done, self._failed, self._progressed = done, failed, progressed
        camera = _compat.camera(viewer)
        self._before = (viewer.dims.point, viewer.dims.ndisplay, camera.center, camera.zoom, camera.angles)
        self._frames: list[Picture] = []
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
        self._undo()
        point, ndisplay, center, zoom, angles = self._before
        camera = _compat.camera(self._viewer)
        self._viewer.dims.ndisplay = ndisplay
        self._viewer.dims.set_point(range(len(point)), point)
        camera.angles, camera.center, camera.zoom = angles, center, zoom

    def _take(self) -> None:
        try:
            if next(self._way, None) is None:
                self.stop()
                self._done(self._frames)
                return
        except Med3dError as error:
            self.stop()
            self._failed(str(error))
            return
        drawn = self._viewer.screenshot(canvas_only=True, flash=False)
        self._frames.append(fitting(np.ascontiguousarray(drawn[..., :3]), self._suffix))
        self._progressed(len(self._frames) / self._count)


def through_slices(viewer: Any, count: int) -> Iterator[int]:
    """Show the slices one after the other, for `Filming`."""
    axis = viewer.dims.not_displayed[-1]
    first, last, _ = viewer.dims.range[axis]
    for number, place in enumerate(np.linspace(first, last, count)):
        viewer.dims.set_point(axis, float(place))
        yield number


def once_around(viewer: Any, count: int) -> Iterator[int]:
    """Turn the view in 3D once around the patient's long axis, for `Filming`."""
    camera = _compat.camera(viewer)
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
