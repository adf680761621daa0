"""A dataset of RICORD chest CT from DICOM folders and a table: true Hounsfield units on a grid of 128 x 128 x 64.

The authors of AR-SSL4M window the numbers as stored in the files, which are Hounsfield units in some of them and 1024
more in others; `raw_window` does that too, for comparison.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from training_backend.data.ar_published import covid_resized, covid_window
from training_backend.data.assemble import Recipient, assemble
from training_backend.data.dataset import Quarantined, check_splits, relative_root
from training_backend.data.dicom import list_series, read
from training_backend.data.dicom_series import Series
from training_backend.data.drafts import file_safe
from training_backend.data.ingest import IngestReport, Progress
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord, Split
from training_backend.data.resample import resample
from training_backend.data.splits import assign_splits
from training_backend.data.stow import content_hash
from training_backend.data.volume import Shape, Volume
from training_backend.data.whole import view_grid
from training_backend.errors import DataError, Med3dError

SIZE: Shape = (64, 128, 128)
FEWEST_SLICES = 11
"""Series with fewer are scouts and fragments, which the authors leave out too."""
CLASSES = ("negative", "positive")
_LABELS = {"0": 0, "negative": 0, "1b": 0, "1": 1, "positive": 1, "1a": 1}
_SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def prepare_ricord(
    folder: Path,
    labels: Path,
    output: Path,
    *,
    size: Shape = SIZE,
    raw_window: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Dataset in `output` with one case per row of the table.

    Args:
        folder: that the paths of the table are relative to.
        labels: CSV with the columns Path (a DICOM folder), Label (0 or negative, 1 or positive) and, if known, Subject
            and Split (train, val, test); splits that are not given are drawn by subject.
        output: folder of the dataset.
        size: voxels along (z, y, x); the extent of a scan stays, its proportions do not.
        raw_window: store the authors' input in [0, 1], for ``--data.intensity.profile identity``.
        progress: told the share done.

    Raises:
        DataError: the table cannot be used, or no scan of it can.
    """
    cases, problems = _cases(Path(folder), Path(labels))
    make = partial(_raw, size=size) if raw_window else partial(_hounsfield, size=size)
    info = DatasetInfo(
        name="ricord",
        layout="csv",
        root=relative_root(Path(folder).absolute(), output),
        contrasts=("CT",),
        modality="CT",
        target_names=CLASSES,
    )
    check_splits(cases)

    def recipients() -> Iterator[Recipient]:
        for case in cases:
            (image,) = case.images
            place = Path(folder) / image.path
            yield Recipient(case, partial(make, place, image.key))

    return assemble(output, info, recipients(), len(cases), problems, progress)


def _cases(folder: Path, labels: Path) -> tuple[list[CaseRecord], list[Quarantined]]:
    cases: list[CaseRecord] = []
    problems: list[Quarantined] = []
    given = set()
    for number, row in enumerate(_rows(labels), 2):
        place, label, split = row.get("path", ""), row.get("label", "").lower(), row.get("split", "").lower()
        name = file_safe(place) or f"line {number}"
        reason = ""
        if label not in _LABELS:
            reason = f"Line {number} has the label {label!r}; 0 or negative, 1 or positive are known."
        elif split and split not in _SPLITS:
            reason = f"Line {number} has the split {split!r}; train, val and test are known."
        elif not place or not (folder / place).is_dir():
            reason = f"Line {number} names {place or 'no folder'}, which is not below {folder}."
        if reason:
            problems.append(Quarantined("", place or f"{labels.name} line {number}", "list", reason))
            continue
        try:
            series = _series(folder / place)
        except Med3dError as error:
            problems.append(Quarantined(name, place, "unreadable", str(error)))
            continue
        digest = content_hash(folder / place, series.id)
        image = ImageRecord(path=place, contrast="CT", key=series.id, modality="CT", sha256=digest)
        target = (float(_LABELS[label]),)
        subject = row.get("subject", "") or name
        if split:
            given.add(name)
        cases.append(
            CaseRecord(id=name, subject=subject, split=_SPLITS.get(split, "train"), images=(image,), target=target)
        )
    return assign_splits(cases, (0.8, 0.2, 0.0), 0, given), problems


def _rows(table: Path) -> Iterator[Mapping[str, str]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table.name} cannot be read as a table: {error}.", "Save it as UTF-8 CSV.") from error
    rows = csv.DictReader(text.splitlines())
    names = {str(name).strip().lower() for name in rows.fieldnames or ()}
    if not {"path", "label"} <= names:
        raise DataError(
            f"{table.name} needs the columns Path and Label; it has {', '.join(sorted(names)) or 'none'}.",
            "Name the DICOM folder of each scan and its class.",
        )
    for row in rows:
        yield {str(name).strip().lower(): str(value or "").strip() for name, value in row.items() if name}


def _series(folder: Path) -> Series:
    """The longest usable CT series in a folder."""
    found = [one for one in list_series(folder) if not one.problem and len(one.frames) >= FEWEST_SLICES]
    if not found:
        raise DataError(
            f"{folder.name} holds no series of {FEWEST_SLICES} or more slices.", "Check that the download is complete."
        )
    return max(found, key=lambda one: len(one.frames))


def _hounsfield(folder: Path, series: str, size: Shape) -> Volume:
    """Hounsfield units over the extent of the scan."""
    volume = read(folder, series)[0]
    grid = view_grid(volume.geometry, size, keep_aspect=False)
    array = resample(volume.array, volume.geometry, grid, fill=float(volume.array.min()))
    return Volume(array, grid, "CT", volume.name, {"warnings": list(volume.warnings)})


def _raw(folder: Path, series: str, size: Shape) -> Volume:
    """The numbers of the files, resized and windowed as published, in [0, 1]."""
    import SimpleITK as sitk

    rescale = {frame.rescale for one in list_series(folder) if one.id == series for frame in one.frames}
    if len(rescale) != 1:
        raise DataError(
            f"{folder.name} has {len(rescale)} rescalings in one series, so its stored numbers mean different things.",
            "Prepare it in Hounsfield units.",
        )
    ((slope, intercept),) = rescale
    volume = read(folder, series)[0]
    stored = np.rint((volume.array.astype(np.float64) - intercept) / slope).astype(np.int16)
    resized = sitk.GetArrayFromImage(covid_resized(sitk.GetImageFromArray(stored), size))
    grid = view_grid(volume.geometry, size, keep_aspect=False)
    return Volume(covid_window(resized).astype(np.float32), grid, "unknown", volume.name, {})
