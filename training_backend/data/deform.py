"""What a displacement does, on the grids of the files: warped scans, the field in millimetres, its Jacobian, a grid.

A network's displacement is in voxels of its view. Here it becomes a map from any point of the fixed scan to a point of
the moving one, which includes how the two lay over each other before. Nothing needs torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training_backend.data.resample import resample
from training_backend.data.volume import Array, Geometry
from training_backend.errors import DataError

Floats = npt.NDArray[np.float32]

SLICES = 16
"""Slices that are worked on at once."""
LINES, LEAST_STEP = 12, 6
"""Lines of a drawn grid along the shortest axis of the view, and least voxels from one to the next."""
_VECTOR = 1007  # NIfTI intent of a vector per voxel


@dataclass(frozen=True)
class Deformation:
    """Map from the fixed scan to the moving one.

    Attributes:
        displacement: [3, D, H, W] in voxels along (D, H, W): voxel v of the fixed view lies at v + displacement(v) of
            the moving view.
        fixed: grid of the fixed view.
        moving: grid of the moving view, of as many voxels.
    """

    displacement: Floats
    fixed: Geometry
    moving: Geometry

    def warp(
        self, array: Array, source: Geometry, grid: Geometry, *, nearest: bool = False, fill: float = 0.0
    ) -> Array:
        """`array`, voxels of the moving scan on `source`, as it looks on `grid` of the fixed scan.

        Args:
            array: canonical (z, y, x).
            source: its grid.
            grid: of the result.
            nearest: nearest voxel, for labels; else linear, with whole numbers rounded.
            fill: value from more than half a voxel outside the moving scan.
        """
        from scipy.ndimage import map_coordinates

        to_source = np.linalg.inv(source.to_lps) @ self.moving.to_lps
        values = array if nearest else array.astype(np.float32, copy=False)

        def drawn(places: Floats) -> Array:
            there = _mapped(to_source, places)
            ends = np.reshape(array.shape, (3, 1, 1, 1)) - 0.5
            inside = ((there >= -0.5) & (there <= ends)).all(axis=0)
            result: Array = map_coordinates(values, there, order=0 if nearest else 1, mode="nearest")
            result = np.where(inside, result, fill)
            return np.rint(result) if array.dtype.kind in "iu" else result

        return self._by_slab(grid, drawn).astype(array.dtype)

    def field_mm(self, grid: Geometry) -> Floats:
        """Displacement [3, z, y, x] in millimetres along (L, P, S) from the voxels of `grid` into the moving scan."""
        result = np.empty((3, *grid.shape), np.float32)
        for part, voxels in _slabs(grid):
            here = _mapped(grid.to_lps, voxels)
            result[:, part] = _mapped(self.moving.to_lps, self._places(grid, voxels)) - here
        return result

    def jacobian(self, grid: Geometry) -> Floats:
        """Volume in the moving scan of each voxel of `grid`, relative to its own; 0 or less where space folds."""
        scaling = abs(np.linalg.det(self.moving.to_lps[:3, :3]) / np.linalg.det(self.fixed.to_lps[:3, :3]))
        return resample(scaling * self.local_jacobian(), self.fixed, grid, fill=float(scaling)).astype(np.float32)

    def local_jacobian(self) -> Floats:
        """Determinant [D, H, W] of the derivative of the deformation of the view; 1 where nothing moves."""
        matrix = np.empty((*self.displacement.shape[1:], 3, 3), np.float32)
        for row, axis in itertools.product(range(3), range(3)):
            matrix[..., row, axis] = np.gradient(self.displacement[row], axis=axis) + float(row == axis)
        return np.linalg.det(matrix).astype(np.float32)

    def lines(self, grid: Geometry, step: int | None = None) -> Floats:
        """A grid of lines that were straight in the moving scan, 0 to 1, about a voxel of `grid` wide.

        Args:
            grid: of the result.
            step: voxels of the moving view from one line to the next, along y and x; None chooses.
        """
        distance = step or max(LEAST_STEP, min(self.fixed.shape) // LINES)
        voxels = np.asarray(self.fixed.spacing_mm[1:]) / grid.spacing_mm[1:]  # of `grid` in one of the view

        def drawn(places: Floats) -> Array:
            away = np.abs(places[1:] - distance * np.rint(places[1:] / distance)) * voxels.reshape(2, 1, 1, 1)
            return np.clip(1.25 - away.min(axis=0), 0, 1)

        return self._by_slab(grid, drawn).astype(np.float32)

    def _places(self, grid: Geometry, voxels: Floats) -> Floats:
        """Voxels [3, ...] of the moving view at `voxels` of `grid`; beyond the view its border goes on."""
        from scipy.ndimage import map_coordinates

        seen = _mapped(np.linalg.inv(self.fixed.to_lps) @ grid.to_lps, voxels)
        moved = [map_coordinates(part, seen, order=1, mode="nearest") for part in self.displacement]
        return seen + np.stack(moved)

    def _by_slab(self, grid: Geometry, drawn: Callable[[Floats], Array]) -> Array:
        parts = [drawn(self._places(grid, voxels)) for _, voxels in _slabs(grid)]
        return np.concatenate(parts)


def write_field(path: Path, field: Floats, grid: Geometry, *, overwrite: bool = False) -> Path:
    """Write a displacement [3, z, y, x] in millimetres along (L, P, S) as ITK, ANTs and SimpleITK read it.

    NIfTI with five axes (i, j, k, 1, vector) and the intent of a vector per voxel, on the axes of the scan's file.
    """
    import nibabel as nib

    from training_backend.files import atomic

    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already and is kept.", "Choose another name, or allow overwriting.")
    vectors = np.stack([grid.to_source(part) for part in field], axis=-1)[:, :, :, None]
    image = nib.Nifti1Image(vectors, grid.affine)
    image.header.set_intent(_VECTOR)
    image.header["xyzt_units"] = 2
    with atomic(path) as stream:
        stream.write(_zipped(image.to_bytes()) if path.suffix == ".gz" else image.to_bytes())
    return path


def _zipped(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content, compresslevel=4, mtime=0)


def _slabs(grid: Geometry) -> Iterator[tuple[slice, Floats]]:
    """Slices of a grid and the indices [3, n, H, W] of their voxels."""
    depth, height, width = grid.shape
    for first in range(0, depth, SLICES):
        last = min(first + SLICES, depth)
        axes = (np.arange(first, last), np.arange(height), np.arange(width))
        yield slice(first, last), np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _mapped(matrix: npt.NDArray[np.float64], points: Floats) -> Floats:
    """`matrix` (4 x 4) applied to points [3, ...]."""
    turned = np.tensordot(matrix[:3, :3], points, axes=1)
    result: Floats = (turned + matrix[:3, 3].reshape(3, *[1] * (points.ndim - 1))).astype(np.float32)
    return result
