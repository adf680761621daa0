"""Dice and cross-entropy for partly labelled volumes."""

from __future__ import annotations

import torch
from torch import Tensor

UNLABELLED = 255
"""Label of voxels that no loss looks at."""


def dice_ce(logits: Tensor, labels: Tensor, *, smooth: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Soft Dice loss and cross-entropy, both as means over the labelled voxels.

    Dice is taken per sample and class, background included, as ``(2 overlap + s) / (prediction + truth + s)``; a class
    that is absent from truth and prediction thus costs nothing. Where every voxel is labelled the two numbers add up
    to ``monai.losses.DiceCELoss(softmax=True, to_onehot_y=True)``.

    Args:
        logits: [B, K, D, H, W].
        labels: [B, D, H, W] class indices; 255 where unlabelled.
        smooth: the number s.

    Returns:
        Dice loss in 0..1 and cross-entropy, two scalars; zero without labelled voxels.
    """
    labelled = labels != UNLABELLED
    log_p = torch.log_softmax(logits.float(), dim=1)
    index = torch.where(labelled, labels, 0).unsqueeze(1)
    chosen = -log_p.gather(1, index).squeeze(1)
    cross_entropy = torch.where(labelled, chosen, 0).sum() / labelled.sum().clamp_min(1)
    p = torch.where(labelled.unsqueeze(1), log_p.exp(), 0)
    classes = torch.arange(logits.shape[1], device=labels.device).view(1, -1, 1, 1, 1)
    truth = labels.unsqueeze(1) == classes
    overlap = torch.where(truth, p, 0).flatten(2).sum(2)
    total = p.flatten(2).sum(2) + truth.flatten(2).sum(2)
    dice = (2 * overlap + smooth) / (total + smooth)
    return 1 - dice.mean(), cross_entropy
