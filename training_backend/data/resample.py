"""Volumes onto other grids, exactly in space: oblique and sheared geometries included."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk

from training_backend.data.volume import Array, Geometry, Triple, Volume
from training_backend.errors import GeometryError

_ITK_HAS_NOT = {"bool": "uint8", "float16": "float32"}


def resample(array: Array, source: Geometry, target: Geometry, *, nearest: bool = False, fill: float = 0.0) -> Array:
    """Values of `array` at the voxel centres of another grid.

    Both grids are joined by one affine map between their indices, so no direction matrix needs to be orthonormal.

    Args:
        array: canonical (z, y, x) voxels on `source`.
        source: grid of `array`.
        target: grid of the result.
        nearest: nearest voxel, for labels; else linear, with whole-number types rounded.
        fill: value of voxels more than half a voxel outside `source`.

    Returns:
        Array of ``target.shape`` and the type of `array`.
    """
    if tuple(array.shape) != source.shape:
        raise GeometryError(f"The source grid has {source.shape} voxels, the array {tuple(array.shape)}.")
    if source.same_grid(target, tolerance_mm=1e-6):
        return np.array(array, order="C")
    kind = np.dtype(_ITK_HAS_NOT.get(array.dtype.name, array.dtype.newbyteorder("=").name))
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=kind))
    steps = np.linalg.inv(source.to_lps) @ target.to_lps  # target (z, y, x) to source (z, y, x)
    between = sitk.AffineTransform(3)
    between.SetMatrix(steps[2::-1, 2::-1].ravel().tolist())  # ITK orders (x, y, z)
    between.SetTranslation(steps[2::-1, 3].tolist())
    rounded = kind.kind in "iu" and not nearest
    pixel = sitk.sitkFloat64 if rounded else image.GetPixelID()
    depth, height, width = target.shape
    grid = sitk.Image([width, height, depth], sitk.sitkUInt8)
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    result: Array = sitk.GetArrayFromImage(sitk.Resample(image, grid, between, how, float(fill), pixel))
    return (np.rint(result) if rounded else result).astype(array.dtype.newbyteorder("="), copy=False)


def resample_like(volume: Volume, reference: Volume) -> Volume:
    """`volume` on the grid of `reference`, so that both overlay voxel for voxel.

    Label maps take the nearest voxel and 0 outside; images are interpolated and take their lowest value outside.
    """
    labels = volume.meta.get("kind") == "labels"
    array = resample(volume.array, volume.geometry, reference.geometry, nearest=labels, fill=_outside(volume, labels))
    meta = {**volume.meta, "resampled_like": reference.name}
    return replace(volume, array=array, geometry=reference.geometry, meta=meta)


def to_spacing(volume: Volume, spacing_mm: Triple, nearest: bool = False) -> Volume:
    """`volume` over the same box with voxels of `spacing_mm` along canonical (z, y, x), axes unchanged."""
    old = volume.geometry
    z, y, x = (
        max(1, round(n * have / want)) for n, have, want in zip(old.shape, old.spacing_mm, spacing_mm, strict=True)
    )
    geometry = old.resampled(spacing_mm, (z, y, x))
    array = resample(volume.array, old, geometry, nearest=nearest, fill=_outside(volume, nearest))
    return replace(volume, array=array, geometry=geometry)


def _outside(volume: Volume, labels: bool) -> float:
    return 0.0 if labels else float(np.nanmin(volume.array))
