"""The pieces that sequences of AR-SSL4M are made of: a random box, its intensities, and slabs glued along z.

Boxes and slabs follow the authors' pre-processing; the draws come from the caller, so training (counted numbers), the
published scripts (Python's `random`) and tests share this code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training_backend.data.volume import Array, Shape

Randint = Callable[[int, int], int]
"""Draws a whole number between two, both included."""

LOW, HIGH = 1.0, 99.9
"""Per cent of a crop's voxels that become 0 and 1."""


@dataclass(frozen=True)
class Box:
    """Voxels `start` to ``start + size`` along (z, y, x)."""

    start: Shape
    size: Shape


def crop_box(shape: Shape, size: Shape, randint: Randint) -> Box:
    """A random box of about `size` voxels in a volume of `shape`, both along (z, y, x).

    Per axis the middle is drawn such that the box fits, and the last voxel is never used; an axis that leaves no room
    is taken whole. x is drawn first, then y, then z.
    """
    spans = [_span(n, wanted, randint) for n, wanted in zip(shape[::-1], size[::-1], strict=True)]
    (x, width), (y, height), (z, depth) = spans
    return Box((z, y, x), (depth, height, width))


def box_around(centre: Sequence[int], shape: Shape, size: Shape) -> Box:
    """The box of `size` voxels around `centre`, cut off where the volume ends (so border crops are stretched)."""
    first = [max(0, middle - n // 2) for middle, n in zip(centre, size, strict=True)]
    last = [min(whole, middle - n // 2 + n) for middle, n, whole in zip(centre, size, shape, strict=True)]
    z, y, x = (max(1, end - start) for start, end in zip(first, last, strict=True))
    return Box((first[0], first[1], first[2]), (z, y, x))


def resized(crop: Array, size: Shape) -> npt.NDArray[np.float32]:
    """`crop` [D, H, W] on `size` voxels, trilinear without smoothing, as float32."""
    array = np.ascontiguousarray(crop, np.float32)
    if array.shape == tuple(size):
        return array
    import torch
    from torch.nn.functional import interpolate

    voxels = torch.from_numpy(array)[None, None]
    return np.asarray(interpolate(voxels, size=tuple(size), mode="trilinear", align_corners=False)[0, 0].numpy())


def scaled(array: npt.NDArray[np.float32], low: float, high: float) -> npt.NDArray[np.float32]:
    """Values from `low` to `high` as 0 to 1, others clipped; where both are equal, only `low` is taken off."""
    result = array - np.float32(low)
    if high > low:
        result /= np.float32(high - low)
    return np.clip(result, 0, 1, out=result)


def prepared(crop: Array, size: Shape) -> npt.NDArray[np.float32]:
    """`crop` [D, H, W] on `size` voxels and within [0, 1]: 1st to 99.9th per cent of the resized crop."""
    counted = crop.dtype == np.int16 and crop.shape == tuple(size)
    array = resized(crop, size)
    return scaled(array, *(_counted_percentiles(crop) if counted else percentiles(array)))


def percentiles(array: Array) -> tuple[float, float]:
    """Values below which `LOW` and `HIGH` per cent of the voxels lie, interpolated."""
    low, high = np.percentile(array, (LOW, HIGH))
    return float(low), float(high)


def stack_extent(depth: int, slabs: int, stride: int) -> int:
    """Slices from the first of the first slab to the last of the last, for a view `depth` slices long."""
    return (slabs - 1) * stride + depth // slabs


def last_start(depth: int, available: int, slabs: int, stride: int) -> int:
    """Largest slice that the first slab may start at: the middle of the view, or earlier so that the last one fits."""
    return min(depth // 2 - 1, available - stack_extent(depth, slabs, stride))


def glued(crop: Array, start: int, slabs: int, stride: int, *, depth: int | None = None, axis: int = 0) -> Array:
    """Overlapping slabs of `crop`, `stride` slices apart from `start` on, side by side along `axis`.

    Each has ``depth // slabs`` slices, where `depth` is that of the view (that of the crop by default).
    """
    thick = (depth or crop.shape[axis]) // slabs
    starts = [start + n * stride for n in range(slabs)]
    return np.concatenate([crop[(slice(None),) * axis + (slice(first, first + thick),)] for first in starts], axis)


def _span(extent: int, wanted: int, randint: Randint) -> tuple[int, int]:
    half = wanted // 2
    if half >= extent - half - 1:
        return 0, extent
    return randint(half, extent - half - 1) - half, 2 * half


def _counted_percentiles(crop: Array) -> tuple[float, float]:
    """`percentiles` of whole numbers, by counting them: the same values, several times faster."""
    lowest = int(crop.min())
    counts = np.bincount((crop.astype(np.int32) - lowest).ravel())
    ends = np.cumsum(counts)
    places = np.array([LOW, HIGH]) / 100 * (crop.size - 1)
    below, above = (np.searchsorted(ends, rank, side="right") for rank in (np.floor(places), np.ceil(places)))
    low, high = lowest + below + (above - below) * (places - np.floor(places))
    return float(low), float(high)
