"""The transformer of the published report writers: pre-norm blocks with their own layer norm and sinus positions.

Modules are named as in the published weights (``layers.0.self_attn.linears.0``, ``sublayer.0.norm.a_2``, ...).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

POSITIONS = 5000
"""Longest text that the table of positions reaches."""


class SpreadNorm(nn.Module):
    """``a (x - mean) / (std + eps) + b`` over channels, with the unbiased standard deviation and eps outside of it."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.a_2 = nn.Parameter(torch.ones(width))
        self.b_2 = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x` [..., E]."""
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.b_2


class Attention(nn.Module):
    """Multi-head attention with four square projections: query, key, value, output."""

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.dropout = dropout

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """What `query` [B, T, E] reads from `memory` [B, S, E]; `mask` [B or 1, T or 1, S] is true where it looks."""
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, x in zip(self.linears, (query, memory, memory), strict=False)
        )
        allowed = None if mask is None else mask[:, None]
        read = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, dropout_p=self.dropout if self.training else 0.0
        )
        out: Tensor = self.linears[3](read.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout between."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Output [..., E] of `x` [..., E]."""
        out: Tensor = self.w_2(self.dropout(self.w_1(x).relu()))
        return out


class Residual(nn.Module):
    """Norm and dropout of one residual branch."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = SpreadNorm(width)
        self.dropout = nn.Dropout(dropout)


class Reader(nn.Module):
    """``x + attention(norm(x), memory)``: every row of `x` reads from `memory`, which is not normalised."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(heads, width, dropout)
        self.sublayer = Residual(width, dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """`x` [B, T, E] with what it read from `memory` [B, S, E]."""
        branch = self.sublayer
        out: Tensor = x + branch.dropout(self.self_attn(branch.norm(x), memory))
        return out


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each a residual branch with a norm before it."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(heads, width, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.sublayer = nn.ModuleList(Residual(width, dropout) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` [B, T, E] after the layer; `mask` as in `Attention`."""
        own, fed = self.sublayer
        y = own.norm(x)  # type: ignore[operator]
        x = x + own.dropout(self.self_attn(y, y, mask))  # type: ignore[operator]
        out: Tensor = x + fed.dropout(self.feed_forward(fed.norm(x)))  # type: ignore[operator]
        return out


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's output, feed-forward."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(heads, width, dropout)
        self.src_attn = Attention(heads, width, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.sublayer = nn.ModuleList(Residual(width, dropout) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None, seen: Tensor | None = None) -> Tensor:
        """The rows of `x` [B, T, E] after the layer.

        Args:
            x: words.
            memory: output of the encoder [B, S, E].
            mask: which words a word may look at, as in `Attention`.
            seen: normalised words [B, T', E] that the words look at, where these are not `x` themselves (one step at
                a time).
        """
        own, source, fed = self.sublayer
        y = own.norm(x)  # type: ignore[operator]
        x = x + own.dropout(self.self_attn(y, y if seen is None else torch.cat([seen, y], 1), mask))  # type: ignore[operator]
        x = x + source.dropout(self.src_attn(source.norm(x), memory))  # type: ignore[operator]
        out: Tensor = x + fed.dropout(self.feed_forward(fed.norm(x)))  # type: ignore[operator]
        return out


class Stack(nn.Module):
    """Layers and a last norm."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = SpreadNorm(width)


class WordTable(nn.Module):
    """Embeddings of word numbers, scaled by the square root of their width."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.lut = nn.Embedding(words, width)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T, E] of ids [B, T]."""
        out: Tensor = self.lut(ids) * math.sqrt(self.lut.embedding_dim)
        return out


class SinusPositions(nn.Module):
    """Adds sines and cosines of the place of each word; the table is in the published weights."""

    pe: Tensor

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        place = torch.arange(POSITIONS, dtype=torch.float32)[:, None]
        rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
        table = torch.stack([(place * rates).sin(), (place * rates).cos()], dim=-1).flatten(1)[:, :width]
        self.register_buffer("pe", table[None])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """`x` [B, T, E] whose first word stands at place `start`."""
        out: Tensor = self.dropout(x + self.pe[:, start : start + x.shape[1]])
        return out


def word_embedding(width: int, words: int, dropout: float) -> nn.Sequential:
    """Embedding with positions."""
    return nn.Sequential(WordTable(width, words), SinusPositions(width, dropout))


def causal(length: int, device: torch.device) -> Tensor:
    """Mask [1, T, T], true where a word may look: at itself and the ones before."""
    return torch.ones((1, length, length), dtype=torch.bool, device=device).tril()
