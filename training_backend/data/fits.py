"""Whether a dataset is what a recipe was made for, told in sentences before anything is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from training_backend.config.recipes import Recipe, matched
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord
from training_backend.errors import DataError, Med3dError


@dataclass(frozen=True)
class Misfit:
    """One difference; an "error" means that the recipe cannot be followed."""

    kind: Literal["error", "warning"]
    sentence: str


def misfits(recipe: Recipe, dataset: Dataset) -> list[Misfit]:
    """Differences between what `recipe` expects and `dataset` is: channels, modality, classes, spacing, splits."""
    cases = dataset.cases()
    found = [_channels(recipe, dataset), _modality(recipe, dataset), *_classes(recipe, dataset, cases)]
    found += [_spacing(recipe, dataset), *_splits(recipe, cases)]
    return [misfit for misfit in found if misfit is not None]


def check_fit(recipe: Recipe, folder: Path) -> None:
    """Refuse a dataset that `recipe` cannot be followed on.

    Raises:
        DataError: every reason, in sentences.
    """
    errors = [misfit.sentence for misfit in misfits(recipe, Dataset.open(folder)) if misfit.kind == "error"]
    if errors:
        raise DataError(" ".join(errors), f"See: med3dssl recipes show {recipe.name}.")


def contrasts_of(folder: Path) -> tuple[str, ...]:
    """Contrasts of the dataset in `folder`, or none where there is no dataset that can be read."""
    try:
        return Dataset.open(folder).info.contrasts
    except Med3dError:
        return ()


def _channels(recipe: Recipe, dataset: Dataset) -> Misfit | None:
    wanted, given = recipe.dataset.channels, dataset.info.contrasts
    if len(wanted) == 1 or matched(wanted, given):
        return None
    text = f"The recipe stacks {len(wanted)} contrasts ({', '.join(wanted)}), but the dataset has "
    return Misfit("error", f"{text}{', '.join(given) or 'one without a name'}.")


def _modality(recipe: Recipe, dataset: Dataset) -> Misfit | None:
    wanted, given = recipe.dataset.modality, dataset.info.modality
    if given == "unknown":
        return Misfit("warning", f"The recipe is for {wanted}; what the dataset holds is not known.")
    if given == wanted:
        return None
    return Misfit("error", f"The recipe is for {wanted}, but the dataset holds {given}.")


def _classes(recipe: Recipe, dataset: Dataset, cases: list[CaseRecord]) -> list[Misfit]:
    names = recipe.dataset.classes
    if recipe.task in ("report_generation", "retrieval"):
        written = any(case.report for case in cases)
        return [] if written else [Misfit("error", f"The recipe is for {recipe.task}, but no case has a report.")]
    kind = recipe.run.get("task", {}).get("kind", "")
    if recipe.task == "vocabulary" or kind == "multilabel":
        return _findings(names, cases)
    if recipe.task in ("segmentation", "registration"):
        values = {int(value) for case in cases for value in case.store.get("label", {}).get("values", {})}
        if not values:
            return [Misfit("error", f"The recipe is for {recipe.task}, but no case has a label map.")]
        if not names:
            return []
        what = "label value"
    else:
        targets = [case.target for case in cases if case.target is not None]
        if not targets:
            return [Misfit("error", f"The recipe is for {recipe.task}, but no case has a target.")]
        if recipe.task == "regression":
            return []
        if any(len(target) != 1 for target in targets):
            return [Misfit("error", "The recipe is for one class per case, but cases have several targets.")]
        values, what = {int(target[0]) for target in targets}, "class number"
    told = f"The recipe has {len(names)} classes ({', '.join(names)})"
    if max(values) >= len(names):
        return [Misfit("error", f"{told}, but the dataset has {what} {max(values)}.")]
    missing = [name for value, name in enumerate(names) if value not in values and (value or what == "class number")]
    return [Misfit("warning", f"{told}, but no case has {', '.join(missing)}.")] if missing else []


def _findings(names: tuple[str, ...], cases: list[CaseRecord]) -> list[Misfit]:
    found = {len(case.target) for case in cases if case.target is not None}
    if found == {len(names)}:
        return []
    have = f"{' or '.join(map(str, sorted(found)))} labels per case" if found else "no case with labels"
    return [Misfit("error", f"The recipe has {len(names)} findings, but the dataset has {have}.")]


def _spacing(recipe: Recipe, dataset: Dataset) -> Misfit | None:
    wanted, given = recipe.dataset.spacing_mm, dataset.info.spacing_mm
    if wanted is None or (given is not None and np.allclose(wanted, given, rtol=0.01)):
        return None
    have = "each scan's own spacing" if given is None else f"{' x '.join(f'{step:g}' for step in given)} mm"
    text = f"The recipe wants voxels of {' x '.join(f'{step:g}' for step in wanted)} mm (z, y, x), the dataset has "
    return Misfit("warning", f"{text}{have}. Make it with: {recipe.ingest_command()}.")


def _splits(recipe: Recipe, cases: list[CaseRecord]) -> list[Misfit]:
    rule, found = recipe.dataset.splits, Counter(case.split for case in cases)
    misfits = []
    have = (found["train"], found["val"])
    if rule.cases is not None and rule.validation == "official" and "val" in found and have != rule.cases[:2]:
        text = f"The authors train on {rule.cases[0]} cases and validate on {rule.cases[1]}"
        misfits.append(Misfit("warning", f"{text}, the dataset has {have[0]} and {have[1]}: scores differ."))
    if "val" not in found:
        advice = "Cut some: med3dssl data split DATASET." if rule.validation == "kfold" else "Keep the official ones."
        misfits.append(Misfit("warning", f"The dataset has no validation case to choose the model by. {advice}"))
    if rule.test == "official" and "test" not in found:
        misfits.append(Misfit("warning", "The dataset has no test case, though its source has an official test list."))
    return misfits
