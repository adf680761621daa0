"""VoCo's volumes compared over processes: two that gather equal one with all volumes, also when memory runs out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.rank_kit import in_processes
from training_backend.config import RunConfig
from training_backend.config.presets import pretrain_config
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.engine import seeds
from training_backend.engine.runtime import Runtime
from training_backend.engine.step import optimise
from training_backend.engine.work import Work, open_work
from training_backend.errors import ConfigError
from training_backend.methods import voco
from training_backend.methods.base import Batch
from training_backend.tasks.base import Cancelled

STEPS, VIEWS, SHARE = 2, 4, 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    ingest([write_cohort(root / "cohort", 5, seed=3, shape=(64, 72, 72))], root / "dataset")
    return root / "dataset"


def config(dataset: Path, **changes: Any) -> RunConfig:
    small: dict[str, Any] = {
        "method": {
            **{"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 8, "projected": 6},
            **{"crops": 1, "gather": True},
        },
        "data": {"size": (64, 64, 64), "workers": 0},
        "optim": {"max_steps": STEPS, "batch_size": VIEWS, "warmup": 0.0},
        "engine": {"device": "cpu", "threads": 1, "preview_minutes": 0},
    }
    return pretrain_config("voco", "tiny", dataset, small).updated(changes)


def trained(work: Work, change: Callable[[int, Any], Any] = lambda step, views: views) -> dict[str, Any]:
    losses = []
    for step, views in enumerate(work.batches()):
        outcome = optimise(work, change(step, views))
        losses.append((outcome.loss, outcome.scalars["inter"], outcome.grad_norm, outcome.views))
        work.state.progress.step += 1
    return {"losses": losses, "weights": work.state.network.state_dict(), "micro": work.state.progress.micro_batch}


def visit(rank: int, run: RunConfig) -> dict[str, Any]:
    """What becomes of runs with and without trouble in a process; the last one makes it."""
    runtime = Runtime(run.engine)

    def one(
        change: Callable[[int, Any], Any] = lambda step, views: views, lacking: bool = False, **changes: Any
    ) -> Any:
        work = open_work(run.updated(changes), runtime)
        work.loss = running_out_once(work.loss) if lacking and rank else work.loss
        return trained(work, change)

    answers = {
        "gathered": one(),
        "apart": one(method={"gather": False}, optim={"max_steps": 1}),
        "memory": one(lacking=True, optim={"max_steps": 1}),
        "unreadable": one(lambda step, views: views[:1] if rank else views, optim={"max_steps": 1}),
    }
    with pytest.raises(ConfigError, match="2 of them cannot share"):
        one(optim={"batch_size": 3})
    runtime.close()
    return answers


@pytest.fixture(scope="module")
def answers(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of both processes."""
    return in_processes(2, tmp_path_factory.mktemp("answers"), visit, config(dataset))


def running_out_once(loss: Any, *, late: bool = False) -> Any:
    """`loss`, whose first call finds no memory before it has compared anything, or after."""
    calls = []

    @functools.wraps(loss)
    def wrapped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            if late:
                loss(*arguments)
            raise torch.OutOfMemoryError("out of memory")
        return loss(*arguments)

    return wrapped


def drawn_by_shares(monkeypatch: pytest.MonkeyPatch, seed: int, micro: int) -> None:
    """Let one process draw its crops as the shares of two would, whose slots lie `SHARE` apart."""
    drawn, calls = voco._drawn, []

    def draw(network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        step, part = divmod(len(calls), SHARE // micro)
        calls.append(1)
        found = []
        for number in range(VIEWS // SHARE):
            slot = number * SHARE + part * micro
            own = Batch(batch.volume[number * micro : (number + 1) * micro], batch.case_ids)
            found.append(drawn(network, own, seeds.generator(seed, seeds.STEP, step, slot)))
        crops, labels, keep = zip(*found, strict=True)
        number = labels[0].shape[0] * labels[0].shape[1]

        def in_order(rows: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([one[:number] for one in rows] + [one[number:] for one in rows])

        return in_order(crops), torch.cat(labels), in_order(keep)

    monkeypatch.setattr(voco, "_drawn", draw)


def test_two_processes_that_gather_are_one_with_all_volumes(
    dataset: Path, answers: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (answer["gathered"] for answer in answers)
    run = config(dataset)
    drawn_by_shares(monkeypatch, run.seed, SHARE)
    alone = trained(open_work(run, Runtime(run.engine)))
    assert first["losses"] == second["losses"]
    assert all(torch.equal(second["weights"][name], value) for name, value in first["weights"].items())
    for found, expected in zip(first["losses"], alone["losses"], strict=True):
        assert found == pytest.approx(expected, rel=5e-3)  # norms of two voxels amplify the last bit of a batch
    assert answers[0]["apart"]["losses"][0] != pytest.approx(alone["losses"][0], rel=2e-2)


def test_a_process_whose_memory_runs_out_leaves_none_waiting(answers: list[dict[str, Any]]) -> None:
    first, second = (answer["memory"] for answer in answers)
    assert first["micro"] == second["micro"] == 1
    assert first["losses"] == second["losses"] == answers[0]["gathered"]["losses"][:1]


def test_a_view_that_cannot_be_read_costs_every_process_one(answers: list[dict[str, Any]]) -> None:
    first, second = (answer["unreadable"]["losses"] for answer in answers)
    assert [views for *_, views in first] == [2]
    assert first == second


@pytest.mark.parametrize("changes", [{"version": "2024"}, {"stage": "semi"}])
def test_gathering_where_nothing_is_compared_is_refused(dataset: Path, changes: dict[str, Any]) -> None:
    run = config(dataset, method=changes)
    with pytest.raises(ConfigError, match=r"method\.gather compares the volumes of all processes"):
        voco.build(run)


def test_a_step_that_is_given_up_or_tried_again_leaves_the_teacher_where_it_was(dataset: Path) -> None:
    """The teacher follows once a step, whatever becomes of the step: else a resumed run would not be the same."""
    run = config(dataset, engine={"micro_batch": 2}, method={"gather": False})
    expected = open_work(run, Runtime(run.engine))
    optimise(expected, next(expected.batches()))
    work = open_work(run, Runtime(run.engine))
    teacher = [parameter.clone() for parameter in work.state.network.teacher.parameters()]
    views = next(work.batches())
    asked = iter([False, True])
    with pytest.raises(Cancelled):
        optimise(work, views, lambda: next(asked))
    assert all(map(torch.equal, work.state.network.teacher.parameters(), teacher))
    work.state.progress.micro_batch = VIEWS
    work.loss = running_out_once(work.loss, late=True)
    assert optimise(work, views).shrunk
    found = work.state.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state.network.state_dict().items())
