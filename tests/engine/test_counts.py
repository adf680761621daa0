"""Scalars that are the mean of something else than views, over micro-batches; validation on fixed prefixes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training_backend.config import RunConfig
from training_backend.config.presets import pretrain_config
from training_backend.engine.events import EventReader
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.runtime import Runtime
from training_backend.engine.step import optimise
from training_backend.engine.validate import validate
from training_backend.engine.work import Work, open_work
from training_backend.engine.worker import execute
from training_backend.methods.base import StepOutput

SMALL: dict[str, Any] = {
    "data": {"size": (32, 16, 16), "crops_per_volume": 2, "workers": 0},
    "method": {"embed_dim": 24, "heads": 2, "depth": 2},
    "optim": {"max_steps": 4, "batch_size": 6, "lr": 1e-3, "warmup": 0.0},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "checkpoint_steps": 4, "preview_minutes": 0},
}


@pytest.fixture
def sequences(dataset: Path) -> Callable[..., RunConfig]:
    """Settings of a small run over spatial sequences with nested changes."""

    def make(**changes: Any) -> RunConfig:
        return pretrain_config("ar", "tiny", dataset, SMALL).updated(changes)

    return make


def opened(config: RunConfig, loss: Callable[..., StepOutput] | None = None) -> Work:
    work = open_work(config, Runtime(config.engine))
    return dataclasses.replace(work, loss=loss) if loss else work


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 6])
def test_scalars_weigh_by_their_counts_and_absent_ones_do_not_distort(
    micro_batch: int, sequences: Callable[..., RunConfig]
) -> None:
    values = iter(range(100))

    def loss(network: torch.nn.Module, batch: Any, generator: torch.Generator) -> StepOutput:
        """The k-th view has the value k; odd ones are patches of another kind, k + 1 of them."""
        mine = [next(values) for _ in batch.case_ids]
        odd = [k for k in mine if k % 2]
        scalars, counts = {"all": sum(mine) / len(mine)}, {}
        if odd:
            counts["odd"] = float(sum(k + 1 for k in odd))
            scalars["odd"] = sum(k * (k + 1) for k in odd) / counts["odd"]
        return StepOutput(next(network.parameters()).sum(), scalars, counts)

    work = opened(sequences(engine={"micro_batch": micro_batch}), loss)
    views = next(work.loader.batches())
    outcome = optimise(work, views)
    assert outcome.scalars["all"] == pytest.approx(2.5)
    assert outcome.scalars["odd"] == pytest.approx((1 * 2 + 3 * 4 + 5 * 6) / (2 + 4 + 6))


def test_a_run_tells_losses_by_prefix_and_kind(
    sequences: Callable[..., RunConfig], start: Callable[..., RunDirectory]
) -> None:
    run = start(sequences())
    assert execute(run) == 0
    events = [event for event in EventReader(run.events_path).read() if event["type"] == "metrics"]
    steps = [event["values"] for event in events if "grad_norm" in event["values"]]
    validations = [event["values"] for event in events if "score" in event["values"]]
    assert len(steps) == 4
    for values in [*steps, *validations]:
        assert values["loss_spatial"] == pytest.approx(values["loss"], rel=1e-5)
        assert any(name.startswith("loss_prefix_") for name in values)
        assert "loss_contrast" not in values


def test_validation_does_not_depend_on_the_micro_batch(sequences: Callable[..., RunConfig]) -> None:
    changes = {"data": {"crops_per_volume": 8}}  # of the one case that is held out
    found = [validate(opened(sequences(engine={"micro_batch": size}, **changes))) for size in (1, 4, 6)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    assert found[0]["score"] == found[0]["loss"]
    assert {"loss_prefix_0_25", "loss_prefix_25_50", "loss_prefix_50_75", "loss_prefix_75_100"} <= set(found[0])
