"""Turns the authors' file into a model folder of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_backend.config import merged
from training_backend.config.recipes import recipe as find_recipe
from training_backend.config.recipes import recipe_config
from training_backend.errors import WeightsError
from training_backend.weights.load import load_model
from training_backend.weights.report import ImportReport
from training_backend.weights.save import save_model
from training_backend.weights.source import MODEL


def import_file(
    file: str | Path,
    output: Path,
    heads: int | None = None,
    changes: dict[str, Any] | None = None,
    *,
    recipe: str = "",
) -> ImportReport:
    """Write ``model.safetensors`` and ``card.json`` of a foreign checkpoint; what became of every tensor.

    Args:
        file: the authors' checkpoint, or ``zoo:NAME``.
        output: folder that holds no model yet.
        heads: attention heads of the encoder, when its width does not tell them.
        changes: further nested changes to the inferred configuration.
        recipe: published settings that a fine-tuned file was made with: how scans become its input, and its classes.
    """
    output = Path(output)
    if (output / MODEL).exists():
        raise WeightsError(f"{output} already holds a model.", "Choose another folder.")
    changes = merged(_as_published(recipe), changes or {}) if recipe else dict(changes or {})
    if heads is not None:
        changes["method"] = {**changes.get("method", {}), "heads": heads}
    model = load_model(file, changes=changes)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    card = {**model.card, "parameters": parameters}
    if recipe:
        facts = find_recipe(recipe).dataset
        card["profile"] = {**card["profile"], "spacing_mm": facts.spacing_mm, "crop_body": facts.crop_body}
    save_model(output, model.module, card)
    return model.report


def _as_published(recipe: str) -> dict[str, Any]:
    """What of a recipe says how a fine-tuned network is fed, and what its outputs are."""
    found, config = find_recipe(recipe), recipe_config(recipe, Path())
    data = config.data.model_dump(include={"view", "size", "keep_aspect", "intensity", "contrasts"})
    return {
        "method": dict(found.run.get("method", {})),
        "data": data,
        "task": {"classes": found.dataset.classes}
        if found.task == "segmentation"
        else {"class_names": found.dataset.classes},
    }
