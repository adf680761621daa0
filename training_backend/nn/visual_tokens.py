"""A volume as a fixed number of tokens, whatever the encoder: what report writers and text matching look at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.errors import ConfigError
from training_backend.nn.patch import Triple, fitting

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder, EncoderOutput

TokenNorm = Literal["auto", "positions", "channels", "none"]
"""positions: each channel over the tokens, as published for report generation. channels: each token over its channels.
auto: positions for encoders with a pyramid, channels for others."""
TokenMaps = Literal["joined", "tokens", "convolved"]
"""joined: the maps that an encoder with a pyramid names, whose channels add up to its width; of others patch tokens.
tokens: the patch tokens as they are, without norm. convolved: the last map of MG-3D's transformer joined to the volume
and the first three maps after a convolution block each, as its authors write reports; 24 times the channels F."""


class VisualTokens(nn.Module):
    """Maps of an encoder averaged to a few positions and joined, and a norm.

    Args:
        encoder: of any method; it does not become a part of this module.
        side: tokens along each axis, 3 as published, or along (z, y, x).
        norm: see `TokenNorm`.
        project: channels of a linear layer after the join; 0 leaves it out.
        order: axes of the grid in the order in which tokens are numbered, the last one fastest.
        maps: see `TokenMaps`.
    """

    def __init__(
        self,
        encoder: Encoder,
        side: int | Triple = 3,
        norm: TokenNorm = "auto",
        project: int = 0,
        order: Triple = (0, 1, 2),
        maps: TokenMaps = "joined",
    ) -> None:
        super().__init__()
        self.grid: Triple = (side, side, side) if isinstance(side, int) else side
        self.order, self.channels = order, encoder.width
        self.embedded_maps: tuple[int, ...] = tuple(getattr(encoder, "embedded_maps", ()))
        chosen = norm if norm != "auto" else "positions" if self.embedded_maps else "channels"
        if maps == "tokens":
            self.embedded_maps = ()
        self.convolved = ConvolvedMaps(encoder) if maps == "convolved" else None
        if self.convolved is not None:
            self.channels = self.convolved.width
        self.norm: nn.Module = nn.Identity()
        if chosen == "positions":
            self.norm = PositionNorm(self.number)
        elif chosen == "channels":
            self.norm = nn.LayerNorm(self.channels)
        self.head = nn.Conv3d(self.channels, project, 1) if project else None
        self.width = project or self.channels

    @property
    def number(self) -> int:
        """Tokens of a volume."""
        return math.prod(self.grid)

    def forward(self, features: EncoderOutput, volume: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, E] of a batch, and their mean [B, E]; convolved maps need the volume [B, C, D, H, W] too."""
        return self.from_maps(self.joined(features, volume))

    def joined(self, features: EncoderOutput, volume: Tensor | None = None) -> Tensor:
        """Averaged and joined maps [B, E, d, h, w]."""
        maps = [features.pyramid[index] for index in self.embedded_maps]
        if self.convolved is not None:
            assert volume is not None  # those who ask for convolved maps have it
            maps = self.convolved(volume, features.pyramid)
        elif not maps:
            maps = [features.tokens.transpose(1, 2).unflatten(2, features.grid)]
        pooled = torch.cat([F.adaptive_avg_pool3d(each, self.grid) for each in maps], dim=1)
        if pooled.shape[1] != self.channels:
            raise ConfigError(
                f"The maps of the encoder have {pooled.shape[1]} channels together, but it says {self.channels}.",
                "Choose another method; this one does not say which of its maps to join.",
            )
        return pooled

    def from_maps(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, E] of joined maps [B, E, d, h, w], and their mean [B, E]."""
        tokens = self.norm(maps.permute(0, *(axis + 2 for axis in self.order), 1).flatten(1, 3))
        if self.head is not None:  # a convolution of one voxel, as published, is a linear layer of tokens
            tokens = F.linear(tokens, self.head.weight.flatten(1), self.head.bias)
        return tokens, tokens.mean(1)


class ConvolvedMaps(nn.Module):
    """What SwinUNETR's decoder would see of MG-3D's transformer, the fourth map aside, and its last map as it is.

    Channels are F, F, 2F, 4F and 16F. The convolution blocks are new, as in the published script: they are in no
    pre-trained file.

    Args:
        encoder: the transformer of MG-3D.

    Raises:
        ConfigError: any other encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        from training_backend.nn.mg3d_encoders import SwinVision
        from training_backend.nn.swin import residual_block

        super().__init__()
        if not isinstance(encoder, SwinVision):
            raise ConfigError(
                "Convolved maps are those of MG-3D's Swin transformer, but the encoder is another one.",
                "Set task.maps to joined, or choose mg3d with method.encoder swin.",
            )
        f = encoder.feature_size
        self.width = 24 * f
        self.encoder1 = residual_block(encoder.in_channels, f)
        self.encoder2 = residual_block(f, f)
        self.encoder3 = residual_block(2 * f, 2 * f)
        self.encoder4 = residual_block(4 * f, 4 * f)

    def forward(self, volume: Tensor, pyramid: tuple[Tensor, ...]) -> list[Tensor]:
        """Five maps of `volume` [B, C, D, H, W] and of the maps of strides 2, 4, 8, 16 and 32."""
        first, second, third, _, last = pyramid
        return [self.encoder1(volume), self.encoder2(first), self.encoder3(second), self.encoder4(third), last]


class PositionNorm(nn.LayerNorm):
    """Layer norm of each channel over the positions of [B, L, E], with a weight and bias per position, as published."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalised tokens [B, L, E]."""
        return super().forward(tokens.transpose(1, 2)).transpose(1, 2)


def encoded(encoder: nn.Module, volume: Tensor, freeze: bool) -> tuple[EncoderOutput, Tensor]:
    """Features of `volume` [B, C, D, H, W], and the volume that they are of: padded with zeros to whole patches.

    Features come without gradient where the encoder is frozen.
    """
    found = cast("Encoder", encoder)
    padded = fitting(found, volume)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze):
        return found.encode(padded), padded
