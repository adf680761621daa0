"""Warping, and what displacements are judged by."""

from __future__ import annotations

import pytest
import torch

from training_backend.nn.registration import (
    DisplacementHead,
    jacobian_determinant,
    local_correlation,
    one_hot_dice,
    roughness,
    warp,
    warped_dice,
)

SIZE = (6, 8, 10)


def scan(seed: int = 0, channels: int = 1) -> torch.Tensor:
    return torch.rand(1, channels, *SIZE, generator=torch.Generator().manual_seed(seed))


def shift(z: float, y: float, x: float) -> torch.Tensor:
    return torch.tensor([z, y, x], dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *SIZE).clone()


def test_a_displacement_of_whole_voxels_fetches_these_voxels() -> None:
    moving = scan()
    assert torch.allclose(warp(moving, shift(0, 0, 0)), moving, atol=1e-5)
    moved = warp(moving, shift(1, 2, 3))
    assert torch.allclose(moved[..., :-1, :-2, :-3], moving[..., 1:, 2:, 3:], atol=1e-5)
    assert torch.all(moved[..., -1, :, :] == 0)  # from outside


def test_half_a_voxel_is_the_mean_of_two_and_nearest_takes_one() -> None:
    moving = scan()
    half = warp(moving, shift(0, 0, 0.5))[..., :-1]
    assert torch.allclose(half, (moving[..., :-1] + moving[..., 1:]) / 2, atol=1e-5)
    near = warp(moving, shift(0, 0, 0.4), nearest=True)
    assert torch.allclose(near, moving, atol=1e-6)


def test_local_correlation_is_the_sum_over_boxes_that_it_says() -> None:
    one, two, window = scan(0)[0, 0].double(), scan(1)[0, 0].double(), 3
    total = 0.0
    padded = [torch.nn.functional.pad(x, [1] * 6) for x in (one, two)]
    for z in range(SIZE[0]):
        for y in range(SIZE[1]):
            for x in range(SIZE[2]):
                a, b = (p[z : z + 3, y : y + 3, x : x + 3].flatten() for p in padded)
                cross = ((a - a.mean()) * (b - b.mean())).sum()
                total += float(cross**2 / (((a - a.mean()) ** 2).sum() * ((b - b.mean()) ** 2).sum() + 1e-5))
    expected = -total / one.numel()
    assert local_correlation(one[None, None], two[None, None], window).item() == pytest.approx(expected, rel=1e-6)


def test_local_correlation_is_best_for_equal_scans_and_blind_to_scale() -> None:
    one = scan()
    assert local_correlation(one, one).item() == pytest.approx(-1, abs=1e-3)
    assert local_correlation(one, -2 * one).item() == pytest.approx(-1, abs=1e-3)
    assert local_correlation(one, scan(1)).item() > -0.5


def test_roughness_is_zero_for_shifts_and_grows_with_slopes() -> None:
    assert roughness(shift(3, -1, 2)).item() == 0
    slope = shift(0, 0, 0)
    slope[0, 2] = 0.5 * torch.arange(SIZE[2])
    assert roughness(slope).item() == pytest.approx(0.25 / 3 / 3)  # one of three axes, one of three components


def test_jacobian_tells_growth_and_folding() -> None:
    assert torch.allclose(jacobian_determinant(shift(1, 2, 3)), torch.ones(1, *SIZE))
    stretched, folded = shift(0, 0, 0), shift(0, 0, 0)
    stretched[0, 0] = 0.5 * torch.arange(SIZE[0]).view(-1, 1, 1)
    folded[0, 1] = -2.0 * torch.arange(SIZE[1]).view(1, -1, 1)
    assert torch.allclose(jacobian_determinant(stretched), torch.full((1, *SIZE), 1.5), atol=1e-5)
    assert torch.all(jacobian_determinant(folded) < 0)


def test_dice_of_warped_labels_is_zero_where_they_fit_and_learns() -> None:
    labels = torch.zeros(1, 1, *SIZE, dtype=torch.long)
    labels[..., 2:4, 3:6, 3:7] = 1
    assert warped_dice(labels, labels, shift(0, 0, 0), 2).item() == pytest.approx(0, abs=1e-5)
    away = shift(0, 0, 2).requires_grad_()
    loss = warped_dice(labels, labels, away, 2)
    loss.backward()
    assert loss.item() > 0.1
    assert away.grad is not None
    assert float(away.grad.abs().sum()) > 0
    missing = one_hot_dice(torch.zeros(1, 3, *SIZE), torch.zeros_like(labels), 3)
    assert missing.item() == pytest.approx(1 / 3, abs=1e-4)  # only the background is wanted, classes absent on both fit


def test_the_head_starts_close_to_no_displacement() -> None:
    torch.manual_seed(0)
    head = DisplacementHead(8)
    assert head.weight.std().item() == pytest.approx(1e-5, rel=0.2)
    assert head.bias is not None
    assert not head.bias.any()
    assert float(head(torch.randn(1, 8, *SIZE)).abs().max()) < 1e-2
