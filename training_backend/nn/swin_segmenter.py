"""SwinUNETR as VoCo's authors segment with it: their encoder, its decoder, and a class for every voxel."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from monai.networks.blocks import UnetOutBlock
from torch import Tensor, nn

from training_backend.errors import ConfigError
from training_backend.nn.axes import turned, turned_back
from training_backend.nn.patch import pad_to_patch
from training_backend.nn.pyramid_decoder import PyramidDecoder
from training_backend.nn.swin_unetr import COARSEST, STRIDES, SwinUnetr

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder


class SwinSegmenter(PyramidDecoder):
    """Logits per voxel; without the prefix of the encoder its names are the published ones of the whole network.

    Args:
        encoder: VoCo's.
        classes: number K of classes, background included.
        freeze: keep the encoder as it is.

    Raises:
        ConfigError: another encoder.
    """

    starts_whole = True
    """Weights that have a decoder start this one too, as the authors start from VoComni."""

    def __init__(self, encoder: Encoder, classes: int, *, freeze: bool = False) -> None:
        if not isinstance(encoder, SwinUnetr):
            raise ConfigError(
                f"The decoder swinunetr belongs to VoCo's encoder and MG-3D's swin, not to {type(encoder).__name__}.",
                "Set task.decoder to lean, or choose method voco or mg3d.",
            )
        f = encoder.feature_size
        super().__init__([f, f, 2 * f, 4 * f, 8 * f, 16 * f])
        self.encoder, self.freeze = encoder, freeze
        if freeze:
            encoder.requires_grad_(False)
        self.out = UnetOutBlock(3, f, classes)

    def forward(self, volume: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        """Logits [B, K, D, H, W] of `volume` [B, C, D, H, W] along (z, y, x), the only one of a tuple."""
        padded = turned(pad_to_patch(volume, (COARSEST, COARSEST, COARSEST)), self.encoder.axes)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            maps = self.encoder.maps(padded)
        logits: Tensor = self.out(super().forward([getattr(maps, name) for name in STRIDES]))
        d, h, w = volume.shape[2:]
        return (turned_back(logits, self.encoder.axes)[:, :, :d, :h, :w],)

    def train(self, mode: bool = True) -> SwinSegmenter:
        """As usual, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        cast(nn.Module, self.encoder).train(mode and not self.freeze)
        return self
