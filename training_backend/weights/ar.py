"""Checkpoints of AR-SSL4M: pre-training, segmentation with UNETR's decoder, and classification.

The three differ in what the encoder is called: ``model.`` beside ``decoder_pred``, ``vit.`` beside UNETR's modules,
``model.`` beside ``score``. Here the encoder's names have no prefix. The files hold tensors alone, so what shapes do
not tell (attention heads, the voxels of a view) is taken from the paper or asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig, merged
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.errors import WeightsError
from training_backend.methods.ar import SIZES
from training_backend.weights.families import Described, Family, spread_channels

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED_HEADS = {768: 12}
"""Attention heads by width."""
VIEWS = {"pretrain": (128, 128, 128), "encoder": (128, 128, 128), "segmentation": (96, 96, 96)}
"""Voxels (z, y, x) of the published views; those of classification differ from task to task."""
TABLE, PRETRAINED_TABLE = "pos_embed", "pos_embed_learn"
"""Learnt positions, without the end token's in downstream files and with it in those of pre-training."""
READ_AS = ("xyz", "xyz-lps", "yxz-pls")
"""Frames in which the authors read files for one and the same pre-trained encoder."""
_HEADS = r"decoder_pred\.(weight|bias)|score\.weight|out\.conv\.conv\.(weight|bias)"
_UNETR = r"(encoder[1-4]|decoder[2-5])\..+\.weight"
_ENCODER = r"embed_tokens\.weight|patchifier\.proj\.(weight|bias)|layers\.\d+\..+|norm\.(weight|bias)|pos_embed"
KNOWN = rf"({_ENCODER}|{_UNETR}|{_HEADS})"


def canonical(name: str) -> str:
    """Name of a tensor without the encoder's prefix, and with one name for learnt positions."""
    name = re.sub(r"^(encoder|model|vit)\.", "", name)
    return TABLE if name == PRETRAINED_TABLE else name


def describe(tensors: Mapping[str, Tensor], extras: Mapping[str, Any], changes: Mapping[str, Any]) -> Described:
    """Kind and configuration of a file, from its names and shapes.

    Args:
        tensors: by canonical name.
        extras: what is stored beside them; the authors store nothing that matters.
        changes: nested changes to the configuration, for what the file does not tell.
    """
    kind, task = kind_of(tensors)
    method, notes = _method(tensors, changes.get("method", {}))
    size, told = _size(tensors, kind, method["patch_size"], changes.get("data", {}).get("size"), task)
    settings = {"method": method, "data": {"size": size}}
    notes += told
    if not task:
        if kind == "pretrain":
            notes.append("Targets normalised patch by patch are assumed, as published; see method.norm_pixel_loss.")
        return Described(
            kind, pretrain_config("ar", "published", Path(), merged(settings, dict(changes))), tuple(notes)
        )
    settings["task"] = {"segmentation": _segmentation, "classification": _classification}[task](tensors)
    if "task" not in changes:
        notes.append(
            "Axes, intensities and classes are not in the file; --recipe NAME takes those of a published task."
        )
    settings = merged(settings, dict(changes))
    return Described(kind, finetune_config(task, "published", Path(), "ar", settings), tuple(notes))


def kind_of(tensors: Mapping[str, Any]) -> tuple[str, str]:
    """Kind of a file with tensors of these canonical names, and its task if it is a fine-tuned one."""
    if "decoder_pred.weight" in tensors:
        return "pretrain", ""
    if "out.conv.conv.weight" in tensors:
        return "finetune", "segmentation"
    return ("finetune", "classification") if "score.weight" in tensors else ("encoder", "")


def fit(name: str, tensor: Tensor, shape: tuple[int, ...], old: RunConfig, new: RunConfig) -> Tensor | None:
    """Learnt positions moved to the network's grid, patch embeddings spread over its channels."""
    from training_backend.nn.ar import resized

    if name == TABLE and tensor.shape[-1] == shape[-1]:
        before, after = _grid(old), _grid(new)
        table = resized(tensor[: 1 + prod(before)], before, after)
        end = tensor[1 + prod(before) :]
        missing = shape[0] - len(table)
        if before == after and tuple(tensor.shape) == shape:
            return tensor
        return _joined(table, end if len(end) else table.new_zeros(1, shape[-1]), missing)
    if tuple(tensor.shape) == shape:
        return tensor
    return spread_channels(tensor, shape) if name == "patchifier.proj.weight" else None


def conflict(old: RunConfig, new: RunConfig) -> str:
    """What no shape shows: attention heads, the frame of the network, and the kind of its positions."""
    theirs, ours = _heads(old), _heads(new)
    if theirs != ours:
        return f"The weights have {theirs} attention heads, this network {ours}; set method.heads."
    for name in ("axes", "positions"):
        before, after = getattr(old.method, name), getattr(new.method, name)
        fine = name == "axes" and before in READ_AS and after in READ_AS
        if before != after and not fine:
            return f"The weights were made with method.{name} {before}, this run has {after}; set method.{name}."
    return ""


def authored(tensors: Mapping[str, Tensor], kind: str, config: RunConfig) -> tuple[str, dict[str, Tensor]] | None:
    """Key of the file that the authors' scripts read, and the tensors under it by the authors' names.

    Pre-training: ``state_dict``, which the loaders of all tasks want, though the trainer writes a bare dictionary.
    Segmentation: ``state_dict``; classification: ``net`` (nodules), or ``model`` with balanced classes (RICORD).

    Args:
        tensors: by canonical name.
        kind: "pretrain", "encoder" or "finetune".
        config: of the model.

    Returns:
        None for a head that the authors do not have.
    """
    task = ""
    if kind == "finetune" and config.task is not None:
        task = config.task.name
        chosen = {"segmentation": ("decoder", "unetr"), "classification": ("pooling", "tokens")}.get(task)
        if chosen is None or getattr(config.task, chosen[0]) != chosen[1]:
            return None
    prefix = "vit." if task == "segmentation" else "model."
    encoder = re.compile(_ENCODER)
    table = PRETRAINED_TABLE if kind == "pretrain" else TABLE
    named = {
        f"{prefix}{table if name == TABLE else name}" if encoder.fullmatch(name) else name: tensor
        for name, tensor in tensors.items()
    }
    balanced = task == "classification" and bool(getattr(config.task, "balanced", False))
    wrapper = "state_dict" if task != "classification" else "model" if balanced else "net"
    return wrapper, named


def _method(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings of the encoder, and what was assumed."""
    from training_backend.nn.axes import sizes_back

    try:
        width, kernel = tensors["embed_tokens.weight"].shape[1], tensors["patchifier.proj.weight"].shape
        hidden = tensors["layers.0.mlp.linear1.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(
            f"The file lacks {error}, which every AR-SSL4M encoder has.", "Choose another file."
        ) from error
    depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d+)\.", name)))
    heads, notes = told.get("heads"), []
    if not heads:
        heads = PUBLISHED_HEADS.get(width)
        notes.append(f"{heads} attention heads are taken as published for this width.")
    if not heads or width % heads:
        raise WeightsError(
            f"The file does not say how many attention heads its encoder of width {width} has.",
            f"Import it with --heads and a divisor of {width}; the published encoder of width 768 has 12.",
        )
    patch = tuple(kernel[2:])
    return {
        **_named_size(width, depth, heads, hidden),
        "patch_size": sizes_back(patch, told.get("axes", "xyz")),
        "in_channels": kernel[1],
        "positions": "learnable" if TABLE in tensors else "sincos3d",
    }, notes


def _named_size(width: int, depth: int, heads: int, hidden: int) -> dict[str, Any]:
    name = next((name for name, shape in SIZES.items() if shape == (width, depth, heads, hidden)), "")
    return {"size": name} if name else {"embed_dim": width, "depth": depth, "heads": heads, "mlp_dim": hidden}


def _size(
    tensors: Mapping[str, Tensor], kind: str, patch: tuple[int, ...], given: Any, task: str
) -> tuple[tuple[int, ...], list[str]]:
    """Voxels (z, y, x) of a view, and what was assumed; learnt positions tell how many patches it has."""
    if given is not None:
        return tuple(given), []
    if TABLE not in tensors:
        usual = VIEWS.get(task or kind, (128, 128, 128))
        size = tuple(-(-n // p) * p for n, p in zip(usual, patch, strict=True))
        return size, [f"Views of {' x '.join(map(str, size))} voxels are taken as published; see data.size."]
    from training_backend.nn.position import cubic_grid

    patches = len(tensors[TABLE]) - (2 if kind == "pretrain" else 1)
    try:
        side = cubic_grid(patches)[0]
    except WeightsError as error:
        raise WeightsError(
            f"The learnt positions of the file are of {patches} patches, which is no cube, and the file does not say "
            "which grid they lie on.",
            "Import it with --size Z Y X, the voxels of the views that the model was trained on.",
        ) from error
    return tuple(side * p for p in patch), [f"The {patches} learnt positions are taken for a cube of {side} patches."]


def _segmentation(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """UNETR's decoder: classes from its last layer, channels from its first."""
    names = ("background", *(f"class {k}" for k in range(1, tensors["out.conv.conv.weight"].shape[0])))
    try:
        channels = tensors["encoder1.layer.conv1.conv.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(f"The file lacks {error} of UNETR's decoder.", "Copy or download it again.") from error
    return {"classes": names, "decoder": "unetr", "feature_size": channels}


def _classification(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A linear head on every token."""
    return {"kind": "multiclass", "classes": tensors["score.weight"].shape[0], "pooling": "tokens", "hidden": ()}


def _joined(table: Tensor, end: Tensor, missing: int) -> Tensor | None:
    """`table` with the end token's row where a network has room for it; None where the rows cannot be right."""
    import torch

    return {0: table, 1: torch.cat([table, end.to(table.dtype)])}.get(missing)


def _grid(config: RunConfig) -> tuple[int, int, int]:
    """Grid in the frame of the reference that the positions of a configuration are made for."""
    from training_backend.nn.axes import sizes_turned

    method: Any = config.method
    grid = [n // p for n, p in zip(method.trained_size or config.data.size, method.patch_size, strict=True)]
    return sizes_turned(grid, method.axes)


def _heads(config: RunConfig) -> int:
    method: Any = config.method
    return int(method.heads or SIZES[method.size][2])


FAMILY = Family(
    name="ar",
    known=KNOWN,
    essential=("patchifier.proj.weight", "embed_tokens.weight"),
    canonical=canonical,
    describe=describe,
    fit=fit,
    conflict=conflict,
    authored=authored,
)
