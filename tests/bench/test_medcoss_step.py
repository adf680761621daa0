"""The plain step that ours is timed beside computes the same."""

from __future__ import annotations

import pytest
import torch

from training_backend.bench import medcoss_step
from training_backend.nn.medcoss import MedcossSettings

SMALL = MedcossSettings(
    width=24,
    depth=2,
    heads=4,
    mlp_dim=48,
    vocabulary=50,
    patch_3d=(4, 4, 4),
    size_3d=(4, 16, 16),
    rows_3d=32,
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
)


@pytest.mark.parametrize("step", ["masked", "distillation"])
def test_both_sides_learn_the_same(step: medcoss_step.Step) -> None:
    volume = torch.rand(3, 1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    losses = {}
    for side in ("ours", "plain"):
        _, run = getattr(medcoss_step, side)(SMALL, step)
        losses[side] = [run(volume, index) for index in range(4)]
    assert losses["ours"] == pytest.approx(losses["plain"], rel=1e-4)
    assert len(set(losses["ours"])) == 4
