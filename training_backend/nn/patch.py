"""Volumes as patches: cutting, joining, padding and embedding them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.errors import ConfigError, GeometryError

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder

Triple = tuple[int, int, int]

HALVED = 32
"""Voxels along each axis of a position of a map that was halved five times."""


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches, stored as the convolution ``proj`` of the published checkpoints.

    It is computed as one matrix product on cut patches, so a caller who needs only some patches pays only for those.

    Args:
        in_channels: channels C of the volume.
        width: channels E of a token.
        patch_size: voxels of a patch along (z, y, x).
    """

    def __init__(self, in_channels: int, width: int, patch_size: Triple) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, volume: Tensor) -> Tensor:
        """Tokens [B, L, E] in raster order (d, h, w) of `volume` [B, C, D, H, W]."""
        return self.embed(patchify(volume, self.patch_size))

    def embed(self, pixels: Tensor) -> Tensor:
        """Tokens [..., E] of patches [..., p] as `patchify` cuts them."""
        return embed_patches(self.proj, pixels)


def embed_patches(convolution: nn.Conv2d | nn.Conv3d, pixels: Tensor) -> Tensor:
    """Tokens [..., E] of patches [..., p] as `patchify` cuts them, of a convolution whose stride is its kernel."""
    weight = convolution.weight.movedim(1, -1).flatten(1)  # a view for one channel
    return F.linear(pixels, weight, convolution.bias)


def patch_grid(shape: tuple[int, ...], patch_size: Triple) -> Triple:
    """Patches along (d, h, w) of a volume of `shape` voxels, or a `GeometryError` if they do not fit exactly."""
    if any(size < patch or size % patch for size, patch in zip(shape, patch_size, strict=True)):
        raise GeometryError(
            f"The network cuts volumes into patches of {patch_size} voxels, but this one has {tuple(shape)}.",
            "Give sizes that are multiples of the patch size, or pad the volume.",
        )
    return cast(Triple, tuple(size // patch for size, patch in zip(shape, patch_size, strict=True)))


def check_halved(size: Sequence[int], network: str) -> None:
    """Refuse volumes that five halvings do not divide, or of which a single position would be left.

    Args:
        size: voxels along each axis.
        network: what halves them, for the sentence ("SwinUNETR").

    Raises:
        ConfigError: such a size.
    """
    shown = " x ".join(map(str, size))
    if any(side % HALVED or side < HALVED for side in size):
        raise ConfigError(
            f"{network} halves a volume five times and needs sides of multiples of {HALVED} voxels, but they are "
            f"{shown}.",
            f"Choose multiples of {HALVED}.",
        )
    if all(side == HALVED for side in size):
        raise ConfigError(
            f"Of {shown} voxels {network} would keep one position, which has no norm and says nothing of a place.",
            f"Choose {2 * HALVED} voxels along one axis at least.",
        )


def patchify(volume: Tensor, patch_size: Triple) -> Tensor:
    """Patches [B, L, p] of `volume` [B, C, D, H, W].

    Patches are in raster order (d, h, w); the p = pd ph pw C elements of one are ordered (z, y, x, channel).
    """
    batch, channels = volume.shape[:2]
    (d, h, w), (pd, ph, pw) = patch_grid(tuple(volume.shape[2:]), patch_size), patch_size
    cut = volume.reshape(batch, channels, d, pd, h, ph, w, pw).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return cut.reshape(batch, d * h * w, pd * ph * pw * channels)


def unpatchify(patches: Tensor, patch_size: Triple, grid: Triple, channels: int = 1) -> Tensor:
    """Volume [B, C, D, H, W] of `patches` [B, L, p]; exact inverse of `patchify` on any grid (d, h, w)."""
    (d, h, w), (pd, ph, pw) = grid, patch_size
    if patches.shape[1:] != (d * h * w, pd * ph * pw * channels):
        raise GeometryError(
            f"A grid {grid} of {patch_size} patches with {channels} channel(s) needs "
            f"{d * h * w} x {pd * ph * pw * channels} values, but there are {tuple(patches.shape[1:])}."
        )
    cut = patches.reshape(-1, d, h, w, pd, ph, pw, channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return cut.reshape(-1, channels, d * pd, h * ph, w * pw)


def pad_to_patch(volume: Tensor, patch_size: Triple, value: float = 0.0) -> Tensor:
    """`volume` [B, C, D, H, W] with `value` appended at the end of each axis up to the next multiple of the patch."""
    missing = [-size % patch for size, patch in zip(volume.shape[2:], patch_size, strict=True)]
    return F.pad(volume, [0, missing[2], 0, missing[1], 0, missing[0]], value=value) if any(missing) else volume


def fitting(encoder: Encoder, volume: Tensor) -> Tensor:
    """`volume` [B, C, D, H, W] padded to whole patches of `encoder`, or as it is for one that takes any size."""
    return volume if getattr(encoder, "any_size", False) else pad_to_patch(volume, encoder.patch_size)
