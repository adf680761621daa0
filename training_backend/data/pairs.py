"""Pairs of scans for registration: which case is moved onto which, and both on one grid of voxels.

Who is paired with whom is a function of (seed, epoch, case), so the same pairs come out in any process and after any
resume. Both scans are seen whole, on as many voxels; a displacement in voxels leads from the grid of the fixed scan to
that of the moving one, and each grid knows where it lies in its own scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training_backend.config.data import IntensityConfig
from training_backend.config.pairs import PairTaskConfig
from training_backend.config.run import RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.intensity import Statistics, normalise
from training_backend.data.manifest import CaseRecord, Split
from training_backend.data.prepare import InputProfile, Prepared, prepare, stored_input
from training_backend.data.resample import resample
from training_backend.data.standard import standardise
from training_backend.data.store import StoredCase, open_case
from training_backend.data.views import IGNORED, Key, View, generator
from training_backend.data.volume import Array, Geometry, Volume
from training_backend.data.whole import outside, view_grid, volume_view
from training_backend.errors import ConfigError, DataError, GeometryError

_PARTNER = 21  # sets these random numbers apart
LEAST_SHARED = 0.05
"""Share of the fixed view that the moving scan must cover where both lie as their files say."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of one split.

    Attributes:
        fixed: cases that others are moved onto.
        moving: those that can be moved, the atlas alone if there is one.
        symmetric: whether the second view of a pair is the first one the other way round.
    """

    fixed: tuple[CaseRecord, ...]
    moving: tuple[CaseRecord, ...]
    symmetric: bool

    def draw(self, key: Key) -> tuple[CaseRecord, CaseRecord]:
        """Moving and fixed case of the view with `key`."""
        seed, epoch, index, view = key
        fixed = self.fixed[index]
        others = [case for case in self.moving if case.id != fixed.id]
        moving = others[int(generator(seed, epoch, index, _PARTNER).integers(len(others)))]
        return (fixed, moving) if self.symmetric and view == 1 else (moving, fixed)

    def listed(self) -> list[tuple[CaseRecord, CaseRecord]]:
        """Every fixed case once, with the one that comes next (or the atlas) as moving; for scores that repeat."""
        found = []
        for fixed in self.fixed:
            others = [case for case in self.moving if case.id != fixed.id]
            found.append((next((case for case in others if case.id > fixed.id), others[0]), fixed))
        return found


@dataclass(frozen=True)
class PairInput:
    """Two scans as network input, on grids of as many voxels."""

    moving: Prepared
    fixed: Prepared

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """[2, D, H, W] float32, the moving scan first."""
        return np.concatenate([self.moving.array, self.fixed.array])

    @property
    def labels(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None:
        """Label maps [D, H, W] of the moving and the fixed scan, 0 outside them; None unless both have one."""
        if self.moving.label is None or self.fixed.label is None:
            return None
        return _without_gaps(self.moving.label), _without_gaps(self.fixed.label)


def settings(config: RunConfig) -> PairTaskConfig:
    """The pair settings of a run whose task has them."""
    assert isinstance(config.task, PairTaskConfig)  # `needs` of the task says so
    return config.task


def check_config(config: RunConfig) -> None:
    """Refuse settings that pairs cannot be made with.

    Raises:
        ConfigError: crops, several contrasts, or changes that would move only one of the label maps.
    """
    data = config.data
    if data.view != "volume":
        raise ConfigError(
            f"Registration looks at whole scans, but data.view is {data.view}.", "Set data.view to volume."
        )
    if len(data.contrasts) > 1:
        raise ConfigError(
            f"Registration looks at one contrast of each scan, but {len(data.contrasts)} are named.",
            "Name one in data.contrasts, or none for the first.",
        )
    moved = [name for name in ("rotate", "scale", "elastic") if getattr(data.augment, name)]
    if moved:
        raise ConfigError(
            f"Registration learns what moves, so data.augment.{moved[0]} cannot be used with it.",
            "Set it to 0; flips and changes of intensity are fine.",
        )


def choose_pairs(dataset: Dataset, config: RunConfig, split: Split) -> Pairs:
    """Pairs of `split`; a split of a single case is paired with the training cases.

    Raises:
        ConfigError: settings that make no pairs, an atlas that is not there.
        DataError: too few cases, or none with the label maps that are asked for.
    """
    check_config(config)
    task = settings(config)
    fixed = _usable(dataset.cases(split=split), task)
    if task.atlas:
        atlas = dataset.case(task.atlas)
        if task.use_labels and atlas.label is None:
            raise DataError(f"The atlas {atlas.id} has no label map.", "Give it one, or set task.use_labels to false.")
        fixed, moving = [case for case in fixed if case.id != atlas.id], [atlas]
    else:
        moving = fixed if len(fixed) > 1 else fixed + _usable(dataset.cases(split="train"), task)
    if not fixed or not any(case.id != fixed[0].id for case in moving):
        labelled = " with a label map" if task.use_labels else ""
        raise DataError(
            f"The {split} split of {dataset.info.name} has {len(fixed)} case(s){labelled}; registration needs pairs.",
            "Add cases" + (", or set task.use_labels to false to do without label maps." if task.use_labels else "."),
        )
    return Pairs(tuple(fixed), tuple(moving), task.symmetric)


def pair_view(
    moving: StoredCase, fixed: StoredCase, config: RunConfig, folder_of: Callable[[StoredCase], Path]
) -> View:
    """One training view: images [2, D, H, W] normalised, labels [2, D, H, W] or None.

    Args:
        moving: open case that is moved.
        fixed: open case that it is moved onto.
        config: of the run.
        folder_of: folder of a case in the store, where whole views are kept.
    """
    data, task = config.data, settings(config)
    parts = []
    for stored in (moving, fixed):
        channels = stored.channels_of(data.contrasts)
        if stored is moving and task.align == "world":
            grid = view_grid(fixed.geometry, data.size, keep_aspect=data.keep_aspect)
            view = _stored_on(stored, grid, channels, task.use_labels)
        else:
            view = volume_view(
                stored,
                folder_of(stored),
                data.size,
                keep_aspect=data.keep_aspect,
                channels=channels,
                labels=task.use_labels,
            )
        image = normalise(view.image, [stored.statistics[channel] for channel in channels], data.intensity)
        parts.append((image, view.label))
    labels = [_without_gaps(label) for _, label in parts if label is not None]
    return View(np.concatenate([image for image, _ in parts]), np.stack(labels) if len(labels) == 2 else None, None)


def stored_pair(
    dataset: Dataset, moving: CaseRecord, fixed: CaseRecord, profile: InputProfile, align: str
) -> PairInput:
    """Network input of two stored cases, with their label maps."""
    onto = stored_input(dataset, fixed, profile)
    if align == "boxes":
        return PairInput(stored_input(dataset, moving, profile), onto)
    stored = open_case(dataset, moving)
    (channel,) = stored.channels_of(profile.contrasts)
    view = _stored_on(stored, onto.geometry, (channel,), stored.labelled)
    one = stored.statistics[channel]
    return PairInput(_prepared(view, onto.geometry, stored.native, one, profile.intensity), onto)


def prepare_pair(moving: Volume, fixed: Volume, profile: InputProfile, align: str) -> PairInput:
    """Network input of two scans as they come; of any sizes and spacings.

    Raises:
        DataError: a scan cannot be used.
        GeometryError: with `align` "world", scans that hardly overlap in space.
    """
    onto = prepare([fixed], profile)
    if align == "boxes":
        return PairInput(prepare([moving], profile), onto)
    standard = standardise([moving], None, profile.spacing_mm, crop_body=profile.crop_body)
    one = standard.statistics[0]
    image = _onto(standard.images[0], standard.geometry, onto.geometry, one, moving.name)
    view = View(image[None], None, None)
    return PairInput(_prepared(view, onto.geometry, standard.native, one, profile.intensity), onto)


def _usable(cases: Sequence[CaseRecord], task: PairTaskConfig) -> list[CaseRecord]:
    return [case for case in cases if case.label is not None or not task.use_labels]


def _stored_on(stored: StoredCase, grid: Geometry, channels: Sequence[int], labels: bool) -> View:
    """A stored case on another grid, as both lie in space."""
    (channel,) = channels
    image = stored.read_image(channels=[channel])[0]
    moved = _onto(image, stored.geometry, grid, stored.statistics[channel], stored.id)
    label = resample(stored.read_label(), stored.geometry, grid, nearest=True) if labels else None
    return View(moved[None], label, None)


def _onto(array: Array, geometry: Geometry, grid: Geometry, one: Statistics, name: str) -> Array:
    empty = outside(geometry, grid) if _parallel(geometry, grid) else None
    covered = 1.0 if empty is None else 1 - float(empty.mean())
    result = resample(array, geometry, grid, fill=one.minimum / one.scale)
    if covered < LEAST_SHARED or not np.ptp(result):
        raise GeometryError(
            f"{name} covers {100 * covered:.0f} % of the scan that it should be moved onto.",
            "Set task.align to boxes for scans that do not share a space, or register them by hand first.",
        )
    return result


def _parallel(one: Geometry, other: Geometry) -> bool:
    steps = np.linalg.inv(one.to_lps[:3, :3]) @ other.to_lps[:3, :3]
    return bool(np.abs(steps - np.diag(np.diag(steps))).max() < 1e-3)


def _prepared(view: View, grid: Geometry, native: Geometry, one: Statistics, intensity: IntensityConfig) -> Prepared:
    image = normalise(view.image, [one], intensity)
    return Prepared(image, grid, native, (one,), intensity, view.label, None)


def _without_gaps(label: Array) -> npt.NDArray[np.uint8]:
    """Label map with background where the view reaches outside the scan."""
    result: npt.NDArray[np.uint8] = np.where(label == IGNORED, 0, label).astype(np.uint8)
    return result
