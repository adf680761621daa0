"""How AR-SSL4M prepares scans for fine-tuning, exactly: axes (x, y, z), grids that start at the first voxel's centre.

Training here uses the dataset's store, whose grids cover the same box with whole voxels; these functions give the
authors' numbers for comparison, and for use with their scripts.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.data.volume import Array, Triple, Volume
from training_backend.errors import DataError

Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Image and label map on one grid."""


def decathlon_case(image: Volume, label: Volume, spacing_xyz: Triple, window: tuple[float, float]) -> Pair:
    """Image in [0, 1] and labels of a Decathlon case as the authors validate on them.

    Turned to (x, y, z) growing to the right, anterior and superior; resampled linearly (labels: nearest voxel) to
    `spacing_xyz` millimetres with borders repeated; clipped to `window`; cut to the box where the image is above 0.
    """
    from monai.transforms import Spacing

    low, high = window
    voxels, marks = (
        np.asarray(Spacing(spacing_xyz, mode=mode)(_to_ras(volume)))[0]
        for volume, mode in ((image, "bilinear"), (label, "nearest"))
    )
    scaled = np.clip((voxels - low) / (high - low), 0, 1).astype(np.float32)
    inside = np.argwhere(scaled > 0)
    if not len(inside):
        raise DataError(f"No voxel of {image.name} lies above {low:g}.", "Check its units, or choose another window.")
    box = tuple(slice(a, b) for a, b in zip(inside.min(0), inside.max(0) + 1, strict=True))
    return scaled[box], marks[box].astype(np.float32)


def atrium_crop(image: Array, label: Array, size_xyz: tuple[int, int, int], draw: random.Random) -> Pair:
    """A training view of a left atrium (x, y, z): zeros appended where it is short, then a box drawn axis by axis.

    Labels are 1 where the file has 1.
    """
    missing = [(0, max(0, want - have)) for have, want in zip(image.shape, size_xyz, strict=True)]
    padded, marks = np.pad(image, missing), np.pad(label == 1, missing)
    starts = [draw.randint(0, have - want) for have, want in zip(padded.shape, size_xyz, strict=True)]
    box = tuple(slice(start, start + n) for start, n in zip(starts, size_xyz, strict=True))
    return padded[box].astype(np.float32), marks[box].astype(np.float32)


def _to_ras(volume: Volume) -> Any:
    """Ours (z, y, x), growing to S, P and L, as [1, x, y, z] growing to R, A and S, with its affine."""
    import torch
    from monai.data import MetaTensor

    geometry = volume.geometry
    _, height, width = geometry.shape
    back = np.zeros((4, 4))  # from (x, y, z) of the result to our (z, y, x)
    back[0, 2] = back[3, 3] = 1
    back[1, 1], back[1, 3] = -1, height - 1
    back[2, 0], back[2, 3] = -1, width - 1
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.to_lps @ back
    turned = volume.array.astype(np.float32).transpose(2, 1, 0)[::-1, ::-1]
    return MetaTensor(torch.from_numpy(turned.copy())[None], affine=torch.from_numpy(affine))
