"""Sentences of abstracts with the part that each plays, as PubMed 200k RCT is given (Dernoncourt and Lee 2017)."""

from __future__ import annotations

from pathlib import Path

from training_backend.data.dataset import Quarantined
from training_backend.data.drafts import Draft, Drafts
from training_backend.data.manifest import Split
from training_backend.errors import DataError

FILES: dict[str, Split] = {"train.txt": "train", "dev.txt": "val", "test.txt": "test"}
PARTS = ("BACKGROUND", "CONCLUSIONS", "METHODS", "OBJECTIVE", "RESULTS")
"""Classes in the order of their numbers."""
START = "###"
"""Begins the line that names an abstract."""


def has_abstracts(folder: Path) -> bool:
    """Whether `folder` holds the three files, the first of which begins with the name of an abstract."""
    if not all((folder / name).is_file() for name in FILES):
        return False
    with (folder / "train.txt").open(encoding="utf-8", errors="replace") as stream:
        return stream.readline().startswith(START)


def abstracts(folder: Path) -> Drafts:
    """A case per sentence: its text, the number of its part, and the abstract as subject; the files are the splits.

    A line is ``PART<TAB>sentence``; ``###NUMBER`` begins an abstract, and the last one counts too where the file ends
    without a blank line.
    """
    cases: list[Draft] = []
    problems: list[Quarantined] = []
    for name, split in FILES.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{folder} has no {name}.", f"Give the folder of {', '.join(FILES)}.")
        found, wrong = _sentences(path, split)
        cases += found
        problems += wrong
    return Drafts("abstracts", folder, cases, problems, folder.name, target_names=PARTS)


def _sentences(path: Path, split: Split) -> tuple[list[Draft], list[Quarantined]]:
    cases: list[Draft] = []
    problems: list[Quarantined] = []
    abstract, number = "", 0
    for place, line in enumerate(_lines(path), 1):
        part, _, text = line.partition("\t")
        if line.startswith(START):
            abstract, number = line.removeprefix(START).strip(), 0
        elif not line.strip():
            continue
        elif part in PARTS and text.strip() and abstract:
            number += 1
            id = f"{abstract}-{number:02d}"
            target = (float(PARTS.index(part)),)
            cases.append(Draft(id, (), subject=abstract, split=split, target=target, report=text.strip()))
        else:
            told = f"Line {place} is no sentence of {', '.join(PARTS)} below the name of its abstract."
            problems.append(Quarantined("", f"{path.name} line {place}", "list", told))
    return cases, problems


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read as text: {error}.", "Copy it again.") from error
