"""Layouts that are a table or a list of paths."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from training_backend.data.dataset import Quarantined
from training_backend.data.drafts import Draft, Drafts, Source, stem
from training_backend.data.manifest import Split
from training_backend.data.read import can_read
from training_backend.data.reports import COLUMNS, report_of
from training_backend.errors import DataError

_PATH = ("path", "image", "file", "filename", "cases")
_MASK = ("mask", "segmentation", "labelmap", "label_path", "seg")
_SUBJECT = ("subject", "subject_id", "patient", "patientid", "patient_id")
_SPLITS: dict[str, Split] = {
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


def csv_table(path: Path) -> Drafts:
    """CSV or TSV with a path per row: ``Path,Label`` as TANGERINE's, or any of several targets, masks and splits.

    Columns (any case): `Path` (or image, file, filename, cases); `Label`, else every other column of numbers, is the
    target; a `Label` of words is a class; `Mask` names a label map; `Split`, `Subject`, `Session` and `Report` too
    (or `Findings` and `Impression`).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        stream = io.StringIO(text, newline="")  # reports have lines, so lines are no rows
        rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as a table: {error}.", "Save it as UTF-8 CSV.") from error
    columns = {str(name).strip().lower(): name for name in (rows[0] if rows else {}) if name}
    where = next((columns[name] for name in _PATH if name in columns), None)
    if where is None:
        raise DataError(f"{path.name} has no column Path; it has {', '.join(columns) or 'no rows'}.", "Name it Path.")
    mask = next((columns[name] for name in _MASK if name in columns), None)
    used = {where, mask, *(columns[name] for name in (*_SUBJECT, *COLUMNS, "session", "split") if name in columns)}
    targets = [columns["label"]] if "label" in columns else [name for name in columns.values() if name not in used]
    if mask is None and targets and _all_files(path.parent, rows, targets[0]):
        mask, targets = targets[0], []
    targets = [name for name in targets if len(targets) == 1 or _numeric(rows, name)]
    names = _words(rows, targets[0]) if len(targets) == 1 and not _numeric(rows, targets[0]) else []
    cases, problems = [], []
    for number, row in enumerate(rows, 2):
        given = (row[where] or "").strip()
        if not given:
            problems.append(Quarantined("", f"{path.name} line {number}", "list", f"Line {number} names no file."))
            continue
        cases.append(_row(path.parent, row, given, columns, mask, targets, names))
    kept, lost = _present(cases, path)
    titles = tuple(names) or (tuple(targets) if len(targets) > 1 else ())
    return Drafts("csv", path.parent, kept, [*problems, *lost], path.stem, target_names=titles)


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


def _row(
    root: Path,
    row: Mapping[str, str],
    given: str,
    columns: Mapping[str, str],
    mask: str | None,
    targets: Sequence[str],
    names: Sequence[str],
) -> Draft:
    def cell(*options: str) -> str:
        return next(((row[columns[name]] or "").strip() for name in options if name in columns), "")

    drawn = (row[mask] or "").strip() if mask else ""
    values = [(row[name] or "").strip() for name in targets]
    problems: list[str] = []
    target = None
    if targets and all(values):
        target = (float(names.index(values[0])),) if names else tuple(float(value) for value in values)
    elif targets:
        problems.append("Its row has no label.")
    split = cell("split").lower()
    if split and split not in _SPLITS:
        problems.append(f"Its split {split!r} is unknown and was drawn.")
    place = root / given
    return Draft(
        stem(place),
        (Source(place),),
        Source(root / drawn, contrast="label") if drawn else None,
        subject=cell(*_SUBJECT),
        session=cell("session"),
        split=_SPLITS.get(split),
        target=target,
        report=report_of({name: row[column] or "" for name, column in columns.items() if name in COLUMNS}),
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
