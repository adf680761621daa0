"""Whole-volume views: the body resampled to a fixed number of voxels, kept in the store after the first time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training_backend.data.resample import resample
from training_backend.data.store import StoredArray, StoredCase, write_array
from training_backend.data.views import IGNORED, Key, View, generator
from training_backend.data.volume import Array, Geometry, Shape
from training_backend.errors import DataError, ResourceError

logger = logging.getLogger(__name__)

Shares = tuple[float, float, float]
"""Shares of a box along (z, y, x)."""
WHOLE: Shares = (1.0, 1.0, 1.0)
_WANDER = 5  # sets these numbers apart from those of crops and augmentation


def view_grid(geometry: Geometry, size: Shape, *, keep_aspect: bool, centre: Shares = WHOLE) -> Geometry:
    """Grid of `size` voxels over the box of `geometry`: isotropic and centred, or stretched along each axis.

    Args:
        geometry: of the scan.
        size: voxels along (z, y, x).
        keep_aspect: whether voxels are cubes.
        centre: share of the box that is seen along (z, y, x), about its middle.
    """
    if centre != WHOLE:
        geometry = _centre(geometry, centre)
    extent = np.asarray(geometry.shape) * np.asarray(geometry.spacing_mm)
    if not keep_aspect:
        z, y, x = extent / np.asarray(size)
        return geometry.resampled((float(z), float(y), float(x)), size)
    step = float((extent / np.asarray(size)).max())
    z, y, x = (extent / step - np.asarray(size)) / 2
    return geometry.resampled((step, step, step), size).cropped((z, y, x), size)


def _centre(geometry: Geometry, shares: Shares) -> Geometry:
    """The middle of a box, in as many voxels, which are smaller."""
    spacing, shape = geometry.spacing_mm, geometry.shape
    z, y, x = (step * share for step, share in zip(spacing, shares, strict=True))
    finer = geometry.resampled((z, y, x), shape)
    d, h, w = ((1 / share - 1) / 2 * n for share, n in zip(shares, shape, strict=True))
    return finer.cropped((d, h, w), shape)


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
    centre: Shares = WHOLE,
    wander: int = 0,
    key: Key | None = None,
) -> View:
    """The whole stored volume on `size` voxels; what is computed once is read from `folder` afterwards.

    Args:
        stored: open case.
        folder: of its store.
        size: voxels along (z, y, x).
        keep_aspect: see `view_grid`.
        channels: contrasts to read.
        labels: read the label map too.
        centre: see `view_grid`.
        wander: voxels of the view that its middle moves by at most, along y and x.
        key: decides how far; None stays in the middle.
    """
    grid = view_grid(stored.geometry, size, keep_aspect=keep_aspect, centre=centre)
    if wander:
        wide = (size[0], size[1] + 2 * wander, size[2] + 2 * wander)
        whole = _view(
            stored,
            folder,
            grid.cropped((0, -wander, -wander), wide),
            _name(wide, keep_aspect, centre),
            channels,
            labels,
        )
        y, x = (wander, wander) if key is None else generator(*key, _WANDER).integers(2 * wander + 1, size=2)
        return _window(whole, (0, int(y), int(x)), size)
    return _view(stored, folder, grid, _name(size, keep_aspect, centre), channels, labels)


def _name(size: Shape, keep_aspect: bool, centre: Shares) -> str:
    name = "x".join(map(str, size)) + ("" if keep_aspect else "-stretched")
    return name if centre == WHOLE else f"{name}-{'x'.join(f'{share:g}' for share in centre)}"


def _window(view: View, start: Shape, size: Shape) -> View:
    box = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
    padding = None if view.padding is None else np.ascontiguousarray(view.padding[box])
    label = None if view.label is None else np.ascontiguousarray(view.label[box])
    return View(np.ascontiguousarray(view.image[(slice(None), *box)]), label, padding)


def _view(stored: StoredCase, folder: Path, grid: Geometry, name: str, channels: Sequence[int], labels: bool) -> View:
    """The stored volume on `grid`."""
    padding = outside(stored.geometry, grid)
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
