"""Turns the authors' file into a model folder of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_backend.errors import WeightsError
from training_backend.weights.load import load_model
from training_backend.weights.report import ImportReport
from training_backend.weights.save import save_model
from training_backend.weights.source import MODEL


def import_file(
    file: str | Path, output: Path, heads: int | None = None, changes: dict[str, Any] | None = None
) -> ImportReport:
    """Write ``model.safetensors`` and ``card.json`` of a foreign checkpoint; what became of every tensor.

    Args:
        file: the authors' checkpoint, or ``zoo:NAME``.
        output: folder that holds no model yet.
        heads: attention heads of the encoder, when its width does not tell them.
        changes: further nested changes to the inferred configuration.
    """
    output = Path(output)
    if (output / MODEL).exists():
        raise WeightsError(f"{output} already holds a model.", "Choose another folder.")
    changes = dict(changes or {})
    if heads is not None:
        changes["method"] = {**changes.get("method", {}), "heads": heads}
    model = load_model(file, changes=changes)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    save_model(output, model.module, {**model.card, "parameters": parameters})
    return model.report
