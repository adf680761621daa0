"""A head with batch normalisation never meets a single view, whatever the sizes of batch and micro-batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training_backend.engine.batch_norm import by_running_statistics, parts
from training_backend.engine.runtime import Runtime
from training_backend.engine.work import open_work
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError
from training_backend.jobs import summary

HEAD = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def sizes(network: nn.Module, views: int, micro: int) -> list[int]:
    found = parts(network, views, micro)
    assert [part.start for part in found] == [0, *(part.stop for part in found[:-1])][: len(found)]
    assert (found[-1].stop if found else 0) == views
    return [part.stop - part.start for part in found]


@pytest.mark.parametrize("micro", range(1, 8))
def test_no_part_holds_a_single_view_and_none_is_much_larger_than_asked(micro: int) -> None:
    for views in range(2, 20):
        found = sizes(HEAD, views, micro)
        assert min(found) >= 2
        assert max(found) <= max(3, micro)
        assert max(found) - min(found) <= 1


def test_networks_without_batch_norm_are_cut_as_before() -> None:
    others = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.BatchNorm3d(4))
    assert sizes(others, 5, 2) == [2, 2, 1]
    assert sizes(nn.Sequential(nn.BatchNorm1d(4)).eval(), 5, 2) == [2, 2, 1]
    assert sizes(HEAD, 1, 2) == [1]
    assert sizes(HEAD, 0, 2) == []


def test_a_single_view_is_normalised_by_what_was_seen_before() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2))
    network(torch.tensor([[0.0, 4.0], [2.0, 8.0]]))
    before = network[0].running_mean.clone()
    with by_running_statistics(network, 1):
        out = network(torch.tensor([[1.0, 1.0]]))
    assert torch.isfinite(out).all()
    assert torch.equal(network[0].running_mean, before)
    assert network[0].training


@pytest.mark.parametrize(("batch", "micro"), [(5, 2), (4, 3), (3, 1)])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_head_with_hidden_layers_trains_whatever_the_remainder(finetune, start, task, batch, micro):
    changes = {"task": {"hidden": (8,)}, "optim": {"batch_size": batch, "max_steps": 2}}
    run = start(finetune(task).updated({**changes, "engine": {"micro_batch": micro, "val_steps": 2}}))
    assert execute(run) == 0, run.error()
    assert summary(run).state == "finished"


def test_a_batch_of_one_volume_is_refused_when_the_run_is_made(finetune):
    config = finetune("classification").updated({"task": {"hidden": (8,)}, "optim": {"batch_size": 1}})
    with pytest.raises(ConfigError, match=r"at least 2 per step and process; optim.batch_size 1 gives 1. Raise"):
        open_work(config, Runtime(config.engine))
    linear = finetune("classification", optim={"batch_size": 1})
    assert open_work(linear, Runtime(linear.engine)).total_steps == 6


def test_a_step_of_which_one_volume_could_be_read_goes_on(finetune, start, dataset, monkeypatch):
    from training_backend.data.loader import ViewLoader

    real = ViewLoader.batches
    monkeypatch.setattr(ViewLoader, "batches", lambda *at: (views[:1] for views in real(*at)))
    run = start(finetune("classification").updated({"task": {"hidden": (8,)}, "optim": {"max_steps": 2}}))
    assert execute(run) == 0, run.error()
