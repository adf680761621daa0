"""Whole-volume views: the body resampled to a fixed number of voxels, kept in the store after the first time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training_backend.data.resample import resample
from training_backend.data.store import StoredArray, StoredCase, write_array
from training_backend.data.views import IGNORED, View
from training_backend.data.volume import Array, Geometry, Shape
from training_backend.errors import DataError, ResourceError

logger = logging.getLogger(__name__)


def view_grid(geometry: Geometry, size: Shape, *, keep_aspect: bool) -> Geometry:
    """Grid of `size` voxels over the box of `geometry`: isotropic and centred, or stretched along each axis."""
    extent = np.asarray(geometry.shape) * np.asarray(geometry.spacing_mm)
    if not keep_aspect:
        z, y, x = extent / np.asarray(size)
        return geometry.resampled((float(z), float(y), float(x)), size)
    step = float((extent / np.asarray(size)).max())
    z, y, x = (extent / step - np.asarray(size)) / 2
    return geometry.resampled((step, step, step), size).cropped((z, y, x), size)


def outside(geometry: Geometry, grid: Geometry) -> npt.NDArray[np.bool_] | None:
    """Voxels of `grid` (axes parallel to `geometry`) whose centres lie outside the box of `geometry`, or None."""
    first = np.linalg.inv(geometry.to_lps) @ grid.to_lps[:, 3]
    inside = []
    for axis, n in enumerate(grid.shape):
        step = grid.spacing_mm[axis] / geometry.spacing_mm[axis]
        centres = first[axis] + step * np.arange(n)
        inside.append((centres > -0.5) & (centres < geometry.shape[axis] - 0.5))
    if all(axis.all() for axis in inside):
        return None
    return np.asarray(~(inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]), bool)


def volume_view(
    stored: StoredCase,
    folder: Path,
    size: Shape,
    *,
    keep_aspect: bool,
    channels: Sequence[int] = (0,),
    labels: bool = False,
) -> View:
    """The whole stored volume on `size` voxels; what is computed once is read from `folder` afterwards."""
    grid = view_grid(stored.geometry, size, keep_aspect=keep_aspect)
    padding = outside(stored.geometry, grid)
    name = "x".join(map(str, size)) + ("" if keep_aspect else "-stretched")
    images = []
    for channel in channels:
        statistics = stored.statistics[channel]

        def compute(channel: int = channel, fill: float = statistics.minimum / statistics.scale) -> Array:
            return resample(stored.read_image(channels=[channel])[0], stored.geometry, grid, fill=fill)

        images.append(_kept(folder / f"view-{name}-{channel}.b2nd", compute))
    if len({image.dtype for image in images}) > 1:
        images = [image.astype(np.float32) for image in images]
    label = None
    if labels:
        label = resample(stored.read_label(), stored.geometry, grid, nearest=True)
        if padding is not None:
            label[padding] = IGNORED
    return View(np.stack(images), label, padding)


def _kept(path: Path, compute: Callable[[], Array]) -> Array:
    if path.is_file():
        try:
            array = StoredArray(path, path.stat().st_size)
            return array.read((0, 0, 0), array.shape)
        except DataError:
            logger.warning("%s was damaged and is made again.", path.name)
    result: Array = compute()
    try:
        write_array(path, result)
    except (ResourceError, OSError) as error:
        logger.warning("%s could not be kept and will be made again each time: %s", path.name, error)
    return result
