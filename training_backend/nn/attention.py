"""The pre-norm transformer block shared by encoders and decoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with one joint projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, first_query: int = 0) -> Tensor:
        """Attended tokens [B, N - first_query, E] of `x` [B, N, E]; earlier tokens are only attended to."""
        q, k, v = self._project(x, first_query)
        out = F.scaled_dot_product_attention(q, k, v)
        attended: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return attended

    def weights(self, x: Tensor, query: int = 0) -> Tensor:
        """Attention [B, heads, N] that token `query` of `x` [B, N, E] pays to every token."""
        _, k, _ = self._project(x, x.shape[1] - 1)
        width = x.shape[-1]
        q = F.linear(x[:, query], self.qkv.weight[:width], self.qkv.bias[:width]).unflatten(-1, (self.heads, -1))
        scores: Tensor = torch.einsum("bhc,bhnc->bhn", q, k) * q.shape[-1] ** -0.5
        return scores.softmax(dim=-1)

    def _project(self, x: Tensor, first_query: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, heads, N - first_query, c], keys and values [B, heads, N, c]."""
        if first_query == 0:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        width = x.shape[-1]
        q = F.linear(x[:, first_query:], self.qkv.weight[:width], self.qkv.bias[:width])
        kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q.unflatten(-1, (self.heads, -1)).transpose(1, 2), k, v


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] to [..., E]."""
        return after_gelu(self.fc2, self.fc1(x))


def after_gelu(layer: nn.Module, hidden: Tensor) -> Tensor:
    """``layer(gelu(hidden))``.

    The GELU is computed again in the backward pass: a quarter less activation memory for about 1 % of the time.
    """

    def out(hidden: Tensor) -> Tensor:
        result: Tensor = layer(F.gelu(hidden))
        return result

    if not hidden.requires_grad:
        return out(hidden)
    recomputed: Tensor = checkpoint(out, hidden, use_reentrant=False, preserve_rng_state=False)
    return recomputed


class Block(nn.Module):
    """``x + attention(norm(x))`` followed by ``x + mlp(norm(x))``.

    Args:
        width: channels E of a token.
        heads: attention heads.
        mlp_ratio: hidden channels of the MLP per channel of a token.
        drop_path: probability, per sample and branch, of skipping the branch while training.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, first_query: int = 0) -> Tensor:
        """Tokens [B, N - first_query, E] of `x` [B, N, E].

        In a last block whose first tokens are not needed any more, `first_query` spares their queries and MLP.
        """
        x = x[:, first_query:] + self._skip(self.attn(self.norm1(x), first_query))
        return x + self._skip(self.mlp(self.norm2(x)))

    def attention(self, x: Tensor, query: int = 0) -> Tensor:
        """Attention [B, heads, N] that token `query` of the block's input `x` pays to every token."""
        return self.attn.weights(self.norm1(x), query)

    def _skip(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        return branch * branch.new_empty(shape).bernoulli_(keep).div_(keep)
