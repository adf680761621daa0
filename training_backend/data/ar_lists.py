"""The files of the published pre-processing of AR-SSL4M: ``.npy`` crops, and lists that name them.

``train_patch_spatial.txt`` has one crop per line; ``train_patch_contrast.txt`` and ``train_patch_semantic.txt`` have
one sequence per line, its crops separated by commas. Paths are absolute, or relative to the list or the folder above.
Crops are float arrays along (x, y, z), already within [0, 1]; here they are turned as if x grew towards Right and y
towards Anterior, so that a network that turns its input to that frame sees exactly the published array.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from training_backend.config.run import RunConfig
from training_backend.data.dataset import INFO, Dataset
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord, Split, dataset_folder
from training_backend.data.sequence import KINDS, Kind, Open, Part, Recipe
from training_backend.data.sequence_check import check_settings
from training_backend.data.sequence_crops import Randint, last_start, stack_extent
from training_backend.data.views import Key, generator
from training_backend.data.volume import Shape, Triple
from training_backend.errors import ConfigError, DataError

SUBSET = frozenset({"TCIA", "RibFrac", "TotalSegmentator", "AbdomenCT-1K", "ISLES2022", "VerSe", "amos22"})
"""Data sets, by the first field of a crop's name, whose spatial crops are in the authors' subset."""
EVERY = 500
"""Every so many-th line is for validation, the first one included."""

_LISTED = 14  # sets this stream of random numbers apart
_SHOWN = 3  # files quoted in a sentence

T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """One sequence of a list: a crop to cut slabs from, or the crops to glue."""

    kind: Kind
    paths: tuple[str, ...]


def in_subset(spatial: Sequence[str], series: Sequence[T]) -> tuple[list[str], list[T]]:
    """Lines of the authors' subset: spatial crops of `SUBSET`, and every second of the other lines."""
    return [line for line in spatial if Path(line).name.split("_")[0] in SUBSET], list(series[::2])


def split_lines(lines: Sequence[T]) -> tuple[list[T], list[T]]:
    """Lines for training and for validation: the published rule takes every `EVERY`-th, starting with the first."""
    train = [line for index, line in enumerate(lines) if index % EVERY]
    return train, list(lines[::EVERY])


def read_lists(lists: Sequence[Path], *, slabs: int, subset: bool = False) -> dict[Split, tuple[Line, ...]]:
    """Sequences of the lists by split, spatial ones first, then contrast, then semantic.

    Raises:
        DataError: a list cannot be read, a line has another number of files than slabs, or files are missing.
        ConfigError: the name of a list does not tell what it holds.
    """
    files = tuple(Path(path).resolve() for path in lists)
    try:
        return _read_lists(files, tuple(path.stat().st_mtime_ns for path in files), slabs, subset)
    except OSError as error:
        name = Path(error.filename or files[0]).name
        raise DataError(f"The list {name} cannot be read: {error.strerror}.", "Check data.sequence.lists.") from error


def check_source(config: RunConfig) -> None:
    """Refuse a run whose dataset, or whose published lists, are not there."""
    if lists_of(config):
        open_dataset(config)
    else:
        dataset_folder(config.data.dataset)


def lists_of(config: RunConfig) -> tuple[Path, ...]:
    """Published lists that a run trains on: those that are named, or those in the folder given as its dataset."""
    if config.data.view != "sequence" or config.data.sequence.lists:
        return config.data.sequence.lists if config.data.view == "sequence" else ()
    folder = config.data.dataset
    if (folder / INFO).is_file():
        return ()
    places = [near / f"train_patch_{kind}.txt" for kind in KINDS for near in (folder, folder / "pair4")]
    return tuple(place for place in places if place.is_file())


def open_dataset(config: RunConfig) -> Dataset:
    """The dataset of a run; where it trains on published lists, one with an entry per list and split."""
    settings, lists = config.data.sequence, lists_of(config)
    if not lists:
        return Dataset.open(config.data.dataset).reading(config.data.report_part)
    lines = read_lists(lists, slabs=settings.slabs, subset=settings.subset)
    sources = {kind_of(path): Path(path) for path in lists}
    records = [
        CaseRecord(
            id=f"{sources[kind].stem}-{split}",
            subject=f"{kind}-{split}",
            split=split,
            images=(ImageRecord(path=sources[kind].name, sha256=_hash(sources[kind]), key=split),),
        )
        for split, members in lines.items()
        for kind in dict.fromkeys(line.kind for line in members)
    ]
    return Dataset(Path(), DatasetInfo(name="published lists", layout="ar-lists"), records)


def kind_of(path: Path) -> Kind:
    """Kind of sequence of a list, from its name."""
    found = [kind for kind in KINDS if kind in Path(path).name.lower()]
    if len(found) != 1:
        raise ConfigError(
            f"The name of the list {Path(path).name} does not tell which sequences it holds.",
            "Call it as published: train_patch_spatial.txt, train_patch_contrast.txt, train_patch_semantic.txt.",
        )
    return found[0]


@dataclass(frozen=True)
class ListSequences:
    """Sequences of the published lists.

    Attributes:
        lines: of the split; one is drawn at each visit.
        size: voxels of the glued view along (z, y, x).
        slabs: in a view.
        stride: slices between the starts of neighbouring slabs of a spatial sequence.
        per_visit: views drawn at each line.
        left_out: nothing; every line is drawn.
    """

    lines: Sequence[Line]
    size: Shape
    slabs: int
    stride: int
    per_visit: int = 1
    left_out: tuple[str, ...] = ()

    @classmethod
    def open(cls, config: RunConfig, split: str) -> ListSequences:
        """Lines of a split of the lists of `config`."""
        check_settings(config, listed=True)
        settings = config.data.sequence
        lines = read_lists(lists_of(config), slabs=settings.slabs, subset=settings.subset)
        found = lines.get("val" if split == "val" else "train", ())
        if not found:
            raise DataError(f"The published lists have no line for {split}.", "Give longer lists.")
        return cls(found, config.data.size, settings.slabs, settings.stride)

    @property
    def visits(self) -> int:
        """Lines in one pass."""
        return len(self.lines)

    def draw(self, key: Key) -> Recipe:
        """Recipe of the line that `key` stands for; only the start of spatial slabs is random."""
        line = self.lines[key[2]]
        parts = tuple(Part(Path(path).name, path) for path in line.paths)
        if line.kind != "spatial":
            return Recipe(line.kind, parts)
        rng = generator(*key, _LISTED)
        return Recipe(line.kind, parts, self.start(lambda low, high: int(rng.integers(low, high + 1))), self.stride)

    def start(self, randint: Randint) -> int:
        """First slice of a spatial sequence: 0 to 63 for the published 128, both included."""
        return randint(0, last_start(self.size[0], self.size[0], self.slabs, self.stride))

    def read(self, part: Part, size: Shape, opened: Open) -> tuple[npt.NDArray[np.float32], Triple]:
        """Voxels of a crop along (z, y, x); crops are stored as they are used, so nothing is resized."""
        array = read_crop(Path(str(part.source)))
        wanted = last_start(size[0], size[0], self.slabs, self.stride) + stack_extent(size[0], self.slabs, self.stride)
        least = wanted if size == self.size else size[0]
        if array.shape[1:] != tuple(size[1:]) or array.shape[0] < least or (size != self.size and array.shape != size):
            z, y, x = array.shape
            slices = f"at least {least}" if size == self.size else f"{size[0]}"
            raise DataError(
                f"{part.name} holds {x} x {y} x {z} voxels (x, y, z); {size[2]} x {size[1]} in {slices} slices are "
                f"expected for {self.slabs} slabs.",
                "Set data.size and data.sequence.slabs to those that the crops were made with, or make them again.",
            )
        return array, (1.0, 1.0, 1.0)


def read_crop(path: Path) -> npt.NDArray[np.float32]:
    """A published ``.npy`` crop (x, y, z) as float32 along (z, y, x), y and x turned round."""
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        what = "Python objects, which are not loaded since they can run code" if "pickle" in str(error) else "no array"
        raise DataError(f"{path.name} holds {what}.", "Make the crop again as a plain array of numbers.") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path.name} cannot be read: it is missing or cut off.", "Make the crop again.") from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "fiu":
        raise DataError(f"{path.name} is no three-dimensional array of numbers.", "Make the crop again.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{path.name} holds voxels that are not numbers (NaN or infinite).", "Make the crop again.")
    return np.ascontiguousarray(array.transpose(2, 1, 0)[:, ::-1, ::-1], np.float32)


@lru_cache(maxsize=2)
def _read_lists(
    files: tuple[Path, ...], _modified: tuple[int, ...], slabs: int, subset: bool
) -> dict[Split, tuple[Line, ...]]:
    content: dict[Kind, list[str]] = {}
    names: dict[Kind, Path] = {}
    for path in files:
        kind = kind_of(path)
        if kind in content:
            raise ConfigError(f"Two lists of {kind} sequences were given.", "Give one list of each kind.")
        names[kind] = path
        content[kind] = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    spatial = content.get("spatial", [])
    series = [(kind, line) for kind in KINDS[1:] for line in content.get(kind, [])]
    if subset:
        spatial, series = in_subset(spatial, series)
    entries: list[tuple[Kind, str]] = [*(("spatial", line) for line in spatial), *series]
    sequences = [_located(names[kind], kind, line, 1 if kind == "spatial" else slabs) for kind, line in entries]
    _check_present(sequences)
    train, val = split_lines(sequences)
    return {"train": tuple(train), "val": tuple(val)}


def _located(path: Path, kind: Kind, line: str, count: int) -> Line:
    """The sequence of a line, its files as paths that lead there."""
    names = [name.strip() for name in line.split(",")]
    if len(names) != count:
        raise DataError(
            f"A line of {path.name} names {len(names)} crops, {count} are expected: {line[:200]}",
            "Set data.sequence.slabs to the number of crops in a line.",
        )
    places = []
    for name in names:
        near = [name] if Path(name).is_absolute() else [str(folder / name) for folder in path.parents[:2]]
        places.append(next((place for place in near if _exists(place)), near[0]))
    return Line(kind, tuple(places))


def _check_present(sequences: Sequence[Line]) -> None:
    paths = dict.fromkeys(path for line in sequences for path in line.paths)
    missing = [Path(path).name for path in paths if not _exists(path)]
    _names_in.cache_clear()
    if missing:
        more = "" if len(missing) <= _SHOWN else ", ..."
        raise DataError(
            f"{len(missing)} of the {len(paths)} crops that the lists name do not exist: "
            f"{', '.join(missing[:_SHOWN])}{more}.",
            "Put them back, correct the paths, or take the lines out of the lists.",
        )


def _exists(path: str) -> bool:
    folder, name = os.path.split(path)
    return name in _names_in(folder)


@cache
def _names_in(folder: str) -> frozenset[str]:
    """Names in a folder, read once: asking for each file by itself takes minutes on network disks."""
    try:
        return frozenset(place.name for place in Path(folder).iterdir())
    except OSError:
        return frozenset()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
