"""The encoder that all modalities of MedCoSS share: pre-norm layers with layer scale, and no norm at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.attention import after_gelu

NORM_EPS = 1e-5
LAYER_SCALE = 1e-3
"""Initial factor of every branch."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of ``torch.nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attended tokens [B, N, E]; `mask` [B, 1 or heads, N, N] is added to the scores."""
        q, k, v = self._project(x)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))
        attended: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return attended

    def weights(self, x: Tensor) -> Tensor:
        """Attention [B, heads, N, N] of every token (third axis) to every token."""
        q, k, _ = self._project(x)
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joint = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = joint.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class EncoderLayer(nn.Module):
    """Attention and MLP, each normed before, skipped at times, and scaled per channel after.

    Args:
        width: channels E of a token.
        heads: attention heads.
        mlp_dim: hidden channels of the MLP.
        drop_path: probability, per sample and branch, of skipping the branch while training.
    """

    def __init__(self, width: int, heads: int, mlp_dim: int, drop_path: float = 0.1) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.gamma_1 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.gamma_2 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.self_attn = SelfAttention(width, heads)
        self.linear1 = nn.Linear(width, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, width)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, E] to [B, N, E]."""
        x = x + self.gamma_1 * self._skip(self.self_attn(self.norm1(x), mask))
        return x + self.gamma_2 * self._skip(after_gelu(self.linear2, self.linear1(self.norm2(x))))

    def _skip(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep).div_(keep)


class SharedEncoder(nn.Module):
    """Layers with the same drop path throughout; the output of the last one has no norm."""

    def __init__(self, width: int, depth: int, heads: int, mlp_dim: int, drop_path: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, mlp_dim, drop_path) for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, N, E] after the last layer."""
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def states(self, x: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
        """Tokens [B, N, E] after each layer."""
        for layer in self.layers:
            x = layer(x, mask)
            yield x

    def attention(self, x: Tensor, layer: int) -> Tensor:
        """Attention [B, heads, N, N] in layer number `layer`."""
        before: Sequence[nn.Module] = self.layers[:layer]  # type: ignore[assignment]
        for each in before:
            x = each(x)
        last = self.layers[layer]
        weights: Tensor = last.self_attn.weights(last.norm1(x))  # type: ignore[union-attr, operator]
        return weights
