from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config
from training_backend.errors import DataError
from training_backend.methods.base import Batch
from training_backend.methods.mae3d import METHOD
from training_backend.tasks.base import CaseResult
from training_backend.tasks.regression import TASK

TINY = {"method": {"embed_dim": 24, "depth": 2, "heads": 3}, "data": {"size": (16, 16, 16)}}


def config(**task: object) -> RunConfig:
    return finetune_config("regression", "tiny", Path("d"), "mae3d", {**TINY, "task": task})


def network(run: RunConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return TASK.build(run, METHOD.build_encoder(run))


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_learns_ages_in_years_and_predicts_them(loss: str) -> None:
    run = config(loss=loss, centre=60.0, scale=10.0)
    model = network(run).train()
    ages = torch.tensor([45.0, 55.0, 65.0, 75.0])
    volume = (ages / 100).reshape(4, 1, 1, 1, 1) * torch.rand(1, 1, 16, 16, 16)
    batch = Batch(volume=volume, case_ids=list("abcd"), target=ages)
    assert TASK.predict(model.eval(), run, volume[:1], None).item() == pytest.approx(60.0, abs=0.1)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors = []
    for step in range(80):
        output = TASK.training_step(model, batch, torch.Generator().manual_seed(step))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(output.scalars["mae"]))
    assert errors[0] == pytest.approx(10.0, abs=0.2)
    assert errors[-1] < 5.0


def test_targets_of_another_number_get_a_sentence() -> None:
    model = network(config(values=2))
    with pytest.raises(DataError, match="predicts 2 number"):
        TASK.training_step(
            model, Batch(torch.rand(2, 1, 16, 16, 16), ["a", "b"], target=torch.rand(2)), torch.Generator()
        )


def test_evaluation_prefers_small_errors() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(60, 10, 30)

    def report(noise: float) -> dict[str, float]:
        values = truth + rng.normal(0, noise, 30)
        cases = [
            CaseResult(str(i), np.array([v]), np.array([t]), (1, 1, 1)) for i, (v, t) in enumerate(zip(values, truth))
        ]
        return TASK.evaluate(config(), cases)

    good, bad = report(1.0), report(20.0)
    assert good["score"] > bad["score"]
    assert good["mae_low"] <= good["mae"] <= good["mae_high"]
    assert good["r2"] > 0.9 > bad["r2"]
