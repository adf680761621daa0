"""How a volume becomes a sequence of patches and back: the axes, the order of the tokens, and who sees whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training_backend.errors import GeometryError
from training_backend.nn.axes import Axes, sizes_back, sizes_turned, turned, turned_back
from training_backend.nn.patch import Triple, patch_grid, patchify, unpatchify

Order = Literal["interleaved", "slab-major"]


@dataclass(frozen=True)
class Layout:
    """Between volumes [B, C, D, H, W] of ours, (z, y, x) growing to S, P and L, and sequences of patches.

    Patches of a sequence are numbered 0 to L - 1. Three kinds of order occur: *ours* is the raster (d, h, w) of the
    volume as given; the *raster* of the reference runs over its own axes, (x, y, z) growing to R, A and S in
    pre-training, the last one fastest; the *sequence* is that raster ("interleaved"), or all of the first slab, then
    all of the second ("slab-major").

    Attributes:
        patch_size: voxels of a patch along (z, y, x).
        axes: frame of the reference that volumes are turned into; "zyx" takes them as they are.
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
        return sizes_turned(self.patch_size, self.axes)

    def raster_grid(self, volume: Tensor) -> Triple:
        """Patches of `volume` along the axes of the reference."""
        return sizes_turned(patch_grid(tuple(volume.shape[2:]), self.patch_size), self.axes)

    def our_grid(self, grid: Triple) -> Triple:
        """Patches (d, h, w) along our axes of a `grid` of the reference."""
        return sizes_back(grid, self.axes)

    def raster_patches(self, volume: Tensor) -> Tensor:
        """Patches [B, L, p] in the raster of the reference; voxels of a patch are ordered likewise, channel last."""
        return patchify(turned(volume, self.axes), self.kernel)

    def raster_volume(self, patches: Tensor, grid: Triple, channels: int = 1) -> Tensor:
        """Inverse of `raster_patches` for a `grid` of the reference."""
        return turned_back(unpatchify(patches, self.kernel, grid, channels), self.axes)

    def to_ours(self, tokens: Tensor, grid: Triple) -> Tensor:
        """Tokens [B, d, h, w, ...] on our grid of those [B, L, ...] in the raster of a `grid` of the reference."""
        return turned_back(tokens.unflatten(1, grid), self.axes, first=1)

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
