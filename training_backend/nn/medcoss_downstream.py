"""What MedCoSS puts on its encoder besides shared heads: outputs of their own sigmoid, and a classifier of sentences.

Outputs may contain each other (an organ contains its tumour), so each is a yes or no per voxel; label maps and class
probabilities, which the rest of the project speaks of, are made of them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.dice import UNLABELLED

if TYPE_CHECKING:
    from training_backend.nn.medcoss import MedcossEncoder

UNKNOWN = -1
"""Target of voxels that nobody looked at, and of whole outputs that were not annotated."""
Sets = Sequence[frozenset[int]]
"""Label values of each output."""


def dice_bce(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Soft Dice loss and binary cross-entropy, each a mean over the samples and outputs that are annotated.

    Dice is ``2 overlap / (prediction + truth + 1)``, so an output that is absent costs its full share, as published.
    The authors look at the first voxel to tell what is annotated; here every unknown voxel is left out, and an output
    without a known one counts nowhere, which gives the same numbers where all voxels or none are known.

    Args:
        logits: [B, C, ...].
        targets: [B, C, ...] of 0 and 1, or -1 where unknown.

    Returns:
        Two scalars; zero where nothing is known.
    """
    logits, known = logits.float().flatten(2), targets.flatten(2) != UNKNOWN
    truth = targets.flatten(2).clamp_min(0).to(logits.dtype)
    p = logits.sigmoid() * known
    counted = known.any(2)
    dice = 1 - 2 * (p * truth).sum(2) / (p.sum(2) + truth.sum(2) + 1)
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
    entropy = losses.sum(2) / known.sum(2).clamp_min(1)
    number = counted.sum().clamp_min(1)
    return (dice * counted).sum() / number, (entropy * counted).sum() / number


def set_targets(labels: Tensor, sets: Sets, annotated: Sequence[Sequence[int] | None] | None = None) -> Tensor:
    """Targets [B, C, ...] of label values [B, ...], 255 where unlabelled.

    Args:
        labels: of each sample.
        sets: label values of each output.
        annotated: per sample the classes that were looked for, None for all; outputs with others are unknown.
    """
    found = []
    for values in sets:
        inside = torch.isin(labels, torch.tensor(sorted(values), device=labels.device))
        target = inside.to(torch.int8).masked_fill(labels == UNLABELLED, UNKNOWN)
        for one, chosen in zip(target, annotated or (), strict=False):
            if chosen is not None and not values <= set(chosen):
                one.fill_(UNKNOWN)
        found.append(target)
    return torch.stack(found, dim=1)


def own_classes(sets: Sets) -> list[int]:
    """The class that each output stands for: its label value that no later output has.

    Raises:
        ValueError: an output has none, or several.
    """
    found = []
    for place, values in enumerate(sets):
        rest = values.difference(*sets[place + 1 :])
        if len(rest) != 1:
            raise ValueError(
                "each output must have exactly one class that no later output has; begin with the one that contains "
                "the others"
            )
        found.append(next(iter(rest)))
    return found


def class_scores(outputs: Tensor, sets: Sets) -> Tensor:
    """Class scores [K, ...] of sigmoid `outputs` [C, ...], K = C + 1 with the background first.

    The largest one is what a threshold of 0.5 says: a voxel is of the last output that is above it together with all
    outputs that contain it, else background. Of a single output p the scores are 1 - p and p.
    """
    nested = [
        torch.stack([outputs[other] for other, theirs in enumerate(sets) if theirs >= values]).amin(0)
        for values in sets
    ]
    scores: list[Tensor] = [outputs] * (len(sets) + 1)
    later = torch.zeros_like(nested[0])
    for value, share in reversed(list(zip(own_classes(sets), nested, strict=True))):
        scores[value] = torch.minimum(share, 1 - later)
        later = torch.maximum(later, share)
    scores[0] = 1 - later
    return torch.stack(scores)


class SentenceHead(nn.Module):
    """Encoder and classifier of texts: the mean of all positions, padding included, through two layers.

    The published head is a linear layer, layer norm, GELU and a linear layer; its names are those of the authors.

    Args:
        encoder: reads texts.
        outputs: numbers K per text.
        freeze: keep the encoder as it is.
    """

    def __init__(self, encoder: MedcossEncoder, outputs: int, freeze: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.freeze = freeze
        if freeze:
            self.encoder.requires_grad_(False)
        width = encoder.width
        self.cls_head = nn.Sequential(
            nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, outputs)
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, K] of token numbers [B, T] with mask [B, T], 1 where there is a token."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = self.encoder.encode_text(ids, mask)
        logits: Tensor = self.cls_head(features.mean(dim=1))
        return logits

    def train(self, mode: bool = True) -> SentenceHead:
        """As usual, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self
