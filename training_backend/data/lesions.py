"""Tables of lesions: where each one lies in which scan, and what kind it is.

Read are ``DL_info.csv`` of DeepLesion, as it is published, and any CSV with these columns (upper or lower case):

- `case` (or `path`, `image`, `file`): id of the case, or its file;
- `type` (or `class`, `label`): kind of lesion;
- the place along (z, y, x) = (towards Superior, Posterior, Left), as a centre `z`, `y`, `x` or a box `z0`, `z1`, `y0`,
  `y1`, `x0`, `x1`, in voxels of the scan as it is shown (from 0); or ``z_mm`` ... ``x1_mm`` in millimetres of the
  patient space of the file;
- `patient` (or `subject`), if the dataset does not tell who is who.
"""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from training_backend.data.dataset import Dataset, Quarantined
from training_backend.data.facts import scan_name
from training_backend.data.manifest import CaseRecord
from training_backend.data.volume import Geometry
from training_backend.errors import DataError

logger = logging.getLogger(__name__)

_CASE = ("case", "path", "image", "file", "filename")
_TYPE = ("type", "class", "label", "lesion_type")
_PATIENT = ("patient", "subject", "patient_id", "subject_id")
_SHOWN = 3  # refused rows quoted in a warning

Point = tuple[float, float, float]
Unit = Literal["voxel", "mm", "index"]


@dataclass(frozen=True)
class Row:
    """A lesion as its table has it.

    Attributes:
        line: of the table, from 1.
        case: id or file of the scan, as written.
        patient: as written; empty where the table does not say.
        type: as written.
        low: first corner; for `unit` "voxel" and "mm" along (z, y, x), for "index" along the axes of the file.
        high: other corner, the same as `low` for a centre.
        unit: of both.
    """

    line: int
    case: str
    patient: str
    type: str
    low: Point
    high: Point
    unit: Unit


@dataclass(frozen=True)
class Lesion:
    """A lesion on the grid of the store.

    Attributes:
        case: id.
        patient: of the case.
        type: of the lesion.
        centre: stored voxel (z, y, x).
        whole_depth: crops have all slices of the scan, as in DeepLesion, whose scans are short stacks around lesions.
    """

    case: str
    patient: str
    type: str
    centre: tuple[int, int, int]
    whole_depth: bool = False


def read_table(path: Path) -> tuple[tuple[Row, ...], tuple[Quarantined, ...]]:
    """Rows of a table, and those that cannot be understood, each with the reason."""
    path = Path(path)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(
            f"The table of lesions {path.name} cannot be read: {error.strerror}.", "Check data.sequence.lesions."
        ) from error


def place_lesions(
    rows: Sequence[Row], table: str, cases: Sequence[CaseRecord]
) -> tuple[list[Lesion], list[Quarantined]]:
    """Rows on the stored grids of `cases`; a row that lies in none of them, or outside its scan, is left out."""
    named = _names(cases)
    found, refused = [], []
    for row in rows:
        matches = named.get(row.case, set())
        try:
            if len(matches) != 1:
                what = "is no case" if not matches else f"fits {len(matches)} cases"
                raise DataError(f"Line {row.line}: {row.case!r} {what} of the dataset.", "Write the id of a case.")
            found.append(_placed(row, cases[next(iter(matches))]))
        except DataError as error:
            refused.append(Quarantined(row.case, f"{table} line {row.line}", "lesion", str(error)))
    return found, refused


def usable_lesions(
    dataset: Dataset, path: Path, cases: Sequence[CaseRecord], patients: int, *, warn: bool = True
) -> dict[str, dict[str, tuple[Lesion, ...]]]:
    """Lesions of `cases` by type and patient; types with fewer than `patients` patients are left out.

    With `warn`, the log says how many rows and which types were left out, and why.
    """
    rows, unread = read_table(path)
    everyone = dataset.cases()
    placed, refused = place_lesions(rows, Path(path).name, everyone)
    refused = [*unread, *refused]
    ids = {case.id for case in cases}
    grouped: dict[str, dict[str, list[Lesion]]] = defaultdict(lambda: defaultdict(list))
    for lesion in placed:
        if lesion.case in ids:
            grouped[lesion.type][lesion.patient].append(lesion)
    rare = {kind: len(members) for kind, members in sorted(grouped.items()) if len(members) < patients}
    if warn and refused:
        some = " ".join(entry.reason for entry in refused[:_SHOWN])
        logger.warning("%d of %d lesions are left out: %s", len(refused), len(rows) + len(unread), some)
    if warn and rare:
        some = ", ".join(f"{kind} ({count})" for kind, count in rare.items())
        logger.warning("Lesion types in fewer than %d patients are left out: %s.", patients, some)
    return {
        kind: {patient: tuple(lesions) for patient, lesions in sorted(members.items())}
        for kind, members in sorted(grouped.items())
        if kind not in rare
    }


def stored_geometry(case: CaseRecord) -> Geometry:
    """Grid that a case is stored on, from the manifest alone."""
    if not case.store:
        raise DataError(f"Case {case.id} was not ingested.", "Run: med3dssl data ingest.")
    return Geometry.from_dict(case.store["geometry"])


@lru_cache(maxsize=2)
def _read(path: Path, _modified: int) -> tuple[tuple[Row, ...], tuple[Quarantined, ...]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as a table: {error}.", "Save it as UTF-8 CSV.") from error
    columns = {str(name).strip().lower(): str(name) for name in (lines[0] if lines else {}) if name}
    deep = {"file_name", "bounding_boxes", "coarse_lesion_type", "slice_range"} <= set(columns)
    reader = _deep_lesion if deep else _Columns.of(path, columns).row
    rows: list[Row] = []
    refused = []
    for number, line in enumerate(lines, 2):
        cells = {name: (line[column] or "").strip() for name, column in columns.items()}
        try:
            row = reader(number, cells)
        except ValueError as error:
            reason = f"Line {number} is no lesion: {error}."
            refused.append(Quarantined("", f"{path.name} line {number}", "lesion", reason))
            continue
        if row is not None:
            rows.append(row)
    return tuple(rows), tuple(refused)


def _deep_lesion(line: int, cells: Mapping[str, str]) -> Row | None:
    """DeepLesion: box as x1, y1, x2, y2 of the key slice; types 1 to 8, -1 is unknown and left out."""
    kind = cells["coarse_lesion_type"]
    if int(float(kind)) == -1:
        return None
    series = "_".join(cells["file_name"].split("_")[:3])
    first, last = (int(part) for part in cells["slice_range"].split(","))
    x1, y1, x2, y2 = (float(part) for part in cells["bounding_boxes"].split(","))
    centre = ((y1 + y2) // 2, (x1 + x2) // 2, 0.0)  # the dataset's own script writes rows first
    patient = cells["file_name"].split("_")[0]
    return Row(line, f"{series}_{first:03d}-{last:03d}", patient, str(int(float(kind))), centre, centre, "index")


@dataclass(frozen=True)
class _Columns:
    """The columns of a general table that hold case, type, patient and place."""

    case: str
    type: str
    patient: str
    place: tuple[str, ...]
    unit: Unit

    @classmethod
    def of(cls, path: Path, columns: Mapping[str, str]) -> _Columns:
        case, kind, patient = (
            next((name for name in names if name in columns), "") for names in (_CASE, _TYPE, _PATIENT)
        )
        units: dict[Unit, str] = {"voxel": "", "mm": "_mm"}
        for unit, suffix in units.items():
            for ends in (("0", "1"), ("",)):
                place = tuple(f"{axis}{end}{suffix}" for end in ends for axis in "zyx")
                if case and kind and set(place) <= set(columns):
                    return cls(case, kind, patient, place, unit)
        raise DataError(
            f"{path.name} is no table of lesions: its columns are {', '.join(columns) or 'none'}.",
            "Expected are case, type, and z, y, x or z0, z1, y0, y1, x0, x1 (voxels; with _mm, millimetres); or "
            "DeepLesion's DL_info.csv.",
        )

    def row(self, line: int, cells: Mapping[str, str]) -> Row:
        if not cells[self.case] or not cells[self.type]:
            raise ValueError("it has no case or no type")
        values = [float(cells[name]) for name in self.place]
        if not np.isfinite(values).all():
            raise ValueError("its place is not a number")
        low, high = values[:3], values[-3:]
        if any(a > b for a, b in zip(low, high, strict=True)):
            raise ValueError("its box ends before it begins")
        patient = cells[self.patient] if self.patient else ""
        return Row(line, cells[self.case], patient, cells[self.type], _point(low), _point(high), self.unit)


def _names(cases: Sequence[CaseRecord]) -> dict[str, set[int]]:
    """Indices of the cases that each id, path and file name stands for."""
    named: dict[str, set[int]] = defaultdict(set)
    for index, case in enumerate(cases):
        for image in case.images:
            path = Path(image.path)
            for name in (image.path, path.name, scan_name(path)):
                named[name].add(index)
    return {**named, **{case.id: {index} for index, case in enumerate(cases)}}


def _placed(row: Row, case: CaseRecord) -> Lesion:
    stored = stored_geometry(case)
    native = Geometry.from_dict(case.store["native"])
    last = np.asarray(native.shape) - 1
    low, high = (_shown(native, point, row.unit) for point in (row.low, row.high))
    if row.unit == "index":  # the table gives no slice
        low[0] = high[0] = last[0] / 2
    if (np.minimum(low, high) < -1).any() or (np.maximum(low, high) > last + 2).any():
        place = ", ".join(f"{value:g}" for value in (*row.low, *(row.high if row.high != row.low else ())))
        raise DataError(
            f"Line {row.line}: the lesion at {place} {'mm' if row.unit == 'mm' else 'voxels'} lies outside scan "
            f"{case.id} of {native.shape} voxels (z, y, x).",
            "Check the units, the order of the axes, and whether the table belongs to these scans.",
        )
    middle = native.to_lps @ np.array([*((low + high) / 2), 1.0])
    z, y, x = (int(value) for value in np.rint((np.linalg.inv(stored.to_lps) @ middle)[:3]))
    if any(not 0 <= value < n for value, n in zip((z, y, x), stored.shape, strict=True)):
        raise DataError(
            f"Line {row.line}: the lesion lies outside the box around the body that is stored of {case.id}.",
            "Ingest with --no-crop-body.",
        )
    return Lesion(case.id, row.patient or case.subject, row.type, (z, y, x), row.unit == "index")


def _shown(native: Geometry, point: Point, unit: Unit) -> npt.NDArray[np.float64]:
    """Voxel (z, y, x) of the scan as it is shown."""
    if unit == "voxel":
        return np.array(point)
    if unit == "mm":
        lps = np.array([*point[::-1], 1.0])
    else:
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ native.affine @ np.array([*point, 1.0])
    return np.asarray((np.linalg.inv(native.to_lps) @ lps)[:3])


def _point(values: Sequence[float]) -> Point:
    first, second, third = values
    return (first, second, third)
