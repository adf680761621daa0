"""Recognise how a folder or a list names its scans, and describe the cases in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from training_backend.data import importers_folders as folders
from training_backend.data import importers_json as lists
from training_backend.data import importers_pairs as pairs
from training_backend.data import importers_tables as tables
from training_backend.data.dataset import INFO, MANIFEST, check_splits
from training_backend.data.drafts import Described, Drafts, described, relative
from training_backend.data.facts import is_picture
from training_backend.data.importers_abstracts import abstracts, has_abstracts
from training_backend.data.read import can_read
from training_backend.data.reports import COLUMNS
from training_backend.errors import ConfigError, DataError

__all__ = ["LAYOUTS", "Described", "describe", "layout_of"]

LAYOUTS: dict[str, Callable[[Path], Drafts]] = {
    "folder": folders.plain,
    "paired": folders.paired,
    "msd": lists.msd,
    "nnunet": lists.nnunet,
    "bids": folders.bids,
    "monai": lists.monai,
    "csv": tables.csv_table,
    "list": tables.text_list,
    "reports": tables.reports,
    "abstracts": abstracts,
    "ct-rate": pairs.ct_rate,
    "ctrg": pairs.ctrg,
    "arrow": pairs.arrow_tables,
    "ua-mt": folders.ua_mt,
    "dicom": folders.dicom,
}
"""Readers by the name of the layout."""


def describe(path: Path | Sequence[Path], *, layout: str = "auto") -> Described:
    """Cases of a source, from names and headers; no voxel is read.

    Args:
        path: a folder, a scan, a list (.json, .jsonl, .csv, .tsv, .txt, .list), or several of these.
        layout: one of `LAYOUTS`, or "auto".

    Raises:
        DataError: nothing is there, a list cannot be read, or its splits share a subject.
        ConfigError: unknown layout.
    """
    if not isinstance(path, str | Path):
        return _joined([describe(one, layout=layout) for one in path])
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist.", "Check the name.")
    name = layout_of(path) if layout == "auto" else layout
    if name not in LAYOUTS:
        raise ConfigError(f"There is no layout {name!r}.", f"Known are auto, {', '.join(LAYOUTS)}.")
    found = described(LAYOUTS[name](path))
    check_splits(case for case in found.cases if case.id in found.given_splits)
    return found


def layout_of(path: Path) -> str:
    """Name of the layout of `path`."""
    if path.is_file():
        return _list_kind(path)
    if (path / MANIFEST).is_file() and (path / INFO).is_file():
        raise DataError(f"{path} is a dataset already.", "Open it, or give the folder of the scans.")
    if (path / "dataset.json").is_file():
        return _list_kind(path / "dataset.json")
    if (path / "dataset_description.json").is_file() or any(path.glob("sub-*/")):
        return "bids"
    if any((path / f"{split}.list").is_file() for split in ("train", "val", "test")):
        return "ua-mt"
    if has_abstracts(path):
        return "abstracts"
    if pairs.has_ct_rate(path):
        return "ct-rate"
    if any(path.glob("*.arrow")):
        return "arrow"
    if folders.pair_folders(path) is not None:
        return "paired"
    scans = (file for file in path.rglob("*") if folders.is_scan(file) and not is_picture(file))
    if can_read(path) and not any(islice(scans, 1)):
        return "dicom"
    return "folder"


def _list_kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return "csv"
    if suffix in (".txt", ".list"):
        return "list"
    if suffix == ".arrow":
        return "arrow"
    if suffix == ".jsonl":
        return _report_kind(path)
    if suffix != ".json":
        return "folder"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} is not valid JSON: {error}.", "Repair it, or import the folder.") from error
    keys = set(content) if isinstance(content, dict) else set()
    if keys & {"channel_names", "file_ending"}:
        return "nnunet"
    if path.name == "dataset.json" and "training" in keys:
        return "msd"
    return "ctrg" if pairs.is_ctrg(path) else _report_kind(path)


def _report_kind(path: Path) -> str:
    """Of a list of objects: reports alone, a table of paths (with reports), or a datalist with `image`."""
    names = tables.entry_names(path)
    if "image" in names or not names & set(COLUMNS):
        return "monai"
    return "csv" if names & set(tables.PATHS) else "reports"


def _joined(parts: Sequence[Described]) -> Described:
    """Several sources as one; ids that repeat are numbered, and paths become relative to what all have in common."""
    root = Path(os.path.commonpath([os.path.normpath(part.root.absolute()) for part in parts]))
    cases, problems, given = [], [], set()
    taken: set[str] = set()
    for part in parts:
        problems += part.problems
        for case in part.cases:
            id = next(name for name in _numbered(case.id) if name.lower() not in taken)
            taken.add(id.lower())
            if case.id in part.given_splits:
                given.add(id)
            images = tuple(
                image.model_copy(update={"path": relative(part.root / image.path, root)}) for image in case.images
            )
            label = case.label and case.label.model_copy(update={"path": relative(part.root / case.label.path, root)})
            subject = case.subject if case.subject != case.id else id
            cases.append(case.model_copy(update={"id": id, "subject": subject, "images": images, "label": label}))
    first = parts[0]
    names = {entry.index: entry for part in reversed(parts) for entry in part.info.classes}
    contrasts = tuple(dict.fromkeys(name for part in parts for name in part.info.contrasts))
    info = first.info.model_copy(
        update={
            "root": str(root),
            "contrasts": contrasts,
            "classes": tuple(names[index] for index in sorted(names)),
        }
    )
    return replace(first, info=info, cases=cases, root=root, problems=problems, given_splits=frozenset(given))


def _numbered(name: str) -> Iterable[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1
