"""Sequences of AR-SSL4M (Wang et al., AAAI 2025): views glued from slabs along z.

Drawing is apart from reading: a `Recipe` says, from a key alone, which boxes of which scans a view is made of; so the
same view comes out in any process, after any resume, and whatever number of loaders reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from training_backend.config.run import RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord
from training_backend.data.sequence_crops import Box, glued
from training_backend.data.store import StoredCase
from training_backend.data.views import Key
from training_backend.data.volume import Shape, Triple
from training_backend.errors import ConfigError, Med3dError, said

Kind = Literal["spatial", "contrast", "semantic"]
KINDS: tuple[Kind, ...] = ("spatial", "contrast", "semantic")

Open = Callable[[CaseRecord], StoredCase]
"""Opens a case; loaders keep those that they used last."""


@dataclass(frozen=True)
class Part:
    """One box to read: of a stored case, or a whole file of the published lists.

    Attributes:
        name: case id or file name, for lists of what could not be read.
        source: index of the case, or the file.
        box: voxels of the stored scan; empty for files.
        contrast: name of the image; the first one when empty.
    """

    name: str
    source: int | str
    box: Box = Box((0, 0, 0), (0, 0, 0))
    contrast: str = ""


@dataclass(frozen=True)
class Recipe:
    """What a view is glued from: one part that all slabs are cut from (spatial), or one part per slab."""

    kind: Kind
    parts: tuple[Part, ...]
    start: int = 0
    """First slice of the first slab of a spatial sequence."""
    stride: int = 1
    """Slices between the starts of its neighbouring slabs."""


class Sequences(Protocol):
    """Where the sequences of a split come from: the store of a dataset, or the published lists."""

    @property
    def visits(self) -> int:
        """Cases, or lines of the lists, in one pass."""
        ...

    @property
    def per_visit(self) -> int:
        """Views drawn at each of them."""
        ...

    @property
    def left_out(self) -> tuple[str, ...]:
        """A sentence for each kind that has a weight and is not drawn."""
        ...

    def draw(self, key: Key) -> Recipe:
        """Recipe of the view that `key` stands for."""
        ...

    def read(self, part: Part, size: Shape, opened: Open) -> tuple[npt.NDArray[np.float32], Triple]:
        """Voxels of a part on `size` voxels within [0, 1], and their millimetres along (z, y, x)."""
        ...


@dataclass(frozen=True)
class SequenceView:
    """A view glued along z.

    Attributes:
        image: [D, H, W] float32 within [0, 1].
        kind: of the sequence.
        cases: the scans in it, in the order of the slabs.
        spacing_mm: along (z, y, x), of the first slab.
    """

    image: npt.NDArray[np.float32]
    kind: Kind
    cases: tuple[str, ...]
    spacing_mm: Triple


class Unreadable(Med3dError):
    """A part of a sequence cannot be read; `case` tells which scan it is of."""

    def __init__(self, case: str, error: BaseException) -> None:
        super().__init__(said(error))
        self.case = case


class Example(NamedTuple):
    """A view to look at before training.

    Attributes:
        array: [1, D, H, W] float32 within [0, 1].
        slabs: [D] number of the slab of each slice, from 0.
        kind: of the sequence.
        note: a sentence on how it was made, without any name.
    """

    array: npt.NDArray[np.float32]
    slabs: npt.NDArray[np.uint8]
    kind: Kind
    note: str


def open_sequences(dataset: Dataset, config: RunConfig, cases: Sequence[CaseRecord], split: str) -> Sequences:
    """Sequences of the `cases` of a split, or of the published lists where the configuration names some.

    Raises:
        ConfigError: settings that cannot be met together.
        DataError: the data cannot give a kind that is asked for.
    """
    from training_backend.data.ar_lists import ListSequences, lists_of
    from training_backend.data.sequence_store import StoreSequences

    if lists_of(config):
        return ListSequences.open(config, split)
    return StoreSequences.plan(dataset, config, cases, split)


def build(sequences: Sequences, recipe: Recipe, config: RunConfig, opened: Open) -> SequenceView:
    """The view of `recipe`; raises `Unreadable` for the first part that cannot be read."""
    settings, size = config.data.sequence, config.data.size
    slab = (size[0] // settings.slabs, size[1], size[2])
    arrays, spacings = [], []
    for part in recipe.parts:
        try:
            array, spacing_mm = sequences.read(part, size if recipe.kind == "spatial" else slab, opened)
        except (Med3dError, OSError, MemoryError) as error:
            raise Unreadable(part.name, error) from error
        arrays.append(array)
        spacings.append(spacing_mm)
    if recipe.kind == "spatial":
        image = glued(arrays[0], recipe.start, settings.slabs, recipe.stride, depth=size[0])
    else:
        image = np.concatenate(arrays)
    return SequenceView(image, recipe.kind, tuple(part.name for part in recipe.parts), spacings[0])


def example(config: RunConfig, kind: Kind, seed: int = 0) -> Example:
    """One view of a kind from the training data of `config`, for a look before training; the seed chooses it.

    Raises:
        Med3dError: the kind cannot be made from these data, or what was chosen cannot be read.
    """
    from training_backend.data.ar_lists import lists_of, open_dataset
    from training_backend.data.loader import ViewLoader
    from training_backend.data.store import open_case

    only: Mapping[str, float] = {name: float(name == kind) for name in KINDS}
    changed = config.updated({"seed": seed, "task": None, "kind": "pretrain", "data": {"view": "sequence"}})
    if not lists_of(changed):
        changed = changed.updated({"data": {"sequence": dict(only)}})
    dataset = open_dataset(changed)
    loader = ViewLoader(dataset, changed)
    sequences = loader.sequences
    if sequences is None:
        raise ConfigError("The view of these settings is no sequence.", "Set data.view to sequence.")
    for index in range(sequences.visits):
        recipe = sequences.draw((seed, 0, (index + seed) % sequences.visits, 0))
        if recipe.kind == kind:
            view = build(sequences, recipe, changed, lambda case: open_case(dataset, case))
            slabs = changed.data.sequence.slabs
            numbers = np.repeat(np.arange(slabs, dtype=np.uint8), changed.data.size[0] // slabs)
            return Example(view.image[None], numbers, kind, _note(changed, recipe))
    raise ConfigError(f"The lists hold no {kind} sequence.", "Give the list file of that kind.")


def _note(config: RunConfig, recipe: Recipe) -> str:
    settings, depth = config.data.sequence, config.data.size[0]
    thick = depth // settings.slabs
    if recipe.kind == "spatial":
        return (
            f"{settings.slabs} slabs of {thick} slices, {recipe.stride} apart, from slice {recipe.start} of one crop."
        )
    if recipe.kind == "contrast":
        names = [part.contrast for part in recipe.parts]
        shown = ", ".join(names) if all(names) else f"{len(names)} contrasts"
        return f"The same box of one case in {shown}; {thick} slices each."
    return f"{settings.slabs} lesions of one type in different patients; {thick} slices each."
