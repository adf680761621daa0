"""Writes models in the authors' layout, for their own scripts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from training_backend.errors import WeightsError
from training_backend.files import atomic
from training_backend.weights.families import importable, title
from training_backend.weights.safe_load import TORCH_SUFFIXES
from training_backend.weights.save import portable
from training_backend.weights.source import CARD_KEY, Source, open_source
from training_backend.weights.transfer import encoder_names

_VOLUME_TASKS = ("classification", "regression")


def export(source: str | Path, output: Path) -> Path:
    """Write a model as the authors of its method do, for their own scripts.

    3D-MAE: ``{"model": ...}`` for pre-training, a bare dictionary with a head. AR-SSL4M: under the key that the script
    of each task reads. A model with a head that the authors do not have gives its encoder.

    Args:
        source: run directory, model folder, or any weights that can be loaded.
        output: .pth file; replaced if it is there.
    """
    import torch

    output = Path(output)
    if output.suffix.lower() not in TORCH_SUFFIXES:
        raise WeightsError(
            f"The authors' scripts read {', '.join(TORCH_SUFFIXES)}, not {output.suffix or 'no suffix'}."
        )
    found = open_source(source)
    if found.family.name not in importable():
        raise WeightsError(f"The layout of {title(found.family.name)} checkpoints cannot be written yet.")
    stored: dict[str, Any] = found.tensors
    if found.family.authored is not None:
        stored = _authored(found)
    elif found.config.task is None or found.config.task.name not in _VOLUME_TASKS:
        stored = _wrapped(found)
    stream = io.BytesIO()
    torch.save(stored, stream)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as file:
        file.write(stream.getbuffer())
    return output


def _authored(found: Source) -> dict[str, Any]:
    """Weights under the names and the key that the authors' scripts read, with the card beside them."""
    authored = found.family.authored
    assert authored is not None
    stored = authored(found.tensors, found.kind, found.config)
    wrapped = _wrapped(found, whole=stored is not None)
    key, tensors = stored or authored(wrapped["model"], "encoder", found.config) or ("model", wrapped["model"])
    if not key:  # flat, and wrapped for scripts that look there; the file holds each tensor once all the same
        return {CARD_KEY: wrapped[CARD_KEY], "state_dict": tensors, **tensors}
    return {key: tensors, CARD_KEY: wrapped[CARD_KEY]}


def _wrapped(found: Source, whole: bool | None = None) -> dict[str, Any]:
    """Weights with the card beside them, the `whole` or of a task that the authors do not know the encoder."""
    config, kind, tensors = found.config, found.kind, found.tensors
    if not (config.task is None if whole is None else whole):
        encoder = {found.family.canonical(name) for name in encoder_names(config)}
        tensors = {name: tensor for name, tensor in tensors.items() if name in encoder}
        config, kind = config.updated({"kind": "pretrain", "task": None}), "encoder"
    card = {"kind": kind, "config": config.model_dump(mode="json"), "profile": found.profile.model_dump(mode="json")}
    return {"model": tensors, CARD_KEY: json.dumps(portable(card))}
