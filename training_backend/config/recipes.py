"""Recipes: for one public dataset, everything that a published system did to fine-tune on it, as data.

One YAML file each in ``training_backend/recipes/SYSTEM/``. What the authors published and what was added here is told
apart in every recipe's notes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from training_backend.config.model import ConfigModel, merged
from training_backend.config.presets import finetune_config
from training_backend.config.run import RunConfig
from training_backend.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "recipes"
PRESET = "published"
"""Preset that a recipe's changes are laid over."""


RecipeTask = Literal[
    "segmentation",
    "classification",
    "text_classification",
    "regression",
    "registration",
    "report_generation",
    "retrieval",
    "vocabulary",
]
NAMED = ("segmentation", "classification", "text_classification", "regression", "vocabulary")
"""Tasks whose recipes name two or more classes."""


class Note(ConfigModel):
    """Where a part of a recipe comes from."""

    what: str
    """Part that is meant, and what is to be known about it."""
    source: Literal["published", "ours"]
    """published: from the authors' paper or code. ours: added here."""


class Splits(ConfigModel):
    """Which cases are for what."""

    test: Literal["official", "none"] = "none"
    """official: the source keeps test cases apart; they are never used to choose a model."""
    validation: Literal["official", "kfold"] = "kfold"
    """kfold: cut from the training cases by ``med3dssl data split``."""
    folds: int = Field(5, ge=2)
    """Folds, where there are any."""
    cases: tuple[int, int, int] | None = None
    """Cases of train, val and test in the authors' list, where it was counted."""


class DatasetFacts(ConfigModel):
    """What must be true of a dataset for the recipe to make sense, and how to get there."""

    name: str
    """Name of the public dataset."""
    url: str
    """Where to get it."""
    licence: str = "unknown"
    """Licence of the data; "unknown" where it was not looked up."""
    layout: str
    """Layout that ingest recognises it by."""
    prepare: str = ""
    """Command that makes the dataset, where it is not simply ingested."""
    modality: str
    """CT or MR; XR and histology for pictures, text for reports."""
    channels: tuple[str, ...] = ("image",)
    """Contrasts stacked as input, in this order."""
    classes: tuple[str, ...] = ()
    """Names by label value (background first), of the classes of whole cases, or of findings; empty where a task has
    none, or takes those of the dataset."""
    spacing_mm: tuple[float, float, float] | None = None
    """Millimetres along (z, y, x) to ingest with; empty keeps each scan's own."""
    crop_body: bool = True
    """Whether to store only the box around the body."""
    label_values: dict[int, int] = Field(default_factory=dict)
    """Class that a value of the published label maps stands for, where it is another."""
    splits: Splits = Splits()


class Recipe(ConfigModel):
    """One dataset's fine-tuning."""

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Name on the command line."""
    title: str
    system: str
    """Method whose encoder is fine-tuned, and whose authors' recipe this is."""
    paper: str
    task: RecipeTask
    dataset: DatasetFacts
    run: dict[str, Any] = Field(default_factory=dict)
    """Changes to the configuration that the preset "published" gives."""
    scratch: dict[str, Any] = Field(default_factory=dict)
    """Further changes where a run starts from random weights."""
    notes: tuple[Note, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        names = self.dataset.classes
        if len(names) < (2 if self.task in NAMED else 0) or len(set(names)) < len(names):
            raise ValueError("dataset.classes needs two or more different names")
        if self.task == "segmentation" and self.dataset.classes[0] != "background":
            raise ValueError("the first class of a segmentation is background")
        known = set(RunConfig.model_fields) - {"kind", "preset", "recipe", "weights"}
        unknown = (set(self.run) | set(self.scratch)) - known
        if unknown:
            raise ValueError(f"run and scratch know {', '.join(sorted(known))}, not {', '.join(sorted(unknown))}")
        return self

    def ingest_command(self) -> str:
        """Command that makes the dataset."""
        facts = self.dataset
        if facts.prepare:
            return facts.prepare
        words = ["med3dssl data ingest FOLDER --output DATASET"]
        if facts.spacing_mm is not None:
            words.append("--spacing-mm " + " ".join(f"{step:g}" for step in facts.spacing_mm))
        if not facts.crop_body:
            words.append("--no-crop-body")
        if facts.label_values:
            pairs = [f"{value} {number}" for value, number in facts.label_values.items()]
            words.append("--label-values " + " ".join(pairs))
        return " ".join(words)


def recipes(system: str = "") -> dict[str, Recipe]:
    """Recipes by name, of one system or of all."""
    return {name: found for name, found in sorted(_all().items()) if system in ("", found.system)}


def recipe(name: str) -> Recipe:
    """The recipe called `name`, or a `ConfigError` naming the nearest one."""
    known = _all()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"Did you mean {near[0]!r}?" if near else "List them with: med3dssl recipes list."
    raise ConfigError(f"There is no recipe called {name!r}.", advice)


def recipe_config(
    name: str,
    dataset: Path,
    *,
    weights: str = "",
    contrasts: tuple[str, ...] = (),
    backbone: Mapping[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> RunConfig:
    """Configuration of a fine-tuning run by a recipe.

    Args:
        name: of the recipe.
        dataset: folder of the dataset.
        weights: what the encoder starts from; without any the recipe's settings for random weights apply.
        contrasts: those of the dataset, which go by their own names where the recipe stacks several.
        backbone: settings of the encoder that `weights` hold; those that the recipe names stay the recipe's, since they
            say how the authors turn these files, whatever the backbone was shown.
        changes: nested changes laid over all of it.
    """
    found = recipe(name)
    facts = found.dataset
    base: dict[str, Any] = {"recipe": name, "weights": weights, "method": dict(backbone or {})}
    if len(facts.channels) > 1:
        base["data"] = {"contrasts": matched(facts.channels, contrasts) or facts.channels}
    if found.task in ("segmentation", "registration"):
        base["task"] = {"classes": facts.classes}
    elif found.task in ("vocabulary", "retrieval"):
        base["task"] = {"findings": facts.classes}
    elif found.task in ("classification", "text_classification"):
        base["task"] = {"class_names": facts.classes, "classes": len(facts.classes), "kind": "multiclass"}
    for part in (found.run, {} if weights else found.scratch, changes or {}):
        base = merged(base, part)
    return finetune_config(found.task, PRESET, dataset, found.system, base)


def matched(channels: tuple[str, ...], contrasts: tuple[str, ...]) -> tuple[str, ...]:
    """The dataset's names of a recipe's channels: by name, else all in order if there are as many; else empty."""
    by_name = {_plain(contrast): contrast for contrast in contrasts}
    if all(_plain(channel) in by_name for channel in channels):
        return tuple(by_name[_plain(channel)] for channel in channels)
    return contrasts if len(contrasts) == len(channels) else ()


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


@cache
def _all() -> dict[str, Recipe]:
    found = {}
    for path in sorted(FOLDER.glob("*/*.yaml")):
        one = Recipe.load(path)
        if one.name != path.stem or one.system != path.parent.name:
            raise ConfigError(f"{path} holds the recipe {one.name} of {one.system}.", "Name file and folder after it.")
        found[one.name] = one
    return found
