"""What a person decides about some cases of a dataset: their split, their class, or that they are left out.

Each decision answers what the cases were before, and `undo` takes it back: of each case only what it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_backend.data.accept import held
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, Split
from training_backend.errors import DataError


@dataclass(frozen=True)
class Change:
    """A decision that was written, and what it replaced.

    Attributes:
        folder: of the dataset.
        before: by id, fields of the cases that are not what they were.
        names: names of the classes of cases before; None where they are the same.
    """

    folder: Path
    before: dict[str, dict[str, Any]]
    names: tuple[str, ...] | None = None


def move(folder: Path, ids: Sequence[str], split: Split) -> Change:
    """Give cases a split.

    Raises:
        DataError: a subject, or the same image, would be in two splits; nothing is changed then.
    """
    return _changed(folder, ids, lambda _: {"split": split})


def exclude(folder: Path, ids: Sequence[str]) -> Change:
    """Leave cases out of training, scores and maps; they stay in the manifest.

    Raises:
        DataError: no case would be left; nothing is changed then.
    """
    with held(folder) as dataset:
        left = {case.id for case in dataset.cases()} - set(ids)
        if not left:
            raise DataError(f"Every case of {dataset.info.name} would be left out.", "Choose fewer of them.")
    return _changed(folder, ids, lambda _: {"excluded": True})


def include(folder: Path, ids: Sequence[str]) -> Change:
    """Use cases again that were left out.

    Raises:
        DataError: a subject, or the same image, would be in two splits; nothing is changed then.
    """
    return _changed(folder, ids, lambda _: {"excluded": False})


def classify(folder: Path, ids: Sequence[str], name: str) -> Change:
    """Give cases a class by its name, which becomes the target that a classification learns.

    Args:
        folder: dataset.
        ids: of its cases.
        name: of a class, new or known; empty takes their class away.

    Raises:
        DataError: the dataset has targets that are no classes; nothing is changed then.
    """
    dataset = Dataset.open(folder)
    names = list(class_names(dataset))
    if name and name not in names:
        free = names.index("") if "" in names else len(names)
        names[free : free + 1] = [name]
    if len(names) == 1:
        names.append("")  # a table of one name would be that of a finding
    target = (float(names.index(name)),) if name else None
    return _changed(folder, ids, lambda _: {"target": target}, tuple(names) if name else None)


def undo(change: Change) -> None:
    """Make cases what they were before, as far as `change` is concerned.

    Raises:
        DataError: a subject would be in two splits, because of what was decided since.
    """
    _changed(change.folder, list(change.before), lambda case: change.before[case.id], change.names)


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Names of the classes that whole cases have, in the order of their numbers; empty text for one without a name.

    A table of one name is that of a finding X, whose classes are ("no X", "X").

    Raises:
        DataError: the targets are values, or several findings per case.
    """
    targets = [case.target for case in dataset.records.values() if case.target is not None]
    if any(len(target) != 1 or target[0] < 0 or target[0] != int(target[0]) for target in targets):
        raise DataError(
            f"The targets of {dataset.info.name} are values or several findings per case, no classes.",
            "Name a group in place of a class, or make a dataset of the scans without these targets.",
        )
    names, most = dataset.info.target_names, max((int(target[0]) for target in targets), default=-1)
    if len(names) == 1 and 0 <= most <= 1:
        names = (f"no {names[0]}", names[0])
    return (*names, *(f"class {number}" for number in range(len(names), most + 1)))


def class_of(case: CaseRecord, names: Sequence[str]) -> str:
    """Name of the class of a case; empty without one."""
    number = -1 if case.target is None or len(case.target) != 1 else int(case.target[0])
    return names[number] if 0 <= number < len(names) else ""


def _changed(
    folder: Path,
    ids: Sequence[str],
    fields: Callable[[CaseRecord], dict[str, Any]],
    names: tuple[str, ...] | None = None,
) -> Change:
    """Write new fields of cases, all of them or, if that is refused, none."""
    before: dict[str, dict[str, Any]] = {}
    with held(folder) as dataset:
        for id in dict.fromkeys(ids):
            case = dataset.case(id)
            wanted = fields(case)
            had = {name: getattr(case, name) for name in wanted}
            if had != wanted:
                before[id] = had
                dataset.put(case.model_copy(update=wanted))
        known = dataset.info.target_names
        if names is not None:
            dataset.info = dataset.info.model_copy(update={"target_names": names})
        dataset.save()
    return Change(Path(folder), before, known if names not in (None, known) else None)
