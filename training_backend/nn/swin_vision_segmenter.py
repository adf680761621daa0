"""SwinUNETR as MG-3D's authors segment with it: their encoder, its decoder, and a class for every voxel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.blocks import UnetOutBlock
from torch import Tensor, nn

from training_backend.nn.mg3d_encoders import TOKEN, SwinVision
from training_backend.nn.patch import pad_to_patch
from training_backend.nn.pyramid_decoder import PyramidDecoder
from training_backend.nn.swin import residual_block

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder


class SwinVisionSegmenter(PyramidDecoder):
    """Logits per voxel; but for the prefix of the encoder (theirs is ``swinViT``) names are the published ones.

    Args:
        encoder: the transformer of MG-3D.
        classes: number K of classes, background included.
        freeze: keep the encoder as it is.
    """

    encoder: SwinVision

    def __init__(self, encoder: SwinVision, classes: int, *, freeze: bool = False) -> None:
        f = encoder.feature_size
        super().__init__([f, f, 2 * f, 4 * f, 8 * f, 16 * f])
        self.encoder, self.freeze = encoder, freeze
        if freeze:
            encoder.requires_grad_(False)
        self.encoder1 = residual_block(encoder.in_channels, f)
        self.encoder2 = residual_block(f, f)
        self.encoder3 = residual_block(2 * f, 2 * f)
        self.encoder4 = residual_block(4 * f, 4 * f)
        self.encoder10 = residual_block(16 * f, 16 * f)
        self.out = UnetOutBlock(3, f, classes)

    def forward(self, volume: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        """Logits [B, K, D, H, W] of `volume` [B, C, D, H, W], the only one of a tuple."""
        padded = pad_to_patch(volume, (TOKEN,) * 3)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            first, second, third, fourth, last = self.encoder.shown(self.encoder.maps(padded))
        maps = [
            self.encoder1(padded),
            self.encoder2(first),
            self.encoder3(second),
            self.encoder4(third),
            fourth,
            self.encoder10(last),
        ]
        d, h, w = volume.shape[2:]
        logits: Tensor = self.out(super().forward(maps))
        return (logits[:, :, :d, :h, :w],)

    def train(self, mode: bool = True) -> SwinVisionSegmenter:
        """As usual, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self


def swin_decoder(encoder: Encoder, classes: int, *, freeze: bool = False) -> nn.Module:
    """SwinUNETR's decoder on the encoder of MG-3D or of VoCo, or a `ConfigError` for any other one."""
    from training_backend.nn.swin_segmenter import SwinSegmenter

    if isinstance(encoder, SwinVision):
        return SwinVisionSegmenter(encoder, classes, freeze=freeze)
    return SwinSegmenter(encoder, classes, freeze=freeze)
