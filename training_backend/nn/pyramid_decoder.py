"""The decoder of SwinUNETR on any encoder whose feature maps halve from full size, and networks made of it.

Unlike the lean decoder it has no convolutions of its own on the raw volume, so all it knows comes from the encoder.
Blocks are MONAI's, named as in the published weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetrUpBlock
from torch import Tensor, nn

from training_backend.errors import ConfigError
from training_backend.nn.unetr import pyramid_levels

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder


class PyramidDecoder(nn.Module):
    """Feature map of full size from a pyramid whose maps have `channels`, fine to coarse."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = len(channels) - 1
        for level in range(1, len(channels)):
            block = UnetrUpBlock(3, channels[level], channels[level - 1], 3, 2, norm_name="instance", res_block=True)
            self.add_module(f"decoder{level}", block)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Map [B, C, D, H, W] of a pyramid, of the size and channels of its first map."""
        x = pyramid[-1]
        for level in range(self.levels, 0, -1):
            x = getattr(self, f"decoder{level}")(x, pyramid[level - 1])
        return x


class Decoded(nn.Module):
    """Encoder and decoder.

    Args:
        encoder: with a pyramid that starts at full size and halves.
        freeze: keep the encoder as it is.

    Raises:
        ConfigError: an encoder without such a pyramid.
    """

    def __init__(self, encoder: Encoder, freeze: bool = False) -> None:
        super().__init__()
        self.encoder, self.freeze = cast(nn.Module, encoder), freeze
        if freeze:
            self.encoder.requires_grad_(False)
        found = pyramid_levels(encoder)
        if [round(math.log2(stride)) for _, stride in found] != list(range(len(found))) or len(found) < 2:
            raise ConfigError(
                "This decoder needs an encoder whose feature maps halve from the size of the scan, such as VoCo's; "
                f"{type(encoder).__name__} gives " + ("tokens." if not found else "other maps."),
                "Choose the lean decoder, or pooling over tokens.",
            )
        self.channels, self.multiple = found[0][0], 2 ** (len(found) - 1)
        self.decoder = PyramidDecoder([channels for channels, _ in found])

    def decoded(self, volume: Tensor) -> Tensor:
        """Feature map [B, F, D, H, W] of `volume` [B, C, D, H, W] of any size."""
        size = volume.shape[2:]
        d, h, w = (-side % self.multiple for side in size)
        padded = F.pad(volume, (0, w, 0, h, 0, d))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            pyramid = cast("Encoder", self.encoder).encode(padded).pyramid
        result: Tensor = self.decoder(pyramid)[:, :, : size[0], : size[1], : size[2]]
        return result

    def train(self, mode: bool = True) -> Decoded:
        """As usual, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self


class DecodedVoxels(Decoded):
    """`head` on every voxel of the decoded map.

    Args:
        encoder: see `Decoded`.
        freeze: keep the encoder as it is.
    """

    head: nn.Module

    def forward(self, volume: Tensor) -> tuple[Tensor, ...]:
        """The only output [B, K, D, H, W], as networks of several levels give theirs."""
        return (self.head(self.decoded(volume)),)


class DecodedMean(Decoded):
    """Outputs per volume from the mean of the decoded map, as VoCo's authors classify CC-CCII.

    Args:
        encoder: see `Decoded`.
        outputs: numbers K per volume.
        freeze: keep the encoder as it is.
        repeat_depth: put the volume behind itself along z first, as published, where slices are few.
    """

    def __init__(self, encoder: Encoder, outputs: int, freeze: bool = False, repeat_depth: bool = False) -> None:
        super().__init__(encoder, freeze)
        self.repeat_depth = repeat_depth
        self.head = nn.Linear(self.channels, outputs)

    def forward(self, volume: Tensor) -> Tensor:
        """Outputs [B, K] of `volume` [B, C, D, H, W]."""
        outputs: Tensor = self.head(self.features(volume))
        return outputs

    def features(self, volume: Tensor) -> Tensor:
        """What the head sees, [B, F]."""
        if self.repeat_depth:
            volume = torch.cat([volume, volume], dim=2)
        return self.decoded(volume).mean(dim=(2, 3, 4))
