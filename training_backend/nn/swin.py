"""The 3D Swin transformer of the published VoCo and MG-3D weights, with their parameter names.

Three of its habits are no choices any more, because the weights were trained with them: the order in which merging
joins eight voxels, bias tables read from their first rows where a window is clipped, and padding after the norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetrBasicBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training_backend.errors import ConfigError
from training_backend.nn.patch import Triple
from training_backend.nn.swin_regions import attend_regions
from training_backend.nn.swin_window import (
    SMALL_WINDOW,
    attend,
    clipped,
    cut,
    joined,
    padded_size,
    relative_index,
    shift_groups,
)

Merging = Literal["legacy", "fixed"]

MERGED: dict[str, tuple[Triple, ...]] = {
    "legacy": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "fixed": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
}
"""Voxels of a 2 x 2 x 2 block in the order in which they are joined. "legacy" is MONAI's up to 1.3: two voxels are
taken twice and two never; the published weights need it. "fixed" takes each once."""

NORM_EPS = 1e-5


class SwinTransformer(nn.Module):
    """Maps of five scales from a volume; strides 2, 4, 8, 16, 32 and channels F, 2F, 4F, 8F, 16F.

    Args:
        in_channels: channels of the volume.
        width: channels F after the patch embedding.
        window: sides of the attention windows.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        merging: order of the joined voxels, a key of `MERGED`.
        convolutions: a residual convolution block before each stage ("v2").
        drop_path: stochastic depth of the last block, growing linearly from 0 in the first.

    Raises:
        ConfigError: heads that do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 48,
        *,
        window: Triple = (7, 7, 7),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        merging: Merging = "legacy",
        convolutions: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if any((width << stage) % number for stage, number in enumerate(heads)):
            raise ConfigError(
                f"The feature size {width} cannot be divided among {heads[0]} attention heads.",
                f"Choose a multiple of {heads[0]}.",
            )
        self.merging, self.depths, self.convolutions = merging, tuple(depths), convolutions
        self.patch_embed = PatchConvolution(in_channels, width)
        total = sum(depths)
        rates = [drop_path * index / max(total - 1, 1) for index in range(total)]
        for index, (depth, number) in enumerate(zip(depths, heads, strict=True)):
            first = sum(depths[:index])
            channels = width << index
            stage = SwinStage(channels, number, window, merging, rates[first : first + depth])
            self.add_module(f"layers{index + 1}", nn.ModuleList([stage]))
            if convolutions:
                self.add_module(f"layers{index + 1}c", nn.ModuleList([residual_block(channels, channels)]))

    def forward(self, volume: Tensor, normalised: bool = True) -> list[Tensor]:
        """Maps [B, C, d, h, w] from fine to coarse of `volume` [B, C, D, H, W].

        `normalised` standardises the channels of each voxel of what is returned, without learnt scale; the next stage
        always gets the map as it is.
        """
        x = self.patch_embed(volume)
        maps = [x]
        for index in range(len(self.depths)):
            x = self.stage(index)(self.before(index, x))
            maps.append(x)
        return [channel_norm(x) for x in maps] if normalised else maps

    def stage(self, index: int) -> SwinStage:
        """Stage number `index`, from 0."""
        return cast(SwinStage, getattr(self, f"layers{index + 1}")[0])

    def before(self, index: int, x: Tensor) -> Tensor:
        """What stage number `index` gets of the map before it."""
        if not self.convolutions:
            return x
        out: Tensor = getattr(self, f"layers{index + 1}c")[0](x.contiguous())
        return out


class PatchConvolution(nn.Module):
    """Non-overlapping 2 x 2 x 2 patches as channels."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, width, kernel_size=2, stride=2)

    def forward(self, volume: Tensor) -> Tensor:
        """[B, F, D/2, H/2, W/2] of `volume`, whose odd sides are padded with a zero."""
        missing = [side % 2 for side in volume.shape[2:]]
        padded = F.pad(volume, [0, missing[2], 0, missing[1], 0, missing[0]]) if any(missing) else volume
        out: Tensor = self.proj(padded)
        return out


class SwinStage(nn.Module):
    """Blocks whose windows are shifted in every other one, and the merging of 2 x 2 x 2 voxels after them.

    Args:
        channels: C of the map.
        heads: attention heads.
        window: sides of the windows.
        merging: order of merged voxels; None leaves the merging out.
        drop_path: stochastic depth of each block, whose number it gives.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: Triple,
        merging: Merging | None,
        drop_path: Sequence[float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, shifted=bool(index % 2), drop_path=rate)
            for index, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(channels, merging) if merging else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2C, d/2, h/2, w/2] of `x` [B, C, d, h, w]; the same shape without merging."""
        x = x.permute(0, 2, 3, 4, 1)
        for block in self.blocks:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x.permute(0, 4, 1, 2, 3)


class SwinBlock(nn.Module):
    """``x + attention(norm(x))`` inside windows, followed by ``x + mlp(norm(x))``."""

    def __init__(
        self, channels: int, heads: int, window: Triple, *, shifted: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.shifted, self.drop_path = shifted, drop_path
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = SwinMlp(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x` [B, d, h, w, C]."""
        x = x + self._skip(self.attn(self.norm1(x), self.shifted))
        return x + self._skip(self._widened(x))

    def _widened(self, x: Tensor) -> Tensor:
        """The second branch; its four times wider maps are computed again in the backward pass, not held."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self._narrowed(x)
        out: Tensor = checkpoint(self._narrowed, x, use_reentrant=False, preserve_rng_state=False)
        return out

    def _narrowed(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.norm2(x))
        return out

    def _skip(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        return branch * branch.new_empty((len(branch), 1, 1, 1, 1)).bernoulli_(keep).div_(keep)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learnt bias per head and relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: Triple) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        rows = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_index(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, shifted: bool = False) -> Tensor:
        """Attended map, same shape as `x` [B, d, h, w, C]."""
        size = _size(x)
        window, shift = clipped(size, self.window) if shifted else (clipped(size, self.window)[0], (0, 0, 0))
        if x.device.type == "cpu" and math.prod(window) > SMALL_WINDOW:
            biases = (self.relative_position_bias_table, self.relative_position_index)
            return self.proj(attend_regions(x, self.qkv, *biases, window, shift))
        whole = padded_size(size, window)
        x = _rolled(_padded(x, whole), shift, -1)
        heads = self.qkv(cut(x, window)).unflatten(-1, (3, self.heads, -1))  # [B, W, n, 3, h, c]
        bias = self.bias(heads.shape[2])
        if any(shift):
            groups = shift_groups(whole, window, shift, x.device)
            parts = [self._attended(heads[:, members], bias, mask) for members, mask in groups]
            order = torch.cat([members for members, _ in groups]).argsort()
            out = torch.cat(parts, dim=1)[:, order]
        else:
            out = self._attended(heads, bias, None)
        back = _rolled(joined(self.proj(out), window, whole), shift, 1)
        return back[:, : size[0], : size[1], : size[2]].contiguous()

    def bias(self, places: int) -> Tensor:
        """Bias [h, n, n] of windows of so many voxels: the first rows of the table's index, whatever their shape."""
        index = self.relative_position_index[:places, :places]
        return self.relative_position_bias_table[index.flatten()].view(places, places, -1).permute(2, 0, 1).contiguous()

    def received(self, x: Tensor) -> Tensor:
        """Attention [B, h, d, h, w] that each voxel of `x` [B, d, h, w, C] gets in its window, mean over the others."""
        size = _size(x)
        window, _ = clipped(size, self.window)
        whole = padded_size(size, window)
        q, k, _ = self.qkv(cut(_padded(x, whole), window)).unflatten(-1, (3, self.heads, -1)).unbind(3)
        scores = torch.einsum("bwnhc,bwmhc->bwhnm", q * q.shape[-1] ** -0.5, k) + self.bias(q.shape[2])
        share = scores.softmax(dim=-1).mean(dim=3).transpose(2, 3)
        return joined(share, window, whole)[:, : size[0], : size[1], : size[2]].permute(0, 4, 1, 2, 3)

    def _attended(self, heads: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """[B, W, n, C] of queries, keys and values [B, W, n, 3, h, c]."""
        batch, windows = heads.shape[:2]
        q, k, v = heads.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(q, k, v, bias if mask is None else bias + mask)
        return out.transpose(1, 2).flatten(2).unflatten(0, (batch, windows))


class SwinMlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        out: Tensor = self.linear2(F.gelu(self.linear1(x)))
        return out


class PatchMerging(nn.Module):
    """Eight voxels joined to one of twice the channels."""

    def __init__(self, channels: int, merging: Merging) -> None:
        super().__init__()
        self.merging = merging
        self.norm = nn.LayerNorm(8 * channels, eps=NORM_EPS)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, d/2, h/2, w/2, 2C] of `x` [B, d, h, w, C], whose odd sides are padded with a zero."""
        d, h, w = (side + side % 2 for side in _size(x))
        x = _padded(x, (d, h, w))
        parts = [x[:, z::2, y::2, x_::2] for z, y, x_ in MERGED[self.merging]]
        out: Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return out


def channel_norm(x: Tensor) -> Tensor:
    """`x` [B, C, d, h, w] with the channels of each voxel standardised, without learnt scale."""
    last = x.permute(0, 2, 3, 4, 1)
    return F.layer_norm(last, last.shape[-1:], eps=NORM_EPS).permute(0, 4, 1, 2, 3)


def residual_block(inputs: int, outputs: int) -> nn.Module:
    """Two 3 x 3 x 3 convolutions with instance norms and a shortcut, by 1 x 1 x 1 convolution where channels differ."""
    return UnetrBasicBlock(3, inputs, outputs, kernel_size=3, stride=1, norm_name="instance", res_block=True)


def _size(x: Tensor) -> Triple:
    _, d, h, w, _ = x.shape
    return (d, h, w)


def _padded(x: Tensor, size: Triple) -> Tensor:
    d, h, w = (wanted - found for wanted, found in zip(size, _size(x), strict=True))
    return F.pad(x, (0, 0, 0, w, 0, h, 0, d)) if d or h or w else x


def _rolled(x: Tensor, shift: Triple, sign: int) -> Tensor:
    return torch.roll(x, [sign * step for step in shift], dims=(1, 2, 3)) if any(shift) else x
