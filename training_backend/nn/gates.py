"""Gates between the tokens of a scan and a report (MG-3D, section "cross-modal reconstruction"), in closed form.

Attention weights are sigmoids, and no value crosses over: a row keeps a value of its own, scaled by how much the rows
of the other side attend to it. So a product of weights and values over both sides is never built.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.patch import Triple

POOL_HEADS = 8
"""Attention heads of `SentencePool`, as published."""

Reduction = Literal["mean", "pool", "weigh"]
"""How a row's value is gated by all rows of the other side. mean: by the mean weight. weigh: by a learnt sum of the
weights, plus a learnt number. pool: `SentencePool` of the value as each row of the other side gates it."""


class SentencePool(nn.Module):
    """One vector of a set: its mean asks the mean and every member by multi-head attention."""

    def __init__(self, width: int, heads: int = POOL_HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, members: Tensor, mask: Tensor | None = None) -> Tensor:
        """Vectors [N, E] of sets [N, S, E]; `mask` [N, S] is true for real members."""
        rows = torch.cat([masked_mean(members, mask)[:, None], members], dim=1)
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, rows[:, :1]), (self.k_proj, rows), (self.v_proj, rows))
        )
        allowed = None if mask is None else F.pad(mask, (1, 0), value=True)[:, None, None]
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        found: Tensor = self.c_proj(read.transpose(1, 2).flatten(1))
        return found

    def scaled(self, value: Tensor, scales: Tensor, mask: Tensor | None = None) -> Tensor:
        """Vectors [..., E] of the sets whose members are `value` [..., E] times each of `scales` [..., S].

        All members are multiples of one vector, so attention needs a few numbers per head, not the members.

        Args:
            value: [..., E].
            scales: [..., S].
            mask: true for real members; shaped like `scales`, or to be spread over it.
        """
        scales = torch.cat([masked_mean(scales[..., None], mask), scales], dim=-1)[..., None, :]  # [..., 1, S + 1]
        query, key, read = (
            F.linear(value, project.weight).unflatten(-1, (self.heads, -1))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = query * scales[..., :1] + self.q_proj.bias.unflatten(0, (self.heads, -1))
        along = (query * key).sum(-1, keepdim=True)
        constant = (query * self.k_proj.bias.unflatten(0, (self.heads, -1))).sum(-1, keepdim=True)
        scores = (along * scales + constant) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~F.pad(mask, (1, 0), value=True)[..., None, :], -math.inf)
        share = (scores.softmax(-1) * scales).sum(-1, keepdim=True)
        found: Tensor = self.c_proj((share * read).flatten(-2) + self.v_proj.bias)
        return found


class SentenceGates(nn.Module):
    """Tokens of a scan and sentences (or words) gate each other: each row's value is scaled by what the others attend.

    With sigmoid weights P1 of the second rows to the first and P2 of the first to the second, a second row keeps its
    value times its row of P1, a first one its value times its row of P2, each reduced to a number.

    Args:
        width: channels; a multiple of 8 where rows are pooled.
        pooled: short for `first` "pool", as the published prompt scores do.
        first: how the rows of P2 are reduced.
        second: how the rows of P1 are reduced; "mean" or "weigh".
        grid: tokens of the scan along (d, h, w) that the sums of "weigh" are learnt for; they always go over tokens.
    """

    def __init__(
        self,
        width: int,
        pooled: bool = False,
        *,
        first: Reduction = "mean",
        second: Reduction = "mean",
        grid: Triple = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.query1, self.key1, self.value1 = (nn.Linear(width, width) for _ in range(3))
        self.query2, self.key2, self.value2 = (nn.Linear(width, width) for _ in range(3))
        self.first: Reduction = "pool" if pooled else first
        self.second: Reduction = second
        self.grid = grid
        if second == "weigh":
            self.fc1 = nn.Linear(math.prod(grid), 1)
        if self.first != "mean":
            self.fc2 = SentencePool(width) if self.first == "pool" else nn.Linear(math.prod(grid), 1)

    def forward(
        self,
        tokens: Tensor,
        sentences: Tensor,
        mask1: Tensor | None = None,
        mask2: Tensor | None = None,
        grid: Triple | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gated tokens [B, I, E], P2 [B, I, S], gated sentences [B, S, E], P1 [B, S, I].

        Args:
            tokens: first rows [B, I, E].
            sentences: second rows [B, S, E].
            mask1: [B, I], true for first rows that count in means; None counts all.
            mask2: the same of the second rows [B, S].
            grid: tokens of the scan along (d, h, w) where they differ from those that "weigh" was learnt for.
        """
        scale = 1 / math.sqrt(tokens.shape[-1])
        p1 = (self.query2(sentences) @ self.key1(tokens).transpose(-1, -2) * scale).sigmoid()
        p2 = (self.query1(tokens) @ self.key2(sentences).transpose(-1, -2) * scale).sigmoid()
        gated = self._gated(self.value1(tokens), p2, self.first, getattr(self, "fc2", None), mask2, grid)
        other = self._gated(self.value2(sentences), p1, self.second, getattr(self, "fc1", None), mask1, grid)
        return gated, p2, other, p1

    def _gated(
        self,
        value: Tensor,
        weights: Tensor,
        by: Reduction,
        fc: nn.Module | None,
        mask: Tensor | None,
        grid: Triple | None,
    ) -> Tensor:
        """Rows [B, I, E] of their values and weights [B, I, S] to the other side; `mask` [B, S] names its real rows."""
        spread = None if mask is None else mask[..., None, :]
        if isinstance(fc, SentencePool) and by == "pool":
            return fc.scaled(value, weights, spread)
        if isinstance(fc, nn.Linear) and by == "weigh":
            return value * (weights @ stretched(fc.weight, self.grid, grid or self.grid).T) + fc.bias
        return value * masked_mean(weights[..., None], spread)


class OneWayGate(nn.Module):
    """Rows keep their value, scaled by how much single rows of another side attend to them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key1, self.value1, self.query2 = (nn.Linear(width, width) for _ in range(3))

    def forward(self, rows: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over `rows` [..., S, E] of sigmoid weight times value for each of `other` [..., T, E], and the weights.

        Shapes [..., T, E] and [..., T, S].
        """
        weights = self.weights(rows, other)
        return weights @ self.value1(rows), weights

    def weights(self, rows: Tensor, other: Tensor) -> Tensor:
        """How much each of `other` [..., T, E] attends to each of `rows` [..., S, E]: [..., T, S] within (0, 1)."""
        scale = 1 / math.sqrt(rows.shape[-1])
        return (self.query2(other) @ self.key1(rows).transpose(-1, -2) * scale).sigmoid()

    def each(self, rows: Tensor, other: Tensor) -> Tensor:
        """Values of `rows` [B, S, E], each scaled by how much the one row `other` [B, E] attends to it."""
        scaled: Tensor = self.weights(rows, other[:, None]).transpose(1, 2) * self.value1(rows)
        return scaled


def masked_mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Mean [..., E] of `rows` [..., S, E] over the S of which `mask` [..., S] is true; 0 where there is none."""
    if mask is None:
        return rows.mean(-2)
    weights = mask[..., None].to(rows.dtype)
    return (rows * weights).sum(-2) / weights.sum(-2).clamp_min(1)


def stretched(kernel: Tensor, before: Triple, after: Triple) -> Tensor:
    """Weights [1, L] that sum up the tokens of a grid `after` as `kernel` does those of a grid `before`.

    They are interpolated, and exactly as large together, so tokens that are all alike give the same sum.
    """
    if before == after:
        return kernel
    resized = F.interpolate(kernel.view(1, 1, *before), size=after, mode="trilinear", align_corners=False)
    scaled = resized.view(1, -1) * (math.prod(before) / math.prod(after))
    return scaled + (kernel.sum() - scaled.sum()) / math.prod(after)
