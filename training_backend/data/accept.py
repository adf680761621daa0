"""Masks that a person stands for, taken into a dataset: with where they come from, what they replace, and a way back.

The images of a case are not touched. A mask becomes new files beside the old ones, and counts from the moment that the
manifest is replaced; so whatever fails before that changes nothing, and what a run reads meanwhile stays where it is.
"""

from __future__ import annotations

import getpass
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from training_backend.data.classes import class_table
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import Accepted, CaseRecord, ClassEntry, DatasetInfo, ImageRecord
from training_backend.data.read import renumbered, whole_numbers
from training_backend.data.resample import resample
from training_backend.data.standard import sampled
from training_backend.data.store import open_case
from training_backend.data.stow import content_hash, write_label, write_points
from training_backend.data.views import IGNORED
from training_backend.data.volume import Array, Geometry, Volume
from training_backend.data.write import write_volume
from training_backend.errors import DataError, GeometryError

WAIT_S = 10.0
"""How long another program may hold the dataset."""
_OF_LABEL = ("label", "points", "points_crc32")  # entries of `CaseRecord.store` that change with the mask
_PLAIN = ("class ", "structure ")  # names that say no more than the number


@dataclass(frozen=True)
class Origin:
    """Who made a mask, of what.

    Attributes:
        how: what it is, in a few words.
        model: run, model folder or file whose prediction was corrected; empty for none.
        by: who accepts it; the user of this machine when empty.
    """

    how: str = ""
    model: str = ""
    by: str = ""


@dataclass(frozen=True)
class AcceptReport:
    """What became of a mask.

    Attributes:
        case: the record as it is now.
        sentences: what a reader should know.
    """

    case: CaseRecord
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        """All sentences."""
        return "\n".join(self.sentences)


def accept(
    folder: Path,
    case_id: str,
    mask: Volume,
    *,
    origin: Origin | None = None,
    annotated: Sequence[int | str] | None = None,
    names: Mapping[int, str] | None = None,
    values: Mapping[int, int] | None = None,
) -> AcceptReport:
    """Make `mask` the label map of a case of the dataset in `folder`.

    The case keeps its split; one of the split "unlabelled" becomes a training case.

    Args:
        folder: dataset.
        case_id: of a case with images.
        mask: whole numbers; put on the grid of the case's first image where it has another one. 255 is unlabelled.
        origin: where it comes from.
        annotated: classes that were looked for, by value or name; None for all.
        names: of the values of `mask`, after `values`; those of the dataset where it has them.
        values: class (or 255) that a value of `mask` stands for; others stay what they are.

    Raises:
        DataError: an unknown case, values that are no classes or contradict the dataset's, an empty mask.
        GeometryError: the mask lies elsewhere than the scan.
        ResourceError: the disk is full; nothing was changed then.
    """
    with held(folder) as dataset:
        case = dataset.case(case_id)
        stored = open_case(dataset, case)
        notes: list[str] = []
        drawn = renumbered(mask, values or {})
        array = _on_grid(drawn.with_array(whole_numbers(drawn.array, mask.name)), stored.native, notes)
        info = _with_classes(dataset.info, array, names or {})
        looked_for = _looked_for(info, array, annotated)
        label = resample(array, stored.native, stored.geometry, nearest=True)
        lost = _class_voxels(array) and not _class_voxels(label)
        if lost:
            raise GeometryError(
                f"No labelled voxel of {mask.name} lies where case {case.id} is stored.",
                "Choose the case that the mask was drawn on.",
            )
        if outside := _outside(array, stored.native, stored.geometry):
            notes.append(f"{outside:,} labelled voxels lie outside the stored box of the case and are not trained on.")
        new = tuple(entry for entry in info.classes if entry not in dataset.info.classes)
        history = _replaced(case, origin or Origin(), new)
        body = stored.points.get(0, np.zeros((0, 3), np.int32))
        made = _Made(dataset, case)
        with made.or_removed():
            changes = {
                "label": made.source(Volume(array, stored.native, name=mask.name, meta={"kind": "labels"})),
                "store": {**case.store, **made.stored(label, body)},
                "annotated": looked_for,
                "accepted": (*case.accepted, history),
                "split": "train" if case.split == "unlabelled" else case.split,
                "problems": tuple(dict.fromkeys((*case.problems, *notes))),
            }
            record = case.model_copy(update=changes)
            dataset.info = info
            dataset.put(record)
            dataset.save()
    return AcceptReport(record, (_told(case, record), *notes))


def undo(folder: Path, case_id: str = "") -> AcceptReport:
    """Give a case the label map back that it had before the last one was accepted.

    Args:
        folder: dataset.
        case_id: empty takes the case whose mask was accepted last.

    Raises:
        DataError: nothing was accepted.
    """
    with held(folder) as dataset:
        changed = [case for case in dataset.records.values() if case.accepted]
        if case_id:
            case = dataset.case(case_id)
        elif changed:
            case = max(changed, key=lambda one: one.accepted[-1].time)
        if not changed or not case.accepted:
            which = f"for case {case_id}" if case_id else f"into {dataset.info.name}"
            raise DataError(f"No mask was accepted {which}, so there is nothing to undo.")
        last, kept = case.accepted[-1], case.label
        store = {name: entry for name, entry in case.store.items() if name not in _OF_LABEL}
        before = {name: getattr(last, name) for name in ("split", "label", "annotated", "problems")}
        before |= {"store": {**store, **last.store}, "accepted": case.accepted[:-1]}
        record = case.model_copy(update=before)
        dataset.put(record)
        used = {int(v) for one in dataset.records.values() for v in one.store.get("label", {}).get("values", {})}
        rows = tuple(row for row in dataset.info.classes if row not in last.classes or row.index in used)
        dataset.info = dataset.info.model_copy(update={"classes": rows})
        dataset.save()
    now = "the label map that it had before" if record.label else "no label map, as before"
    place = f" The mask itself is kept: sources/{case.id}/{Path(kept.path).name}." if kept else ""
    told = f"Case {case.id} has {now}.{place}"
    return AcceptReport(record, (told,))


def weights_sha256(source: str) -> str:
    """SHA-256 of the weights that a run, model folder or file holds; empty where there is none."""
    path = Path(source) if source else None
    if path is not None and path.is_dir():
        path = path / "model.safetensors"
    if path is None or not path.is_file():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass
class _Made:
    """New files of a case, removed again if they never came to count."""

    dataset: Dataset
    case: CaseRecord

    def __post_init__(self) -> None:
        self.paths: list[Path] = []
        self.store = self.dataset.folder / self.case.store["folder"]
        self.sources = self.dataset.folder / "sources" / self.case.id
        number = 1
        while any(path.exists() for path in self._names(number)):
            number += 1
        self.mask, self.label, self.points = self._names(number)

    def _names(self, number: int) -> tuple[Path, Path, Path]:
        accepted = self.sources / f"accepted_{number}.nii.gz"
        return accepted, self.store / f"label_{number}.b2nd", self.store / f"points_{number}.npy"

    @contextmanager
    def or_removed(self) -> Iterator[None]:
        """Whatever fails inside leaves none of the files, unless the manifest names them by then."""
        try:
            yield
        except BaseException:
            with suppress(OSError, DataError):
                if Dataset.open(self.dataset.folder).case(self.case.id).store.get("points") != self.points.name:
                    for path in (self.mask, self.label, self.points):
                        path.unlink(missing_ok=True)
            raise

    def source(self, mask: Volume) -> ImageRecord:
        """Write the mask on the grid of the scan."""
        self.sources.mkdir(parents=True, exist_ok=True)
        write_volume(mask, self.mask)
        root = (self.dataset.folder / self.dataset.info.root).resolve()
        return ImageRecord(
            path=Path(os.path.relpath(self.mask.resolve(), root)).as_posix(),
            contrast="label",
            shape=mask.geometry.shape,
            spacing_mm=mask.geometry.spacing_mm,
            sha256=content_hash(self.mask),
        )

    def stored(self, label: Array, body: Array) -> dict[str, Any]:
        """Write the mask as training reads it."""
        points, counts = sampled(label, body)
        return {
            "label": write_label(self.label, label, counts),
            "points": self.points.name,
            "points_crc32": write_points(self.points, points),
        }


@contextmanager
def held(folder: Path) -> Iterator[Dataset]:
    """The dataset in `folder`, while no other program that asks this way writes to it.

    Raises:
        DataError: another one does, and went on for longer than `WAIT_S`.
    """
    from filelock import FileLock, Timeout

    dataset = Dataset.open(folder)
    try:
        with FileLock(dataset.folder / ".lock", timeout=WAIT_S):
            yield Dataset.open(folder)  # as it is now that nobody else changes it
    except Timeout as error:
        raise DataError(f"Another program is writing to {folder}.", "Wait for it, then repeat this.") from error


def _on_grid(mask: Volume, native: Geometry, notes: list[str]) -> Array:
    """Values of `mask`, uint8, on the grid of the scan; what it does not reach is unlabelled."""
    low, high = int(mask.array.min()), int(mask.array.max())
    if low < 0 or high > IGNORED:
        raise DataError(
            f"The mask {mask.name} holds values from {low} to {high}; 0 to 254 are classes, 255 is unlabelled.",
            "Renumber it, or say what each value stands for.",
        )
    array = mask.array.astype(np.uint8)
    if not _class_voxels(array) and high == IGNORED:
        raise DataError(
            f"The mask {mask.name} holds background and unlabelled voxels only.", "Label a voxel of a class too."
        )
    if not mask.geometry.same_grid(native):
        array = resample(array, mask.geometry, native, nearest=True, fill=IGNORED)
        notes.append("The mask was put on the grid of the scan.")
    if bool((array == IGNORED).all()):
        raise GeometryError(
            f"The mask {mask.name} and the scan of the case do not overlap.",
            "Choose the case that the mask was drawn on, or give the layer the geometry of its scan.",
        )
    return array


def _class_voxels(array: Array) -> int:
    return int(np.count_nonzero((array > 0) & (array != IGNORED)))


def _outside(array: Array, native: Geometry, stored: Geometry) -> int:
    """Labelled voxels of the scan's grid whose place is not stored."""
    inside = resample(np.ones(stored.shape, np.uint8), stored, native, nearest=True)
    return _class_voxels(np.where(inside, 0, array))


def _with_classes(info: DatasetInfo, array: Array, names: Mapping[int, str]) -> DatasetInfo:
    """Facts of the dataset with rows for classes that it did not have."""
    found = [int(value) for value in np.unique(array) if 0 < value < IGNORED]
    known = {entry.index: entry for entry in info.classes}
    for value in found:
        told = names.get(value, "")
        if value in known and told and not told.startswith(_PLAIN) and told != known[value].name:
            raise DataError(
                f"The mask calls value {value} {told!r}, the dataset {info.name} calls it {known[value].name!r}.",
                "Rename the class of the layer, or say what each value stands for.",
            )
    new = [value for value in found if value not in known]
    rows = class_table(new, {value: names[value] for value in new if names.get(value)})
    merged = sorted((*info.classes, *rows), key=lambda entry: entry.index)
    return info.model_copy(update={"classes": tuple(merged)})


def _looked_for(info: DatasetInfo, array: Array, annotated: Sequence[int | str] | None) -> tuple[int, ...] | None:
    """Values of the classes that were looked for; None where these are all."""
    if annotated is None:
        return None
    by_name: dict[str, int] = {entry.name: entry.index for entry in info.classes}
    by_name |= {str(entry.index): entry.index for entry in info.classes}
    unknown = [str(one) for one in annotated if str(one) not in by_name]
    if unknown:
        raise DataError(
            f"{', '.join(unknown)} is no class of {info.name}.",
            f"There are {', '.join(entry.name for entry in info.classes)}.",
        )
    chosen = sorted({by_name[str(one)] for one in annotated})
    left = [int(value) for value in np.unique(array) if 0 < value < IGNORED and value not in chosen]
    if left:
        raise DataError(
            f"The mask holds voxels of class {left[0]}, which is not among the annotated ones.", "Name it as well."
        )
    return None if chosen == [entry.index for entry in info.classes] else tuple(chosen)


def _replaced(case: CaseRecord, origin: Origin, classes: tuple[ClassEntry, ...]) -> Accepted:
    return Accepted(
        time=datetime.now(UTC).isoformat(timespec="microseconds"),
        by=origin.by or _user(),
        how=origin.how,
        model=origin.model,
        model_sha256=weights_sha256(origin.model),
        split=case.split,
        label=case.label,
        annotated=case.annotated,
        problems=case.problems,
        store={name: case.store[name] for name in _OF_LABEL if name in case.store},
        classes=classes,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a name for its user
        return ""


def _told(before: CaseRecord, now: CaseRecord) -> str:
    what = "It replaces the label map of the case, which is kept." if before.label else "The case had none before."
    split = " The case is for training now." if before.split != now.split else f" The case stays in {now.split}."
    return f"The mask was accepted for case {now.id}. {what}{split}"
