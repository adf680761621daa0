"""Sequences drawn from the store of a dataset, by partial reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from training_backend.config.data import SequenceConfig
from training_backend.config.run import RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.lesions import Lesion, stored_geometry, usable_lesions
from training_backend.data.manifest import CaseRecord
from training_backend.data.sequence import KINDS, Kind, Open, Part, Recipe, Unreadable
from training_backend.data.sequence_check import (
    check_settings,
    check_table,
    contrast_groups,
    contrasts_of,
    refuse_semantic,
    refuse_what_is_asked_for,
    without,
)
from training_backend.data.sequence_crops import Box, box_around, crop_box, last_start, prepared
from training_backend.data.views import Key, generator
from training_backend.data.volume import Shape, Triple
from training_backend.errors import ConfigError, DataError, Med3dError

_SEQUENCE = 13  # sets this stream of random numbers apart


@dataclass(frozen=True)
class StoreSequences:
    """Sequences of the cases of a split.

    Attributes:
        cases: in the order of the loader.
        size: voxels of the glued view along (z, y, x).
        settings: of the sequences.
        weights: of the kinds that these cases can give.
        contrast: image that spatial and semantic slabs are cut from; the first when empty.
        contrasts: of a contrast sequence, in order.
        grouped: indices of the cases that have all of them.
        lesions: by type and patient; types with too few patients are left out.
        per_visit: views drawn at each case.
        left_out: a sentence for each kind that has a weight and is not drawn.
    """

    cases: Sequence[CaseRecord]
    size: Shape
    settings: SequenceConfig
    weights: Mapping[Kind, float]
    contrast: str
    contrasts: tuple[str, ...]
    grouped: tuple[int, ...]
    lesions: Mapping[str, Mapping[str, tuple[Lesion, ...]]]
    per_visit: int
    _index: Mapping[str, int] = field(repr=False)
    left_out: tuple[str, ...] = ()

    @classmethod
    def plan(cls, dataset: Dataset, config: RunConfig, cases: Sequence[CaseRecord], split: str) -> StoreSequences:
        """Look at what `cases` can give.

        A kind that has a weight and cannot be drawn is left out, with a sentence in `left_out`, where others remain; so
        the published weights suit any dataset. It is refused where it stands alone, or where its contrasts or lesions
        are named. Other splits than "train" go without what they cannot give, and are spatial where nothing is left.
        """
        check_settings(config)
        settings = config.data.sequence
        weights: dict[Kind, float] = {kind: getattr(settings, kind) for kind in KINDS if getattr(settings, kind) > 0}
        contrasts: tuple[str, ...] = ()
        grouped: tuple[int, ...] = ()
        lesions: Mapping[str, Mapping[str, tuple[Lesion, ...]]] = {}
        problems: dict[str, Med3dError] = {}
        if "contrast" in weights:
            try:
                contrasts = contrasts_of(dataset, settings)
                grouped = contrast_groups(dataset, cases, contrasts, warn=split == "train")
            except (ConfigError, DataError) as error:
                problems["contrast"] = error
        if "semantic" in weights:
            try:
                lesions = usable_lesions(
                    dataset, check_table(settings), cases, settings.slabs, warn=split == "train"
                ) or refuse_semantic(settings)
            except (ConfigError, DataError) as error:
                problems["semantic"] = error
        possible = {kind: weight for kind, weight in weights.items() if kind not in problems}
        if split == "train":
            refuse_what_is_asked_for(problems, settings, alone=not possible)
        return cls(
            cases=cases,
            size=config.data.size,
            settings=settings,
            weights=possible or {"spatial": 1.0},
            contrast=config.data.contrasts[0] if config.data.contrasts else "",
            contrasts=contrasts,
            grouped=grouped,
            lesions=lesions,
            per_visit=config.data.crops_per_volume,
            _index={case.id: index for index, case in enumerate(cases)},
            left_out=tuple(without(kind, error) for kind, error in problems.items()),
        )

    @property
    def visits(self) -> int:
        """Cases in one pass."""
        return len(self.cases)

    def draw(self, key: Key) -> Recipe:
        """Recipe of the view of `key`: of the case that is visited where it can give the kind, else of one drawn."""
        rng = generator(*key, _SEQUENCE)
        kinds, shares = tuple(self.weights), np.cumsum(list(self.weights.values()))
        kind = kinds[int(np.searchsorted(shares, rng.random() * shares[-1], side="right").clip(0, len(kinds) - 1))]

        def randint(low: int, high: int) -> int:
            return int(rng.integers(low, high + 1))

        if kind == "semantic":
            return Recipe(kind, tuple(self._lesion_part(lesion) for lesion in self._lesions_of_one_type(rng)))
        index = key[2]
        if kind == "contrast":
            if index not in self.grouped:
                index = self.grouped[randint(0, len(self.grouped) - 1)]
            box = crop_box(self._shape(index), self._slab, randint)
            return Recipe(kind, tuple(self._part(index, box, contrast) for contrast in self.contrasts))
        box = crop_box(self._shape(index), self.size, randint)
        depth, slabs = self.size[0], self.settings.slabs
        stride = min(self.settings.stride, (depth - depth // slabs) // (slabs - 1))  # less where none was asked for
        start = randint(0, last_start(depth, depth, slabs, stride))
        return Recipe(kind, (self._part(index, box, self.contrast),), start, stride)

    def read(self, part: Part, size: Shape, opened: Open) -> tuple[npt.NDArray[np.float32], Triple]:
        """Voxels of a part on `size` voxels within [0, 1], and their millimetres along (z, y, x)."""
        stored = opened(self.cases[int(part.source)])
        (channel,) = stored.channels_of((part.contrast,) if part.contrast else ())
        crop = stored.read_image(part.box.start, part.box.size, (channel,))[0]
        z, y, x = (
            mm * have / wanted for mm, have, wanted in zip(stored.geometry.spacing_mm, part.box.size, size, strict=True)
        )
        return prepared(crop, size), (z, y, x)

    @property
    def _slab(self) -> Shape:
        return (self.size[0] // self.settings.slabs, self.size[1], self.size[2])

    def _part(self, index: int, box: Box, contrast: str) -> Part:
        return Part(self.cases[index].id, index, box, contrast)

    def _lesion_part(self, lesion: Lesion) -> Part:
        index = self._index[lesion.case]
        shape = self._shape(index)
        box = box_around(lesion.centre, shape, self._slab)
        if lesion.whole_depth:
            box = Box((0, *box.start[1:]), (shape[0], *box.size[1:]))
        return self._part(index, box, self.contrast)

    def _lesions_of_one_type(self, rng: np.random.Generator) -> list[Lesion]:
        """As many lesions as slabs, of a type drawn first, each of another patient."""
        types = sorted(self.lesions)
        patients = self.lesions[types[int(rng.integers(len(types)))]]
        chosen = rng.choice(len(patients), self.settings.slabs, replace=False)
        names = sorted(patients)
        return [patients[names[index]][int(rng.integers(len(patients[names[index]])))] for index in chosen]

    def _shape(self, index: int) -> Shape:
        case = self.cases[index]
        try:
            return stored_geometry(case).shape
        except DataError as error:
            raise Unreadable(case.id, error) from error
