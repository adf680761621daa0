"""Reports and radiographs of MIMIC-CXR, as MedCoSS teaches text and X-ray."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from training_backend.config.data import IngestConfig
from training_backend.data.dataset import Quarantined
from training_backend.data.drafts import Described, unique_ids
from training_backend.data.importers_tables import SPLITS, table_rows
from training_backend.data.ingest import IngestReport, Progress, ingest
from training_backend.data.manifest import CaseRecord, DatasetInfo, Split
from training_backend.data.prepare_pictures import Tile, store_tiles
from training_backend.data.report_clean import cleaned, joined_parts
from training_backend.errors import DataError

SIZE = 224
VIEWS = ("PA", "AP")
"""Projections whose reports are read."""

_COLUMNS = ("path", "split", "viewposition", "impression", "findings")
_SUBJECT = re.compile(r"p(\d{8})(?!\d)")
_SPLITS: dict[str, Split] = {**SPLITS, "validate": "val"}


def prepare_mimic_reports(table: Path, output: Path, *, progress: Progress | None = None) -> IngestReport:
    """Dataset of cleaned reports in `output`, from the ``master.csv`` that MGCA makes of MIMIC-CXR.

    Args:
        table: with the columns Path, split, ViewPosition, impression, findings; frontal views are taken.
        output: folder of the dataset.
        progress: told the share done.

    Raises:
        DataError: a column is missing, or no report is left.
    """
    table = Path(table)
    cases: list[CaseRecord] = []
    problems: list[Quarantined] = []
    rows = [(line, row) for line, row in _rows(table, _COLUMNS) if row["viewposition"].upper() in VIEWS]
    ids = unique_ids([Path(row["path"]).stem or f"line-{line}" for line, row in rows])
    for id, (line, row) in zip(ids, rows, strict=True):
        report, split = cleaned(joined_parts(row["impression"], row["findings"])), _SPLITS.get(row["split"].lower())
        if split is None:
            reason = f"Line {line} has the split {row['split']!r}; train, valid and test are known."
            problems.append(Quarantined(id, f"{table.name} line {line}", "list", reason))
        elif not report:
            reason = f"The report in line {line} has fewer than three words after cleaning."
            problems.append(Quarantined(id, f"{table.name} line {line}", "list", reason))
        else:
            cases.append(CaseRecord(id=id, subject=_subject(row, id), split=split, report=report))
    if not cases:
        raise DataError(
            f"No report of {table.name} can be used: {problems[0].reason if problems else 'it has no frontal view.'}",
            "Give master.csv as MGCA makes it.",
        )
    info = DatasetInfo(name="mimic-cxr reports", layout="reports", root=str(table.absolute().parent), modality="text")
    given = frozenset(case.id for case in cases)
    described = Described(info, sorted(cases, key=lambda case: case.id), table.absolute().parent, problems, given)
    return ingest(described, output, IngestConfig(workers=0), progress=progress)


def prepare_mimic(
    folder: Path, output: Path, *, table: Path | None = None, size: int = SIZE, progress: Progress | None = None
) -> IngestReport:
    """Dataset of radiographs in `output`, grey, `size` pixels along each side whatever their proportions.

    Args:
        folder: of MIMIC-CXR-JPG; every ``.jpg`` below it, of all views.
        output: folder of the dataset.
        table: ``mimic-cxr-2.0.0-split.csv`` (dicom_id, split), whose split is kept; drawn by subject when not given.
        size: of the stored pictures.
        progress: told the share done.

    Raises:
        DataError: no picture is there, or the table lacks a column.
    """
    folder = Path(folder)
    files = sorted(folder.rglob("*.jpg")) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder} holds no .jpg file.", "Give the folder of MIMIC-CXR-JPG.")
    splits: dict[str, Split] = {}
    if table is not None:
        for line, row in _rows(Path(table), ("dicom_id", "split")):
            split = _SPLITS.get(row["split"].lower())
            if split is None:
                raise DataError(
                    f"Line {line} of {Path(table).name} has the split {row['split']!r}.",
                    "train, validate and test are known.",
                )
            splits[row["dicom_id"]] = split
    tiles = [
        Tile(file, id, _subject({"path": file.relative_to(folder).as_posix()}, id), splits.get(file.stem))
        for file, id in zip(files, unique_ids([file.stem for file in files]), strict=True)
    ]
    info = DatasetInfo(name="mimic-cxr", layout="mimic-cxr", contrasts=("image",), modality="XR")
    return store_tiles(folder, tiles, output, info, size=size, progress=progress)


def _subject(row: Mapping[str, str], id: str) -> str:
    """The patient's number in the path (``p10/p10000032/...``), else a column, else the case itself."""
    told = _SUBJECT.search(row["path"])
    return f"p{told.group(1)}" if told else row.get("subject_id", "") or id


def _rows(table: Path, columns: tuple[str, ...]) -> list[tuple[int, Mapping[str, str]]]:
    found = [
        {str(name).strip().lower(): str(value or "").strip() for name, value in row.items() if name}
        for row in table_rows(table)
    ]
    names = set(found[0]) if found else set()
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(
            f"{table.name} has no column {', '.join(missing)}; it has {', '.join(sorted(names)) or 'no rows'}.",
            f"Expected are {', '.join(columns)}, in upper or lower case.",
        )
    return list(enumerate(found, 2))
