"""The terminal command that does what a form describes; only what differs from the preset becomes a flag."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training_backend.config import RunConfig
from training_backend.config.plan import StageConfig
from training_backend.config.presets import KEPT, PRESETS, backbone_config, pretrain_config
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
    unsure = tuple(() if _backbone(config) is not None else ("method.", *(f"data.{name}" for name in KEPT)))
    for path, value in _leaves(config.model_dump(mode="json")):
        if path not in CHOSEN and (path.startswith(unsure) or value != base.get(path)):
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


def compare_command(runs: Sequence[str], metric: str = "", structure: str = "") -> str:
    """``med3dssl runs compare`` that prints what the window of a comparison shows."""
    words = ["med3dssl", "runs", "compare", *runs]
    words += ["--metric", metric] if metric else []
    words += ["--structure", structure] if structure else []
    return shlex.join(words)


def shown_command(op: str, source: str, asked: Mapping[str, Any], scan: str, other: str = "") -> str:
    """``med3dssl view ...`` or ``reconstruct ...`` that writes what Explore shows; empty where there is no command.

    Args:
        op: of the model process.
        source: of the model.
        asked: parameters of the operation.
        scan: file of the scan.
        other: file of the second scan, for views that compare two.
    """
    if op == "reconstruct":
        words = ["med3dssl", "reconstruct", "--run", source, "--input", scan, "--output", "reconstruction"]
        return shlex.join([*words, "--mask-ratio", f"{asked['mask_ratio']:g}", "--seed", str(asked["seed"])])
    if op != "view":
        return ""
    name = str(asked["name"])
    words = ["med3dssl", "view", "--run", source, "--input", scan, "--name", name, "--output", name]
    left_out = {"point", "text"} if asked.get("reads") == "report" else {"point"}  # a report does not go into a shell
    options = dict(asked.get("options") or {})
    settings = [f"{key}={json.dumps(value)}" for key, value in options.items() if key not in left_out]
    words += ["--set", *settings] if settings else []
    for key in ("point", "centre", "other_centre"):
        place = asked.get(key)
        words += [f"--{key.replace('_', '-')}", *(str(round(n)) for n in place)] if place is not None else []
    words += ["--report", "report.txt"] if "text" in left_out else []
    words += ["--other", other] if other else []
    words += ["--against", str(asked["against"])] if asked.get("against") else []
    words += ["--dataset", str(asked["dataset"])] if asked.get("dataset") else []
    return shlex.join(words + (["--cases", *asked["cases"]] if asked.get("cases") else []))


def preset_config(config: RunConfig, preset: str) -> RunConfig:
    """What the command line starts from: a preset or a recipe, over what is known of the weights; without weights."""
    data, backbone = config.data.dataset, _backbone(config) or {}
    try:
        if config.recipe:
            own = backbone.get("method") if backbone.get("method", {}).get("name") == config.method.name else None
            contrasts = contrasts_of(data)
            base = recipe_config(config.recipe, data, weights=config.weights, contrasts=contrasts, backbone=own)
            return base.updated({"weights": ""})
        if config.task is not None:
            same = backbone.get("method", {}).get("name") == config.method.name
            own = backbone if same else {"method": {"name": config.method.name}}
            return backbone_config(config.task.name, preset, data, own)
        return pretrain_config(config.method.name, preset, data)
    except ConfigError:
        return config


def _backbone(config: RunConfig) -> dict[str, dict[str, Any]] | None:
    """Settings "method" and "data" of the run that a fine-tuning run starts from, empty without weights.

    None for other weights, into which the viewer does not look: then nothing that they may decide is left to them.
    """
    if config.task is None or not config.weights:
        return {}
    try:
        found = RunConfig.load(Path(config.weights) / "config.yaml")
    except ConfigError:
        return None
    return {"method": found.method.model_dump(), "data": found.data.model_dump()}


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
