"""Losses of VoCo (Wu et al., CVPR 2024, sections 3.2 and 3.3; TPAMI version, "Large-Scale-Medical")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def assign(crops: Tensor, bases: Tensor) -> Tensor:
    """Predicted overlap [N, K] of crops [N, E] with base crops [K, E]: cosine similarity, negative ones as 0."""
    return F.cosine_similarity(crops[:, None], bases[None], dim=2, eps=1e-8).relu()


def position_loss(target: Tensor, predicted: Tensor) -> Tensor:
    """Distance of two assignments [N, K], a scalar.

    Cells of the target are weighted by their share; cells outside of it must not look alike. Both terms are means over
    the whole matrix, not over its rows.
    """
    distance = (target - predicted).abs()
    near = -(target * (1 - distance + EPS).log()).sum() / (target.sum() + EPS)
    outside = (target == 0).to(predicted.dtype)
    far = -(outside * (1 - predicted + EPS).log()).sum() / (outside.sum() + EPS)
    return near + far


def position_losses_2024(target: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms as in the CVPR version, whose second is the mean square of what should be 0."""
    distance = (target - predicted).abs()
    near = -(target * (1 - distance + EPS).log()).sum() / (target.sum() + EPS)
    outside = (target == 0).to(predicted.dtype)
    return near, (outside * predicted.square()).sum() / (outside.sum() + EPS)


def likeness(bases: Tensor) -> Tensor:
    """Mean squared similarity of base crops [K, E] of one volume, a scalar: 0 where all differ, 1 where all are alike.

    Of a pair only the first gets a gradient, as published.
    """
    similar = F.cosine_similarity(bases[:, None], bases.detach()[None], dim=2, eps=1e-8).relu().square()
    rows, columns = torch.triu_indices(len(bases), len(bases), offset=1, device=bases.device)
    return similar[rows, columns].mean()


def inter_loss(
    student: Tensor, teacher: Tensor, other_student: Tensor, other_teacher: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of the crops [N, E] of one volume against the bases [K, E] of another, and both assignments [N, K].

    What the teacher finds is the target of what the student finds.

    Args:
        student: crops as the student projects them.
        teacher: the same crops as the teacher does.
        other_student: bases of the other volume, projected by the student.
        other_teacher: the same by the teacher.
    """
    target = assign(teacher, other_teacher).detach()
    predicted = assign(student, other_student)
    return position_loss(target, predicted), target, predicted
