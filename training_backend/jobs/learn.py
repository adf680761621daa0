"""A run that goes on from the best model of another one, with what was accepted since."""

from __future__ import annotations

from pathlib import Path

from training_backend.config import RunConfig
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import ConfigError


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
