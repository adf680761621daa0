"""Heads and losses of MG-3D: words, sentences, voxels, and vectors of whole scans and reports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.gates import masked_mean, stretched
from training_backend.nn.patch import Triple

if TYPE_CHECKING:
    from collections.abc import Sequence

SENTENCE, SENTENCE_HIDDEN, COMMON = 128, 384, 8
"""Channels of a sentence in the comparison of patients, before them, and of the reconstruction of sentences."""
ALIKE, UNLIKE = 0.9, 0.6
"""Cosines of two sentences from which on, and up to which, they say the same and different things."""
TEMPERATURE = 0.1
"""Of the contrasts, fixed."""
COSINE_EPS = 1e-6


class WordHead(nn.Module):
    """Logits of words, and a short vector of each sentence.

    Args:
        width: channels of a word.
        words: of the vocabulary.
    """

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(words))
        self.transform = nn.ModuleDict(
            {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)},
        )
        self.decoder = nn.Linear(width, words, bias=False)
        self.fc = _sentence_layers(width, SENTENCE, COMMON)

    def transformed(self, words: Tensor) -> Tensor:
        """What both branches see of `words` [B, T, E]."""
        out: Tensor = self.transform["LayerNorm"](F.gelu(self.transform["dense"](words)))
        return out

    def logits(self, transformed: Tensor) -> Tensor:
        """Logits [..., K] of transformed words [..., E]."""
        out: Tensor = self.decoder(transformed) + self.bias
        return out

    def sentences(self, means: Tensor) -> Tensor:
        """Vectors [..., 8] of the means [..., E] of transformed words."""
        out: Tensor = self.fc(means)
        return out


class VoxelHead(nn.Module):
    """Volume from tokens: five times convolution, instance norm, leaky ReLU and doubling, then one more convolution.

    Args:
        width: channels of a token.
        channels: of the volume.
    """

    def __init__(self, width: int, channels: int = 1) -> None:
        super().__init__()
        widths = [width, *(max(1, width >> level) for level in (1, 2, 3, 4, 4))]
        layers: list[nn.Module] = []
        for level in range(5):
            layers += [
                nn.Conv3d(widths[level], widths[level + 1], 3, padding=1),
                nn.InstanceNorm3d(widths[level + 1]),
                nn.LeakyReLU(0.01, inplace=True),
                nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
            ]
        self.conv = nn.Sequential(*layers, nn.Conv3d(widths[-1], channels, 1))

    def forward(self, tokens: Tensor, grid: Triple) -> Tensor:
        """Volume [B, C, D, H, W] of `tokens` [B, L, E] on `grid`.

        The last convolution is of single voxels, so it may come before the last doubling, where it is much cheaper.
        """
        *layers, doubling, last = self.conv
        x = tokens.transpose(1, 2).unflatten(2, grid)
        for layer in layers:
            x = layer(x)
        out: Tensor = doubling(last(x))
        return out


class TokenPooler(nn.Module):
    """Vector of a scan: a learnt sum over its tokens, a linear layer and tanh.

    Args:
        width: channels.
        grid: tokens along (d, h, w) that the sum is learnt for.
    """

    def __init__(self, width: int, grid: Triple) -> None:
        super().__init__()
        self.grid = grid
        self.fc = nn.Linear(math.prod(grid), 1)
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor, grid: Triple) -> Tensor:
        """Vectors [B, E] of `tokens` [B, L, E] on `grid`; the sum is interpolated to other grids than its own."""
        summed = stretched(self.fc.weight, self.grid, grid) @ tokens + self.fc.bias
        out: Tensor = self.dense(summed[:, 0]).tanh()
        return out


class MeanPooler(nn.Module):
    """Mean over rows, a linear layer and tanh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Vectors [B, E] of `rows` [B, S, E] of which `mask` [B, S] is true."""
        out: Tensor = self.dense(masked_mean(rows, mask)).tanh()
        return out


class SentencePooler(nn.Module):
    """Short vector of each sentence, for the comparison of patients."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = _sentence_layers(width, SENTENCE_HIDDEN, SENTENCE)

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors [..., 128] of `rows` [..., E], within (-1, 1)."""
        out: Tensor = self.dense(rows).tanh()
        return out


class ContrastHead(nn.Module):
    """Unit vectors of two sides, each with its own layer norm and linear map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.vision_ln, self.language_ln = nn.LayerNorm(inputs), nn.LayerNorm(inputs)
        self.vision_proj = nn.Linear(inputs, outputs, bias=False)
        self.language_proj = nn.Linear(inputs, outputs, bias=False)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, outputs] of both sides [B, inputs]."""
        one, other = self.vision_proj(self.vision_ln(first)), self.language_proj(self.language_ln(second))
        return F.normalize(one, dim=-1), F.normalize(other, dim=-1)


class _Standardised(nn.Module):
    """A batch norm over a single set of sentences, as published: it standardises each one over its channels."""

    def forward(self, rows: Tensor) -> Tensor:
        return F.layer_norm(rows, rows.shape[-1:])


def _sentence_layers(width: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), _Standardised(), nn.GELU(), nn.Linear(hidden, outputs))


def block_mask(size: Sequence[int], block: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Mask [D, H, W], true where a voxel is hidden; round(n (1 - ratio)) of the n blocks of `block`³ voxels are kept.

    Args:
        size: voxels along (z, y, x), multiples of `block`.
        block: voxels along each axis of a block.
        ratio: share of hidden blocks.
        generator: on the CPU.
    """
    grid = [side // block for side in size]
    number = math.prod(grid)
    hidden = torch.ones(number, dtype=torch.bool)
    hidden[torch.randperm(number, generator=generator)[: round(number * (1 - ratio))]] = False
    mask = hidden.view(*grid)
    for axis in range(3):
        mask = mask.repeat_interleave(block, dim=axis)
    return mask


def voxel_loss(drawn: Tensor, volume: Tensor, hidden: Tensor, ratio: float) -> Tensor:
    """Squared error of `drawn` [B, C, D, H, W] where `hidden` [D, H, W], a mean over all voxels divided by `ratio`."""
    return (hidden * (drawn - volume)).square().mean() / ratio


def sentence_loss(found: Tensor, wanted: Tensor, present: Tensor) -> Tensor:
    """Sum over sentences of 1 - cosine of two vectors [B, S, C] each, divided by the number B of reports."""
    distance = 1 - F.cosine_similarity(found, wanted, dim=-1, eps=COSINE_EPS)
    return (distance * present).sum() / len(found)


def patients_loss(images: Tensor, texts: Tensor, present: Tensor) -> tuple[Tensor, int]:
    """Soft-target similarity matching between patients, and the number of pairs of patients that it compares.

    Cosines of sentences as the image shows them shall be those of the texts where these say the same, and 0 where they
    say different things; what lies between is left alone but counts in the mean over a pair's sentences.

    Args:
        images: vector of each sentence [B, S, C], seen through the image.
        texts: the same from words alone [B, S, E], without gradient.
        present: [B, S], true for real sentences.

    Returns:
        0 and no pairs where fewer than two patients have sentences.
    """
    owner = torch.arange(len(present), device=present.device)[:, None].expand_as(present)[present]
    seen, said = (F.normalize(rows[present].float(), dim=-1, eps=1e-8) for rows in (images, texts))
    wanted, found = said @ said.T, seen @ seen.T
    same = (wanted >= ALIKE).to(found)
    decided = same + (wanted <= UNLIKE).to(found)
    counts = present.sum(1).to(found)
    share = 1 / counts[owner].clamp_min(1)
    upper = (owner[:, None] < owner[None]) * share[:, None] * share[None]
    patients = int((counts > 0).sum())
    pairs = patients * (patients - 1) // 2
    return ((found * decided - wanted * same).abs() * upper).sum() / (pairs + 1e-6), pairs


def contrast(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric cross entropy of unit vectors [B, E] in the same order, and the logits [B, B]."""
    logits = (first @ second.T).float() / TEMPERATURE
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2, logits
