"""From a method, a task and a preset name to a complete run configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_backend.config.model import merged
from training_backend.config.registry import method as find_method
from training_backend.config.registry import task as find_task
from training_backend.config.run import RunConfig
from training_backend.errors import ConfigError

DEFAULT_METHOD = "mae3d"
"""Method that is offered first, and whose encoder a fine-tuning run has where nothing else is said."""

PRESETS = {
    "tiny": "CPU, minutes",
    "small": "8 GB GPU",
    "base": "24 GB GPU",
    "published": "the authors' recipe",
}


def pretrain_config(method: str, preset: str, dataset: Path, changes: dict[str, Any] | None = None) -> RunConfig:
    """Configuration of a pre-training run: the method's preset with nested `changes` laid over it."""
    chosen = _preset(find_method(method).presets, preset, method)
    base = {"kind": "pretrain", "preset": preset, "method": {"name": method}, "data": {"dataset": dataset}}
    wished = changes or {}
    implied = find_method(method).implied(merged(chosen.get("method", {}), wished.get("method", {})))
    return RunConfig.parse(merged(merged(merged(base, chosen), dict(implied)), wished))


def finetune_config(
    task: str, preset: str, dataset: Path, method: str = DEFAULT_METHOD, changes: dict[str, Any] | None = None
) -> RunConfig:
    """Configuration of a fine-tuning run: encoder settings of the method's preset, all else of the task's."""
    encoder = _preset(find_method(method).presets, preset, method)
    chosen = _preset(find_task(task).presets, preset, task)
    data = merged(encoder.get("data", {}), {"dataset": dataset})
    if data.get("view") == "sequence":
        data["view"] = "crop"  # sequences are for pre-training; a task looks at scans
    data.pop("labelled", None)  # a task's only stream is labelled
    base = {
        "kind": "finetune",
        "preset": preset,
        "method": {"name": method, **encoder.get("method", {})},
        "task": {"name": task},
        "data": data,
    }
    return RunConfig.parse(merged(merged(base, chosen), changes or {}))


def _preset(presets: Any, name: str, owner: str) -> dict[str, Any]:
    if name not in presets:
        raise ConfigError(f"{owner} has no preset {name!r}.", f"Choose one of {', '.join(presets)}.")
    return {key: dict(value) if isinstance(value, dict) else value for key, value in presets[name].items()}
