"""What the features of a scan will take, told before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training_backend.data.standard import resampled_grid
from training_backend.data.volume import Geometry, Shape
from training_backend.evaluate.features import map_tiles

if TYPE_CHECKING:
    from training_backend.data.prepare import InputProfile
    from training_backend.methods.base import Encoder

PREPARING = 14
"""Bytes per voxel and contrast while a scan is prepared: as stored, resampled, as input, and stacked."""
INDEXED = 4
"""Bytes per number of the tokens that the viewer keeps ready for similarity, at most."""


@dataclass(frozen=True)
class FeatureEstimate:
    """What features take at most; a scan whose borders are air takes less.

    Attributes:
        grid: tokens along (d, h, w).
        channels: numbers of a token.
        windows: how often the network looks.
        bytes: of memory, in the model process and the viewer together.
    """

    grid: Shape
    channels: int
    windows: int
    bytes: int

    def __str__(self) -> str:
        """One sentence."""
        d, h, w = self.grid
        looks = "one look" if self.windows == 1 else f"{self.windows:,} looks"
        return (
            f"At most {d} × {h} × {w} places of {self.channels} numbers in {looks}, "
            f"with {in_gib(self.bytes)} of memory."
        )


def estimate_features(
    encoder: Encoder,
    profile: InputProfile,
    scan: Geometry,
    contrasts: int = 1,
    *,
    level: int = 0,
    overlap: float = 0.5,
) -> FeatureEstimate:
    """What `features.token_features` of a scan on a grid takes, as if nothing of it were cut off as air.

    Args:
        encoder: the network.
        profile: how it was trained to see scans.
        scan: grid of the scan's file.
        contrasts: how many of the scan's contrasts are read.
        level: map of a hierarchical encoder, see `features.token_features`.
        overlap: of the windows of a crop encoder.

    Raises:
        ConfigError: the encoder has no such map.
    """
    resampled = resampled_grid(scan, profile.spacing_mm).shape
    shape = resampled if profile.view == "crop" else profile.size
    tiles, channels = map_tiles(encoder, shape, profile, level, overlap)
    preparing = PREPARING * contrasts * (math.prod(scan.shape) + (0 if resampled == scan.shape else math.prod(shape)))
    indexed = INDEXED * channels * math.prod(tiles.grid)
    return FeatureEstimate(tiles.grid, channels, len(tiles.starts), preparing + tiles.bytes(channels) + indexed)


def in_gib(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 0.1 * 2**30 else f"{max(1, round(count / 2**20))} MiB"
