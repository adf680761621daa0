"""What an encoder hands to tasks and to the Explore panel; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EncoderOutput:
    """Features of a batch.

    Attributes:
        tokens: [B, L, E] patch tokens of the last block in raster order (d, h, w), without final norm.
        grid: tokens along (d, h, w), L = product.
        summary: [B, E] class token, or None for encoders without one.
        hidden: [B, L, E] patch tokens after each block asked for.
        pyramid: feature maps [B, C, d, h, w] from fine to coarse, for hierarchical encoders.
    """

    tokens: Tensor
    grid: tuple[int, int, int]
    summary: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()
    pyramid: tuple[Tensor, ...] = ()
