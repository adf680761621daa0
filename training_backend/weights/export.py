"""Writes models in the authors' layout, for their own scripts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from training_backend.errors import WeightsError
from training_backend.files import atomic
from training_backend.weights.families import SETTINGS, importable, title
from training_backend.weights.safe_load import TORCH_SUFFIXES
from training_backend.weights.source import open_source
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
    state: dict[str, Any] = found.tensors
    if found.config.task is None or found.config.task.name not in _VOLUME_TASKS:
        if found.kind == "finetune":
            encoder = encoder_names(found.config)
            state = {name: tensor for name, tensor in state.items() if name in encoder}
        state = {"model": state, SETTINGS: found.config.method.model_dump(mode="json")}
    stream = io.BytesIO()
    torch.save(state, stream)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as file:
        file.write(stream.getbuffer())
    return output
