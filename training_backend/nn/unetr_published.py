"""UNETR's convolutional decoder on any token encoder (Hatamizadeh et al. 2022, section 3.1), with MONAI's blocks.

Module names are those of MONAI, so that files of published systems which put their encoder into this decoder load and
export without translation of the decoder's part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import get_conv_layer
from torch import Tensor, nn

from training_backend.errors import ConfigError
from training_backend.nn.axes import Axes, sizes_turned, turned, turned_back
from training_backend.nn.patch import Triple, pad_to_patch

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder

LEVELS = 4
"""Steps from a token to its voxels."""
LARGEST_PATCH = 2 ** (LEVELS + 1)


class PublishedUnetr(nn.Module):
    """Logits per voxel from the tokens of four depths and the raw volume.

    Tokens after a quarter, a half and three quarters of the blocks join as they are, those of the last block after the
    encoder's final norm, if it has one (layers 4, 7, 10 and 12 of 12). An encoder that says that it is ``planar`` looks
    at pictures, volumes of one slice, and gets a decoder of two dimensions; it sees a grey one in ``colours`` channels.

    Args:
        encoder: gives tokens; its patches are powers of two along each axis, up to 32 voxels.
        classes: number K of classes, background included.
        feature_size: channels of the finest level; each coarser one has twice as many.
        freeze: keep the encoder as it is.

    Raises:
        ConfigError: the encoder gives no tokens, or its patches are of other sizes.
    """

    def __init__(self, encoder: Encoder, classes: int, *, feature_size: int = 16, freeze: bool = False) -> None:
        super().__init__()
        self.encoder = cast(nn.Module, encoder)
        self.freeze = freeze
        if freeze:
            self.encoder.requires_grad_(False)
        self.taps = tuple(min(encoder.depth * quarter // 4, encoder.depth - 1) for quarter in (1, 2, 3))
        self.planar: bool = getattr(encoder, "planar", False)
        frame = getattr(encoder, "layout", getattr(encoder, "settings", None))
        self.axes: Axes = "zyx" if self.planar else getattr(frame, "axes", "zyx")
        self.colours: int = getattr(encoder, "colours", encoder.in_channels)
        dims = 2 if self.planar else 3
        coarse, _, _, fine = kernels = [kernel[-dims:] for kernel in _kernels(encoder.patch_size, self.axes)]
        widths = [feature_size << level for level in range(LEVELS)]
        self.encoder1 = UnetrBasicBlock(dims, self.colours, widths[0], 3, 1, "instance", res_block=True)
        self.encoder2 = _projection(encoder.width, widths[1], kernels[:3])
        self.encoder3 = _projection(encoder.width, widths[2], kernels[:2])
        self.encoder4 = _projection(encoder.width, widths[3], kernels[:1])
        self.decoder5 = UnetrUpBlock(dims, encoder.width, widths[3], 3, coarse, "instance", res_block=True)
        self.decoder4 = UnetrUpBlock(dims, widths[3], widths[2], 3, kernels[1], "instance", res_block=True)
        self.decoder3 = UnetrUpBlock(dims, widths[2], widths[1], 3, kernels[2], "instance", res_block=True)
        self.decoder2 = UnetrUpBlock(dims, widths[1], widths[0], 3, fine, "instance", res_block=True)
        self.out = UnetOutBlock(dims, widths[0], classes)

    def forward(self, volume: Tensor) -> tuple[Tensor]:
        """Logits [B, K, D, H, W] of `volume` [B, C, D, H, W], the only one of a tuple."""
        encoder = cast("Encoder", self.encoder)
        padded = pad_to_patch(volume, encoder.patch_size)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = encoder.encode(padded, hidden=sorted(set(self.taps)))
            norm = getattr(self.encoder, "norm", None)
            last = features.tokens if norm is None else norm(features.tokens)
        found = dict(zip(sorted(set(self.taps)), features.hidden, strict=True))
        maps = [self._map(tokens, features.grid) for tokens in (*(found[tap] for tap in self.taps), last)]
        logits = self._decoded(padded, maps)
        d, h, w = volume.shape[2:]
        return (logits[:, :, :d, :h, :w],)

    def decode(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Logits of `image` [B, C, ...] and the token maps [B, E, ...] of four depths, all along the same axes."""
        x = self.decoder5(maps[3], self.encoder4(maps[2]))
        x = self.decoder4(x, self.encoder3(maps[1]))
        x = self.decoder3(x, self.encoder2(maps[0]))
        logits: Tensor = self.out(self.decoder2(x, self.encoder1(image)))
        return logits

    def train(self, mode: bool = True) -> PublishedUnetr:
        """As usual, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self

    def _map(self, tokens: Tensor, grid: Triple) -> Tensor:
        return turned(tokens.transpose(1, 2).unflatten(2, grid), self.axes)

    def _decoded(self, volume: Tensor, maps: list[Tensor]) -> Tensor:
        """Logits along our axes of `volume` and the maps of its tokens."""
        image = turned(volume, self.axes)
        if self.planar:
            if image.shape[1] < self.colours:
                image = image.expand(-1, self.colours, -1, -1, -1)
            flat = self.decode(image.squeeze(2), [one.squeeze(2) for one in maps])
            return turned_back(flat.unsqueeze(2), self.axes)
        return turned_back(self.decode(image, maps), self.axes)


def _kernels(patch_size: Triple, axes: Axes) -> list[Triple]:
    """Enlargement along each axis of the four steps from tokens to voxels, in the order of the network's axes.

    Patches below 16 need fewer steps along an axis, so the first ones keep it; those of 32 begin with a step of four.
    """
    steps = []
    for patch in sizes_turned(patch_size, axes):
        doublings = int(math.log2(patch)) if patch > 0 else 0
        if 2**doublings != patch or patch > LARGEST_PATCH:
            raise ConfigError(
                f"The UNETR decoder doubles the grid of tokens up to the voxels and needs patches of 2, 4, 8, 16 or 32 "
                f"voxels, but they have {tuple(patch_size)}.",
                "Set task.decoder to lean, or choose another method.patch_size.",
            )
        axis = [1] * max(LEVELS - doublings, 0) + [2] * min(doublings, LEVELS)
        axis[0] *= max(patch // 2**LEVELS, 1)
        steps.append(axis)
    return [(a, b, c) for a, b, c in zip(*steps, strict=True)]


def _projection(width: int, channels: int, kernels: Sequence[tuple[int, ...]]) -> UnetrPrUpBlock:
    """Tokens as features of a finer level, through one enlargement per kernel."""
    dims, further = len(kernels[0]), len(kernels) - 1
    block = UnetrPrUpBlock(dims, width, channels, further, 3, 1, 2, "instance", conv_block=True, res_block=True)
    for place, kernel in enumerate(kernels):
        if set(kernel) == {2}:
            continue
        inputs = width if place == 0 else channels
        layer = get_conv_layer(dims, inputs, channels, kernel, kernel, conv_only=True, is_transposed=True)
        if place == 0:
            block.transp_conv_init = layer
        else:
            cast(nn.Sequential, block.blocks[place - 1])[0] = layer
    return block
