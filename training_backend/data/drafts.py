"""What importers hand over: cases as a layout names them; and how these become records."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training_backend.data.classes import class_table
from training_backend.data.dataset import Quarantined
from training_backend.data.facts import is_picture, scan_name
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord, Split
from training_backend.data.read import probe
from training_backend.data.reports import report_problems
from training_backend.errors import Med3dError


@dataclass(frozen=True)
class Source:
    """A volume as the layout names it: file, array or series inside it, contrast name, slope and intercept if told."""

    path: Path
    key: str = ""
    contrast: str = "image"
    rescale: tuple[float, float] | None = None


@dataclass(frozen=True)
class Draft:
    """A case as the layout names it, without images where it is a report; `split` is None where it is not said."""

    name: str
    images: tuple[Source, ...]
    label: Source | None = None
    subject: str = ""
    session: str = ""
    split: Split | None = None
    target: tuple[float, ...] | None = None
    report: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drafts:
    """All that a layout tells.

    Attributes:
        layout: its name.
        root: folder of the sources.
        cases: found.
        problems: lines and files that are no case, each with the reason.
        name: of the dataset.
        class_names: of label values.
        target_names: of the entries of a target, or of the values of a class index.
        channels: names of the volumes inside 4-D files.
    """

    layout: str
    root: Path
    cases: Sequence[Draft]
    problems: Sequence[Quarantined] = ()
    name: str = ""
    class_names: Mapping[int, str] = field(default_factory=dict)
    target_names: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Described:
    """What a source holds, from names and headers alone.

    Attributes:
        info: of the dataset to be.
        cases: in the order of their ids.
        root: folder of the sources; paths of the records are relative to it.
        problems: what is no case, each with the reason.
        given_splits: ids of the cases whose split the source decided; `ingest` draws the others'.
    """

    info: DatasetInfo
    cases: list[CaseRecord]
    root: Path
    problems: list[Quarantined] = field(default_factory=list)
    given_splits: frozenset[str] = frozenset()


def described(drafts: Drafts) -> Described:
    """Look at the headers of all files; what is missing or unreadable becomes a problem, with its reason."""
    problems = list(drafts.problems)
    cases: list[CaseRecord] = []
    given = set()
    told = any(draft.report for draft in drafts.cases)
    ids = unique_ids([draft.name for draft in drafts.cases])
    for id, draft in zip(ids, drafts.cases, strict=True):
        try:
            images = [record for source in draft.images for record in _records(drafts, source)]
            label = None if draft.label is None else _label(drafts, draft.label)
        except Med3dError as error:
            paths = [source.path for source in (*draft.images, *([draft.label] if draft.label else []))]
            missing = next((path for path in paths if not path.exists()), None)
            shown = str(missing or paths[0])
            problems.append(Quarantined(id, shown, "missing" if missing else "unreadable", str(error)))
            continue
        names = Counter(image.contrast for image in images)
        if len(names) < len(images):
            images = [record.model_copy(update={"contrast": f"image {n}"}) for n, record in enumerate(images)]
        if draft.split is not None:
            given.add(id)
        cases.append(
            CaseRecord(
                id=id,
                subject=draft.subject or id,
                session=draft.session,
                split=draft.split or "train",
                images=tuple(images),
                label=label,
                target=draft.target,
                report=draft.report,
                problems=(*draft.problems, *(report_problems(draft.report) if told else ())),
            )
        )
    cases.sort(key=lambda case: case.id)
    info = DatasetInfo(
        name=drafts.name or drafts.root.name or "dataset",
        layout=drafts.layout,
        root=str(drafts.root),
        contrasts=tuple(dict.fromkeys(image.contrast for case in cases for image in case.images)),
        classes=class_table((), drafts.class_names),
        target_names=drafts.target_names,
        modality="text" if cases and not any(case.images for case in cases) else "unknown",
    )
    return Described(info, cases, drafts.root, problems, frozenset(given))


def file_safe(name: str) -> str:
    """`name` as letters, digits, dots, dashes and underscores; a short hash tells names apart that would be equal."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-") or "case"
    if safe == name and len(safe) <= 100 and not re.fullmatch(r"(?i)con|prn|aux|nul|com\d|lpt\d", safe):
        return safe
    return f"{safe[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def unique_ids(names: Iterable[str]) -> list[str]:
    """File-safe ids in the same order, numbered where names repeat (also where only their case differs)."""
    seen: Counter[str] = Counter()
    ids = []
    for name in names:
        id = file_safe(name)
        seen[id.lower()] += 1
        ids.append(id if seen[id.lower()] == 1 else f"{id}-{seen[id.lower()]}")
    return ids


def stem(path: Path) -> str:
    """Name of a scan file without its ending."""
    return scan_name(path)


def relative(path: Path, root: Path) -> str:
    """`path` below or beside `root` as relative text, else absolute."""
    absolute = Path(os.path.normpath(path.absolute()))  # links are kept: data managers rely on them
    try:
        near = os.path.relpath(absolute, root)
    except ValueError:  # other drive
        return absolute.as_posix()
    return Path(near).as_posix() if near.count("..") <= 2 else absolute.as_posix()


def _label(drafts: Drafts, source: Source) -> ImageRecord:
    """A label map; of a picture all colours, for a number of a class has none."""
    record = _records(drafts, source)[0]
    named = {"contrast": source.contrast, "key": source.key}
    return record.model_copy(update=named) if is_picture(source.path) else record


def _records(drafts: Drafts, source: Source) -> list[ImageRecord]:
    """One record, or one per contrast of a 4-D file or colour of a picture."""
    facts = probe(source.path, key=source.key)
    keys = facts.contrasts if len(facts.contrasts) > 1 else (source.key,)
    if is_picture(source.path) and len(keys) > 1:
        names = keys
    else:
        names = _contrast_names(drafts, source, keys)
    return [
        ImageRecord(
            path=relative(source.path, drafts.root),
            contrast=source.contrast if len(keys) == 1 else name,
            key=key,
            modality=facts.modality,
            shape=facts.shape,
            spacing_mm=facts.spacing_mm,
            rescale=source.rescale,
        )
        for key, name in zip(keys, names, strict=True)
    ]


def _contrast_names(drafts: Drafts, source: Source, keys: tuple[str, ...]) -> tuple[str, ...]:
    return drafts.channels if len(drafts.channels) == len(keys) > 1 else tuple(f"{source.contrast} {k}" for k in keys)
