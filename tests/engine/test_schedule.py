from __future__ import annotations

import pytest
import torch

from training_backend.config import OptimConfig
from training_backend.engine.schedule import learning_rate, lr_at_epoch


@pytest.mark.parametrize("epoch, rate", [(0, 0.0), (10, 5e-5), (20, 1e-4), (210, 5e-5), (400, 0.0)])
def test_published_pre_training_schedule(epoch: float, rate: float) -> None:
    assert lr_at_epoch(epoch, 1e-4, 0.0, 20, 400) == pytest.approx(rate, abs=1e-15)


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_rates_rise_to_the_peak_and_fall_to_the_end(schedule: str) -> None:
    optim = OptimConfig(lr=1e-3, min_lr=1e-5, warmup=0.1, schedule=schedule)
    rates = [learning_rate(step, 100, optim) for step in range(101)]
    assert 0 < rates[0] < rates[5] < rates[9]
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(1e-3 if schedule == "constant" else 1e-5)


def test_the_reports_of_voco_learn_slower_from_epoch_to_epoch() -> None:
    """As PyTorch's StepLR(1, 0.8), which the authors call at the end of each of 30 epochs."""
    optim = OptimConfig(lr=1e-4, warmup=0.0, schedule="step", step_factor=0.8, epochs=30)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    published = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)
    for epoch in range(30):
        for step in (361 * epoch, 361 * epoch + 360):
            assert learning_rate(step, 30 * 361, optim) == pytest.approx(published.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        published.step()
    warmed = optim.updated({"warmup": 0.1, "epochs": 10})
    assert [learning_rate(step, 100, warmed) for step in (9, 10, 19, 20)] == pytest.approx([1e-4, 1e-4, 1e-4, 0.8e-4])


def test_a_run_without_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, 10, OptimConfig(lr=0.1, warmup=0.0)) == 0.1


def test_a_warm_up_may_start_at_zero_and_end_a_step_early() -> None:
    steps = {
        start: [learning_rate(step, 10, OptimConfig(lr=1.0, warmup=0.4, warmup_start=start)) for step in range(5)]
        for start in ("step", "zero", "zero_to_peak")
    }
    assert steps["step"] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert steps["zero"] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert steps["zero_to_peak"] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0, 1.0])


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_rates_of_an_epoch_are_those_of_its_first_step_where_they_change_per_epoch(schedule: str) -> None:
    optim = OptimConfig(lr=1.0, epochs=8, warmup=0.0, schedule=schedule, lr_per_epoch=True)
    plain = optim.updated({"lr_per_epoch": False})
    total = 8 * 73
    rates = [learning_rate(step, total, optim) for step in range(total)]
    assert len(set(rates)) == 8
    for epoch in range(8):
        assert rates[73 * epoch] == rates[73 * epoch + 72] == learning_rate(73 * epoch, total, plain)
    uneven = [learning_rate(step, 20, optim) for step in range(20)]  # two and a half steps an epoch
    assert len(set(uneven)) == 8
    assert uneven == sorted(uneven, reverse=True)
