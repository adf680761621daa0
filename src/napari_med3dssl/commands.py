"""The terminal command that does what a form describes; only what differs from the preset becomes a flag."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training_backend.config import RunConfig
from training_backend.config.plan import StageConfig
from training_backend.config.presets import PRESETS, finetune_config, pretrain_config
from training_backend.config.recipes import recipe_config
from training_backend.data.fits import contrasts_of
from training_backend.errors import ConfigError

CHOSEN = {"kind", "preset", "recipe", "method.name", "task.name", "data.dataset"}
"""Settings that have flags of their own."""


def training_command(config: RunConfig, output: Path | str) -> str:
    """``med3dssl pretrain ...`` or ``finetune ...`` that trains `config` into the run directory `output`."""
    preset = config.preset if config.preset in PRESETS else "small"
    if config.recipe:
        words = ["med3dssl", config.kind, "--recipe", config.recipe]
    else:
        words = ["med3dssl", config.kind, "--method", config.method.name]
        words += [] if config.task is None else ["--task", config.task.name]
        words += ["--preset", preset]
    words += ["--data", str(config.data.dataset), "--output", str(output)]
    base = dict(_leaves(preset_config(config, preset).model_dump(mode="json")))
    for path, value in _leaves(config.model_dump(mode="json")):
        if path not in CHOSEN and value != base.get(path):
            words += [f"--{path.replace('_', '-')}", *_texts(value)]
    return shlex.join(words)


def plan_command(file: Path | str, output: Path | str) -> str:
    """``med3dssl plan run`` that works through a plan in `file`, or goes on with it, in the folder `output`."""
    return shlex.join(["med3dssl", "plan", "run", str(file), "--output", str(output)])


def stage_command(stage: StageConfig, source: str, output: Path | str) -> str:
    """``med3dssl plan add`` that teaches what `source` knows one modality more; a plan gets a further stage."""
    words = ["med3dssl", "plan", "add", source, "--modality", stage.modality, "--data", str(stage.dataset)]
    for name in ("kind", "preset", "epochs", "steps"):
        value = getattr(stage, name)
        words += [] if value in (None, "") else [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--output", str(output)] if str(output) else []
    return shlex.join(words)


def preset_config(config: RunConfig, preset: str) -> RunConfig:
    """Configuration of `preset` for the method, task and dataset of `config`, or that of its recipe without weights."""
    try:
        if config.recipe:
            contrasts = contrasts_of(config.data.dataset)
            base = recipe_config(config.recipe, config.data.dataset, weights=config.weights, contrasts=contrasts)
            return base.updated({"weights": ""})
        if config.task is not None:
            return finetune_config(config.task.name, preset, config.data.dataset, config.method.name)
        return pretrain_config(config.method.name, preset, config.data.dataset)
    except ConfigError:
        return config


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
