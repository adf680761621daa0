"""Writes a model folder: ``model.safetensors`` and the card that says what it is."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from training_backend.files import atomic, write_json
from training_backend.weights.source import CARD, MODEL

if TYPE_CHECKING:
    from torch import nn


def save_model(folder: Path, module: nn.Module, card: dict[str, Any]) -> None:
    """Write `module` and its card into `folder`, each file whole or not at all.

    Args:
        folder: made if it is not there.
        module: the network; names of compiled blocks are restored.
        card: plain JSON types, with `config` (a `RunConfig`) and `profile` (an `InputProfile`), without which the
            model cannot be loaded again. Paths of this machine in it are reduced to names.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = module.state_dict()
    tensors = {name.replace("_orig_mod.", ""): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic(folder / MODEL) as stream:
        stream.write(save(tensors, metadata={"format": "pt"}))
    write_json(folder / CARD, portable(card))


def portable(card: dict[str, Any]) -> dict[str, Any]:
    """`card` without the places on this disk where data and weights lay."""
    config = dict(card["config"])
    config["data"] = {
        **config.get("data", {}),
        "dataset": PurePath(config.get("data", {}).get("dataset", ".")).name or ".",
    }
    config["weights"] = config.get("weights", "") and PurePath(config["weights"]).name
    return {**card, "config": config}
