"""From the positions of DICOM slices to one volume: order, true spacing, gaps and gantry tilt. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training_backend.data.volume import Array
from training_backend.errors import GeometryError

Floats = npt.NDArray[np.float64]

_STRAY = 0.1  # of a slice distance: more makes the distances irregular
_TILT_DEG = 0.05  # less is the rounding of positions written with few digits


@dataclass(frozen=True)
class Stack:
    """How slices stack up.

    Attributes:
        affine_lps: 4 x 4, index (column, row, slice) to (x, y, z) in LPS millimetres.
        slots: for each slice as given, its place along the stack.
        length: places along the stack; more than slices when some are missing.
        warnings: sentences about gaps, tilt and irregular distances.
    """

    affine_lps: Floats
    slots: tuple[int, ...]
    length: int
    warnings: tuple[str, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """Places without a slice."""
        return tuple(sorted(set(range(self.length)) - set(self.slots)))


def depths(positions: Array, orientation: Sequence[float]) -> Floats:
    """Millimetres of each position (n, 3) along the normal of the slices; slices are ordered by this alone."""
    result: Floats = np.asarray(positions, float) @ normal(orientation)
    return result


def normal(orientation: Sequence[float]) -> Floats:
    """Unit normal of slices whose rows and columns run along the six direction cosines `orientation`."""
    across = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(across))
    if not np.isfinite(length) or length < 1e-3:
        raise GeometryError("The row and column directions of the slices are the same line.", "Re-export the series.")
    result: Floats = across / length
    return result


def stack(
    positions: Array, orientation: Sequence[float], pixel_mm: tuple[float, float], thickness: float | None
) -> Stack:
    """Place slices at their true positions.

    Args:
        positions: (n, 3) LPS millimetres of the first voxel of each slice, no two at the same depth.
        orientation: direction cosines of a row, then of a column.
        pixel_mm: distance between rows, then between columns, as DICOM gives them.
        thickness: slice distance or thickness from the header, used only when there is a single slice.
    """
    positions = np.asarray(positions, float)
    direction = normal(orientation)
    depth = depths(positions, orientation)
    order = np.argsort(depth, kind="stable")
    warnings: list[str] = []
    if len(positions) == 1:
        if not thickness:
            warnings.append("The single slice has no thickness; 1 mm is assumed.")
        slots, step = np.zeros(1, int), direction * (thickness or 1.0)
    else:
        slots, warnings = _slots(depth[order])
        step, more = _step(positions[order], slots, direction)
        warnings = [*warnings, *more]
    affine = np.eye(4)
    affine[:3, 0] = np.asarray(orientation[:3], float) * pixel_mm[1]
    affine[:3, 1] = np.asarray(orientation[3:], float) * pixel_mm[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    placed = np.empty(len(order), int)
    placed[order] = slots
    return Stack(affine, tuple(int(s) for s in placed), int(slots[-1]) + 1, tuple(warnings))


def _slots(depth: Floats) -> tuple[npt.NDArray[np.int_], list[str]]:
    """Place of each slice, in units of the usual distance; gaps leave places free."""
    gaps = np.diff(depth)
    pitch = float(np.median(gaps))
    whole = np.rint(gaps / pitch).astype(int)
    if np.abs(gaps / pitch - whole).max() > _STRAY or whole.min() < 1:
        sentence = f"The distance between slices varies from {gaps.min():.2f} to {gaps.max():.2f} mm; the mean is used."
        return np.arange(len(depth)), [sentence]
    absent = int((whole - 1).sum())
    if absent > len(depth):
        raise GeometryError(
            f"The slices lie in blocks far apart: {absent} would be missing between {len(depth)}.",
            "Separate the blocks into folders of their own.",
        )
    slots = np.concatenate([[0], np.cumsum(whole)])
    if not absent:
        return slots, []
    places = ", ".join(f"{depth[i]:.1f} and {depth[i + 1]:.1f} mm" for i in np.flatnonzero(whole > 1)[:5])
    return slots, [f"Slices are missing: {absent}, between {places}. Their places hold the lowest value."]


def _step(positions: Floats, slots: npt.NDArray[np.int_], direction: Floats) -> tuple[Floats, list[str]]:
    """Vector from one place to the next, and whether it leans (tilt) or bends."""
    step: Floats = (positions[-1] - positions[0]) / slots[-1]
    pitch = float(step @ direction)
    tilt = float(np.degrees(np.arccos(np.clip(pitch / np.linalg.norm(step), -1, 1))))
    warnings = []
    if tilt > _TILT_DEG:
        warnings.append(
            f"The slices are shifted against each other (gantry tilt of {tilt:.1f}°); the sheared geometry is kept."
        )
    else:
        step = direction * pitch
    sideways = positions - positions[0] - np.outer((positions - positions[0]) @ direction / pitch, step)
    stray = float(np.linalg.norm(sideways, axis=1).max())
    if stray > max(_STRAY, _STRAY * pitch):
        warnings.append(f"Slices lie up to {stray:.2f} mm beside a straight stack; they are shown as if on it.")
    return step, warnings
