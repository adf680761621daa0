"""What the loader gives: the views of one optimiser step on the host, and the batch made of them on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training_backend.data.intensity import Statistics
from training_backend.data.store import StoredCase
from training_backend.data.volume import Array, Shape, Triple

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = 255
"""Label value of voxels that nobody labelled: outside the scan, or moved in from there by augmentation."""

Key = tuple[int, int, int, int]
"""(seed, epoch, case index, view): all that a view's randomness depends on."""


@dataclass
class Batch:
    """What the loader hands to a method or a task; tensors already on the device and intensity-normalised.

    Shapes: `volume` [B, C, D, H, W] float; `labels` [B, D, H, W] int64 or None, 255 where unlabelled; `target` [B] or
    [B, K] or None; `padding` [B, D, H, W] bool or None, true where the view reaches outside the scan. `streams` holds
    the batches of further streams that the method asked for, by name; one without readable views is left out.
    `extra` has "snapshot", a network that learns no more, from the step on at which the method asked for one.
    """

    volume: Tensor
    case_ids: Sequence[str]
    labels: Tensor | None = None
    target: Tensor | None = None
    padding: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    streams: Mapping[str, Batch] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """One view on the host: stored values [C, D, H, W], labels [D, H, W] and padding [D, H, W], or None for these.

    `spacing_mm` along (z, y, x) is None where it is the store's.
    """

    image: Array
    label: Array | None
    padding: npt.NDArray[np.bool_] | None
    spacing_mm: Triple | None = None


@dataclass(frozen=True)
class StepViews:
    """The views of one optimiser step on the host; slicing gives micro-batches.

    Attributes:
        step: optimiser step they belong to.
        images: [V, C, D, H, W] stored values, int16, float16 or float32 (of sequences float32 within [0, 1]); V is
            smaller where cases failed, even 0.
        labels: [V, D, H, W] uint8 or None.
        padding: [V, D, H, W] bool, or None where no view reaches outside its scan.
        target: [V] or [V, K] float32, or None.
        statistics: of each view's contrasts.
        spacing_mm: of each view along (z, y, x).
        keys: of each view's randomness.
        case_ids: of each view.
        failures: case id and sentence of each case that could not be read; nothing was put in its place.
        kinds: of sequence, for views that are one: "spatial", "contrast" or "semantic".
        streams: views of the same step from further streams; a micro-batch has its share of each.
        source: the interleaved stream that they are of; empty for those of the run's own cases.
    """

    step: int
    images: Tensor
    labels: Tensor | None
    padding: Tensor | None
    target: Tensor | None
    statistics: Sequence[tuple[Statistics, ...]]
    spacing_mm: Sequence[Triple]
    keys: Sequence[Key]
    case_ids: Sequence[str]
    failures: Sequence[tuple[str, str]] = ()
    kinds: Sequence[str] = ()
    streams: Mapping[str, StepViews] = field(default_factory=dict)
    source: str = ""

    def __len__(self) -> int:
        """Number of views."""
        return len(self.case_ids)

    def __getitem__(self, part: slice) -> StepViews:
        """The views of a slice, sharing memory."""
        first, last, _ = part.indices(len(self))
        return replace(
            self,
            images=self.images[part],
            labels=None if self.labels is None else self.labels[part],
            padding=None if self.padding is None else self.padding[part],
            target=None if self.target is None else self.target[part],
            statistics=self.statistics[part],
            spacing_mm=self.spacing_mm[part],
            keys=self.keys[part],
            case_ids=self.case_ids[part],
            kinds=self.kinds[part],
            streams={name: views[_share(views, first, last, len(self))] for name, views in self.streams.items()},
        )


def _share(views: StepViews, first: int, last: int, whole: int) -> slice:
    """Part of `views` that belongs to the views `first` to `last` of `whole` others; all parts together are all."""
    return slice(first * len(views) // max(whole, 1), last * len(views) // max(whole, 1))


def generator(*key: int) -> np.random.Generator:
    """Numbers that depend on `key` alone: counter-based, so in any process and any order."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def crop_view(
    stored: StoredCase,
    size: Shape,
    key: Key,
    *,
    channels: Sequence[int] = (0,),
    labels: bool = False,
    foreground: float = 0.0,
) -> View:
    """A random box of `size` voxels, padded around its middle where the scan is smaller.

    Args:
        stored: open case.
        size: voxels along (z, y, x).
        key: decides the place.
        channels: contrasts to read.
        labels: read the label map too, and let `foreground` mean labelled voxels instead of the body.
        foreground: probability that the box is centred on such a voxel (of a class drawn first, so small ones count).
    """
    rng = generator(*key)
    centre = _centre(stored, rng, labels) if rng.random() < foreground else None
    place = rng.random(3)
    start, first, count = [], [], []
    for axis, (whole, wanted) in enumerate(zip(stored.shape, size, strict=True)):
        room = whole - wanted
        if room < 0:
            begin = -((-room) // 2)
        elif centre is None:
            begin = min(int(place[axis] * (room + 1)), room)
        else:
            begin = min(max(int(centre[axis]) - wanted // 2, 0), room)
        start.append(begin)
        first.append(max(begin, 0))
        count.append(min(begin + wanted, whole) - max(begin, 0))
    box_start, box_size = (first[0], first[1], first[2]), (count[0], count[1], count[2])
    image = stored.read_image(box_start, box_size, channels)
    label = stored.read_label(box_start, box_size) if labels else None
    if box_size == tuple(size):
        return View(image, label, None)
    fills = [stored.statistics[channel].minimum / stored.statistics[channel].scale for channel in channels]
    inside = tuple(slice(f - s, f - s + n) for f, s, n in zip(first, start, count, strict=True))
    return padded(View(image, label, None), size, inside, fills)


def padded(view: View, size: Shape, inside: tuple[slice, ...], fills: Sequence[float]) -> View:
    """`view` placed at `inside` of a box of `size` voxels; `fills` around each channel, 255 around labels."""
    image = np.empty((len(fills), *size), view.image.dtype)
    image[:] = np.asarray(fills, np.float32).reshape(-1, 1, 1, 1).astype(view.image.dtype)
    image[(slice(None), *inside)] = view.image
    padding = np.ones(size, bool)
    padding[inside] = False
    label = None
    if view.label is not None:
        label = np.full(size, IGNORED, np.uint8)
        label[inside] = view.label
    return View(image, label, padding)


def _centre(stored: StoredCase, rng: np.random.Generator, labels: bool) -> npt.NDArray[np.int32] | None:
    points = stored.points
    values = sorted(value for value in points if value > 0) if labels else []
    chosen = points.get(int(rng.choice(values)) if values else 0)
    return None if chosen is None or not len(chosen) else chosen[int(rng.integers(len(chosen)))]
