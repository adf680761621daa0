"""The head that guesses masked words, with the parameter names of BERT's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-12


class Transform(nn.Module):
    """Dense layer, GELU and norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] to [..., E]."""
        out: Tensor = self.LayerNorm(F.gelu(self.dense(x)))
        return out


class MlmHead(nn.Module):
    """Scores of all words of the vocabulary; its table is not that of the tokenizer."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = Transform(width)
        self.decoder = nn.Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, features: Tensor) -> Tensor:
        """Scores [..., V] of features [..., E]."""
        return F.linear(self.transform(features), self.decoder.weight, self.bias)
