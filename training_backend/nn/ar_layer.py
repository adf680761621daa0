"""The pre-norm transformer layer of AR-SSL4M: separate projections, a mask, and a memory for sequences that grow."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.attention import after_gelu

NORM_EPS = 1e-5


@dataclass
class Memory:
    """Keys and values [B, heads, n, c] of the places that a layer has seen, with room for `capacity` of them."""

    capacity: int
    length: int = 0
    _store: list[Tensor] = field(default_factory=list)

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, `keys` and `values` of the next places being added."""
        end = self.length + keys.shape[2]
        if not self._store:
            self._store = [new.new_empty(*new.shape[:2], self.capacity, new.shape[3]) for new in (keys, values)]
        for store, new in zip(self._store, (keys, values), strict=True):
            store[:, :, self.length : end] = new
        self.length = end
        return self._store[0][:, :, :end], self._store[1][:, :, :end]


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries, keys and values are projected without bias, as published."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, causal: bool = False, first: int = 0, memory: Memory | None = None
    ) -> Tensor:
        """Attended tokens [B, N - first, E] of `x` [B, N, E].

        Args:
            x: tokens.
            mask: [B, 1, N - first, N], True where a query may attend to a key; None lets all attend to all.
            causal: instead of a mask, let each place see itself and what came before.
            first: earlier places are only attended to.
            memory: places before `x`, which all of `x` attend to; `x` is added to it.
        """
        q, k, v = self._split(self.q_proj(x[:, first:])), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        if memory is not None:
            k, v = memory.extended(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        attended: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return attended

    def weights(self, x: Tensor, query: int, seen: Tensor | None = None) -> Tensor:
        """Attention [B, heads, N] that place `query` of `x` [B, N, E] pays to every place, of those `seen` [B, N]."""
        q, k = self._split(self.q_proj(x[:, query : query + 1])), self._split(self.k_proj(x))
        scores = (q @ k.transpose(2, 3)).squeeze(2).float() * q.shape[-1] ** -0.5
        if seen is not None:
            scores = scores.masked_fill(~seen[:, None], float("-inf"))
        return scores.softmax(dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] to [..., E]."""
        return after_gelu(self.linear2, self.linear1(x))


class Layer(nn.Module):
    """``x + attention(norm(x))`` followed by ``x + mlp(norm(x))``, with the published names.

    Args:
        width: channels E of a token.
        heads: attention heads.
        hidden: channels inside the MLP.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.mlp = Mlp(width, hidden)
        self.input_layernorm = nn.LayerNorm(width, eps=NORM_EPS)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        first: int = 0,
        rows: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Tokens [B, N - first, E] of `x` [B, N, E], or [R, E] of the `rows` [R] alone.

        In a last layer whose other tokens are not needed, `first` and `rows` spare their queries and their MLP.

        Args:
            x: tokens.
            mask: see `SelfAttention`, as are `causal`, `first` and `memory`.
            causal: let each place see itself and what came before.
            first: first place that is wanted.
            rows: numbers of the tokens that are wanted, counted through the batch after `first` is cut off.
            memory: places before `x`.
        """
        attended = self.self_attn(self.input_layernorm(x), mask, causal, first, memory)
        x = x[:, first:] + attended
        if rows is not None:
            x = x.flatten(0, 1).index_select(0, rows)
        return x + self.mlp(self.post_attention_layernorm(x))

    def attention(self, x: Tensor, query: int, seen: Tensor | None = None) -> Tensor:
        """Attention [B, heads, N] that place `query` of the layer's input pays to every place that it may see."""
        return self.self_attn.weights(self.input_layernorm(x), query, seen)


def initialise(module: nn.Module) -> None:
    """Every linear layer Xavier-uniform with zero bias, every embedding N(0, 1), as published."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight)
