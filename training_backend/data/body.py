"""Where the patient is in a scan: a coarse mask from Otsu's threshold, its box, and what the intensities there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training_backend.data.volume import Array, Shape, Triple

MARGIN = 8
"""Voxels kept around the body on each side."""

_COARSE_MM = 3.0
_MOST_VOXELS = 2_000_000


@dataclass(frozen=True)
class Body:
    """The patient inside a canonical array.

    Attributes:
        start: first voxel (z, y, x) of the box around the body, margin included.
        shape: voxels of that box.
        mask: true inside the body, on every `stride`-th voxel of the whole array.
        stride: voxels between the mask's samples along (z, y, x).
    """

    start: Shape
    shape: Shape
    mask: npt.NDArray[np.bool_]
    stride: Shape

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Slices that cut the box out of the whole array."""
        z, y, x = (slice(first, first + n) for first, n in zip(self.start, self.shape, strict=True))
        return (z, y, x)


def find_body(array: Array, spacing_mm: Triple) -> Body:
    """The body in a canonical array (z, y, x): Otsu's threshold, small parts and the table removed, lungs filled.

    Where there is no empty background (a scan cropped inside the patient) or no single body (vessels on black) the
    whole array is the body, so nothing of the patient is ever cut away for being dark or thin.
    """
    stride = _stride(array.shape, spacing_mm)
    coarse = np.asarray(array[tuple(slice(None, None, step) for step in stride)], np.float32)
    bright = coarse > _otsu(coarse)
    mask = _solid(bright)
    if not mask.any() or _texture_outside(coarse, mask) or (bright & ~mask).sum() > 0.15 * mask.sum():
        return Body((0, 0, 0), (array.shape[0], array.shape[1], array.shape[2]), np.ones_like(mask), stride)
    start, shape = _box_around(mask, stride, array.shape)
    return Body(start, shape, mask, stride)


def whole_body(shape: tuple[int, ...]) -> Body:
    """All of a picture: what is dark in it is no air around a patient."""
    stride = tuple(max(1, n // 512) for n in shape)
    mask = np.ones([-(-n // step) for n, step in zip(shape, stride, strict=True)], bool)
    return Body((0, 0, 0), (shape[0], shape[1], shape[2]), mask, (stride[0], stride[1], stride[2]))


def _stride(shape: tuple[int, ...], spacing_mm: Triple) -> Shape:
    steps = [max(1, round(_COARSE_MM / mm)) if n > 32 else 1 for n, mm in zip(shape, spacing_mm, strict=True)]
    while np.prod([-(-n // step) for n, step in zip(shape, steps, strict=True)]) > _MOST_VOXELS:
        steps = [step + 1 if n // step > 32 else step for n, step in zip(shape, steps, strict=True)]
    return (steps[0], steps[1], steps[2])


def _otsu(values: Array) -> float:
    """Threshold that best separates dark from bright, between the 0.1 and 99.9 percentiles."""
    low, high = np.percentile(values, (0.1, 99.9))
    if not high > low:
        return float(high)
    counts, edges = np.histogram(np.clip(values, low, high), bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(edges[1:][int(np.nanargmax(spread))])


def _solid(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Parts of at least a tenth of the largest one after thin structures were removed, holes of each slice filled."""
    from scipy import ndimage

    opened = ndimage.binary_opening(mask, iterations=1) if min(mask.shape) > 4 else mask
    parts, count = ndimage.label(opened)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept = ndimage.binary_dilation(np.isin(parts, np.flatnonzero(sizes >= 0.1 * sizes.max())), iterations=1)
    for plane in kept:
        ndimage.binary_fill_holes(plane, output=plane)
    return np.asarray(kept, bool)


def _box_around(mask: npt.NDArray[np.bool_], stride: Shape, shape: tuple[int, ...]) -> tuple[Shape, Shape]:
    first, size = [], []
    for axis, (step, n) in enumerate(zip(stride, shape, strict=True)):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        begin = max(0, int(inside[0]) * step - step - MARGIN)
        end = min(n, (int(inside[-1]) + 1) * step + step + MARGIN)
        first.append(begin)
        size.append(end - begin)
    return (first[0], first[1], first[2]), (size[0], size[1], size[2])


def _texture_outside(coarse: Array, mask: npt.NDArray[np.bool_]) -> bool:
    inside, outside = coarse[mask], coarse[~mask]
    if outside.size < 0.01 * coarse.size:
        return False
    dark, middle, bright = np.percentile(outside, (10, 50, 90))
    return bool(bright - dark > 0.35 * max(float(np.median(inside) - middle), 1e-6))
