"""A segmentation network on any encoder: a lean U-Net on the raw volume that also receives the encoder's features.

Convolutions see edges at full detail and learn from a handful of cases within minutes; the features bring what the
encoder knows from pre-training. As in UNETR (Hatamizadeh et al. 2022, section 3.1) tokens of several depths join
the decoder at several scales. Three departures keep it fast on small data and small machines: the raw volume has an
encoder path of its own instead of one convolution; a token becomes up to 4 x 4 x 4 finer positions through one matrix
product instead of a chain of transposed convolutions; and features and skips are added instead of concatenated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.patch import Triple, pad_to_patch, unpatchify

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder
    from training_backend.nn.output import EncoderOutput

LARGEST_EXPANSION = 4
"""Positions per axis that one token may become by learning; further enlargement is interpolated."""


class Unetr(nn.Module):
    """Logits per voxel from a volume of any size and an encoder of any patch size.

    Args:
        encoder: gives tokens (a vision transformer) or a pyramid (a hierarchical encoder).
        classes: number K of classes, background included.
        channels: of the convolutional levels, fine to coarse; each level halves the grid.
        stem_stride: voxels per axis of one position of the finest level; 2 is about six times faster than 1.
        freeze: keep the encoder as it is.
        deep_supervision: in training also give logits of the coarser decoder levels.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        channels: Sequence[int] = (16, 32, 64, 128),
        stem_stride: int = 1,
        freeze: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = cast(nn.Module, encoder)
        self.freeze = freeze
        if freeze:
            self.encoder.requires_grad_(False)
        steps = list(itertools.pairwise(channels))
        stem = ConvUnit(encoder.in_channels, channels[0], stem_stride)
        self.down = nn.ModuleList([stem, *(_stage(fine, coarse) for fine, coarse in steps)])
        self.fuse = nn.ModuleDict(_fusions(encoder, channels, stem_stride))
        self.bottom = ConvUnit(channels[-1], channels[-1])
        self.up = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, 2) for fine, coarse in steps)
        self.join = nn.ModuleList(ConvUnit(fine, fine) for fine, _ in steps)
        self.head = _head(channels[0], classes, stem_stride)
        coarser = channels[1:-1] if deep_supervision else ()
        self.coarse_heads = nn.ModuleList(nn.Conv3d(width, classes, 1) for width in coarser)

    def forward(self, volume: Tensor) -> tuple[Tensor, ...]:
        """Logits of `volume` [B, C, D, H, W]: [B, K, D, H, W], then coarser ones if training with deep supervision."""
        levels = self._levels(pad_to_patch(volume, self.encoder.patch_size))  # type: ignore[arg-type]
        x = levels[-1]
        decoded: list[Tensor] = []
        for level in reversed(range(len(self.up))):
            skip = levels[level]
            x = self.join[level](_cut(self.up[level](x), skip) + skip)
            decoded.insert(0, x)
        logits = _cut(self.head(x), volume)
        if not self.training:
            return (logits,)
        return (logits, *(head(y) for head, y in zip(self.coarse_heads, decoded[1:], strict=False)))

    def train(self, mode: bool = True) -> Unetr:
        """As usual, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self

    def _levels(self, volume: Tensor) -> list[Tensor]:
        """Convolutional features of every level, fine to coarse, with the encoder's features added."""
        x = volume.contiguous(memory_format=torch.channels_last_3d) if volume.device.type == "cpu" else volume
        levels = []
        for stage in self.down:
            x = stage(x)
            levels.append(x)
        blocks = sorted({module.block for module in self.fuse.values() if isinstance(module, TokenMap)})
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = cast("Encoder", self.encoder).encode(volume, hidden=blocks)
        for key, module in self.fuse.items():
            level = int(key)
            size = cast(Triple, tuple(levels[level].shape[2:]))
            levels[level] = levels[level] + module(features, size, blocks)
        levels[-1] = self.bottom(levels[-1])
        return levels


class ConvUnit(nn.Sequential):
    """3 x 3 x 3 convolution, instance norm, leaky ReLU; stride 2 gives ceil(n / 2) positions per axis."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False),
            InstanceNorm(outputs),
            nn.LeakyReLU(0.01, inplace=True),
        )


class InstanceNorm(nn.GroupNorm):
    """Instance norm with scale and shift that keeps the channels-last layout and passes single positions unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x` [B, C, d, h, w]."""
        if math.prod(x.shape[2:]) > 1:
            return super().forward(x)
        return x * self.weight[:, None, None, None] + self.bias[:, None, None, None]


class Residual(nn.Module):
    """``x + unit(x)``."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        return cast(Tensor, x + self.unit(x))


class TokenMap(nn.Module):
    """Tokens of one block as a feature map of one level.

    Args:
        block: index of the block.
        width: channels E of a token.
        channels: of the feature map.
        expansion: positions per axis that each token becomes.
    """

    def __init__(self, block: int, width: int, channels: int, expansion: Triple) -> None:
        super().__init__()
        self.block, self.channels, self.expansion = block, channels, expansion
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, channels * math.prod(expansion))

    def forward(self, features: EncoderOutput, size: Triple, blocks: Sequence[int]) -> Tensor:
        """Map [B, channels, *size] of the tokens in `features.hidden`, which are those of `blocks`."""
        tokens = features.hidden[blocks.index(self.block)]
        fine = unpatchify(self.expand(self.norm(tokens)), self.expansion, features.grid, self.channels)
        return _resized(fine, size)


class PyramidMap(nn.Module):
    """One map of an encoder's pyramid as a feature map of one level."""

    def __init__(self, index: int, width: int, channels: int) -> None:
        super().__init__()
        self.index = index
        self.project = nn.Conv3d(width, channels, 1)

    def forward(self, features: EncoderOutput, size: Triple, blocks: Sequence[int]) -> Tensor:
        """Map [B, channels, *size]; `blocks` is not used."""
        return _resized(self.project(features.pyramid[self.index]), size)


def _stage(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(ConvUnit(inputs, outputs, stride=2), Residual(ConvUnit(outputs, outputs)))


def _head(channels: int, classes: int, stem_stride: int) -> nn.Module:
    if stem_stride == 1:
        return nn.Conv3d(channels, classes, 1)
    return nn.ConvTranspose3d(channels, classes, 2 * stem_stride, stem_stride, padding=stem_stride // 2)


def _fusions(encoder: Encoder, channels: Sequence[int], stem_stride: int) -> dict[str, nn.Module]:
    """What each level but the finest receives: tokens of deeper blocks, or the pyramid map of the nearest scale."""
    pyramid = pyramid_levels(encoder)
    last = len(channels) - 1
    modules: dict[str, nn.Module] = {}
    for level in range(1, last + 1):
        stride = stem_stride << level
        if pyramid:
            index = min(range(len(pyramid)), key=lambda i: abs(math.log2(pyramid[i][1] / stride)))
            modules[str(level)] = PyramidMap(index, pyramid[index][0], channels[level])
        else:
            expansion = tuple(min(LARGEST_EXPANSION, max(1, patch // stride)) for patch in encoder.patch_size)
            block = max(round(level * encoder.depth / last), 1) - 1
            modules[str(level)] = TokenMap(block, encoder.width, channels[level], cast(Triple, expansion))
    return modules


def pyramid_levels(encoder: Encoder) -> list[tuple[int, float]]:
    """(channels, stride) of each map of the encoder's pyramid; empty for encoders that give tokens only."""
    module = cast(nn.Module, encoder)
    size = [patch * math.ceil(32 / patch) for patch in encoder.patch_size]
    device = next(module.parameters()).device
    was_training = module.training
    with torch.no_grad():
        module.eval()
        pyramid = encoder.encode(torch.zeros(1, encoder.in_channels, *size, device=device)).pyramid
    module.train(was_training)
    return [(features.shape[1], size[2] / features.shape[4]) for features in pyramid]


def _resized(features: Tensor, size: Triple) -> Tensor:
    if features.shape[2:] == size:
        return features
    return F.interpolate(features, size=size, mode="trilinear", align_corners=False)


def _cut(x: Tensor, like: Tensor) -> Tensor:
    """`x` without what reaches beyond the end of `like` along (z, y, x)."""
    d, h, w = like.shape[2:]
    return x[:, :, :d, :h, :w]
