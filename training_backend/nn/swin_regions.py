"""Attention inside the windows of a Swin transformer on a CPU, without padding, rolling or masks.

A window that a shift wraps around the map, or that reaches beyond it, falls apart into boxes of the map whose voxels
see no others. Boxes of one shape are computed together. The zeros that pad a window differ in nothing but their bias,
so together they are one key whose bias is the logarithm of their summed exponentials; as queries nobody reads them.
What is left out is what the published code multiplies with weights of exp(-100).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.patch import Triple
from training_backend.nn.swin_window import attention_gradients, padded_size


@dataclass(frozen=True)
class Span:
    """Pieces of equal length, side by side along an axis.

    Attributes:
        start: first voxel.
        count: pieces.
        length: voxels of one.
        offset: of its first voxel within the window.
        missing: zeros behind it that it sees.
    """

    start: int
    count: int
    length: int
    offset: int
    missing: int


@dataclass(frozen=True)
class Region:
    """Boxes of one shape: a span along each axis.

    Attributes:
        spans: along (d, h, w).
        places: [r] numbers within the window of the voxels of a box.
        padding: [p] those of the zeros that it sees.
    """

    spans: tuple[Span, Span, Span]
    places: Tensor
    padding: Tensor

    def boxes(self, x: Tensor) -> Tensor:
        """View [B, nd, ld, nh, lh, nw, lw, ...] of the region's boxes in a map [B, d, h, w, ...]."""
        for axis, span in enumerate(self.spans):
            part = x.narrow(1 + 2 * axis, span.start, span.count * span.length)
            x = part.unflatten(1 + 2 * axis, (span.count, span.length))
        return x


def attend_regions(x: Tensor, qkv: nn.Linear, table: Tensor, index: Tensor, window: Triple, shift: Triple) -> Tensor:
    """Attended map [B, d, h, w, C] of `x` [B, d, h, w, C].

    Queries, keys and values are computed again in the backward pass, which spares their memory.

    Args:
        x: normalised.
        qkv: makes queries, keys and values, one after the other, each head by head; has a bias.
        table: [R, heads] biases.
        index: [n, n] or larger, row of the table for each pair of voxels of a window.
        window: sides of a window, at most those of the map.
        shift: of the windows; 0 along axes that are one window.
    """
    attended: Tensor = _Regions.apply(x, qkv.weight, qkv.bias, table, index, window, shift)
    return attended


def spans(voxels: int, side: int, shift: int) -> list[Span]:
    """Pieces of an axis whose voxels may share a window of `side`, the windows being shifted by `shift`."""
    whole = padded_size((voxels,) * 3, (side,) * 3)[0]
    bounds = [(0, shift, side - shift)] if shift else []
    bounds += [(start, min(start + side, whole), 0) for start in range(shift, whole, side)]
    found: list[Span] = []
    for start, end, offset in bounds:
        real = min(end, voxels) - start
        if real <= 0:
            continue
        last = found[-1] if found else None
        if last and (last.length, last.offset, last.missing, real, offset, end) == (side, 0, 0, side, 0, start + side):
            found[-1] = Span(last.start, last.count + 1, side, 0, 0)
        else:
            found.append(Span(start, 1, real, offset, end - start - real))
    return found


@lru_cache(maxsize=64)
def regions(size: Triple, window: Triple, shift: Triple) -> tuple[Region, ...]:
    """All regions of a map of `size`; each of its voxels is in one."""
    with torch.inference_mode(False):
        number = torch.arange(math.prod(window)).reshape(window)
        found = []
        for chosen in itertools.product(*(spans(*axis) for axis in zip(size, window, shift, strict=True))):
            seen, real = number, torch.ones_like(number, dtype=torch.bool)
            for axis, span in enumerate(chosen):
                seen = seen.narrow(axis, span.offset, span.length + span.missing)
                real = real.narrow(axis, 0, span.length + span.missing).clone()
                real.narrow(axis, span.length, span.missing).fill_(False)
            found.append(Region((chosen[0], chosen[1], chosen[2]), seen[real], seen[~real]))
        return tuple(found)


class _Regions(torch.autograd.Function):
    """`attend_regions`; the backward pass computes the weights anew, few at a time, so that they stay in the cache."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        zero: Tensor,
        table: Tensor,
        index: Tensor,
        window: Triple,
        shift: Triple,
    ) -> Tensor:
        qkv = F.linear(x, weight, zero)
        out = qkv.new_empty((*qkv.shape[:-1], qkv.shape[-1] // 3))
        for region in regions(_size(x), window, shift):
            q, k, v = _taken(region, qkv, zero, table.shape[1])
            bias, _ = _bias(region, table, index)
            _put(region, out, F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None]))
        ctx.save_for_backward(x, weight, zero, table, index, out)
        ctx.windows = window, shift
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, zero, table, index, out = ctx.saved_tensors
        given, heads = gradients[0].to(out.dtype), table.shape[1]
        qkv = F.linear(x.to(out.dtype), weight.to(out.dtype), zero.to(out.dtype))
        dzero, dtable = torch.zeros_like(zero), torch.zeros_like(table)
        for region in regions(_size(x), *ctx.windows):
            q, k, v = _taken(region, qkv, zero, heads)
            bias, shares = _bias(region, table, index)
            theirs = (_heads(region, each, heads)[0] for each in (out, given))
            dq, dk, dv, dbias = attention_gradients(q, k, v, bias.to(q.dtype), *theirs)
            number, width = len(region.places), heads * q.shape[-1]
            for which, part in enumerate((dq, dk, dv)):
                channels = slice(which * width, (which + 1) * width)
                # Each voxel is in one region, which has read it: its gradient takes its place.
                _put(region, qkv[..., channels], part[:, :, :number])
                if part.shape[2] > number:
                    dzero[channels] += part[:, :, number].sum(0).flatten()
            dbias = dbias.to(table.dtype)
            _add(dtable, index[region.places][:, region.places], dbias[..., :number])
            if shares is not None:
                _add(dtable, index[region.places][:, region.padding], dbias[..., number:] * shares)
        rows = qkv.flatten(0, -2)
        dweight = (rows.T @ x.to(rows.dtype).flatten(0, -2)).to(weight.dtype)
        dx = (rows @ weight.to(rows.dtype)).view(x.shape).to(x.dtype)
        return dx, dweight, dzero + rows.sum(0).to(zero.dtype), dtable, None, None, None


def _taken(region: Region, qkv: Tensor, zero: Tensor, heads: int) -> Iterator[Tensor]:
    """Queries, keys and values [N, heads, r, c] of the boxes; with the zeros that they see as the last key."""
    parts = _heads(region, qkv, heads, 3)
    yield parts[0]
    for part, fill in zip(parts[1:], zero.to(qkv.dtype).view(3, heads, 1, -1)[1:], strict=True):
        yield torch.cat([part, fill.expand(len(part), -1, -1, -1)], dim=2) if len(region.padding) else part


def _heads(region: Region, x: Tensor, heads: int, parts: int = 1) -> Tensor:
    """[parts, N, heads, r, c] of the boxes of a map [B, d, h, w, parts heads c]."""
    boxes = region.boxes(x).unflatten(-1, (parts, heads, -1)).permute(7, 0, 1, 3, 5, 8, 2, 4, 6, 9)
    number = math.prod(boxes.shape[1:5])
    return boxes.reshape(parts, number, heads, len(region.places), -1)


def _put(region: Region, x: Tensor, values: Tensor) -> None:
    """Write `values` [N, heads, r, c] into the boxes of `x` [B, d, h, w, heads c]."""
    boxes = region.boxes(x).unflatten(-1, (values.shape[1], -1)).permute(0, 1, 3, 5, 7, 2, 4, 6, 8)
    boxes.copy_(values.reshape(boxes.shape))


def _bias(region: Region, table: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
    """Bias [heads, r, r] or [heads, r, r + 1], and what each of the zeros has of the last one [heads, r, p]."""
    rows = index[region.places]
    bias = table[rows[:, region.places]].permute(2, 0, 1)
    if not len(region.padding):
        return bias.contiguous(), None
    each = table[rows[:, region.padding]].permute(2, 0, 1)
    return torch.cat([bias, each.logsumexp(-1, keepdim=True)], dim=-1), each.softmax(-1)


def _add(dtable: Tensor, index: Tensor, values: Tensor) -> None:
    """Add `values` [heads, a, b] to the rows [a, b] of `dtable` [R, heads] that they came from."""
    dtable.index_add_(0, index.flatten(), values.permute(1, 2, 0).flatten(0, 1))


def _size(x: Tensor) -> Triple:
    _, d, h, w, _ = x.shape
    return (d, h, w)
