"""nnU-Net's plain convolutional U-Net, for the published VoComni weights of that shape.

Names are those of the published file; what it stores two or three times under other names (``all_modules``,
``decoder.encoder``) is stored once here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

VOCOMNI_FEATURES = (32, 64, 128, 256, 320, 320)
"""Channels of the published network."""

_ALIAS = re.compile(r"^decoder\.encoder\.|\.all_modules\.")
_PARTS = {"conv": "all_modules.0", "norm": "all_modules.1"}


class PlainUnet(nn.Module):
    """Logits per voxel; each stage after the first halves the grid.

    Args:
        in_channels: channels of the volume.
        classes: channels of the logits.
        features: channels of the stages, fine to coarse.
        convolutions: convolutions of a stage.
        deep_supervision: give the logits of all decoder levels, finest first.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 21,
        features: Sequence[int] = VOCOMNI_FEATURES,
        convolutions: int = 2,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.encoder = PlainEncoder(in_channels, features, convolutions)
        self.decoder = _Decoder(features, classes, convolutions)

    def forward(self, volume: Tensor) -> tuple[Tensor, ...]:
        """Logits [B, K, ...] of `volume` [B, C, D, H, W]: at full size, then coarser ones with deep supervision.

        Sides are multiples of 2 to the power of one less than the number of stages.
        """
        logits = self.decoder(self.encoder(volume))
        return tuple(reversed(logits)) if self.deep_supervision else (logits[-1],)


class PlainEncoder(nn.Module):
    """Maps of all stages, fine to coarse; the arguments are those of `PlainUnet`."""

    def __init__(self, in_channels: int, features: Sequence[int], convolutions: int) -> None:
        super().__init__()
        widths = [in_channels, *features]
        self.stages = nn.ModuleList(
            nn.Sequential(_Stage(before, after, convolutions, stride=1 if index == 0 else 2))
            for index, (before, after) in enumerate(pairwise(widths))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps [B, C, d, h, w] of `x` [B, C, D, H, W]; each stage after the first halves the grid."""
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class _Decoder(nn.Module):
    def __init__(self, features: Sequence[int], classes: int, convolutions: int) -> None:
        super().__init__()
        steps = list(pairwise(reversed(features)))
        self.stages = nn.ModuleList(_Stage(2 * fine, fine, convolutions) for _, fine in steps)
        self.transpconvs = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, 2) for coarse, fine in steps)
        self.seg_layers = nn.ModuleList(nn.Conv3d(fine, classes, 1) for _, fine in steps)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Logits of every level, coarse to fine."""
        x, logits = levels[-1], []
        for index, skip in enumerate(reversed(levels[:-1])):
            x = self.stages[index](torch.cat([self.transpconvs[index](x), skip], dim=1))
            logits.append(self.seg_layers[index](x))
        return logits


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, convolutions: int, stride: int = 1) -> None:
        super().__init__()
        units = [
            _Unit(inputs if index == 0 else outputs, outputs, stride if index == 0 else 1)
            for index in range(convolutions)
        ]
        self.convs = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convs(x)
        return out


class _Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1)
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.nonlin(self.norm(self.conv(x)))
        return out


def without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a published file without those stored again under other names."""
    return {name: tensor for name, tensor in state.items() if not _ALIAS.search(name)}


def with_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `without_aliases`: what nnU-Net's own scripts expect of a file."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = [name]
        if match := re.fullmatch(r"(.*\.convs\.\d+)\.(conv|norm)\.(weight|bias)", name):
            names.append(f"{match[1]}.{_PARTS[match[2]]}.{match[3]}")
        for each in names:
            result[each] = tensor
            if each.startswith("encoder."):
                result[f"decoder.{each}"] = tensor
    return result
