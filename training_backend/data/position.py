"""Base crops, random crops and their overlap: the positions that VoCo learns (Wu et al. 2024, section 3.1).

A slab is n x n cells in its plane and one cell thick. Cells are numbered k = n i + j for the i-th along the first axis
of the plane and the j-th along the second. Crops are as large as a cell and lie anywhere in the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Starts = npt.NDArray[np.int64]


def base_starts(cells: int, roi: int) -> Starts:
    """First voxels [n n, 2] of the base crops in the plane."""
    places = np.arange(cells) * roi
    return np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 2)


def overlap(starts: npt.ArrayLike, cells: int, roi: int) -> npt.NDArray[np.float64]:
    """Share [N, n n] of each crop, given by its first voxels [N, 2] in the plane, that lies in each cell."""
    first = np.asarray(starts, np.float64)[:, None]
    bases = base_starts(cells, roi)[None]
    common = np.clip(roi - np.abs(first - bases), 0, None)
    return common.prod(axis=-1) / float(roi * roi)


def draw_starts(count: int, cells: int, roi: int, generator: torch.Generator) -> Starts:
    """First voxels [count, 2] of random crops; every place but the last along each axis, as published."""
    import torch

    last = max((cells - 1) * roi, 1)
    return np.asarray(torch.randint(0, last, (count, 2), generator=generator).numpy(), np.int64)


def cut_plane(slab: Tensor, starts: Sequence[Sequence[int]] | Starts, roi: int, plane: tuple[int, int]) -> Tensor:
    """Crops [N, C, ...] of `slab` [C, ...] at first voxels [N, 2] along the axes `plane` of the slab.

    Args:
        slab: [C, A, B, T] or its axes in another order.
        starts: of the crops.
        roi: voxels of a crop along both axes of the plane; the third axis is kept whole.
        plane: the two axes of the plane, counted with the channel axis.
    """
    import torch

    first, second = plane
    return torch.stack([slab.narrow(first, int(a), roi).narrow(second, int(b), roi) for a, b in starts])


@dataclass(frozen=True)
class Sampling:
    """How crops are taken from a slab, and how each is changed.

    Attributes:
        cells: base crops along each axis of the plane.
        crop: voxels of a crop along both axes of the plane.
        depth: voxels of the slab and of a crop along the third axis.
        crops: random crops of a volume.
        plane: axes of the plane in [C, ...].
        resized: voxels that crops are interpolated to along every axis, or None.
        flip: probability of a flip along each axis.
        rotate: probability of one, two or three quarter turns in the plane.
        shift: probability that `shift_range` times a number within -1 and 1 is added.
    """

    cells: int = 3
    crop: int = 64
    depth: int = 64
    crops: int = 2
    plane: tuple[int, int] = (1, 2)
    resized: int | None = None
    flip: float = 0.2
    rotate: float = 0.2
    shift: float = 0.5
    shift_range: float = 0.1

    @property
    def slab(self) -> tuple[int, int, int]:
        """Voxels of a slab along (z, y, x)."""
        side = self.cells * self.crop
        return (self.depth, side, side)


def sample(
    slabs: Tensor, sampling: Sampling, generator: torch.Generator, *, changed: bool
) -> tuple[Tensor, Tensor, list[Starts]]:
    """All crops of a step, cut on the device of the slabs.

    Args:
        slabs: [B, C, ...] in the frame of the network.
        sampling: what to cut.
        generator: on the CPU; decides the places and the changes.
        changed: flip, turn and shift every crop and base.

    Returns:
        Crops [B N + B K, C, ...], the random ones of all volumes first; their overlap [B, N, K] with the bases of
        their volume; the first voxels [N, 2] of the random crops of each volume.
    """
    import torch

    starts = [draw_starts(sampling.crops, sampling.cells, sampling.crop, generator) for _ in slabs]
    labels = np.stack([overlap(one, sampling.cells, sampling.crop) for one in starts])
    bases = base_starts(sampling.cells, sampling.crop)
    places = [*zip(slabs, starts, strict=True), *((slab, bases) for slab in slabs)]
    crops = torch.cat([cut_plane(slab, where, sampling.crop, sampling.plane) for slab, where in places])
    if changed:
        crops = changed_crops(crops, sampling, generator)
    if sampling.resized is not None:
        size = (sampling.resized,) * 3
        crops = torch.nn.functional.interpolate(crops, size=size, mode="trilinear", align_corners=True)
    return crops, torch.from_numpy(labels).to(slabs), starts


def changed_crops(crops: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Crops [N, C, ...], each flipped, turned and shifted or not, independently of the others.

    The overlap with the bases stays what it was: a crop is to be found wherever it points.
    """
    import torch

    flips = torch.rand(len(crops), 3, generator=generator) < sampling.flip
    turns = torch.randint(1, 4, (len(crops),), generator=generator)
    turns *= torch.rand(len(crops), generator=generator) < sampling.rotate
    shifts = (2 * torch.rand(len(crops), generator=generator) - 1) * sampling.shift_range
    shifts *= torch.rand(len(crops), generator=generator) < sampling.shift
    result = []
    for crop, flip, turn, shift in zip(crops, flips.tolist(), turns.tolist(), shifts.tolist(), strict=True):
        axes = [axis + 1 for axis, flipped in enumerate(flip) if flipped]
        one = torch.rot90(crop.flip(axes) if axes else crop, turn, sampling.plane)
        result.append(one + shift if shift else one)
    return torch.stack(result)
