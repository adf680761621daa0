"""nnU-Net's raw dataset folders, written from a dataset of ours; `importers_json.nnunet` reads them.

Train and val cases go to ``imagesTr`` and ``labelsTr``, told apart by fold 0 of ``splits_final.json``; test and
unlabelled ones go to ``imagesTs``. Scans keep their own grid: nnU-Net does its own resampling.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training_backend.data.dataset import Dataset
from training_backend.data.ingest import Progress
from training_backend.data.manifest import CaseRecord, ImageRecord
from training_backend.data.read import read_classes, read_volumes, rescaled
from training_backend.data.resample import resample_like
from training_backend.data.volume import Array, Volume
from training_backend.data.write import write_volume
from training_backend.errors import ConfigError, DataError
from training_backend.files import write_json

ENDING = ".nii.gz"
SPLITS = "splits_final.json"
"""File of folds; nnU-Net wants it in its folder of pre-processed data."""


@dataclass(frozen=True)
class NnunetReport:
    """What was written.

    Attributes:
        folder: ``DatasetNNN_NAME``.
        training: cases in imagesTr.
        test: cases in imagesTs.
        renumbered: label values that had to change, old to new; nnU-Net wants them without gaps.
        notes: sentences on what was done differently.
    """

    folder: Path
    training: int
    test: int
    renumbered: dict[int, int]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Sentences."""
        lines = [f"Wrote {self.training} training and {self.test} test cases to {self.folder}.", *self.notes]
        if self.renumbered:
            told = ", ".join(f"{old} became {new}" for old, new in self.renumbered.items())
            lines.append(f"Label values were renumbered, since nnU-Net wants them without gaps: {told}.")
        return "\n".join(lines)


def write_nnunet(
    dataset: Dataset, output: Path, *, number: int = 501, name: str = "", progress: Progress | None = None
) -> NnunetReport:
    """Write ``output/DatasetNNN_NAME``; it appears whole or not at all.

    Args:
        dataset: with its source files in place.
        output: folder of raw datasets (nnUNet_raw).
        number: of the dataset, 1 to 999.
        name: after the number; letters and digits of the dataset's name when empty.
        progress: told the share done.

    Raises:
        ConfigError: a number or name that nnU-Net does not take.
        DataError: the folder exists, source files are gone, contrasts are missing, no case has a label map,
            or one was annotated for some classes only.
    """
    title = name or re.sub(r"[^A-Za-z0-9]+", "", dataset.info.name.title()) or "Dataset"
    if not 1 <= number <= 999 or not re.fullmatch(r"[A-Za-z0-9_]+", title):
        raise ConfigError(
            f"nnU-Net calls datasets Dataset501_Name, but Dataset{number}_{title} was asked for.",
            "Give a number from 1 to 999, and a name of letters, digits and underscores.",
        )
    folder = Path(output) / f"Dataset{number:03d}_{title}"
    if folder.exists():
        raise DataError(f"{folder} exists already and is kept.", "Choose another number or name.")
    cases = dataset.cases()
    training = [case for case in cases if case.split in ("train", "val") and case.label is not None]
    partly = [case.id for case in training if case.annotated is not None]
    if partly:
        raise DataError(
            f"Case {partly[0]} was annotated for some classes only, which a dataset of nnU-Net cannot tell.",
            f"Exclude the {len(partly)} cases of that kind, or annotate the other classes too.",
        )
    if not training:
        raise DataError(
            f"{dataset.info.name} has no training case with a label map, which nnU-Net learns from.", "Add label maps."
        )
    contrasts = dataset.info.contrasts or ("image",)
    _check_contrasts(cases, contrasts)
    for case in cases:  # before anything is made
        for record in (*case.images, *((case.label,) if case.label is not None else ())):
            dataset.source(record)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        report = _write(dataset, temporary, training, cases, contrasts, title, progress)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return NnunetReport(folder, *report)


def _write(
    dataset: Dataset,
    folder: Path,
    training: list[CaseRecord],
    cases: list[CaseRecord],
    contrasts: tuple[str, ...],
    title: str,
    progress: Progress | None,
) -> tuple[int, int, dict[int, int], tuple[str, ...]]:
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True)
    values, notes = _values(dataset, training), []
    numbers = {old: new for new, old in enumerate(sorted(values), 1)}
    inside = {case.id for case in training}
    for done, case in enumerate(cases, 1):
        part = "Tr" if case.id in inside else "Ts"
        notes += _write_case(dataset, case, folder, part, contrasts, numbers)
        if progress is not None:
            progress(done / len(cases))
    names = {entry.index: entry.name for entry in dataset.info.classes}
    labels = {"background": 0, **{names.get(old, f"class {old}"): new for old, new in numbers.items()}}
    write_json(
        folder / "dataset.json",
        {
            "name": title,
            "channel_names": {str(n): _channel(dataset, each) for n, each in enumerate(contrasts)},
            "labels": labels,
            "numTraining": len(training),
            "file_ending": ENDING,
        },
    )
    parts = {split: [case.id for case in training if case.split == split] for split in ("train", "val")}
    if parts["val"]:
        write_json(folder / SPLITS, [parts])
    renumbered = {old: new for old, new in numbers.items() if old != new}
    return len(training), len(cases) - len(training), renumbered, tuple(dict.fromkeys(notes))


def _write_case(
    dataset: Dataset, case: CaseRecord, folder: Path, part: str, contrasts: tuple[str, ...], numbers: dict[int, int]
) -> list[str]:
    notes, first = [], None
    records = {record.contrast: record for record in case.images}
    for channel, contrast in enumerate(contrasts):
        volume = _read(dataset, records[contrast])
        first = first or volume
        if not volume.geometry.same_grid(first.geometry):
            volume = resample_like(volume, first)
            notes.append(f"{contrast} was resampled onto the grid of {contrasts[0]} where they differed.")
        write_volume(volume, folder / f"images{part}" / f"{case.id}_{channel:04d}{ENDING}")
    if case.label is None or first is None:
        return notes
    marks = read_classes(dataset.source(case.label), key=case.label.key, values=case.label.values)
    if marks.array.shape != first.array.shape:
        raise DataError(
            f"The label map of {case.id} has {marks.array.shape} voxels, its scan {first.array.shape}.", "Ingest again."
        )
    array = _renumbered(marks.array, numbers, case.id)
    label = Volume(array, first.geometry, name=case.id, meta={"kind": "labels"})
    write_volume(label, folder / f"labels{part}" / f"{case.id}{ENDING}")
    return notes


def _read(dataset: Dataset, record: ImageRecord) -> Volume:
    return rescaled(read_volumes(dataset.source(record), key=record.key)[0], record.rescale)


def _values(dataset: Dataset, cases: Iterable[CaseRecord]) -> set[int]:
    """Label values of the class table and of all training cases."""
    found = {entry.index for entry in dataset.info.classes}
    for case in cases:
        found |= {int(value) for value in case.store.get("label", {}).get("values", {})}
    return found - {0}


def _renumbered(array: Array, numbers: dict[int, int], case: str) -> Array:
    table = np.zeros(256, np.uint8)
    for old, new in numbers.items():
        table[old] = new
    unknown = sorted(set(np.unique(array).tolist()) - {0, *numbers})
    if unknown:
        raise DataError(
            f"The label map of {case} holds the value {unknown[0]}, which no training case has.",
            "Correct or exclude it.",
        )
    result: Array = table[array]
    return result


def _check_contrasts(cases: list[CaseRecord], contrasts: tuple[str, ...]) -> None:
    for case in cases:
        lacking = [name for name in contrasts if name not in {image.contrast for image in case.images}]
        if lacking:
            raise DataError(
                f"Case {case.id} has no {lacking[0]}, but nnU-Net wants the same channels of every case.",
                "Exclude the case, or add the contrast.",
            )


def _channel(dataset: Dataset, contrast: str) -> str:
    """Name that tells nnU-Net how to normalise: "CT" is special there."""
    return "CT" if dataset.info.modality == "CT" and len(dataset.info.contrasts) <= 1 else contrast
