"""How a volume becomes a sequence of patches and back: the axes, the order of the tokens, and who sees whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training_backend.errors import GeometryError
from training_backend.nn.patch import Triple, patch_grid, patchify, unpatchify

Axes = Literal["xyz", "zyx"]
Order = Literal["interleaved", "slab-major"]

_FLIPPED = (0, 1)
"""Axes of the reference's frame (x, y, z) that run against ours: it grows to the right, anterior and superior."""


@dataclass(frozen=True)
class Layout:
    """Between volumes [B, C, D, H, W] of ours, (z, y, x) growing to S, P and L, and sequences of patches.

    Patches of a sequence are numbered 0 to L - 1. Three kinds of order occur: *ours* is the raster (d, h, w) of the
    volume as given; the *raster* of the reference runs over (x, y, z) growing to R, A and S, z fastest; the *sequence*
    is that raster ("interleaved"), or all of the first slab, then all of the second ("slab-major").

    Attributes:
        patch_size: voxels of a patch along (z, y, x).
        axes: "xyz" turns volumes into the frame of the reference; "zyx" takes them as they are.
        order: of the sequence. Slabs lie along the last axis of the reference, so its own order interleaves them.
        slabs: that a view is glued from; only "slab-major" depends on it.
    """

    patch_size: Triple
    axes: Axes = "xyz"
    order: Order = "interleaved"
    slabs: int = 4

    @property
    def kernel(self) -> Triple:
        """Voxels of a patch in the frame of the reference, the shape of the embedding's kernel."""
        return self._turned(self.patch_size)

    def raster_grid(self, volume: Tensor) -> Triple:
        """Patches of `volume` along the axes of the reference."""
        return self._turned(patch_grid(tuple(volume.shape[2:]), self.patch_size))

    def raster_patches(self, volume: Tensor) -> Tensor:
        """Patches [B, L, p] in the raster of the reference; voxels of a patch are ordered likewise, channel last."""
        if self.axes == "xyz":
            volume = volume.permute(0, 1, 4, 3, 2).flip([2 + axis for axis in _FLIPPED])
        return patchify(volume, self.kernel)

    def raster_volume(self, patches: Tensor, grid: Triple, channels: int = 1) -> Tensor:
        """Inverse of `raster_patches` for a `grid` of the reference."""
        volume = unpatchify(patches, self.kernel, grid, channels)
        if self.axes == "xyz":
            volume = volume.flip([2 + axis for axis in _FLIPPED]).permute(0, 1, 4, 3, 2)
        return volume

    def to_ours(self, tokens: Tensor, grid: Triple) -> Tensor:
        """Tokens [B, d, h, w, ...] on our grid of those [B, L, ...] in the raster of a `grid` of the reference."""
        placed = tokens.unflatten(1, grid)
        if self.axes == "xyz":
            placed = placed.flip([1 + axis for axis in _FLIPPED]).transpose(1, 3)
        return placed

    def sequence(self, grid: Triple) -> Tensor | None:
        """Raster number of each place of the sequence [L], or None where the two are the same."""
        if self.order == "interleaved":
            return None
        if grid[2] % self.slabs:
            raise GeometryError(
                f"The order slab-major needs {self.slabs} slabs of whole patches, but there are {grid[2]} patches "
                "along z.",
                f"Give a size along z that is a multiple of {self.slabs} patches, or take the order interleaved.",
            )
        numbers = torch.arange(grid[0] * grid[1] * grid[2]).view(grid[0], grid[1], self.slabs, -1)
        return numbers.permute(2, 0, 1, 3).flatten()

    def to_sequence(self, tokens: Tensor, grid: Triple) -> Tensor:
        """Tokens [B, L, ...] of the raster, put into the order of the sequence."""
        order = self.sequence(grid)
        return tokens if order is None else tokens[:, order.to(tokens.device)]

    def from_sequence(self, tokens: Tensor, grid: Triple) -> Tensor:
        """Inverse of `to_sequence`."""
        order = self.sequence(grid)
        return tokens if order is None else tokens[:, order.argsort().to(tokens.device)]

    def map(self, values: Tensor, grid: Triple) -> Tensor:
        """Values [B, L, ...] of the places of a sequence, on our grid [B, d, h, w, ...]."""
        return self.to_ours(self.from_sequence(values, grid), grid)

    def numbers(self, grid: Triple) -> Tensor:
        """Place in the sequence of each patch on our grid [d, h, w]."""
        return self.map(torch.arange(grid[0] * grid[1] * grid[2])[None], grid)[0]

    def slab_numbers(self, grid: Triple) -> Tensor:
        """Slab 0 to slabs - 1 of each patch on our grid [d, h, w], for views of equal slabs glued along z."""
        along_z = torch.arange(grid[2]) * self.slabs // grid[2]
        return self.to_ours(along_z.expand(grid).reshape(1, -1), grid)[0]

    def _turned(self, sizes: Triple) -> Triple:
        return (sizes[2], sizes[1], sizes[0]) if self.axes == "xyz" else sizes


def visible(prefix: Tensor, length: int) -> Tensor:
    """Which places a place may attend to, [B, 1, N, N] bool with True for allowed.

    Place 0 is the start token and place i patch i - 1. Row i sees columns j <= i, and the prefix j <= p in both
    directions.

    Args:
        prefix: [B] patches p given as context, on the device where the mask is wanted.
        length: places N.
    """
    place = torch.arange(length, device=prefix.device)
    causal = place[None, :] <= place[:, None]
    return (causal | (place[None, None, :] <= prefix[:, None, None])).unsqueeze(1)
