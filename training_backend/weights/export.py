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
    """Write a model as the authors do: ``{"model": ...}`` for pre-training, a bare dictionary with a head.

    A segmentation model, for which the authors have no layout, gives its encoder.

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
    if found.config.task is None or found.config.task.name not in _VOLUME_TASKS:
        stored = _wrapped(found)
    stream = io.BytesIO()
    torch.save(stored, stream)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as file:
        file.write(stream.getbuffer())
    return output


def _wrapped(found: Source) -> dict[str, Any]:
    """Pre-training weights, or the encoder of a task that the authors do not know, with the card beside them."""
    config, kind, tensors = found.config, found.kind, found.tensors
    if config.task is not None:
        encoder = encoder_names(config)
        tensors = {name: tensor for name, tensor in tensors.items() if name in encoder}
        config, kind = config.updated({"kind": "pretrain", "task": None}), "encoder"
    card = {"kind": kind, "config": config.model_dump(mode="json"), "profile": found.profile.model_dump(mode="json")}
    return {"model": tensors, CARD_KEY: json.dumps(portable(card))}
