"""Dice and cross-entropy for partly labelled volumes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNLABELLED = 255
"""Label of voxels that no loss looks at."""


def dice_ce(
    logits: Tensor, labels: Tensor, *, smooth: float = 1e-5, squared: bool = False, background: bool = True
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

    Returns:
        Dice loss in 0..1 and cross-entropy, two scalars; zero without labelled voxels.
    """
    logits, labels = logits.float().flatten(2), labels.flatten(1)
    labelled = labels != UNLABELLED
    summed = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    p = logits.softmax(dim=1)
    classes = torch.arange(logits.shape[1], device=labels.device).unsqueeze(1)
    truth = (labels.unsqueeze(1) == classes).to(p.dtype)
    overlap = (p * truth).sum(2)
    total = ((p.square() if squared else p) * labelled.unsqueeze(1)).sum(2) + truth.sum(2)
    dice = (2 * overlap + (0.0 if squared else smooth)) / (total + smooth)
    return 1 - dice[:, 0 if background else 1 :].mean(), summed / labelled.sum().clamp_min(1)
