"""One phantom head in many shapes, for registration: the anatomy is the same, so every voxel has its counterpart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training_backend.data.phantom_head import mr_contrasts
from training_backend.data.phantom_shapes import Phantom

ANATOMY = 7
"""Seed of the head that is deformed."""
CONTROLS = 4
"""Control points of the deformation along each axis."""


def deformed_head(
    seed: int, shape: tuple[int, int, int] = (40, 56, 46), *, strength_mm: float = 9.0, contrast: str = "T1"
) -> Phantom:
    """The head of one phantom patient, bent at random.

    Args:
        seed: decides the deformation; 0 is the head as it is.
        shape: voxels along (z, y, x).
        strength_mm: standard deviation of the displacement at its control points.
        contrast: "T1", "T2" or "PD".
    """
    from scipy.ndimage import map_coordinates, zoom

    head = mr_contrasts(ANATOMY, shape, contrasts=(contrast,))
    if seed == 0:
        return head
    rng = np.random.default_rng([seed, 909])
    spacing = np.asarray(head.volume.geometry.spacing_mm)
    places = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))
    for axis in range(3):
        field = rng.normal(0, strength_mm / spacing[axis], (CONTROLS,) * 3)
        places[axis] += zoom(field, [n / CONTROLS for n in shape], order=3, mode="nearest", grid_mode=True)

    def bent(array: np.ndarray, order: int) -> np.ndarray:
        result: np.ndarray = map_coordinates(array, places, order=order, mode="nearest")
        return result.astype(array.dtype)

    volume = head.volume.with_array(bent(head.volume.array, 1), name=f"head {seed}")
    return replace(head, volumes=(volume,), labels=head.labels.with_array(bent(head.labels.array, 0)))
