"""Networks that VoCo's authors put on its backbone besides SwinUNETR: a classifier and two visual encoders for text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training_backend.nn.swin_unetr import SwinUnetr

REGIONS = 3
"""Positions per axis that the maps of the visual encoders are averaged to."""


class CcciiClassifier(SwinUnetr):
    """Logits per volume from the mean of the decoder's output (CC-CCII: normal, pneumonia, COVID-19).

    Args:
        outputs: numbers K per volume.
        options: of `SwinUnetr`.
    """

    def __init__(self, in_channels: int = 1, feature_size: int = 48, outputs: int = 3, **options: object) -> None:
        super().__init__(in_channels, feature_size, decoder=True, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(feature_size, outputs)

    def forward(self, volume: Tensor) -> Tensor:
        """Logits [B, K] of `volume` [B, C, D, H, W] in the network's frame.

        The volume is put behind itself along its first axis, as published, where slices are few.
        """
        decoded = self.decode(self.maps(torch.cat([volume, volume], dim=2)))
        logits: Tensor = self.head(decoded.mean(dim=(2, 3, 4)))
        return logits


class ReportVisual(SwinUnetr):
    """Tokens of the regions of a volume for report generation (M2KT)."""

    def __init__(self, in_channels: int = 1, feature_size: int = 48, **options: object) -> None:
        super().__init__(in_channels, feature_size, **options)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(REGIONS**3)

    def tokens(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, 27, 24F] of `volume` [B, C, D, H, W] in the network's frame, and their mean [B, 24F].

        The layer norm goes over the 27 regions of a channel, not over the channels of a region, as published.
        """
        regions: Tensor = self.norm(self.maps(volume).pooled(REGIONS).flatten(2))
        tokens = regions.transpose(1, 2)
        return tokens, tokens.mean(dim=1)


class ClipVisual(SwinUnetr):
    """Features of the regions of a volume for vocabulary classification and retrieval (CT-CLIP).

    Args:
        outputs: channels of a region.
        options: of `SwinUnetr`.
    """

    def __init__(self, in_channels: int = 1, feature_size: int = 48, outputs: int = 768, **options: object) -> None:
        super().__init__(in_channels, feature_size, **options)  # type: ignore[arg-type]
        self.head = nn.Conv3d(24 * feature_size, outputs, 1)

    def regions(self, volume: Tensor) -> Tensor:
        """Features [B, 3, 3, 3, K] of `volume` [B, C, D, H, W]; regions along the third, second and first axis."""
        features: Tensor = self.head(self.maps(volume).pooled(REGIONS))
        return features.permute(0, 3, 4, 2, 1)
