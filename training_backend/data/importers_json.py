"""Layouts that are a JSON list: Medical Segmentation Decathlon, nnU-Net raw, MONAI datalist."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training_backend.data.dataset import Quarantined
from training_backend.data.drafts import Draft, Drafts, Source, stem
from training_backend.data.facts import SUFFIXES
from training_backend.data.manifest import Split
from training_backend.data.reports import COLUMNS, report_of
from training_backend.errors import DataError

_SECTIONS: dict[str, Split | None] = {
    "training": None,
    "train": None,
    "validation": "val",
    "val": "val",
    "test": "test",
    "testing": "test",
}


def msd(path: Path) -> Drafts:
    """Decathlon: ``dataset.json`` with `training` and `test`; also reads `target`, `report`, `subject` of an entry."""
    return _datalist(path, "msd")


def monai(path: Path) -> Drafts:
    """MONAI datalist: `training`, `validation`, `test` lists of entries with `image` and `label`, or a `fold` each."""
    return _datalist(path, "monai")


def json_entries(path: Path) -> list[tuple[Split | None, Any]]:
    """Entries of a JSON list or datalist, or of JSON Lines, with the split of the list that each is in."""
    _, content = _load(path)
    return [
        (split, entry)
        for name, split in _SECTIONS.items()
        if isinstance(content.get(name), list)
        for entry in content[name]
    ]


def nnunet(path: Path) -> Drafts:
    """nnU-Net raw: ``imagesTr/CASE_0000.nii.gz`` per channel, ``labelsTr/CASE.nii.gz``, ``imagesTs``.

    Fold 0 of a ``splits_final.json`` beside them tells training and validation cases apart.
    """
    path, content = _load(path)
    root = path.parent
    ending = str(content.get("file_ending", ".nii.gz"))
    channels = content.get("channel_names") or content.get("modality") or {}
    names = {int(number): str(name) for number, name in channels.items()} if isinstance(channels, dict) else {}
    folds = _first_fold(root / "splits_final.json")
    cases, problems = [], []
    for folder, split in (("imagesTr", None), ("imagesTs", "test")):
        groups: dict[str, dict[int, Path]] = {}
        for file in sorted((root / folder).glob(f"*{ending}")):
            case, _, channel = file.name.removesuffix(ending).rpartition("_")
            if not case or not channel.isdecimal():
                problems.append(Quarantined("", str(file), "list", f"{file.name} has no channel number (CASE_0000)."))
                continue
            groups.setdefault(case, {})[int(channel)] = file
        for case, files in groups.items():
            label = root / folder.replace("images", "labels") / f"{case}{ending}"
            found = label.is_file()
            reason = () if found or split else (f"There is no label map {label.parent.name}/{label.name}.",)
            cases.append(
                Draft(
                    case,
                    tuple(Source(files[n], contrast=names.get(n, f"channel {n}")) for n in sorted(files)),
                    Source(label, contrast="label") if found else None,
                    split=("test" if found else "unlabelled") if split else folds.get(case),
                    problems=reason,
                )
            )
    return Drafts("nnunet", root, cases, problems, str(content.get("name") or root.name), _class_names(content))


def _first_fold(path: Path) -> dict[str, Split]:
    """Split of each case in the first fold of nnU-Net's list of folds; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        fold = json.loads(path.read_text(encoding="utf-8"))[0]
        return {**dict.fromkeys(map(str, fold["train"]), "train"), **dict.fromkeys(map(str, fold["val"]), "val")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path.name} is no list of folds with train and val.", "Repair it, or take it away."
        ) from error


def _datalist(path: Path, layout: str) -> Drafts:
    path, content = _load(path)
    root = path.parent
    sections = {name: content[name] for name in _SECTIONS if isinstance(content.get(name), list)}
    if not sections:
        raise DataError(f"{path.name} lists no cases: none of {', '.join(_SECTIONS)} is there.", "Check the file.")
    decided = any(_SECTIONS[name] == "val" for name in sections)
    channels = content.get("modality") or {}
    names = tuple(str(channels[key]) for key in sorted(channels, key=int)) if isinstance(channels, dict) else ()
    cases, problems = [], []
    for name, entries in sections.items():
        for number, entry in enumerate(entries):
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not entry.get("image"):
                reason = f"Entry {number} of {name!r} names no image."
                problems.append(Quarantined("", f"{path.name}: {name}[{number}]", "list", reason))
                continue
            split = _SECTIONS[name]
            if split is None and "fold" in entry:
                split = "val" if entry["fold"] == 0 else "train"
            elif split is None and decided:
                split = "train"
            cases.append(_entry(root, entry, split, names))
    title = str(content.get("name") or root.name)
    targets = tuple(str(entry) for entry in content.get("target_names", ()))
    return Drafts(layout, root, cases, problems, title, _class_names(content), targets, names)


def _entry(root: Path, entry: Mapping[str, Any], split: Split | None, names: tuple[str, ...]) -> Draft:
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    paths = [root / str(image) for image in images]
    contrasts = [
        names[n] if n < len(names) else ("image" if len(paths) == 1 else f"image {n}") for n in range(len(paths))
    ]
    label, target = entry.get("label"), entry.get("target")
    if isinstance(label, int | float) or (isinstance(label, list) and all(isinstance(v, int | float) for v in label)):
        label, target = None, label  # a classification datalist
    if split == "test" and label is None and target is None:
        split = "unlabelled"
    values = None if target is None else tuple(float(v) for v in (target if isinstance(target, list) else [target]))
    name = stem(paths[0])
    return Draft(
        name.removesuffix("_0000") if len(paths) > 1 else name,
        tuple(Source(path, contrast=contrast) for path, contrast in zip(paths, contrasts, strict=True)),
        Source(root / str(label), contrast="label") if label else None,
        subject=str(entry.get("subject", "")),
        split=split,
        target=values,
        report=report_of({key.lower(): str(value or "") for key, value in entry.items() if key.lower() in COLUMNS}),
    )


def _load(path: Path) -> tuple[Path, dict[str, Any]]:
    if path.is_dir():
        path = path / "dataset.json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = path.suffix.lower() == ".jsonl"
        content = _json_lines(path, text) if lines else json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as JSON: {error}.", "Repair it, or import the folder.") from error
    if isinstance(content, list):
        content = {"training": content}
    if not isinstance(content, dict):
        raise DataError(f"{path.name} holds no list of cases.", f"Readable scans end in {', '.join(SUFFIXES)}.")
    return path, content


def _json_lines(path: Path, text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                reason = getattr(error, "msg", error)
                raise DataError(
                    f"{path.name} cannot be read as JSON: line {number}: {reason}.", "Repair it, or import the folder."
                ) from error
    return found


def _class_names(content: Mapping[str, Any]) -> dict[int, str]:
    """Names by value from either direction: {"1": "liver"} (Decathlon) or {"liver": 1} (nnU-Net)."""
    labels = content.get("labels")
    if not isinstance(labels, dict):
        return {}
    names: dict[int, str] = {}
    for key, value in labels.items():
        if str(key).isdecimal():
            names[int(key)] = str(value)
        elif isinstance(value, int):
            names[value] = str(key)
        elif isinstance(value, list) and value and isinstance(value[-1], int):
            names.setdefault(value[-1], str(key))  # a region: its own value is listed last
    return {value: name for value, name in names.items() if value > 0 and name != "ignore"}
