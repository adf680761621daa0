"""Views for training, in an order and with randomness that depend on nothing but the seed and a counter.

View slot u of a run is crop ``u % crops_per_volume`` of visit ``v = u // crops_per_volume``; visit v is case
``permutation(seed, v // cases)[v % cases]`` of epoch ``v // cases``, or where cases are drawn with replacement,
``draws(seed, v // cases)[v % cases]``. So any process can compute any step, and batches are the same for every number
of workers, every micro-batch, and after every resume.
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training_backend.config.run import RunConfig
from training_backend.data import augment
from training_backend.data.choice import choose_cases
from training_backend.data.dataset import Dataset
from training_backend.data.intensity import Statistics, normalise
from training_backend.data.manifest import CaseRecord
from training_backend.data.pairs import Pairs, choose_pairs, pair_view
from training_backend.data.processes import ahead, choose_workers, end_with_parent
from training_backend.data.resized import check_area, resized_view
from training_backend.data.sequence import Sequences, Unreadable, build, open_sequences
from training_backend.data.store import StoredCase, open_case
from training_backend.data.views import Batch, Key, StepViews, View, crop_view, generator
from training_backend.data.volume import Array, Triple
from training_backend.errors import ConfigError, Med3dError, said

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

_ORDER, _DRAWS = 11, 13  # set the streams of random numbers apart
_KEEP_OPEN = 64
NO_VOXELS = (0, 1, 1, 1)
"""Shape of the image of a view that is a report."""


@dataclass(frozen=True)
class _Item:
    """Consecutive view slots of one case."""

    first: int
    count: int


@dataclass(frozen=True)
class _Loaded:
    """Views of an item (tensors) or the reason why there are none."""

    item: _Item
    case_id: str
    images: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()
    padding: tuple[Tensor | None, ...] = ()
    statistics: tuple[Statistics, ...] = ()
    spacing_mm: Triple = (1.0, 1.0, 1.0)
    kind: str = ""
    failure: str = ""


class ViewLoader:
    """Views of a dataset for a run.

    Args:
        dataset: opened dataset.
        config: of the run.
        needs: "labels", "target" or "text" keeps cases that have them, "pairs" shows two at once; None takes all,
            unlabelled ones included. Views of reports keep cases with a report in any case.
        split: "train" shuffles and augments without end; others are one pass in order, without augmentation.
        rank: of this process among `world`; each gets its part of every step.
        world: number of processes.
        unit: views of a step that stay together in one process.

    Raises:
        DataError: no case fits.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: RunConfig,
        *,
        needs: str | None = None,
        split: str = "train",
        rank: int = 0,
        world: int = 1,
        unit: int = 1,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.needs = needs
        self.split = split
        self.rank = rank
        self.world = world
        self.unit = unit
        self.read_from = 0
        """Step before which no view is read, because nothing looks at it: see `ViewLoader.unread`."""
        check_area(config.data.area)
        self.sequences: Sequences | None = None
        self.pairs: Pairs | None = None
        if needs == "pairs":
            self.pairs = choose_pairs(dataset, config, split)  # type: ignore[arg-type]
        self.lacking: tuple[str, ...] = ()
        if self.pairs is not None:
            self.cases = list(self.pairs.fixed)
        else:
            self.cases, self.lacking = choose_cases(dataset, config, needs, split)
        if config.data.view == "sequence":
            self.sequences = open_sequences(dataset, config, self.cases, split)
        self.visits = self.sequences.visits if self.sequences else len(self.cases)
        self.workers = choose_workers(config, self.visits, world)
        if config.data.order == "replacement" and (self.sequences is not None or self.pairs is not None):
            raise ConfigError(
                "Sequences and pairs of scans are visited once an epoch, not drawn with replacement.",
                "Set data.order to exact.",
            )

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the configuration asks for and the data cannot give, a sentence each."""
        return (*self.lacking, *(self.sequences.left_out if self.sequences is not None else ()))

    @property
    def views_per_epoch(self) -> int:
        """Views in one pass over the cases, on all processes."""
        return self.visits * self._per_case

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run, or of one pass for other splits than train."""
        optim = self.config.optim
        if self.split != "train":
            return math.ceil(self.views_per_epoch / optim.batch_size)
        return optim.max_steps or max(1, math.ceil(optim.epochs * self.views_per_epoch / optim.batch_size))

    def batches(self, start_step: int = 0) -> Iterator[StepViews]:
        """Views of this process for each step from `start_step` to `total_steps`."""
        steps = self._steps(start_step)
        return ahead(steps) if self._pinned else steps

    def unread(self, step: int) -> StepViews:
        """The views of this process for a step by their names alone: images have no channel."""
        import torch

        slots = self._slots(step)
        names = [self.cases[self._key(slot)[2]].id for slot in slots]
        nothing = torch.zeros(NO_VOXELS)
        entries = [
            (_Loaded(_Item(slot, 1), name, (nothing,), padding=(None,)), 0)
            for slot, name in zip(slots, names, strict=True)
        ]
        return self._stacked(step, slots, entries)

    def to_batch(self, views: StepViews, device: torch.device | str) -> Batch:
        """Normalise and augment `views` on `device`."""
        import torch

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        images = views.images.to(device, non_blocking=True)
        labels = moved(views.labels)
        extra: dict[str, Any] = {"spacing_mm": list(views.spacing_mm)}
        if self.sequences is not None:
            extra["kinds"] = list(views.kinds)
        if self.needs == "labels":
            extra["annotated"] = [self.cases[index].annotated for _, _, index, _ in views.keys]
        if self.needs == "text" or self._reports:  # reports stay in this process, and go nowhere but into the batch
            extra["texts"] = [self.cases[index].report for _, _, index, _ in views.keys]
        batch = Batch(
            volume=self._normalised(images, views),
            case_ids=list(views.case_ids),
            labels=None if labels is None else labels.to(torch.int64),
            target=moved(views.target),
            padding=moved(views.padding),
            extra=extra,
        )
        if batch.padding is not None and batch.padding is views.padding:
            batch.padding = batch.padding.clone()  # on the CPU nothing was copied, and flips work in place
        if self.split != "train" or not views.images.shape[1]:
            return batch
        changes = [augment.draw(self.config.data.augment, key) for key in views.keys]
        return augment.apply(batch, changes, views.spacing_mm)

    def _normalised(self, images: Tensor, views: StepViews) -> Tensor:
        """Network input of `images`; sequences and pairs are that already: each slab or scan has its own numbers."""
        import torch

        if self.sequences is not None or self.pairs is not None or not views.images.shape[1]:
            return images.to(torch.float32, copy=True)
        result: Tensor = normalise(images, views.statistics, self.config.data.intensity)
        return result

    @property
    def _reports(self) -> bool:
        """Whether views are reports, without voxels."""
        return self.config.data.view == "text"

    @property
    def _per_case(self) -> int:
        if self.sequences is not None:
            return self.sequences.per_visit
        if self.pairs is not None:
            return 2 if self.pairs.symmetric else 1
        return self.config.data.crops_per_volume if self.config.data.view == "crop" else 1

    @property
    def _pinned(self) -> bool:
        import torch

        return self.config.engine.device != "cpu" and torch.cuda.is_available()

    def _slots(self, step: int) -> range:
        """View slots of this process in `step`."""
        batch = self.config.optim.batch_size
        share = self.unit * math.ceil(batch / self.unit / self.world)
        end = (step + 1) * batch
        if self.split != "train":
            end = min(end, self.views_per_epoch)
        first = min(step * batch + self.rank * share, end)
        return range(first, min(first + share, end))

    def _steps(self, start_step: int) -> Iterator[StepViews]:
        first = max(start_step, min(self.read_from, self.total_steps))
        yield from map(self.unread, range(start_step, first))
        yield from self._assembled(first)

    def _assembled(self, start_step: int) -> Iterator[StepViews]:
        waiting: deque[tuple[_Loaded, int]] = deque()  # (case, view of it) for each slot to come
        loaded = self._loaded(start_step)
        try:
            for step in range(start_step, self.total_steps):
                slots = self._slots(step)
                while len(waiting) < len(slots):
                    one = next(loaded)
                    waiting.extend((one, index) for index in range(one.item.count))
                yield self._stacked(step, slots, [waiting.popleft() for _ in slots])
        finally:
            loaded.close()

    def _loaded(self, start_step: int) -> Generator[_Loaded, None, None]:
        """Items in order; should a worker process die, the rest is read in this one."""
        slots = itertools.chain.from_iterable(self._slots(step) for step in range(start_step, self.total_steps))
        together = 1 if self.sequences is not None else self._per_case
        items = (self._item(list(group)) for _, group in itertools.groupby(slots, lambda slot: slot // together))
        reader = _Reader(self)
        if self.workers == 0:
            yield from map(reader.__getitem__, items)
            return
        pending: deque[_Item] = deque()
        stream = _from_workers(reader, _remembered(items, pending), self.workers)
        try:
            for one in stream:
                pending.popleft()
                yield one
            return
        except (RuntimeError, OSError, EOFError) as error:  # cases that cannot be read are no errors here
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            logger.warning("A loader process died (%s); reading goes on in this process.", error)
        del stream  # ends the processes that are left
        yield from map(reader.__getitem__, itertools.chain(list(pending), items))

    @staticmethod
    def _item(slots: Sequence[int]) -> _Item:
        return _Item(slots[0], len(slots))

    def _key(self, slot: int) -> Key:
        """Key of a view slot; its third number is the index of the case (or line) that is visited."""
        visit, view = divmod(slot, self._per_case)
        epoch, position = divmod(visit, self.visits)
        seed = self.config.seed
        if self.split != "train":
            return (seed, epoch, position, view)
        if self.config.data.order == "replacement":  # a case that comes twice in an epoch is not changed alike
            return (seed, epoch, int(_draws(seed, epoch, self.visits)[position]), position * self._per_case + view)
        return (seed, epoch, int(_order(seed, epoch, self.visits)[position]), view)

    def _stacked(self, step: int, slots: range, entries: Sequence[tuple[_Loaded, int]]) -> StepViews:
        import torch

        good = [(slot, one, index) for slot, (one, index) in zip(slots, entries, strict=True) if not one.failure]
        failures = dict.fromkeys((one.case_id, one.failure) for one, _ in entries if one.failure)
        images = [one.images[index] for _, one, index in good]
        labels = [one.labels[index] for _, one, index in good if one.labels]
        padding = [one.padding[index] for _, one, index in good]
        size = self.config.data.size
        if len({image.dtype for image in images}) > 1:
            images = [image.float() for image in images]
        padded = any(mask is not None for mask in padding)
        masks = [torch.zeros(size, dtype=torch.bool) if mask is None else mask for mask in padding] if padded else []
        keys = [self._key(slot) for slot, _, _ in good]
        target = None
        told = self.needs == "text" or (self.needs is None and self._reports)
        if self.needs == "target" or (told and all(case.target is not None for case in self.cases)):
            targets = [self.cases[index].target for _, _, index, _ in keys]
            target = torch.tensor(targets, dtype=torch.float32)
            target = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
        empty = NO_VOXELS if self._reports else (self.config.channels(), *size)
        return StepViews(
            step=step,
            images=self._stack(images) if images else torch.zeros((0, *empty), dtype=torch.int16),
            labels=self._stack(labels) if labels else None,
            padding=self._stack(masks) if masks else None,
            target=target,
            statistics=[one.statistics for _, one, _ in good],
            spacing_mm=[one.spacing_mm for _, one, _ in good],
            keys=keys,
            case_ids=[one.case_id for _, one, _ in good],
            failures=list(failures),
            kinds=[one.kind for _, one, _ in good],
        )

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        import torch

        if not self._pinned:
            return torch.stack(list(tensors))
        shape = (len(tensors), *tensors[0].shape)
        return torch.stack(list(tensors), out=torch.empty(shape, dtype=tensors[0].dtype, pin_memory=True))


class _Reader:
    """Reads items in whatever process it finds itself; keeps recently used cases open."""

    def __init__(self, loader: ViewLoader) -> None:
        self.loader = loader
        self._open: OrderedDict[str, StoredCase] = OrderedDict()

    def __getitem__(self, item: _Item) -> _Loaded:
        import torch

        if self.loader.sequences is not None:
            return self._sequence(self.loader.sequences, item)
        if self.loader.pairs is not None:
            return self._pair(self.loader.pairs, item)
        case = self.loader.cases[self.loader._key(item.first)[2]]
        if self.loader._reports:
            return _Loaded(item, case.id, images=(torch.zeros(NO_VOXELS),) * item.count, padding=(None,) * item.count)
        try:
            stored = self._stored(case)
            views = [self._view(stored, case, slot) for slot in range(item.first, item.first + item.count)]
        except (Med3dError, OSError, MemoryError) as error:
            self._open.pop(case.id, None)
            return _Loaded(item, case.id, failure=said(error))
        channels = stored.channels_of(self.loader.config.data.contrasts)
        return _Loaded(
            item,
            case.id,
            images=tuple(_tensor(view.image) for view in views),
            labels=tuple(torch.from_numpy(view.label) for view in views if view.label is not None),
            padding=tuple(None if view.padding is None else torch.from_numpy(view.padding) for view in views),
            statistics=tuple(stored.statistics[channel] for channel in channels),
            spacing_mm=views[0].spacing_mm or stored.geometry.spacing_mm,
        )

    def _sequence(self, sequences: Sequences, item: _Item) -> _Loaded:
        """The one view of an item, and the scans in it; only the scan that cannot be read is blamed."""
        import torch

        try:
            view = build(sequences, sequences.draw(self.loader._key(item.first)), self.loader.config, self._stored)
        except Unreadable as error:
            self._open.pop(error.case, None)
            return _Loaded(item, error.case, failure=str(error))
        image = torch.from_numpy(view.image[None])
        names = ", ".join(dict.fromkeys(view.cases))
        return _Loaded(item, names, (image,), padding=(None,), spacing_mm=view.spacing_mm, kind=view.kind)

    def _pair(self, pairs: Pairs, item: _Item) -> _Loaded:
        """Views of a pair, in one direction or both; the one that cannot be read is blamed."""
        import torch

        dataset, views, name = self.loader.dataset, [], ""

        def folder_of(stored: StoredCase) -> Path:
            return dataset.folder / str(dataset.case(stored.id).store["folder"])

        try:
            for slot in range(item.first, item.first + item.count):
                drawn = pairs.draw(self.loader._key(slot))
                name = drawn[0].id
                moving = self._stored(drawn[0])
                name = drawn[1].id
                views.append(pair_view(moving, self._stored(drawn[1]), self.loader.config, folder_of))
                name = f"{drawn[0].id} to {drawn[1].id}"
        except (Med3dError, OSError, MemoryError) as error:
            self._open.pop(name, None)
            return _Loaded(item, name, failure=said(error))
        images = tuple(torch.from_numpy(view.image) for view in views)
        labels = tuple(torch.from_numpy(view.label) for view in views if view.label is not None)
        return _Loaded(item, name, images, labels, padding=(None,) * len(views))

    def _stored(self, case: CaseRecord) -> StoredCase:
        if case.id not in self._open:
            while len(self._open) >= _KEEP_OPEN:
                self._open.popitem(last=False)
            self._open[case.id] = open_case(self.loader.dataset, case)
        self._open.move_to_end(case.id)
        return self._open[case.id]

    def _view(self, stored: StoredCase, case: CaseRecord, slot: int) -> View:
        data = self.loader.config.data
        labels = self.loader.needs == "labels"
        channels = stored.channels_of(data.contrasts)
        if data.view == "volume":
            from training_backend.data.whole import volume_view

            folder = self.loader.dataset.folder / case.store["folder"]
            return volume_view(
                stored,
                folder,
                data.size,
                keep_aspect=data.keep_aspect,
                channels=channels,
                labels=labels,
                centre=data.centre,
                wander=data.wander,
                key=self.loader._key(slot) if self.loader.split == "train" else None,
            )
        key = self.loader._key(slot)
        if data.view == "resized":
            part = key if self.loader.split == "train" else None
            return resized_view(stored, data.size, part, area=data.area, channels=channels, labels=labels)
        return crop_view(stored, data.size, key, channels=channels, labels=labels, foreground=data.foreground)


def _from_workers(reader: _Reader, items: Iterable[_Item], workers: int) -> Iterator[_Loaded]:
    from torch.utils.data import DataLoader

    stream: DataLoader[Any] = DataLoader(
        reader,  # type: ignore[arg-type]
        sampler=items,
        batch_size=None,
        collate_fn=_as_is,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=2,
    )
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    loaded = iter(stream)
    if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
        # torch would raise wherever the main thread happens to be when a worker dies; without its handler the death is
        # found, some seconds later, where the next item is waited for
        signal.signal(signal.SIGCHLD, before)
    return loaded


def _remembered(items: Iterator[_Item], pending: deque[_Item]) -> Iterator[_Item]:
    """Pass `items` on, keeping those that were handed out but have not come back."""
    for item in items:
        pending.append(item)
        yield item


def _tensor(image: Array) -> Tensor:
    """Stored values as a tensor; 16-bit pictures as float32, for torch computes little with their type."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image, np.float32 if image.dtype == np.uint16 else image.dtype))


@lru_cache(maxsize=4)
def _draws(seed: int, epoch: int, cases: int) -> npt.NDArray[np.int64]:
    return generator(seed, epoch, _DRAWS).integers(cases, size=cases)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, cases: int) -> npt.NDArray[np.int64]:
    return generator(seed, epoch, _ORDER).permutation(cases)


def _as_is(loaded: _Loaded) -> _Loaded:
    return loaded


def _start_worker(_: int) -> None:
    import torch

    torch.set_num_threads(1)
    end_with_parent()
