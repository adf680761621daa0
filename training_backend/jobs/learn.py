"""A run that goes on from the best model of another one, with what was accepted since."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from training_backend.config import RunConfig
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.score import case_dice
from training_backend.jobs.registry import free_folder, summary


def continued(former: Path, dataset: Path) -> RunConfig:
    """Settings of a fine-tuning run like `former`, on all labelled cases of `dataset`, from its best model.

    Raises:
        ConfigError: `former` is no fine-tuning run, or has no model yet.
    """
    if not (former / "run.json").is_file():
        raise ConfigError(f"{former.name} is no run, so its settings are not known.", "Choose a fine-tuning run.")
    config = RunDirectory.open(former).config()
    if config.task is None:
        raise ConfigError(
            f"{former.name} was pre-trained only.", "Choose a fine-tuning run, or start one in Fine-tune."
        )
    if not (former / "model.safetensors").is_file():
        raise ConfigError(f"{former.name} has written no model yet.", "Wait until it ends, or stop it.")
    chosen = {"dataset": Path(dataset).resolve(), "train_cases": None, "only": None}
    return config.updated({"weights": str(Path(former).resolve()), "data": chosen})


def next_name(former: Path) -> str:
    """Name of a run after `former` that no run has: "organs-2" after "organs", "organs-3" after "organs-2"."""
    stem = re.sub(r"-\d{1,2}$", "", Path(former).name)
    return free_folder(stem).name


def outcome(former: Path, now: Path) -> str:
    """What became of a run that went on from another one, once it has finished; empty before that."""
    found = summary(RunDirectory(now))
    if found.state != "finished":
        return ""
    return gain(former, now) or f"{now.name} has finished; it has no validation case in common with {former.name}."


def gain(former: Path, now: Path) -> str:
    """How much better a run does than the one it went on from, on the validation cases of both; empty without any."""
    try:
        before, after = case_dice(former), case_dice(now)
    except DataError:
        return ""
    both = sorted(before.keys() & after.keys())
    if not both:
        return ""
    first, second = (statistics.fmean(scores[case] for case in both) for scores in (before, after))
    cases = "the validation case" if len(both) == 1 else f"the {len(both)} validation cases"
    return f"Mean Dice of {cases}: {first:.3f} with {former.name}, {second:.3f} with {now.name}."
