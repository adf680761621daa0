"""Which cases of a dataset a run uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training_backend.config.run import RunConfig
from training_backend.data.balance import balanced
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord
from training_backend.data.views import generator
from training_backend.errors import ConfigError, DataError

_FEW_SHOT = 12  # sets these random numbers apart from those of the order
_SHOWN = 3  # ids quoted in a sentence


def choose_cases(
    dataset: Dataset, config: RunConfig, needs: str | None, split: str
) -> tuple[list[CaseRecord], tuple[str, ...]]:
    """Cases of a split that have what is needed, and a sentence about those that were asked for but cannot be used.

    Args:
        dataset: opened dataset.
        config: of the run; `data.only`, `data.train_cases` and `data.balanced` are about training cases.
        needs: as of `ViewLoader`.
        split: "train" takes unlabelled cases too, for pre-training on all cases or on all with a report.

    Raises:
        DataError: no case fits, or targets have different lengths.
        ConfigError: more cases are asked for than there are.
    """
    data = config.data
    dataset = dataset.reading(data.report_part)
    cases = dataset.cases(split=split)  # type: ignore[arg-type]
    if split == "train" and (needs is None or (needs == "text" and config.task is None)):
        cases = sorted(cases + dataset.cases(split="unlabelled"), key=lambda case: case.id)
    kinds = [needs, "text"] if data.view == "text" else [needs]
    silent = sum(not case.has("text") for case in cases)
    cases = [case for case in cases if all(case.has(kind) for kind in kinds)]
    if data.view != "text":
        cases = [case for case in cases if case.images]
    lacking: tuple[str, ...] = ()
    if split == "train" and data.only is not None:
        cases, lacking = _only(data.only, dataset, cases)
    if silent and "text" in kinds:
        part = "report" if data.report_part == "whole" else f"{data.report_part} in a report"
        lacking = (*lacking, f"{silent} cases of the {split} split have no {part}.")
    _check_targets(cases, kinds)
    if not cases:
        raise _nothing(dataset, kinds, split, pictures=data.view != "text")
    if split == "train" and data.train_cases is not None:
        cases = _few(cases, data.train_cases, config.seed)
    if split == "train" and needs == "target" and data.balanced:
        cases = balanced(cases)
    return cases, lacking


def read_ids(path: Path) -> tuple[str, ...]:
    """Ids of cases in a file: one per line, a JSON list, or the members of a rehearsal buffer.

    Raises:
        DataError: the file is missing, empty or something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"The list of cases {path} cannot be read: {what}.", "Check data.only.") from error
    ids = _json_ids(path, text) if text.lstrip()[:1] in ("{", "[") else [line.strip() for line in text.splitlines()]
    found = tuple(dict.fromkeys(id for id in ids if id))
    if not found:
        raise DataError(f"The list of cases {path.name} names none.", "Write one id per line.")
    return found


def _json_ids(path: Path, text: str) -> list[str]:
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path.name} is not valid JSON: {error}.", "Restore the file.") from error
    members = content.get("members") if isinstance(content, dict) else content
    if not isinstance(members, list):
        raise DataError(
            f"{path.name} has no list of members, as a rehearsal buffer has.", "Give the buffer.json, or ids in lines."
        )
    ids = [_id(member) for member in members]
    if any(id is None for id in ids):
        raise DataError(f"{path.name} has members without the id of a case.", "Restore the file.")
    return [id for id in ids if id is not None]


def _id(member: Any) -> str | None:
    if isinstance(member, dict):
        member = member.get("case", member.get("id"))
    elif isinstance(member, list):
        member = member[0] if member else None
    return member if isinstance(member, str) else None


def _only(path: Path, dataset: Dataset, cases: list[CaseRecord]) -> tuple[list[CaseRecord], tuple[str, ...]]:
    ids = read_ids(path)
    unknown = [id for id in ids if id not in dataset.records]
    if unknown:
        raise DataError(
            f"{len(unknown)} of the {len(ids)} cases in {path.name} are not in the dataset {dataset.info.name}: "
            f"{_named(unknown)}.",
            "The list was made for another dataset; choose that one, or make the list again.",
        )
    wanted = set(ids)
    chosen = [case for case in cases if case.id in wanted]
    missing = sorted(wanted - {case.id for case in chosen})
    if not missing:
        return chosen, ()
    sentence = f"{len(missing)} of the {len(ids)} cases in {path.name} are no training cases that can be used: "
    return chosen, (f"{sentence}{_named(missing)}.",)


def _named(ids: list[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")


def _few(cases: list[CaseRecord], few: int, seed: int) -> list[CaseRecord]:
    if few > len(cases):
        raise ConfigError(
            f"data.train_cases asks for {few} cases, the dataset has {len(cases)} that fit.", "Ask for fewer."
        )
    order = generator(seed, _FEW_SHOT).permutation(len(cases))
    return [cases[index] for index in sorted(order[:few])]


def _check_targets(cases: list[CaseRecord], kinds: list[str | None]) -> None:
    if not {"target", "text"} & set(kinds):
        return
    lengths = {len(case.target) for case in cases if case.target is not None}
    if len(lengths) > 1:
        raise DataError(f"Targets have different lengths: {sorted(lengths)}.", "Give each case as many values.")


def _nothing(dataset: Dataset, kinds: list[str | None], split: str, *, pictures: bool) -> DataError:
    nouns = {"labels": " with a label map", "target": " with a target", "text": " with a report"}
    wanted = " and".join(nouns[kind] for kind in dict.fromkeys(kinds) if kind in nouns)
    told = f"The dataset {dataset.info.name} has no case{wanted} in its {split} split"
    if pictures and dataset.info.modality == "text":
        return DataError(f"{told} that has an image: it holds reports only.", "Set data.view to text.")
    return DataError(f"{told}.", "Look at it with: med3dssl data inspect.")
