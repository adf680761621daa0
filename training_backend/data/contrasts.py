"""The contrasts of one case: do they show the same place, and what was done so that they lie voxel on voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training_backend.data.volume import Geometry, Volume
from training_backend.errors import GeometryError

_SAMPLES = 24  # points along each axis that tell how much of a grid another one covers


def matched(volumes: Sequence[Volume], *, align: bool = False) -> tuple[list[Volume], list[str]]:
    """Contrasts of a case, and a sentence for each whose grid differs from the first one's, which all will be put on.

    Args:
        volumes: as read; the first gives the grid.
        align: turn and shift the others to where they fit the first best, for headers that do not agree.

    Raises:
        GeometryError: a contrast shows another place altogether.
    """
    first, *others = volumes
    result, notes = [first], []
    for volume in others:
        if align:
            volume, note = _aligned(volume, first)
            notes += note
        if not volume.geometry.same_grid(first.geometry):
            share = coverage(first.geometry, volume.geometry)
            if share == 0:
                raise GeometryError(
                    f"{volume.name} does not overlap with {first.name}, so they are no contrasts of one case.",
                    "List them as two cases, or correct the position in their headers.",
                )
            notes.append(
                f"{volume.name} was put on the grid of {first.name}, of which it covers {max(1, round(100 * share))} %."
            )
        result.append(volume)
    return result, notes


def coverage(grid: Geometry, other: Geometry) -> float:
    """Share of the box of `grid` that lies within the box of `other`, from points all over it."""
    steps = [(np.arange(_SAMPLES) + 0.5) / _SAMPLES * n - 0.5 for n in grid.shape]
    points = np.stack([*np.meshgrid(*steps, indexing="ij"), np.ones((_SAMPLES,) * 3)]).reshape(4, -1)
    places = (np.linalg.inv(other.to_lps) @ grid.to_lps @ points)[:3].T
    return float(((places > -0.5) & (places < np.asarray(other.shape) - 0.5)).all(axis=1).mean())


def _aligned(volume: Volume, first: Volume) -> tuple[Volume, list[str]]:
    from training_backend.data.align import align

    moved = align(volume, first)
    facts = moved.meta.get("alignment")
    if facts is None:
        return moved, []
    return moved, [
        f"{volume.name} was turned by {facts['angle_deg']:.1f}° and moved by {facts['shift_mm']:.1f} mm to fit "
        f"{first.name}."
    ]
