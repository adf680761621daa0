"""Slabs of brain MR from the NIfTI files of ADNI (or any folder of brain MR), as MedCoSS teaches MR.

Each scan is resized to 192 x 192 in plane and cut, without a tenth of its slices at either end, into slabs of 16
slices, each clipped and normalised by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from training_backend.data import medcoss_published as published
from training_backend.data.assemble import Recipient, assemble
from training_backend.data.dataset import Quarantined, relative_root
from training_backend.data.drafts import stem, unique_ids
from training_backend.data.facts import is_picture
from training_backend.data.importers_folders import is_scan
from training_backend.data.ingest import IngestReport, Progress
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord
from training_backend.data.read import probe, read_volume
from training_backend.data.splits import assign_splits
from training_backend.data.volume import Array, Geometry, Shape, Volume
from training_backend.errors import DataError, Med3dError

_SUBJECT = re.compile(r"\d{3}_S_\d{4,5}")


def prepare_adni(folder: Path, output: Path, *, seed: int = 0, progress: Progress | None = None) -> IngestReport:
    """Dataset of MR slabs in `output`, of zero mean and unit variance each; use intensity profile "identity".

    Args:
        folder: of NIfTI files, at any depth. Subjects are ADNI's numbers (``002_S_0295``) in the path, else the folder
            below `folder`, else each file.
        output: folder of the dataset.
        seed: of the split of subjects into training and validation.
        progress: told the share done.

    Raises:
        DataError: no scan is there, or none has enough slices.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder.", "Give the folder of the NIfTI files.")
    files = sorted(file for file in folder.rglob("*") if is_scan(file) and not is_picture(file))
    cases, problems = [], []
    for file, name in zip(files, unique_ids([stem(file) for file in files]), strict=True):
        found, problem = _slabs(folder, file, name)
        cases += found
        problems += problem
    if not cases:
        first = f" {problems[0].reason}" if problems else ""
        raise DataError(f"No scan in {folder} can be used.{first}", "Give the folder of the NIfTI files.")
    root = relative_root(folder.absolute(), output)
    info = DatasetInfo(name="adni", layout="adni", root=root, contrasts=("MR",), modality="MR")
    split = assign_splits(cases, (0.8, 0.2, 0.0), seed)

    def recipients() -> Iterator[Recipient]:
        for case in split:
            (image,) = case.images
            yield Recipient(case, partial(_slab, folder / image.path, int(image.key), case.id))

    return assemble(output, info, recipients(), len(split), problems, progress)


def _slabs(folder: Path, file: Path, name: str) -> tuple[list[CaseRecord], list[Quarantined]]:
    place = file.relative_to(folder)
    try:
        depth = probe(file).shape[0]
    except Med3dError as error:
        return [], [Quarantined(name, place.as_posix(), "unreadable", str(error))]
    starts = published.mr_starts(depth)
    if not starts:
        reason = f"{file.name} has {depth} slices; {published.SLICES} must be left without a tenth at either end."
        return [], [Quarantined(name, place.as_posix(), "geometry", reason)]
    told = _SUBJECT.search(place.as_posix())
    subject = told.group() if told else place.parts[0] if len(place.parts) > 1 else name
    return [
        CaseRecord(
            id=f"{name}_dep{number}",
            subject=subject,
            session=name,
            images=(ImageRecord(path=place.as_posix(), contrast="MR", key=str(start), modality="MR"),),
        )
        for number, start in enumerate(starts)
    ], []


def _slab(file: Path, start: int, name: str) -> Volume:
    array, geometry = _resized(file)
    slab = array[start : start + published.SLICES]
    normalised = published.mr_normalised(slab)
    if not np.isfinite(normalised).all():
        raise DataError(f"{file.name} holds voxels that are not numbers.", "Mend or leave out the scan.")
    shape: Shape = (published.SLICES, *published.SIZE)
    return Volume(normalised, geometry.cropped((start, 0, 0), shape), "MR", name, {})


@lru_cache(maxsize=1)
def _resized(file: Path) -> tuple[Array, Geometry]:
    """The scan with 192 rows and columns and its own slices; its slabs share it."""
    volume = read_volume(file)
    shape: Shape = (volume.array.shape[0], *published.SIZE)
    array = volume.array.astype(np.float32) if volume.array.dtype.kind in "fb" else volume.array
    return published.resized(array, shape), published.resized_geometry(volume.geometry, shape)
