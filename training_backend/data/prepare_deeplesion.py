"""Slabs of chest and abdominal CT from the slices of DeepLesion, as MedCoSS teaches CT: ``DL_info.csv`` and PNG files.

The axial slices around each lesion become one volume in Hounsfield units, as the data set's own script makes them; each
volume becomes slabs of 24 mm, stored as 192 x 192 x 16 voxels.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from training_backend.data import medcoss_published as published
from training_backend.data.assemble import Recipient, assemble
from training_backend.data.dataset import Quarantined, relative_root
from training_backend.data.ingest import IngestReport, Progress
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord, Split
from training_backend.data.read import read_volume
from training_backend.data.volume import Array, Geometry, Shape, Triple, Volume
from training_backend.errors import DataError

TABLE = "DL_info.csv"
OFFSET = 32768
"""The PNG files hold Hounsfield units plus this."""
_COLUMNS = ("file_name", "slice_range", "spacing_mm_px_", "train_val_test")
_SPLITS: dict[str, Split] = {"1": "train", "2": "val", "3": "test"}
_PLACES = ("", "Images_png", "Images")


@dataclass(frozen=True)
class _Stack:
    """Consecutive slices of one series, as a row of the table names them; spacing along (z, y, x)."""

    series: str
    folder: Path
    first: int
    last: int
    spacing_mm: Triple
    split: Split

    @property
    def name(self) -> str:
        """As the script of the data set calls the volume."""
        return f"{self.series}_{self.first:03d}-{self.last:03d}"

    @property
    def patient(self) -> str:
        return self.series.split("_")[0]


def prepare_deeplesion(
    folder: Path, output: Path, *, table: Path | None = None, progress: Progress | None = None
) -> IngestReport:
    """Dataset of CT slabs in `output`, in Hounsfield units from -1024 to 1024.

    Args:
        folder: with a folder of slices ``PATIENT_STUDY_SERIES/NNN.png`` per series, perhaps in ``Images_png``.
        output: folder of the dataset.
        table: ``DL_info.csv``; the one in `folder` when not given. Its official split is kept.
        progress: told the share done.

    Raises:
        DataError: the table lacks a column, or no slice is there.
    """
    folder = Path(folder)
    stacks, problems = _stacks(folder, Path(table) if table is not None else folder / TABLE)
    slabs = [(stack, number, start) for stack in stacks for number, start in enumerate(_starts(stack))]
    info = DatasetInfo(
        name="deeplesion",
        layout="deeplesion",
        root=relative_root(folder.absolute(), output),
        contrasts=("CT",),
        modality="CT",
    )

    def recipients() -> Iterator[Recipient]:
        for stack, number, start in slabs:
            place = stack.folder.relative_to(folder).as_posix()
            image = ImageRecord(path=place, contrast="CT", key=f"{stack.first}-{stack.last}/{start}", modality="CT")
            name = f"{stack.name}_dep{number}"
            case = CaseRecord(id=name, subject=stack.patient, session=stack.series, split=stack.split, images=(image,))
            yield Recipient(case, partial(_slab, stack, start, name))

    return assemble(output, info, recipients(), len(slabs), problems, progress)


def _stacks(folder: Path, table: Path) -> tuple[list[_Stack], list[Quarantined]]:
    found: dict[str, _Stack] = {}
    problems: list[Quarantined] = []
    for line, row in _rows(table):
        try:
            stack = _stack(folder, row)
        except (ValueError, IndexError):
            reason = f"Line {line} does not tell a series, a range of slices, three spacings and a split 1, 2 or 3."
            problems.append(Quarantined("", f"{table.name} line {line}", "list", reason))
            continue
        if stack is None:
            series = _series(row)
            reason = f"The slices of {series} are not below {folder.name}."
            problems.append(Quarantined(series, series, "missing", reason))
        else:
            found.setdefault(stack.name, stack)
    if not found:
        first = f" {problems[0].reason}" if problems else ""
        raise DataError(f"No series of {table.name} can be used.{first}", "Give the folder that holds Images_png.")
    return list(found.values()), problems


def _rows(table: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as a table: {error}.", "Give DL_info.csv of DeepLesion.") from error
    rows = csv.DictReader(text.splitlines())
    names = {str(name).strip().lower() for name in rows.fieldnames or ()}
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise DataError(
            f"{table.name} has no column {', '.join(missing)}; it has {', '.join(sorted(names)) or 'none'}.",
            "Give DL_info.csv of DeepLesion.",
        )
    for line, row in enumerate(rows, 2):
        yield line, {str(name).strip().lower(): str(value or "").strip() for name, value in row.items() if name}


def _series(row: Mapping[str, str]) -> str:
    return "_".join(row["file_name"].split("_")[:3])


def _stack(folder: Path, row: Mapping[str, str]) -> _Stack | None:
    """The stack of a row; None where its folder is missing."""
    series = _series(row)
    first, last = (int(part) for part in row["slice_range"].split(","))
    x, y, z = (float(part) for part in row["spacing_mm_px_"].split(","))
    split = _SPLITS.get(row["train_val_test"])
    if split is None or not 0 <= first <= last or not min(x, y, z) > 0 or series.count("_") != 2:
        raise ValueError
    places = (folder / place / series for place in _PLACES)
    found = next((place for place in places if place.is_dir()), None)
    return None if found is None else _Stack(series, found, first, last, (z, y, x), split)


def _starts(stack: _Stack) -> list[int]:
    depth = published.respaced_shape((stack.last - stack.first + 1, 1, 1), stack.spacing_mm)[0]
    return published.starts(depth, published.CT_SLICES, published.CT_STRIDE)


def _slab(stack: _Stack, start: int, name: str) -> Volume:
    """The slab of `stack` whose first slice of 1 mm is `start`, as stored and seen: slices towards Superior.

    The files count slices towards the feet, rows to the back and columns to the left.
    """
    whole = _respaced(stack)
    cut = whole[start : start + published.CT_SLICES]
    array = published.middle(cut)
    shape: Shape = (published.SLICES, *published.SIZE)
    corner = (cut.shape[1] - array.shape[1]) // 2, (cut.shape[2] - array.shape[2]) // 2
    small = published.resized(array, shape)
    dz, dy, dx = (old / new for old, new in zip(array.shape, shape, strict=True))
    affine = np.array(  # of (row, column, slice) in millimetres towards Right, Anterior and Superior
        [[0, -dx, 0, -corner[1]], [-dy, 0, 0, -corner[0]], [0, 0, -dz, -start], [0, 0, 0, 1]], dtype=np.float64
    )
    geometry = Geometry(affine, (shape[1], shape[2], shape[0]))
    return Volume(geometry.to_canonical(small.transpose(1, 2, 0)), geometry, "CT", name, {})


@lru_cache(maxsize=1)
def _respaced(stack: _Stack) -> Array:
    """Hounsfield units (slice, row, column) on voxels of 1 mm; the slabs of a stack share it."""
    slices = []
    for number in range(stack.first, stack.last + 1):
        path = stack.folder / f"{number:03d}.png"
        volume = read_volume(path)
        if volume.array.dtype != np.uint16:
            raise DataError(
                f"{stack.series}/{path.name} holds {volume.array.dtype} numbers; 16-bit grey is expected.",
                "Download the slices again, as PNG with 16 bits.",
            )
        slices.append(volume.array[0].astype(np.int32) - OFFSET)
    if len({one.shape for one in slices}) > 1:
        raise DataError(f"The slices of {stack.series} differ in size.", "Download the series again.")
    limit = np.iinfo(np.int16)
    stored = np.clip(np.stack(slices), limit.min, limit.max).astype(np.int16)
    return published.respaced(stored, stack.spacing_mm)
