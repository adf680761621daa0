"""The plain step that ours is timed beside computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training_backend.bench import mg3d_step


def small() -> Any:
    return mg3d_step.made(2, 64, (1, 1, 2, 2), 3)


def test_both_sides_learn_the_same() -> None:
    volume = torch.rand(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(1))
    losses = {}
    for side in ("ours", "plain"):
        run = mg3d_step.stepping(small(), side)  # type: ignore[arg-type]
        losses[side] = [run(volume, index) for index in range(2)]
    assert losses["ours"] == pytest.approx(losses["plain"], rel=1e-4)
    assert len(set(losses["ours"])) == 2


def test_both_sides_have_the_same_gradients() -> None:
    volume = torch.rand(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(1))
    hidden = volume[0, 0] > 0.5
    ours, plain = small(), small()
    mg3d_step._straighten(plain)
    mg3d_step.our_loss(ours, volume, hidden, mg3d_step.reports()).backward()
    mg3d_step.plain_loss(plain, volume, hidden, mg3d_step.reports()).backward()
    theirs = {name.replace("straight.", "vision_encoder."): p.grad for name, p in plain.named_parameters()}
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert len(found) > 100
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5, msg=name)
