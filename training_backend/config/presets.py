"""From a method, a task and a preset name to a complete run configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training_backend.config.model import merged
from training_backend.config.registry import method as find_method
from training_backend.config.registry import task as find_task
from training_backend.config.run import RunConfig
from training_backend.errors import ConfigError

DEFAULT_METHOD = "mae3d"
"""Method that is offered first, and whose encoder a fine-tuning run has where nothing else is said."""

KEPT = ("intensity", "size", "view", "keep_aspect", "contrasts")
"""Data settings that a backbone was trained with and wants again, where the task's preset does not decide."""

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
    data = _looked_at(merged(encoder.get("data", {}), {"dataset": dataset}), task)
    data.pop("labelled", None)  # a task's only stream is labelled
    base = {
        "kind": "finetune",
        "preset": preset,
        "method": {"name": method, **encoder.get("method", {})},
        "task": {"name": task},
        "data": data,
    }
    return RunConfig.parse(merged(merged(base, chosen), changes or {}))


def backbone_config(
    task: str,
    preset: str,
    dataset: Path,
    backbone: Mapping[str, Mapping[str, Any]],
    changes: dict[str, Any] | None = None,
) -> RunConfig:
    """Configuration of a fine-tuning run that takes over what its backbone is and was trained on.

    Args:
        task: name of the task.
        preset: of the task; its data settings win over those of the backbone.
        dataset: folder of the dataset.
        backbone: its settings "method" and "data"; may be empty.
        changes: nested changes laid over all of it.
    """
    method = dict(backbone.get("method", {}))
    kept = {name: value for name, value in backbone.get("data", {}).items() if name in KEPT}
    decided = dict(find_task(task).presets.get(preset, {}).get("data", {}))
    own = {"method": method, "data": merged(_looked_at(kept, task), decided)}
    return finetune_config(task, preset, dataset, method.get("name", DEFAULT_METHOD), merged(own, changes or {}))


def _looked_at(data: dict[str, Any], task: str) -> dict[str, Any]:
    """Data settings of a backbone as a task wants them where its preset does not decide.

    Sequences are for pre-training, a task looks at scans. Voxels are told apart on crops, since whole volumes are
    resampled to a few voxels.
    """
    view = data.get("view")
    whole = view == "volume" and find_task(task).needs == "labels"
    return {**data, "view": "crop"} if whole or view == "sequence" else data


def _preset(presets: Any, name: str, owner: str) -> dict[str, Any]:
    if name not in presets:
        raise ConfigError(f"{owner} has no preset {name!r}.", f"Choose one of {', '.join(presets)}.")
    return {key: dict(value) if isinstance(value, dict) else value for key, value in presets[name].items()}
