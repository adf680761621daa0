"""Further streams of views beside those of the loader of a run: labelled cases, or cases seen before.

A stream has a dataset, views and an order of its own, which like the loader's depend on nothing but the seed and a
counter, so it never ends, and a resumed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from training_backend.config.run import RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.loader import ViewLoader
from training_backend.data.manifest import CaseRecord
from training_backend.data.views import Batch, StepViews
from training_backend.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Stream:
    """What a method asks for.

    Attributes:
        config: the run's, with the stream's dataset, views and changes; its batch size and steps follow from the run.
        needs: as of `ViewLoader`.
        per_view: views of the stream beside each view of a batch.
        check: refuses, with a `Med3dError`, cases that do not fit the run; None takes all.
    """

    config: RunConfig
    needs: str | None
    per_view: int = 1
    check: Callable[[Sequence[CaseRecord]], None] | None = None


def open_streams(streams: Mapping[str, Stream], beside: ViewLoader) -> dict[str, ViewLoader]:
    """Loaders of `streams`, in step with the one that they run beside; one without held-out cases shows training cases.

    Raises:
        Med3dError: a stream has no case that fits, or cases that do not fit the run.
    """
    return {name: _open(stream, number, beside) for number, (name, stream) in enumerate(streams.items(), 1)}


def _open(stream: Stream, number: int, beside: ViewLoader) -> ViewLoader:
    seed = int(np.random.SeedSequence((beside.config.seed, number)).generate_state(1)[0] >> 1)  # draws of its own
    optim = {"max_steps": beside.total_steps, "batch_size": stream.per_view * beside.config.optim.batch_size}
    config = stream.config.updated({"seed": seed, "optim": optim, "data": {"workers": beside.config.data.workers}})
    dataset = Dataset.open(config.data.dataset)
    known, wanted = dataset.info.contrasts, config.data.contrasts
    if known and (lacking := [name for name in wanted if name not in known]):
        raise ConfigError(
            f"The dataset {dataset.info.name} has no contrast {', '.join(lacking)}, which the run asks for; it has "
            f"{', '.join(known)}.",
            "Choose labelled cases with the same contrasts, or other ones in data.contrasts.",
        )
    split = beside.split
    if split != "train" and not any(case.has(stream.needs) for case in dataset.cases(split=split)):  # type: ignore[arg-type]
        split = "train"
    loader = ViewLoader(
        dataset,
        config,
        needs=stream.needs,
        split=split,
        rank=beside.rank,
        world=beside.world,
        unit=stream.per_view,
    )
    if stream.check is not None:
        stream.check(loader.cases)
    return loader


def joined(loader: ViewLoader, streams: Mapping[str, ViewLoader], start_step: int = 0) -> Iterator[StepViews]:
    """Views of `loader` for each step from `start_step` on, with those of the streams."""
    others = {name: _endless(stream, start_step) for name, stream in streams.items()}
    for views in loader.batches(start_step):
        beside = {name: next(steps) for name, steps in others.items()}
        failures = [*views.failures, *(failure for each in beside.values() for failure in each.failures)]
        yield replace(views, streams=beside, failures=failures)


def _endless(stream: ViewLoader, start_step: int) -> Iterator[StepViews]:
    """Steps of a stream; held-out cases, which are one pass, come again and again."""
    yield from stream.batches(start_step)
    while stream.split != "train":
        yield from stream.batches()


def to_batch(
    loader: ViewLoader, streams: Mapping[str, ViewLoader], views: StepViews, device: torch.device | str
) -> Batch:
    """`views` with those of the streams, normalised and augmented on `device`."""
    batch = loader.to_batch(views, device)
    beside = {
        name: stream.to_batch(views.streams[name], device) for name, stream in streams.items() if views.streams[name]
    }
    return replace(batch, streams=beside)


def unread(views: StepViews) -> bool:
    """Whether a stream gave no view for a step that has some."""
    return bool(views) and not all(views.streams.values())
