"""Layouts that are a table: of paths, or of reports without images."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training_backend.data.dataset import Quarantined
from training_backend.data.drafts import Draft, Drafts, Source, stem
from training_backend.data.importers_json import json_entries
from training_backend.data.manifest import Split
from training_backend.data.read import can_read
from training_backend.data.reports import COLUMNS, report_of
from training_backend.errors import DataError

PATHS = ("path", "image", "file", "filename", "cases", "image_path", "volume", "volumename")
"""Columns that name a scan."""
_MASK = ("mask", "segmentation", "labelmap", "label_path", "seg")
_SUBJECT = ("subject", "subject_id", "patient", "patientid", "patient_id")
_ID = ("id", "case", "case_id", "study", "study_id", "accession", "accessionno", "accession_no", "accession_number")
SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
}
"""Splits by the words that tables use for them."""


def csv_table(path: Path) -> Drafts:
    """A path per row of CSV, TSV or a JSON list: ``Path,Label`` as TANGERINE's, or any of targets, masks and splits.

    Columns (any case): `Path` (or image, file, filename, cases, image_path, volume); `Label`, else every other column
    of numbers, is the target; a `Label` of words is a class; `Mask` names a label map; `Split`, `Subject`, `Session`
    and `Report` too (or `Findings` and `Impression`). A table with reports and no path is one of reports; see
    `reports`.
    """
    rows = table_rows(path)
    columns = _columns(rows)
    where = next((columns[name] for name in PATHS if name in columns), None)
    if where is None and any(name in columns for name in COLUMNS):
        return _reports(path, rows)
    if where is None:
        raise DataError(f"{path.name} has no column Path; it has {', '.join(columns) or 'no rows'}.", "Name it Path.")
    mask = next((columns[name] for name in _MASK if name in columns), None)
    used = {where, mask, *(columns[name] for name in (*_SUBJECT, *COLUMNS, "session", "split") if name in columns)}
    targets = _targets(columns, used)
    if mask is None and targets and _all_files(path.parent, rows, targets[0]):
        mask, targets = targets[0], []
    table = _Table.of(path.parent, rows, columns, mask, targets)
    cases, problems = [], []
    for number, row in enumerate(rows, 2):
        given = (row[where] or "").strip()
        if not given:
            problems.append(Quarantined("", f"{path.name} line {number}", "list", f"Line {number} names no file."))
            continue
        place = path.parent / given
        cases.append(table.draft(row, stem(place), (Source(place),)))
    kept, lost = _present(cases, path)
    return Drafts("csv", path.parent, kept, [*problems, *lost], path.stem, target_names=table.titles)


def reports(path: Path) -> Drafts:
    """Reports without images, from CSV, TSV, JSON or JSON Lines: one case per row or entry.

    Columns (any case): `Report` (or text, sentence), or `Findings` and `Impression`; `Id` names the case; `Label`,
    else every other column of numbers, is the target; `Split`, `Subject` and `Session` too.
    """
    return _reports(path, table_rows(path))


def entry_names(path: Path) -> set[str]:
    """Names, in lower case, of what the entries of a JSON list hold."""
    entries = [entry for _, entry in json_entries(path)]
    return {str(name).lower() for entry in entries if isinstance(entry, dict) for name in entry}


def _reports(path: Path, rows: list[dict[str, str]]) -> Drafts:
    columns = _columns(rows)
    if not any(name in columns for name in COLUMNS):
        raise DataError(
            f"{path.name} has no column with reports; it has {', '.join(columns) or 'no rows'}.",
            "Name it Report, or Findings and Impression.",
        )
    taken = (*_SUBJECT, *_ID, *COLUMNS, "session", "split")
    table = _Table.of(path.parent, rows, columns, None, _targets(columns, {columns[n] for n in taken if n in columns}))
    cases, problems = [], []
    width = len(str(len(rows)))
    for number, row in enumerate(rows, 1):
        draft = table.draft(row, table.cell(row, *_ID) or f"report-{number:0{width}d}", ())
        if draft.report:
            cases.append(draft)
        else:
            problems.append(Quarantined("", f"{path.name} row {number}", "list", f"Row {number} has no report."))
    return Drafts("reports", path.parent, cases, problems, path.stem, target_names=table.titles)


def table_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table by the names of its columns, or entries of a JSON list as such.

    Raises:
        DataError: it cannot be read, or is in another encoding than UTF-8.
    """
    if path.suffix.lower() in (".json", ".jsonl"):
        return _json_rows(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        stream = io.StringIO(text, newline="")  # reports have lines, so lines are no rows
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not in UTF-8: byte {error.start + 1} is no letter of it.",
            "Save it as UTF-8 CSV; its umlauts and accents would be wrong otherwise.",
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as a table: {error}.", "Save it as UTF-8 CSV.") from error


def _json_rows(path: Path) -> list[dict[str, str]]:
    rows = []
    for split, entry in json_entries(path):
        if not isinstance(entry, dict):
            raise DataError(f"{path.name} lists something else than entries with a report.", "Write objects.")
        given = {str(name): "" if value is None else str(value) for name, value in entry.items()}
        said = {name.lower() for name in given}
        rows.append(given if split is None or "split" in said else {**given, "split": split})
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, "") for name in names} for row in rows]


def _columns(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {str(name).strip().lower(): name for name in (rows[0] if rows else {}) if name}


def _targets(columns: Mapping[str, str], used: Collection[str | None]) -> list[str]:
    return [columns["label"]] if "label" in columns else [name for name in columns.values() if name not in used]


def text_list(path: Path) -> Drafts:
    """One path per line, as TANGERINE's list of ``.npz``; lines that name no readable file are reported."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    places = [path.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    key = {".npz": "volume"}
    drafts = [Draft(stem(place), (Source(place, key=_volume_key(place, key)),)) for place in places]
    kept, lost = _present(drafts, path)
    return Drafts("list", path.parent, kept, lost, path.stem)


def _volume_key(path: Path, keys: Mapping[str, str]) -> str:
    """The array that TANGERINE calls `volume`, where it is there."""
    key = keys.get(path.suffix.lower(), "")
    if not key or not path.is_file():
        return ""
    from training_backend.data.read import probe
    from training_backend.errors import Med3dError

    try:
        probe(path, key=key)
    except Med3dError:
        return ""
    return key


def _present(drafts: Sequence[Draft], table: Path) -> tuple[list[Draft], list[Quarantined]]:
    kept, lost = [], []
    for draft in drafts:
        path = draft.images[0].path
        if not path.exists():
            reason = f"{path.name}, named in {table.name}, does not exist."
            lost.append(Quarantined(draft.name, str(path), "missing", reason + " Put the file back or mend the list."))
        elif not can_read(path):
            reason = f"{path.name}, named in {table.name}, is no scan that can be read."
            lost.append(Quarantined(draft.name, str(path), "list", reason))
        else:
            kept.append(draft)
    return kept, lost


@dataclass(frozen=True)
class _Table:
    """What the columns of a table mean, and how a row becomes a case."""

    root: Path
    columns: Mapping[str, str]
    mask: str | None
    targets: Sequence[str]
    names: Sequence[str]

    @classmethod
    def of(
        cls,
        root: Path,
        rows: Sequence[Mapping[str, str]],
        columns: Mapping[str, str],
        mask: str | None,
        targets: Sequence[str],
    ) -> _Table:
        """Of several columns only those of numbers are targets; a single one may hold words."""
        targets = [name for name in targets if len(targets) == 1 or _numeric(rows, name)]
        names = _words(rows, targets[0]) if len(targets) == 1 and not _numeric(rows, targets[0]) else []
        return cls(root, columns, mask, targets, names)

    @property
    def titles(self) -> tuple[str, ...]:
        """Names of the entries of a target, or of the values of a class index."""
        return tuple(self.names) or (tuple(self.targets) if len(self.targets) > 1 else ())

    def cell(self, row: Mapping[str, str], *options: str) -> str:
        """The first of these columns that is there."""
        return next(((row[self.columns[name]] or "").strip() for name in options if name in self.columns), "")

    def draft(self, row: Mapping[str, str], name: str, images: tuple[Source, ...]) -> Draft:
        """The case of a row."""
        drawn = (row[self.mask] or "").strip() if self.mask else ""
        values = [(row[column] or "").strip() for column in self.targets]
        problems: list[str] = []
        target = None
        if self.targets and all(values):
            target = (float(self.names.index(values[0])),) if self.names else tuple(float(value) for value in values)
        elif self.targets:
            problems.append("Its row has no label.")
        split = self.cell(row, "split").lower()
        if split and split not in SPLITS:
            problems.append(f"Its split {split!r} is unknown and was drawn.")
        cells = {name: row[column] or "" for name, column in self.columns.items() if name in COLUMNS}
        return Draft(
            name,
            images,
            Source(self.root / drawn, contrast="label") if drawn else None,
            subject=self.cell(row, *_SUBJECT),
            session=self.cell(row, "session"),
            split=SPLITS.get(split),
            target=target,
            report=report_of(cells),
            problems=tuple(problems),
        )


def _numeric(rows: Sequence[Mapping[str, str]], column: str) -> bool:
    values = [(row[column] or "").strip() for row in rows]
    try:
        return bool([float(value) for value in values if value])
    except ValueError:
        return False


def _words(rows: Sequence[Mapping[str, str]], column: str) -> list[str]:
    return sorted({value for row in rows if (value := (row[column] or "").strip())})


def _all_files(root: Path, rows: Sequence[Mapping[str, str]], column: str) -> bool:
    values = [(row[column] or "").strip() for row in rows]
    return bool(any(values)) and all((root / value).is_file() for value in values if value)
