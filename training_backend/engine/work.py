"""What a run computes with: network, loss, optimiser and views, built from its configuration alone."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from training_backend.config import RunConfig
from training_backend.config.registry import method as find_method
from training_backend.config.registry import task as find_task
from training_backend.data.ar_lists import open_dataset
from training_backend.data.dataset import Dataset
from training_backend.data.loader import ViewLoader
from training_backend.data.streams import Interleaving, in_turn, interleaving, joined, open_streams, to_batch
from training_backend.engine import seeds
from training_backend.engine.batch_norm import batch_norms
from training_backend.engine.memory import tune_blocks
from training_backend.engine.optim import make_optimizer
from training_backend.engine.runtime import Runtime
from training_backend.engine.state import Progress, TrainState, averaged
from training_backend.errors import ConfigError
from training_backend.methods.base import Batch, StepOutput

if TYPE_CHECKING:
    from training_backend.data.views import StepViews
    from training_backend.methods.base import Encoder, Method
    from training_backend.tasks.base import Task
    from training_backend.weights.report import ImportReport

VALIDATIONS = 20
"""Most validations of a run that does not say how often it validates."""


@dataclass
class Work:
    """Everything a training step needs, without a run directory.

    Attributes:
        loss: loss of a batch, the method's or the task's.
        task: the downstream task, or None when pre-training.
        total_steps: planned optimiser steps.
        steps_per_epoch: optimiser steps in one pass over the training cases; not a whole number in general.
        imported: what became of the weights the run starts from, if it starts from any.
        streams: loaders beside the first, by name.
        snapshot_step: step before which the snapshot of the network is taken, where the method asks for one.
        snapshot_weights: whose weights it gets; empty for those that the network has then.
        order: which stream each step takes its views from, where streams are interleaved.
        gathers: whether processes look at each other's views, so that all need as many.
    """

    config: RunConfig
    runtime: Runtime
    dataset: Dataset
    loader: ViewLoader
    state: TrainState
    loss: Callable[[nn.Module, Batch, torch.Generator], StepOutput]
    method: Method
    task: Task | None
    total_steps: int
    steps_per_epoch: float
    imported: ImportReport | None = None
    streams: Mapping[str, ViewLoader] = field(default_factory=dict)
    snapshot_step: int | None = None
    snapshot_weights: str = ""
    order: Interleaving | None = None
    gathers: bool = False

    def batches(self, start_step: int = 0) -> Iterator[StepViews]:
        """Views of this process for each step from `start_step` on, with those of all streams or of one in turn."""
        if self.order is not None:
            return in_turn(self.loader, self.streams, self.order, start_step, self.total_steps)
        return joined(self.loader, self.streams, start_step) if self.streams else self.loader.batches(start_step)

    def to_batch(self, views: StepViews) -> Batch:
        """What the loss of a step sees of `views`: all streams, and the snapshot where there is one."""
        batch = to_batch(self.loader, self.streams, views, self.runtime.device)
        if self.state.snapshot is not None:
            batch.extra = {**batch.extra, "snapshot": self.state.snapshot}
        return batch

    @property
    def views_per_process(self) -> int:
        """Views of one optimiser step that a process computes."""
        return math.ceil(self.config.optim.batch_size / self.runtime.world)

    @property
    def validation_steps(self) -> int:
        """Optimiser steps between validations."""
        given = self.config.engine.val_steps
        return given or max(1, math.ceil(self.steps_per_epoch), math.ceil(self.total_steps / VALIDATIONS))

    @property
    def needs(self) -> str | None:
        """What the loss needs besides the volume: "labels", "target", "text", "pairs" or nothing."""
        return (self.task or self.method).needs


def open_work(config: RunConfig, runtime: Runtime, *, resuming: bool = False) -> Work:
    """Build everything for `config`; weights start from the seed and from `config.weights`.

    A run that resumes takes its weights from a checkpoint, so it does not need `config.weights` any more.
    """
    method = find_method(config.method.name)
    task = find_task(config.task.name) if config.task else None
    dataset = open_dataset(config)
    learns = task or method
    loader = ViewLoader(dataset, config, needs=learns.needs, rank=runtime.rank, world=runtime.world)
    asked = {} if task is not None else method.streams(config)
    streams = open_streams(asked, loader)
    order = interleaving(loader, streams, [name for name, stream in asked.items() if stream.interleaved])
    steps_per_epoch = loader.views_per_epoch / config.optim.batch_size if order is None else order.length
    total_steps = loader.total_steps
    if order is not None and not config.optim.max_steps:
        total_steps = max(1, math.ceil(config.optim.epochs * order.length))
    if learns.check is not None:
        held_out = [case for case in dataset.cases(split="val") if task is not None or case.has(learns.needs)]
        learns.check(config, [*loader.cases, *held_out])
    network, imported = build_network(config if not resuming else config.updated({"weights": ""}), method, task)
    _check_channels(config, method.encoder(network) if task is None else network.encoder)  # type: ignore[arg-type]
    _check_batch(config, network, runtime.world)
    gathers = runtime.world > 1 and task is None and method.gathers(config)
    _check_shares(config, runtime.world if gathers else 1)
    network.to(runtime.device)
    layer_id = functools.partial(task.layer_id, network) if task else None
    rate = method.rate if task is None else None
    optimizer = make_optimizer(network, config.optim, layer_id, runtime.precision, rate)
    state = TrainState(network, optimizer, averaged(network, config.optim.ema), Progress())
    state.progress.micro_batch = config.engine.micro_batch or math.ceil(config.optim.batch_size / runtime.world)
    snapshot = None if task is not None else method.snapshot(config)
    if snapshot is not None:
        state.blank = functools.partial(snapshot.build, config)
        loader.read_from = int(snapshot.share * total_steps) if snapshot.awaited else 0
    tune_blocks(network, config.engine)
    return Work(
        config=config,
        runtime=runtime,
        dataset=dataset,
        loader=loader,
        state=state,
        loss=learns.training_step,
        method=method,
        task=task,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        imported=imported,
        streams=streams,
        snapshot_step=None if snapshot is None else int(snapshot.share * total_steps),
        snapshot_weights="" if snapshot is None else snapshot.weights,
        order=order,
        gathers=gathers,
    )


def build_network(config: RunConfig, method: Method, task: Task | None) -> tuple[nn.Module, ImportReport | None]:
    """Network on the CPU with initial weights drawn from the seed, then overlaid by `config.weights` if given."""
    seeds.generator(config.seed, seeds.INIT)
    if task is None:
        network = method.build(config)
        start: nn.Module = network
    else:
        encoder = method.build_encoder(config)
        network = task.build(config, encoder)
        start = network if getattr(network, "starts_whole", False) else encoder  # type: ignore[assignment]
    if not config.weights:
        return network, None
    from training_backend.weights.transfer import init_from

    report = init_from(start, config.weights, config, network=network)
    logging.getLogger(__name__).info("%s", report)
    return network, report


def _check_channels(config: RunConfig, encoder: Encoder) -> None:
    given = config.channels()
    if encoder.in_channels != given:
        raise ConfigError(
            f"The network takes {encoder.in_channels} channels, but the views have {given}.",
            "Name as many contrasts in data.contrasts as method.in_channels says, or leave method.in_channels empty.",
        )


def _check_shares(config: RunConfig, world: int) -> None:
    """Refuse a batch of which processes that look at each other's views would get unequal parts."""
    if config.optim.batch_size % world:
        raise ConfigError(
            f"Processes that compare each other's views need as many each, but {world} of them cannot share "
            f"optim.batch_size {config.optim.batch_size} evenly.",
            f"Choose a multiple of {world}, or set method.gather to False.",
        )


def _check_batch(config: RunConfig, network: nn.Module, world: int) -> None:
    views = math.ceil(config.optim.batch_size / world)
    if views < 2 and any(norm.track_running_stats for norm in batch_norms(network)):  # others compare crops of a view
        raise ConfigError(
            "The head's hidden layers have batch normalisation, which compares volumes and needs at least 2 per step "
            f"and process; optim.batch_size {config.optim.batch_size} gives 1.",
            "Raise optim.batch_size, or leave task.hidden empty.",
        )
