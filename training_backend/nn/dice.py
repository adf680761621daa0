"""Dice and cross-entropy for partly labelled volumes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

UNLABELLED = 255
"""Label of voxels that no loss looks at."""


def dice_ce(
    logits: Tensor,
    labels: Tensor,
    *,
    smooth: float = 1e-5,
    squared: bool = False,
    background: bool = True,
    annotated: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft Dice loss and cross-entropy, both as means over the labelled voxels.

    Dice is taken per sample and class as ``(2 overlap + s) / (prediction + truth + s)``; a class that is absent from
    truth and prediction thus costs nothing. Where every voxel is labelled the two numbers add up to
    ``monai.losses.DiceCELoss(softmax=True, to_onehot_y=True, include_background=background)``.

    Args:
        logits: [B, K, D, H, W].
        labels: [B, D, H, W] class indices; 255 where unlabelled.
        smooth: the number s.
        squared: square predictions in the denominator and leave s out of the numerator, as UNETR's and AR-SSL4M's
            recipes do (with s = 1e-6): a class absent from the truth then costs its full share.
        background: let the first class count in Dice; in cross-entropy it always does.
        annotated: [B, K], false for classes that nobody looked for in a sample: they become one with the background,
            so that neither finding them nor missing them costs anything, and Dice leaves them out. None for all.

    Returns:
        Dice loss in 0..1 and cross-entropy, two scalars; zero without labelled voxels.
    """
    logits, labels = logits.float().flatten(2), labels.flatten(1)
    if annotated is not None:
        logits, labels = _joined(logits, labels, annotated)
    labelled = labels != UNLABELLED
    summed = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    p = logits.softmax(dim=1)
    classes = torch.arange(logits.shape[1], device=labels.device).unsqueeze(1)
    truth = (labels.unsqueeze(1) == classes).to(p.dtype)
    overlap = (p * truth).sum(2)
    total = ((p.square() if squared else p) * labelled.unsqueeze(1)).sum(2) + truth.sum(2)
    dice = (2 * overlap + (0.0 if squared else smooth)) / (total + smooth)
    first, entropy = 0 if background else 1, summed / labelled.sum().clamp_min(1)
    if annotated is None:
        return 1 - dice[:, first:].mean(), entropy
    counted = annotated[:, first:]
    return ((1 - dice[:, first:]) * counted).sum() / counted.sum().clamp_min(1), entropy


def annotated_classes(annotated: Sequence[Sequence[int] | None] | None, classes: int) -> Tensor | None:
    """Which of `classes` count for each sample, [B, K] with the background always among them; None where all do.

    Args:
        annotated: per sample the classes that were looked for, or None for all; None for a batch where nobody said.
        classes: K.
    """
    if annotated is None or all(chosen is None for chosen in annotated):
        return None
    counted = torch.ones(len(annotated), classes, dtype=torch.bool)
    for row, chosen in zip(counted, annotated, strict=True):
        if chosen is not None:
            row[1:] = torch.tensor([index in chosen for index in range(1, classes)])
    return counted


def _joined(logits: Tensor, labels: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K, N] with what was not looked for as a part of the background, and labels [B, N] likewise."""
    others = ~annotated.unsqueeze(2)
    inside = others.clone()
    inside[:, 0] = True
    rest = logits.masked_fill(~inside, -torch.inf).logsumexp(1, keepdim=True)
    logits = torch.cat([rest, logits.masked_fill(others, -torch.inf)[:, 1:]], dim=1)
    known = labels.clamp_max(logits.shape[1] - 1)  # 255 is looked up as some class and kept
    counts = annotated.gather(1, known) | (labels == UNLABELLED)
    return logits, torch.where(counts, labels, 0)
