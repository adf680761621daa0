"""Layouts of volumes with reports: CT-RATE, CTRG-Chest, and the arrow tables of MG-3D's authors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training_backend.data import arrow
from training_backend.data.dataset import Quarantined
from training_backend.data.drafts import Draft, Drafts, Source, stem
from training_backend.data.importers_json import json_entries
from training_backend.data.importers_tables import SPLITS, table_rows
from training_backend.data.manifest import Split
from training_backend.data.read import can_read
from training_backend.data.reports import joined, report_of
from training_backend.errors import DataError

CT_RATE_REPORTS = "radiology_text_reports"
CT_RATE_LABELS = "multi_abnormality_labels"
CT_RATE_METADATA = "metadata"
_VOLUME = "volumename"
_OLDER = "accessionno"
"""Column that names a volume in CT-RATE's tables, and what older tables of labels call it."""
_FINDINGS, _IMPRESSION = "report", "result"
"""Fields of CTRG-Chest."""
_TOLD = ("image_id", "caption", "findings", "impression", "findings_sen", "impression_sen", "split")
_CAPTION = ("CT Findings:", "CT Impression:")
"""What begins the two parts of a caption of the authors' tables."""


def has_ct_rate(folder: Path) -> bool:
    """Whether `folder` has CT-RATE's tables of reports, below itself or a folder ``dataset``."""
    return any((root / CT_RATE_REPORTS).is_dir() for root in (folder, folder / "dataset"))


def is_ctrg(path: Path) -> bool:
    """Whether a JSON list has entries of CTRG-Chest: a path, ``report`` for the findings and ``result``."""
    entries = [entry for _, entry in json_entries(path)]
    first = entries[0] if entries and isinstance(entries[0], dict) else {}
    return {_FINDINGS, _IMPRESSION, "image_path"} <= set(first)


def ct_rate(folder: Path) -> Drafts:
    """CT-RATE: a case per volume that is there, with report, the 18 labels and the rescaling that its tables tell.

    Tables are ``radiology_text_reports/*.csv``, ``multi_abnormality_labels/*.csv`` and ``metadata/*.csv``; volumes lie
    anywhere below the folder. The part before the first ``_`` of a volume's name is its split, ``valid`` being for
    validation; the patient is the subject. Volumes without a report are kept, with a note.
    """
    root = folder if (folder / CT_RATE_REPORTS).is_dir() else folder / "dataset"
    reports = _tables(root / CT_RATE_REPORTS)
    if not reports:
        raise DataError(f"{root / CT_RATE_REPORTS} holds no table.", "Get train_reports.csv of CT-RATE.")
    labels, metadata = _tables(root / CT_RATE_LABELS), _tables(root / CT_RATE_METADATA)
    names = tuple(next(iter(labels.values()))) if labels else ()
    findings = [name for name in names if name.lower() not in (_VOLUME, _OLDER)]
    volumes = {file.name: file for file in sorted(root.rglob("*")) if file.suffix == ".gz" and can_read(file)}
    cases = []
    for name, place in volumes.items():
        row, facts = reports.get(name, {}), metadata.get(name, {})
        parts = stem(place).split("_")
        scale, notes = _rescaling(facts)
        target = _labels(labels.get(name, {}), findings)
        cases.append(
            Draft(
                stem(place),
                (Source(place, contrast="CT", rescale=scale),),
                subject="_".join(parts[:2]),
                split=SPLITS.get(parts[0]),
                target=target,
                report=report_of({key.lower(): value or "" for key, value in row.items()}),
                problems=(*notes, *(("Its row has no labels.",) if findings and target is None else ())),
            )
        )
    problems = _absent(set(reports) - set(volumes), root / CT_RATE_REPORTS)
    return Drafts("ct-rate", root, cases, problems, "CT-RATE", target_names=tuple(findings))


def ctrg(path: Path) -> Drafts:
    """CTRG-Chest: a JSON list of train, val and test with ``id``, ``image_path``, ``report`` and ``result``.

    Paths are those of the authors' machines; a scan is found by the end of its path below the folder of the list.
    """
    files = _Files(path.parent)
    cases, problems = [], []
    for split, entry in json_entries(path):
        if not isinstance(entry, dict):
            raise DataError(f"{path.name} lists something else than cases with a report.", "Copy it again.")
        given = entry.get("image_path")
        name = str(given[0] if isinstance(given, list) and given else given or "")
        report = joined(str(entry.get(_FINDINGS) or ""), str(entry.get(_IMPRESSION) or ""))
        place = files.find(name)
        if place is None:
            problems.append(_no_scan(str(entry.get("id", "")), name, path))
            continue
        cases.append(Draft(str(entry.get("id") or stem(place)), (Source(place),), split=_split(split), report=report))
    return Drafts("ctrg", path.parent, cases, problems, path.stem)


def arrow_tables(path: Path) -> Drafts:
    """Arrow tables of MG-3D's authors: one file, or all of a folder; a row is a case.

    Its scan is the file that ``image_id`` names, else the slices in the row. Sentences that the table has already
    (``findings_sen``, ``impression_sen``) stay apart, each in a line of its own.
    """
    tables = [path] if path.is_file() else sorted(path.glob(f"*{arrow.SUFFIX}"))
    root = path.parent if path.is_file() else path
    files = _Files(root)
    cases: list[Draft] = []
    problems: list[Quarantined] = []
    for table in tables:
        has = arrow.columns(table)
        if "image_id" not in has or not {"caption", "findings", "findings_sen"} & set(has):
            raise DataError(
                f"{table.name} is no table of scans with reports: it has {', '.join(has) or 'no columns'}.",
                "Expected are image_id, and findings and impression or caption.",
            )
        for number, row in enumerate(arrow.rows(table, _TOLD)):
            name = str(_text(row.get("image_id")))
            place = files.find(name)
            if place is None and arrow.SLICES not in has:
                problems.append(_no_scan(stem(Path(name)), name, table))
                continue
            source = Source(place) if place else Source(table, key=str(number))
            split = _split(str(row.get("split") or "") or next((s for s in SPLITS if f"_{s}" in table.stem), None))
            cases.append(Draft(stem(Path(name)), (source,), split=split, report=_told(row)))
    return Drafts("arrow", root, cases, problems, path.stem)


class _Files:
    """Files below a folder, to be found by paths of another machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._named: dict[str, list[Path]] | None = None

    def find(self, given: str) -> Path | None:
        """The file as named, or below the folder the one that shares the longest end of the path; None without one."""
        if not given:
            return None
        direct = self.root / given
        if can_read(direct):
            return direct
        if self._named is None:
            self._named = {}
            for file in sorted(self.root.rglob("*")):
                if file.is_file() and file.suffix != arrow.SUFFIX and can_read(file):
                    self._named.setdefault(file.name, []).append(file)
        parts = Path(given.replace("\\", "/")).parts
        found = self._named.get(parts[-1] if parts else "", [])
        return max(found, key=lambda file: _shared_end(file.parts, parts), default=None)


def _shared_end(mine: Sequence[str], theirs: Sequence[str]) -> int:
    length = 0
    for own, other in zip(reversed(mine), reversed(theirs), strict=False):
        if own != other:
            break
        length += 1
    return length


def _told(row: Mapping[str, Any]) -> str:
    """Report of a row: its sentences, else findings and impression, else the caption without its headings."""
    for names, between in ((("findings_sen", "impression_sen"), "\n"), (("findings", "impression"), " ")):
        parts = [_text(row.get(name), between) for name in names]
        if any(parts):
            return joined(*parts)
    caption = _text(row.get("caption"), " ")
    findings, _, impression = caption.removeprefix(_CAPTION[0]).partition(_CAPTION[1])
    return joined(findings.strip(), impression.strip())


def _text(value: Any, between: str = " ") -> str:
    if isinstance(value, list | tuple):
        return between.join(" ".join(str(one).split()) for one in value if one)
    return str(value or "").strip()


def _tables(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of all tables of a folder by the volume that they are about."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*.csv")):
        for row in table_rows(path):
            by_name = {str(name).lower(): value for name, value in row.items()}
            volume = (by_name.get(_VOLUME) or by_name.get(_OLDER) or "").strip()
            if volume:
                found[volume if volume.endswith(".nii.gz") else f"{volume}.nii.gz"] = row
    return found


def _labels(row: Mapping[str, str], names: Sequence[str]) -> tuple[float, ...] | None:
    try:
        return tuple(float(row[name]) for name in names) if names and row else None
    except (KeyError, ValueError):
        return None


def _rescaling(facts: Mapping[str, str]) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Slope and intercept to Hounsfield units, which CT-RATE keeps in a table; a note where it tells none."""
    if not facts:
        return None, ("No table of metadata tells its rescaling to Hounsfield units.",)
    try:
        scale = (float(facts["RescaleSlope"]), float(facts["RescaleIntercept"]))
    except (KeyError, ValueError):
        return None, ("Its row of the metadata has no RescaleSlope and RescaleIntercept.",)
    return (None if scale == (1.0, 0.0) else scale), ()


def _split(name: str | None) -> Split | None:
    return SPLITS.get((name or "").lower())


def _no_scan(case: str, name: str, table: Path) -> Quarantined:
    reason = f"The scan {Path(name).name or '(no name)'} of {table.name} is not below {table.parent.name}."
    return Quarantined(case, name, "missing", f"{reason} Put it there; its report alone is no pair.")


def _absent(names: Iterable[str], table: Path) -> list[Quarantined]:
    """One entry for all volumes of a table that are not there: CT-RATE is seldom downloaded whole."""
    missing = sorted(names)
    if not missing:
        return []
    some = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
    reason = f"{len(missing)} volumes with a report are not there: {some}. Their reports are left out."
    return [Quarantined("", str(table), "missing", reason)]
