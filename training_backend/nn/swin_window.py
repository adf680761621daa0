"""Windows of a Swin transformer: cutting, shifting, relative positions, and attention inside them.

A map whose side is no multiple of the window is padded with zeros at its end, after the norm; these zeros take part in
the attention, as published.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training_backend.nn.patch import Triple

HIDDEN = -100.0
"""Added to the attention between voxels that a shift made neighbours."""
MOST_WEIGHTS = 1 << 24
"""Attention weights held at once on a CPU."""
FEW_WEIGHTS = 1 << 18
"""The same in the backward pass, which reads them several times: as many as its cache holds."""
SMALL_WINDOW = 64
"""Voxels of a window up to which a CPU attends step by step, in MONAI's order and with its bits."""


def relative_index(window: Triple) -> Tensor:
    """Row of the bias table for each pair of voxels of a window, [n, n] int64, n = product of `window`."""
    axes = torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes])
    offset = places[:, :, None] - places[:, None, :] + torch.tensor(window)[:, None, None] - 1
    widths = [2 * side - 1 for side in window]
    return (offset[0] * widths[1] + offset[1]) * widths[2] + offset[2]


def clipped(size: Triple, window: Triple) -> tuple[Triple, Triple]:
    """Window and shift on a map of `size`: an axis not larger than its window is one window that does not shift."""
    used = [min(n, side) for n, side in zip(size, window, strict=True)]
    shift = [side // 2 if n > side else 0 for n, side in zip(size, window, strict=True)]
    return (used[0], used[1], used[2]), (shift[0], shift[1], shift[2])


def cut(x: Tensor, window: Triple) -> Tensor:
    """Windows [B, W, n, C] of `x` [B, D, H, W, C], sides being multiples of the window."""
    b, d, h, w, c = x.shape
    dz, dy, dx = window
    parts = x.reshape(b, d // dz, dz, h // dy, dy, w // dx, dx, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return parts.reshape(b, -1, dz * dy * dx, c)


def joined(windows: Tensor, window: Triple, size: Triple) -> Tensor:
    """Inverse of `cut` for a map of `size`."""
    (d, h, w), (dz, dy, dx) = size, window
    parts = windows.reshape(-1, d // dz, h // dy, w // dx, dz, dy, dx, windows.shape[-1])
    return parts.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, d, h, w, windows.shape[-1])


def padded_size(size: Triple, window: Triple) -> Triple:
    """`size` up to whole windows."""
    d, h, w = (-(-n // side) * side for n, side in zip(size, window, strict=True))
    return (d, h, w)


@lru_cache(maxsize=64)
def shift_groups(
    size: Triple, window: Triple, shift: Triple, device: torch.device
) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """Windows of a shifted map by what they must not attend to: (their numbers, what to add [n, n] or None).

    Only the last window of an axis joins voxels from both ends of the map, so there are at most eight kinds.

    Args:
        size: of the padded map.
        window: sides of a window.
        shift: voxels that the map was rolled by, backwards.
        device: of the tensors.
    """
    with torch.inference_mode(False):
        counts = [n // side for n, side in zip(size, window, strict=True)]
        number = torch.arange(counts[0] * counts[1] * counts[2]).reshape(counts)
        kinds: dict[tuple[bool, ...], list[int]] = {}
        for place in (number >= 0).nonzero().tolist():
            wraps = tuple(p == n - 1 and s > 0 for p, n, s in zip(place, counts, shift, strict=True))
            kinds.setdefault(wraps, []).append(int(number[tuple(place)]))
        return tuple(
            (torch.tensor(members, device=device), _hidden(window, shift, wraps).to(device) if any(wraps) else None)
            for wraps, members in kinds.items()
        )


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention [N, h, n, c] of q, k and v [N, h, n, c] with `bias` [h, n, n] added to the scaled products.

    The fused kernels hold no [N, h, n, n] weights. On a CPU they cannot differentiate the bias; there the backward
    pass computes the weights anew, a part of the windows at a time. Small windows gain little from the kernels on a
    CPU, whose other rounding the norms of coarse maps would amplify, so they are computed in the reference's order.
    """
    bias = bias.to(q.dtype)
    if bias.requires_grad and torch.is_grad_enabled() and q.device.type == "cpu":
        attended: Tensor = _CpuAttention.apply(q, k, v, bias)
        return attended
    return _attended(q, k, v, bias)


def _attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    if q.device.type != "cpu" or q.shape[-2] > SMALL_WINDOW:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    scale, parts = q.shape[-1] ** -0.5, max(1, MOST_WEIGHTS // bias.numel())
    found = [
        ((queries * scale) @ keys.transpose(-2, -1) + bias).softmax(dim=-1) @ values
        for queries, keys, values in zip(q.split(parts), k.split(parts), v.split(parts), strict=True)
    ]
    return torch.cat(found) if len(found) > 1 else found[0]


class _CpuAttention(torch.autograd.Function):
    """`attend` with a backward pass of little memory."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        out = _attended(q, k, v, bias.detach())
        ctx.save_for_backward(q, k, v, bias, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, bias, out = ctx.saved_tensors
        return attention_gradients(q, k, v, bias, out, gradients[0])


def attention_gradients(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, given: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `attend` with respect to its arguments, from its result and the gradient `given` of that.

    The weights are computed anew, few at a time, so that they stay in the processor's cache. Keys and values may be
    more than queries: [N, h, m, c], with `bias` [h, n, m].
    """
    scaled = q * q.shape[-1] ** -0.5
    keys = k.transpose(2, 3).contiguous()
    # One product gives the gradient of the weights less what their softmax takes off each row.
    upper = torch.cat([given, -(given * out).sum(-1, keepdim=True)], dim=-1)
    values = F.pad(v, (0, 1), value=1.0).transpose(2, 3).contiguous()
    dq, dk, dv, dbias = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.zeros_like(bias)
    part = max(1, FEW_WEIGHTS // bias[0].numel())
    for head, start in itertools.product(range(len(bias)), range(0, len(q), part)):
        at = (slice(start, start + part), head)
        weights = torch.baddbmm(bias[head].expand(len(q[at]), -1, -1), scaled[at], keys[at]).softmax(dim=-1)
        dv[at] = torch.bmm(weights.transpose(1, 2), given[at])
        inner = torch.bmm(upper[at], values[at]).mul_(weights)
        dbias[head] += inner.sum(0)
        dq[at] = torch.bmm(inner, k[at])
        dk[at] = torch.bmm(inner.transpose(1, 2), scaled[at])
    return dq.mul_(q.shape[-1] ** -0.5), dk, dv, dbias


def _hidden(window: Triple, shift: Triple, wraps: tuple[bool, ...]) -> Tensor:
    """What to add [n, n] in a window whose axes in `wraps` join both ends of the map."""
    side = torch.zeros(window, dtype=torch.int64)
    for axis, (length, moved, wrapped) in enumerate(zip(window, shift, wraps, strict=True)):
        shape = [1, 1, 1]
        shape[axis] = length
        late = (torch.arange(length) >= length - moved) & wrapped
        side = 2 * side + late.reshape(shape)
    flat = side.flatten()
    return torch.where(flat[:, None] == flat[None, :], 0.0, HIDDEN)
