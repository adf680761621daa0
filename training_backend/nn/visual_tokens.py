"""A volume as a fixed number of tokens, whatever the encoder: what report writers and text matching look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.errors import ConfigError
from training_backend.nn.patch import fitting

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder, EncoderOutput

TokenNorm = Literal["auto", "positions", "channels", "none"]
"""positions: each channel over the tokens, as published for report generation. channels: each token over its channels.
auto: positions for encoders with a pyramid, channels for others."""


class VisualTokens(nn.Module):
    """Maps of an encoder averaged to `side` positions per axis and joined, and a norm.

    An encoder with a pyramid says by ``embedded_maps`` which of its maps are joined (their channels add up to its
    width); of any other one the patch tokens are averaged.

    Args:
        encoder: of any method; it does not become a part of this module.
        side: tokens along each axis, 3 as published.
        norm: see `TokenNorm`.
        project: channels of a linear layer after the join; 0 leaves it out.
        order: axes of the grid in the order in which tokens are numbered, the last one fastest.
    """

    def __init__(
        self,
        encoder: Encoder,
        side: int = 3,
        norm: TokenNorm = "auto",
        project: int = 0,
        order: tuple[int, int, int] = (0, 1, 2),
    ) -> None:
        super().__init__()
        self.side, self.order, self.channels = side, order, encoder.width
        self.embedded_maps: tuple[int, ...] = tuple(getattr(encoder, "embedded_maps", ()))
        chosen = norm if norm != "auto" else "positions" if self.embedded_maps else "channels"
        self.norm: nn.Module = nn.Identity()
        if chosen == "positions":
            self.norm = PositionNorm(side**3)
        elif chosen == "channels":
            self.norm = nn.LayerNorm(encoder.width)
        self.head = nn.Conv3d(encoder.width, project, 1) if project else None
        self.width = project or encoder.width

    @property
    def number(self) -> int:
        """Tokens of a volume."""
        return self.side**3

    def forward(self, features: EncoderOutput) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, E] of a batch, and their mean [B, E]."""
        return self.from_maps(self.joined(features))

    def joined(self, features: EncoderOutput) -> Tensor:
        """Averaged and joined maps [B, E, side, side, side]."""
        maps = [features.pyramid[index] for index in self.embedded_maps]
        if not maps:
            maps = [features.tokens.transpose(1, 2).unflatten(2, features.grid)]
        pooled = torch.cat([F.adaptive_avg_pool3d(each, self.side) for each in maps], dim=1)
        if pooled.shape[1] != self.channels:
            raise ConfigError(
                f"The maps of the encoder have {pooled.shape[1]} channels together, but it says {self.channels}.",
                "Choose another method; this one does not say which of its maps to join.",
            )
        return pooled

    def from_maps(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, E] of joined maps [B, E, side, side, side], and their mean [B, E]."""
        tokens = self.norm(maps.permute(0, *(axis + 2 for axis in self.order), 1).flatten(1, 3))
        if self.head is not None:  # a convolution of one voxel, as published, is a linear layer of tokens
            tokens = F.linear(tokens, self.head.weight.flatten(1), self.head.bias)
        return tokens, tokens.mean(1)


class PositionNorm(nn.LayerNorm):
    """Layer norm of each channel over the positions of [B, L, E], with a weight and bias per position, as published."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalised tokens [B, L, E]."""
        return super().forward(tokens.transpose(1, 2)).transpose(1, 2)


def encoded(encoder: nn.Module, volume: Tensor, freeze: bool) -> EncoderOutput:
    """Features of `volume` [B, C, D, H, W], padded with zeros to whole patches; without gradient where frozen."""
    found = cast("Encoder", encoder)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze):
        return found.encode(fitting(found, volume))
