"""Further streams of views beside those of the loader of a run: labelled cases, or cases seen before.

A stream has a dataset, views and an order of its own, which like the loader's depend on nothing but the seed and a
counter, so it never ends, and a resumed run goes on where it was. Streams come *beside* the views of each step, or are
*interleaved*: then a step has the views of the run's own cases or of one stream, never of two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from training_backend.config.run import RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.loader import ViewLoader
from training_backend.data.manifest import CaseRecord
from training_backend.data.views import Batch, StepViews, generator
from training_backend.errors import ConfigError

if TYPE_CHECKING:
    import torch

_INTERLEAVED = 31  # sets its random numbers apart
OWN = ""
"""Name of the run's own views among those that are interleaved."""


@dataclass(frozen=True)
class Stream:
    """What a method asks for.

    Attributes:
        config: the run's, with the stream's dataset, views and changes; its batch size and steps follow from the run.
        needs: as of `ViewLoader`.
        per_view: views of the stream beside each view of a batch.
        check: refuses, with a `Med3dError`, cases that do not fit the run; None takes all.
        interleaved: whether its views have steps of their own, in place of coming beside those of the run.
    """

    config: RunConfig
    needs: str | None
    per_view: int = 1
    check: Callable[[Sequence[CaseRecord]], None] | None = None
    interleaved: bool = False


@dataclass(frozen=True)
class Interleaving:
    """Which stream each step takes its views from.

    A pass has as many steps of each stream as its views fill, one at least, in an order drawn from the seed and the
    number of the pass, as MedCoSS shuffles whole batches of one modality.

    Attributes:
        seed: of the run.
        steps: of a pass, by stream; those of the run itself under `OWN`.
    """

    seed: int
    steps: Mapping[str, int]

    @property
    def length(self) -> int:
        """Steps of a pass."""
        return sum(self.steps.values())

    def at(self, step: int) -> str:
        """Stream of `step`."""
        number, place = divmod(step, self.length)
        return self._name(int(self._order(number)[place]))

    def before(self, step: int) -> dict[str, int]:
        """Steps of each stream before `step`."""
        number, place = divmod(step, self.length)
        done = np.bincount(self._order(number)[:place], minlength=len(self.steps))
        return {name: number * count + int(done[index]) for index, (name, count) in enumerate(self.steps.items())}

    def _name(self, index: int) -> str:
        return tuple(self.steps)[index]

    def _order(self, number: int) -> npt.NDArray[np.int64]:
        return _shuffled(self.seed, number, tuple(self.steps.values()))


@lru_cache(maxsize=4)
def _shuffled(seed: int, number: int, counts: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Indices of the streams in the order of a pass."""
    return generator(seed, number, _INTERLEAVED).permutation(np.repeat(np.arange(len(counts)), counts))


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
            "Choose cases with the same contrasts, or other ones in data.contrasts.",
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
    if stream.interleaved:  # few cases are a smaller batch, never none
        loader.config = _endless_config(config, min(config.optim.batch_size, loader.views_per_epoch))
        loader.workers = min(loader.workers, 1)
    return loader


def _endless_config(config: RunConfig, batch_size: int) -> RunConfig:
    """`config` whose steps do not end: whoever takes turns knows when to stop."""
    return config.updated({"optim": {"max_steps": 2**31 - 1, "batch_size": batch_size}})


def interleaving(loader: ViewLoader, streams: Mapping[str, ViewLoader], placed: Collection[str]) -> Interleaving | None:
    """How the views of `loader` and of the streams called `placed` take turns; None without any of these."""
    if not placed:
        return None
    taking = {OWN: loader, **{name: streams[name] for name in placed}}
    steps = {name: max(1, one.views_per_epoch // one.config.optim.batch_size) for name, one in taking.items()}
    return Interleaving(loader.config.seed, steps)


def in_turn(
    loader: ViewLoader, streams: Mapping[str, ViewLoader], order: Interleaving, start_step: int, total_steps: int
) -> Iterator[StepViews]:
    """Views of the stream whose turn it is, for each step from `start_step` on; nothing is read before its turn."""
    own = copy.copy(loader)
    own.config = _endless_config(loader.config, loader.config.optim.batch_size)
    taking = {OWN: own, **streams}
    begun = order.before(start_step)
    coming = {name: taking[name].batches(begun[name]) for name in order.steps}
    for step in range(start_step, total_steps):
        name = order.at(step)
        yield replace(next(coming[name]), step=step, source=name)


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
    """`views` with those of the streams, normalised and augmented on `device`.

    Views of an interleaved stream have its name as `extra["rehearsal"]`.
    """
    if views.source:
        batch = streams[views.source].to_batch(views, device)
        return replace(batch, extra={**batch.extra, "rehearsal": views.source})
    batch = loader.to_batch(views, device)
    beside = {name: streams[name].to_batch(theirs, device) for name, theirs in views.streams.items() if theirs}
    return replace(batch, streams=beside)


def unread(views: StepViews) -> bool:
    """Whether a stream gave no view for a step that has some."""
    return bool(views) and not all(views.streams.values())
