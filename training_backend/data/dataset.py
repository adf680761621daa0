"""A dataset on disk: open it, choose cases, change the manifest, find the files again after it was moved."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord, Split, dataset_folder
from training_backend.data.reports import part_of
from training_backend.data.volume import Volume
from training_backend.errors import DataError
from training_backend.files import write_json, write_text

if TYPE_CHECKING:
    from training_backend.config.data import ReportPart

INFO = "dataset.json"
MANIFEST = "manifest.jsonl"
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Quarantined:
    """Something that was left out, and why.

    Attributes:
        case: id of the case, or empty where no case came of it (a line of a list).
        path: file as the source names it.
        category: "missing", "unreadable", "damaged", "not finite", "geometry", "labels", "duplicate", "leakage",
            "too big" or "list".
        reason: sentence that says what was found and what to do.
    """

    case: str
    path: str
    category: str
    reason: str

    def __str__(self) -> str:
        """One line for a list."""
        return f"{self.case or self.path}: {self.reason}"


class Dataset:
    """The manifest of a dataset folder; changes reach the disk with `save`."""

    def __init__(self, folder: Path, info: DatasetInfo, cases: Iterable[CaseRecord] = ()) -> None:
        self.folder = Path(folder)
        self.info = info
        self.records: dict[str, CaseRecord] = {case.id: case for case in cases}
        self.part: ReportPart = "whole"

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Dataset in `folder`, wherever it was moved to; a `DataError` names the line that cannot be read."""
        folder = dataset_folder(folder)
        info = DatasetInfo.parse(_json(folder / INFO), where=INFO)
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{folder} has no {MANIFEST}.", "Copy the whole dataset folder, or ingest again.")
        cases = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                cases.append(CaseRecord.parse(_parsed(line, path, number), where=f"{MANIFEST} line {number}"))
        return cls(folder, info, cases)

    def reading(self, part: ReportPart) -> Dataset:
        """This dataset with `part` of each report in place of the whole, which cannot be saved."""
        if part == self.part:
            return self
        cut = (r.model_copy(update={"report": part_of(r.report, part)}) for r in self.records.values())
        found = Dataset(self.folder, self.info, cut)
        found.part = part
        return found

    def cases(self, split: Split | None = None, labelled: bool | None = None) -> list[CaseRecord]:
        """Cases in the order of their ids, excluded ones left out.

        Args:
            split: only this split.
            labelled: only those with (True) or without (False) a label map.
        """
        return [
            case
            for _, case in sorted(self.records.items())
            if not case.excluded
            and (split is None or case.split == split)
            and (labelled is None or (case.label is not None) == labelled)
        ]

    def case(self, id: str) -> CaseRecord:
        """The case called `id`."""
        if id not in self.records:
            raise DataError(f"The dataset {self.info.name} has no case {id!r}.", f"It has {len(self.records)} cases.")
        return self.records[id]

    def put(self, case: CaseRecord) -> None:
        """Add `case`, or replace the one with its id (to exclude it, move it to another split, ...)."""
        self.records[case.id] = case

    def add_case(
        self,
        volumes: Sequence[Volume],
        label: Volume | None = None,
        *,
        id: str,
        subject: str = "",
        split: Split = "train",
        target: tuple[float, ...] | None = None,
        report: str = "",
        replace: bool = False,
    ) -> CaseRecord:
        """Copy volumes from memory (open layers) into the dataset as a case, store it and save.

        The copies lie in ``sources/`` of the dataset, in their own grid.
        """
        from training_backend.data.ingest import add_volumes

        if id in self.records and not replace:
            raise DataError(f"The dataset already has a case {id!r}.", "Choose another name, or replace it.")
        record = CaseRecord(id=id, subject=subject or id, split=split, target=target, report=report)
        case = add_volumes(self, record, volumes, label)
        self.put(case)
        self.save()
        return case

    def save(self) -> None:
        """Write both files, each whole or not at all; refuses splits that share a subject or an image."""
        if self.part != "whole":
            raise ValueError("a dataset that reads a part of its reports would lose the rest")
        check_splits(self.records.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / INFO, self.info.model_dump(mode="json"))
        lines = [case.model_dump_json() + "\n" for _, case in sorted(self.records.items())]
        write_text(self.folder / MANIFEST, "".join(lines))

    def quarantined(self) -> list[Quarantined]:
        """What the last ingest left out."""
        path = self.folder / QUARANTINE
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Quarantined(**_parsed(line, path, number)) for number, line in enumerate(lines, 1) if line.strip()]

    def fingerprint(self) -> str:
        """SHA-256 of what training sees: cases, splits, contents of images, labels and reports, classes and spacing."""
        rows: list[Any] = [self.info.spacing_mm, [entry.index for entry in self.info.classes]]
        for case in self.cases():
            label = case.label.sha256 if case.label else ""
            row: list[Any] = [case.id, case.split, [image.sha256 for image in case.images], label, case.target]
            row += [] if case.annotated is None else [list(case.annotated)]
            rows.append(row if case.images else [*row, hashlib.sha256(case.report.encode()).hexdigest()])
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def source(self, record: ImageRecord) -> Path:
        """The file that `record` was made from; a `DataError` says where it was looked for."""
        path = (self.folder / self.info.root / record.path).resolve()
        if not path.exists():
            raise DataError(
                f"The source file {record.path} is not at {path.parent}.",
                "Training does not need it; put the source folder back to read the scan itself.",
            )
        return path


def save_quarantine(folder: Path, entries: Iterable[Quarantined]) -> None:
    """Write what was left out beside a dataset, whole or not at all."""
    lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
    write_text(folder / QUARANTINE, "".join(lines))


def check_splits(cases: Iterable[CaseRecord]) -> None:
    """Refuse a subject, or the same image content, in two splits ("unlabelled" counts as train)."""
    subjects: dict[str, CaseRecord] = {}
    contents: dict[tuple[str, str], CaseRecord] = {}
    for case in cases:
        if case.excluded:
            continue
        twins = [(subjects.setdefault(case.subject, case), f"Subject {case.subject!r}")]
        twins += [
            (contents.setdefault((image.sha256, image.key), case), f"The image {image.path!r}")
            for image in case.images
            if image.sha256
        ]
        for first, what in twins:
            if _side(first) != _side(case):
                raise DataError(
                    f"{what} is in {first.split} (case {first.id}) and in {case.split} (case {case.id}).",
                    "A subject belongs to one split only, or the scores mean nothing; move or exclude one of them.",
                )


def relative_root(source: Path, folder: Path) -> str:
    """Folder of the sources as the manifest keeps it: relative where both lie close together, else absolute."""
    source, folder = Path(source).resolve(), Path(folder).resolve()
    try:
        relative = os.path.relpath(source, folder)
    except ValueError:  # other drive
        return source.as_posix()
    return Path(relative).as_posix() if relative.count("..") <= 2 else source.as_posix()


def kept_place(dataset: Path, folder: Path) -> dict[str, str]:
    """Where a dataset is, as files in `folder` keep it: its place, and how to get there from `folder`."""
    found = {"dataset": relative_root(dataset, folder)}
    try:
        beside = os.path.relpath(Path(dataset).resolve(), Path(folder).resolve())
    except ValueError:  # other drive
        return found
    return {**found, "beside": Path(beside).as_posix()}


def found_place(values: Mapping[str, Any], folder: Path) -> Path:
    """The dataset of `kept_place`; where it is no more, the one that lies as it did, when all was moved as one."""
    dataset, beside = Path(values["dataset"]), values.get("beside")
    dataset = dataset if dataset.is_absolute() else (Path(folder) / dataset).resolve()
    moved = (Path(folder) / str(beside)).resolve() if beside else dataset
    return moved if not (dataset / INFO).is_file() and (moved / INFO).is_file() else dataset


def _side(case: CaseRecord) -> str:
    return "train" if case.split == "unlabelled" else case.split


def _json(path: Path) -> Any:
    return _parsed(path.read_text(encoding="utf-8"), path, 1)


def _parsed(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path.name} line {number} is not valid JSON: {error}.", "Restore the file.") from error
