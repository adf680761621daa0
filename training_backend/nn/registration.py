"""Deformable registration: warping by a displacement in voxels, and what a displacement is judged by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DisplacementHead(nn.Conv3d):
    """Displacement [B, 3, D, H, W] in voxels from features [B, C, D, H, W]; starts close to none."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, kernel_size=3, padding=1)
        nn.init.normal_(self.weight, 0.0, 1e-5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def warp(moving: Tensor, displacement: Tensor, *, nearest: bool = False) -> Tensor:
    """`moving` [B, C, D, H, W] sampled at each voxel's place plus its displacement; zero from outside.

    Args:
        moving: the image, or a label map (as floats) with `nearest`.
        displacement: [B, 3, D, H, W] in voxels along (D, H, W).
        nearest: take the nearest voxel instead of interpolating.
    """
    sizes = moving.shape[2:]
    axes = [torch.arange(n, device=moving.device, dtype=displacement.dtype) for n in sizes]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement
    scaled = [2 * (places[:, axis] / max(n - 1, 1) - 0.5) for axis, n in enumerate(sizes)]
    grid = torch.stack(scaled[::-1], dim=-1)  # sampling takes (x, y, z)
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(moving, grid.to(moving.dtype), mode=mode, align_corners=True)


def local_correlation(first: Tensor, second: Tensor, window: int = 9) -> Tensor:
    """Negative mean of the squared local correlation of two images [B, 1, D, H, W], -1 at best.

    Sums run over boxes of `window` voxels per axis, which see zeros outside the image.
    """
    products = torch.cat([first, second, first * second, first * first, second * second])
    for axis in range(3):  # a box is the sum of sums along each axis
        sides = [window if axis == other else 1 for other in range(3)]
        products = F.conv3d(products, products.new_ones(1, 1, *sides), padding=[side // 2 for side in sides])
    sum_a, sum_b, both, square_a, square_b = products.chunk(5)
    count = float(window**3)
    cross = both - sum_a * sum_b / count
    var_a, var_b = square_a - sum_a * sum_a / count, square_b - sum_b * sum_b / count
    return -(cross * cross / (var_a * var_b + 1e-5)).mean()


def roughness(displacement: Tensor) -> Tensor:
    """Mean squared difference of neighbouring displacements [B, 3, D, H, W], mean of the three axes."""
    steps = [displacement.diff(dim=axis).square().mean() for axis in (2, 3, 4)]
    return torch.stack(steps).mean()


def warped_dice(truth: Tensor, moving: Tensor, displacement: Tensor, classes: int) -> Tensor:
    """Dice loss of the labels `moving`, warped class by class, against `truth`, mean over all classes.

    Args:
        truth: labels [B, 1, D, H, W] of the fixed image.
        moving: labels of the moving one.
        displacement: [B, 3, D, H, W] in voxels.
        classes: number of labels, background included.
    """
    one_hot = F.one_hot(moving[:, 0].long(), classes).movedim(-1, 1).to(displacement.dtype)
    return one_hot_dice(warp(one_hot, displacement), truth, classes)


def one_hot_dice(shares: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Dice loss of `shares` [B, K, D, H, W] of each class against labels [B, 1, D, H, W]."""
    wanted = F.one_hot(truth[:, 0].long(), classes).movedim(-1, 1).to(shares.dtype)
    overlap = (shares * wanted).sum(dim=(2, 3, 4))
    total = shares.square().sum(dim=(2, 3, 4)) + wanted.square().sum(dim=(2, 3, 4))
    return 1 - ((2 * overlap + 1e-5) / (total + 1e-5)).mean()


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Determinant [B, D, H, W] of the deformation's derivative; below zero where it folds, 1 where nothing moves."""
    slopes = torch.gradient(displacement, dim=(2, 3, 4))  # by axis, each [B, 3, D, H, W]
    matrix = torch.stack(slopes, dim=2).movedim((1, 2), (-2, -1))
    return torch.linalg.det(matrix + torch.eye(3, dtype=matrix.dtype, device=matrix.device))
