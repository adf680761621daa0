from __future__ import annotations

import pytest
import torch
from torch import nn

from training_backend.config import OptimConfig
from training_backend.engine import checkpoint
from training_backend.engine.guard import Guard
from training_backend.engine.optim import make_optimizer, set_learning_rate
from training_backend.engine.state import Progress, TrainState, averaged, load_evaluated
from training_backend.errors import TrainingDiverged, WeightsError


def make(seed: int = 0, width: int = 4, ema: float | None = 0.9) -> TrainState:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 1))
    optimizer = make_optimizer(network, OptimConfig(lr=0.01))
    return TrainState(network, optimizer, averaged(network, ema), Progress())


def advance(state: TrainState, steps: int) -> None:
    for _ in range(steps):
        torch.manual_seed(state.progress.step)
        state.network(torch.randn(5, 3)).square().mean().backward()
        set_learning_rate(state.optimizer, state.progress.step, 20, OptimConfig(lr=0.01), 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad()
        if state.ema is not None:
            state.ema.update_parameters(state.network)
        state.progress.step += 1


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_ten_steps_saved_and_ten_more_equal_twenty_bit_for_bit(tmp_path, ema):
    whole, half, other = make(ema=ema), make(ema=ema), make(seed=1, ema=ema)
    advance(whole, 20)
    advance(half, 10)
    half.progress.guard.bad(9, ["case"])
    other.restore(checkpoint.read(checkpoint.write(tmp_path, 10, half.saved({}))))
    assert other.progress == half.progress
    advance(other, 10)
    assert equal(whole.network, other.network)
    assert equal(whole.evaluated, other.evaluated)


def test_evaluated_weights_are_the_averaged_ones(tmp_path):
    state = make()
    advance(state, 5)
    assert not equal(state.network, state.evaluated)
    fresh = make(seed=2).network
    load_evaluated(fresh, checkpoint.read(checkpoint.write(tmp_path, 5, state.saved({}))))
    assert equal(fresh, state.evaluated)


def test_average_follows_the_formula():
    state = make(ema=0.9)
    mean = None
    for _ in range(4):
        advance(state, 1)
        weight = state.network[0].weight.detach().clone()
        mean = weight if mean is None else 0.9 * mean + 0.1 * weight
    torch.testing.assert_close(state.evaluated[0].weight, mean)


def test_tied_weights_survive_the_way_through_a_file(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    network = Tied()
    state = TrainState(network, make_optimizer(network, OptimConfig()), None, Progress())
    back = checkpoint.read(checkpoint.write(tmp_path, 0, state.saved({})))
    state.restore(back)
    assert torch.equal(back.tensors["model"]["b.weight"], network.a.weight)
    assert network.b.weight is network.a.weight


def test_checkpoint_of_other_settings_is_refused(tmp_path):
    folder = checkpoint.write(tmp_path, 0, make(width=4).saved({}))
    with pytest.raises(WeightsError, match="settings were changed"):
        make(width=6).restore(checkpoint.read(folder))


def test_layer_decay_scales_the_rate_of_each_layer():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    optim = OptimConfig(lr=1.0, layer_decay=0.5, warmup=0.0, schedule="constant")
    optimizer = make_optimizer(network, optim, lambda name: int(name[0]))
    assert set_learning_rate(optimizer, 0, 10, optim, 0.1) == pytest.approx(0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(layer.weight)] for layer in network] == pytest.approx([0.025, 0.05, 0.1])
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decays[id(network[0].weight)], decays[id(network[0].bias)]] == [0.05, 0.0]


def test_guard_skips_three_in_a_hundred_then_rolls_back_then_stops():
    guard = Guard()
    assert [guard.bad(step, ["a", "b"]) for step in (1, 2, 3, 4)] == ["skip", "skip", "skip", "roll back"]
    for _ in range(3):
        guard.rolled_back()
    assert (guard.lr_factor, guard.skipped) == (0.125, [])
    for step in (5, 6, 7):
        assert guard.bad(step, ["b"]) == "skip"
    with pytest.raises(TrainingDiverged, match=r"cases first: b, a"):
        guard.bad(8, ["b"])


def test_guard_forgets_after_a_hundred_steps():
    guard = Guard()
    verdicts = []
    for step in (0, 50, 99, 101, 151, 160):
        guard.good(step)
        verdicts.append(guard.bad(step, []))
    assert verdicts == ["skip", "skip", "skip", "skip", "skip", "roll back"]
