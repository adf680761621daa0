"""The network of an earlier step that labelled for a model: kept in the file beside it, hashed in its card."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.errors import WeightsError
from training_backend.files import atomic
from training_backend.weights.safe_load import load_tensors
from training_backend.weights.source import MODEL, locate

if TYPE_CHECKING:
    from torch import nn

    from training_backend.weights.load import LoadedModel

TEACHER = "teacher.safetensors"
ADVICE = (
    "Runs of VoCo's stages omni and semi take one at half of their steps, stages of MedCoSS that rehearse at their "
    "start; choose such a run, finished or stopped after that, or let it go on."
)


def save_teacher(folder: Path, teacher: nn.Module | None, step: int) -> dict[str, Any]:
    """Write `teacher` into a model folder and answer what the card says of it; without one, none is left there.

    Args:
        folder: of the model; made if it is not there.
        teacher: network that learns no more.
        step: optimiser steps after which it was taken.

    Returns:
        `file`, `sha256` and `step`; empty without a teacher.
    """
    from safetensors.torch import save

    path = Path(folder) / TEACHER
    if teacher is None:
        path.unlink(missing_ok=True)
        return {}
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save({name: one.detach().cpu().contiguous() for name, one in teacher.state_dict().items()}, {"format": "pt"})
    with atomic(path) as stream:
        stream.write(data)
    return {"file": TEACHER, "sha256": hashlib.sha256(data).hexdigest(), "step": step}


def load_teacher(loaded: LoadedModel) -> nn.Module:
    """The teacher beside a model, in evaluation mode on the model's device.

    Raises:
        WeightsError: there is none, it is damaged, or it belongs to another model.
    """
    told, config = loaded.card.get("teacher"), loaded.config
    part = loaded.method.snapshot(config) if config.task is None else None
    if not told or part is None or not loaded.source:
        raise WeightsError("This model has no teacher that labelled for it.", ADVICE)
    place = locate(loaded.source)
    path = place.parent / TEACHER
    if place.name != MODEL or not path.is_file():
        raise WeightsError(f"{TEACHER} is missing beside the model.", "Copy it with the model, from the run.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != told["sha256"]:
        raise WeightsError(
            f"{path} is not the teacher that the card of the model names.",
            "It was changed, or is of another moment of the run; copy the whole folder again.",
        )
    found = load_tensors(path)
    teacher = part.build(config)
    try:
        teacher.load_state_dict({found.prefix + name: tensor for name, tensor in found.tensors.items()})
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the network that the card describes.", "Copy it again.") from error
    device = next(loaded.module.parameters()).device
    return teacher.requires_grad_(False).to(device).eval()
