"""How MedCoSS prepares CT and MR before its image stages, number by number (its section on data).

Arrays are (z, y, x) as SimpleITK gives them. Volumes become slabs of few slices, which overlap by half.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from training_backend.data.volume import Array, Geometry, Shape, Triple

SIZE = (192, 192)
"""Rows and columns of a slab."""
SLICES = 16
"""Slices of a slab as it is stored."""
CT_SLICES, CT_STRIDE = 24, 12
"""Slices of 1 mm that a slab of CT is made from, and between the starts of two."""
MR_STRIDE = 8
CT_LIMIT = 1024
"""Hounsfield units are cut off beyond this on both sides; the loader divides by it."""
WIDE = 320
"""Rows above which only the middle of a slice is kept."""
MR_PERCENT = (0.2, 99.8)


def respaced(array: Array, spacing_mm: Triple) -> Array:
    """CT [z, y, x] on voxels of 1 mm, cubic, cut off at `CT_LIMIT`, of the same type.

    The number of slices is rounded and those of rows and columns are cut off, as published. Where voxels become fewer
    they are smoothed first.
    """
    from scipy import ndimage

    shape = respaced_shape(array.shape, spacing_mm)
    cut = np.clip(array, -CT_LIMIT, CT_LIMIT).astype(np.float64)
    factors = np.asarray(array.shape) / np.asarray(shape)
    smooth = ndimage.gaussian_filter(cut, np.maximum(0, (factors - 1) / 2), mode="mirror")
    result = ndimage.zoom(smooth, 1 / factors, order=3, mode="mirror", grid_mode=True)
    result = np.clip(result, cut.min(), cut.max())
    return (np.rint(result) if array.dtype.kind in "iu" else result).astype(array.dtype)


def respaced_shape(shape: tuple[int, ...], spacing_mm: Triple) -> Shape:
    """Voxels along (z, y, x) after `respaced`; none fewer than one."""
    z, y, x = (n * mm for n, mm in zip(shape, spacing_mm, strict=True))
    return (max(1, round(z)), max(1, int(y)), max(1, int(x)))


def starts(depth: int, slices: int, stride: int) -> list[int]:
    """First slices of the slabs of a scan of `depth` slices; the last one ends where the scan ends."""
    count = max(0, math.ceil((depth - slices) / stride)) + 1
    return [max(0, min(number * stride, depth - slices)) for number in range(count)]


def middle(array: Array) -> Array:
    """The central 80 % of rows and columns of a scan with more than `WIDE` rows, else all of it."""
    rows, columns = array.shape[1:]
    if rows <= WIDE:
        return array
    return array[:, int(0.1 * rows) : int(0.9 * rows), int(0.1 * columns) : int(0.9 * columns)]


def resized(array: Array, shape: Shape) -> Array:
    """`array` on `shape` voxels by linear interpolation; the centres of the first voxels coincide, as published."""
    import SimpleITK as sitk

    from training_backend.data.tangerine import resample_published

    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    result: Array = sitk.GetArrayFromImage(resample_published(image, (shape[2], shape[1], shape[0]), linear=True))
    return result


def without_ends(depth: int) -> tuple[int, int]:
    """First slice, and the one after the last, of an MR scan without a tenth at either end."""
    return int(0.1 * depth), int(0.9 * depth)


def mr_starts(depth: int) -> list[int]:
    """First slices of the slabs of an MR scan of `depth` slices, its ends left out; none where too few are left."""
    first, last = without_ends(depth)
    if last - first < SLICES:
        return []
    return [first + start for start in starts(last - first, SLICES, MR_STRIDE)]


def mr_normalised(slab: Array) -> npt.NDArray[np.float32]:
    """A slab cut off at `MR_PERCENT` of its own values, with zero mean and unit variance."""
    values = np.asarray(slab, np.float32)
    cut = np.clip(values, *np.percentile(values, MR_PERCENT))
    spread = float(cut.std())
    return np.asarray((cut - cut.mean()) / (spread if spread > 0 else 1.0), np.float32)


def resized_geometry(geometry: Geometry, shape: Shape) -> Geometry:
    """Grid of what `resized` makes of an array on `geometry`."""
    old, new = np.asarray(geometry.shape, float), np.asarray(shape, float)
    z, y, x = np.asarray(geometry.spacing_mm) * old / new
    dz, dy, dx = (new / old - 1) / 2  # from the same outer corner to the same first centre
    return geometry.resampled((float(z), float(y), float(x)), shape).cropped((float(dz), float(dy), float(dx)), shape)
