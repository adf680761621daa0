"""Checkpoints of 3D-MAE / TANGERINE: pre-training with or without decoder, and fine-tuned classifiers.

Our networks use the published parameter names; what must be worked out is the configuration, which those files do not
carry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig, merged
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.errors import WeightsError
from training_backend.methods.mae3d import SIZES
from training_backend.weights.families import Described, Family, spread_channels

if TYPE_CHECKING:
    from torch import Tensor

HEADS = {width: heads for width, _, heads in SIZES.values()}
"""Attention heads by encoder width."""
DECODER_HEADS = 16
KNOWN = (
    r"(cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|blocks\.\d+\..+|norm\.(weight|bias)"
    r"|mask_token|decoder_.+|fc_norm\.(weight|bias)|head\..+)"
)


def describe(tensors: Mapping[str, Tensor], extras: Mapping[str, Any], changes: Mapping[str, Any]) -> Described:
    """Kind and configuration of a file: sizes from shapes, the rest from the stored arguments or the paper.

    Args:
        tensors: by published name.
        extras: what is stored beside them, the authors' ``args`` among it.
        changes: nested changes to the configuration, for what the file does not tell.
    """
    kind = kind_of(tensors)
    told = {**_stored(extras), **changes.get("method", {})}
    method, size = _encoder(tensors, told)
    notes = [] if told.get("heads") else [f"{method['heads']} attention heads are taken as usual for this width."]
    if kind == "pretrain":
        method |= _decoder(tensors, told)
        if not told.get("decoder_heads"):
            notes.append(f"{method['decoder_heads']} attention heads of the decoder are taken as published.")
    settings = merged({"method": method, "data": {"size": size}}, dict(changes))
    if kind != "finetune":
        return Described(kind, pretrain_config("mae3d", "published", Path(), settings), tuple(notes))
    task = changes.get("task", {}).get("name", "classification")
    settings = merged({"task": _task(tensors, task)}, settings)
    notes.append(
        "The file does not say what its outputs mean: set task.name or task.kind if they are no yes-or-no labels."
    )
    return Described(kind, finetune_config(task, "published", Path(), "mae3d", settings), tuple(notes))


def kind_of(tensors: Mapping[str, Any]) -> str:
    """What tensors of these names are: "pretrain" with a decoder, "finetune" with a head, "encoder" with neither."""
    if "decoder_embed.weight" in tensors:
        return "pretrain"
    return "finetune" if any(name.startswith("head.") for name in tensors) else "encoder"


def fit(name: str, tensor: Tensor, shape: tuple[int, ...], old: RunConfig, new: RunConfig) -> Tensor | None:
    """Position tables interpolated to the network's grid, patch embeddings spread over its channels."""
    from training_backend.nn.position import resize_table

    if name in ("pos_embed", "decoder_pos_embed") and tensor.shape[-1] == shape[-1]:
        return resize_table(tensor, _grid(old), _grid(new))
    if tuple(tensor.shape) == shape:
        return tensor
    return spread_channels(tensor, shape) if name == "patch_embed.proj.weight" else None


def conflict(old: RunConfig, new: RunConfig) -> str:
    """Attention heads divide the same matrices differently; no shape shows it."""
    theirs, ours = _heads_of(old), _heads_of(new)
    return (
        "" if theirs == ours else f"The weights have {theirs} attention heads, this network {ours}; set method.heads."
    )


def _stored(extras: Mapping[str, Any]) -> dict[str, Any]:
    """Of the authors' arguments, those that the network depends on."""
    told = extras.get("args")
    names = ("norm_pix_loss", "mask_ratio")
    return {name: told[name] for name in names if name in told} if isinstance(told, Mapping) else {}


def _encoder(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Settings of the encoder and voxels of a view."""
    from training_backend.nn.position import cubic_grid

    try:
        width, kernel = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape
        hidden, rows = tensors["blocks.0.mlp.fc1.weight"].shape[0], tensors["pos_embed"].shape[1]
    except KeyError as error:
        raise WeightsError(
            f"The file lacks {error}, which every 3D-MAE encoder has.", "Choose another file."
        ) from error
    depth, heads = _blocks(tensors, "blocks"), told.get("heads") or HEADS.get(width)
    if not heads or width % heads:
        known = ", ".join(f"{number} for width {key}" for key, number in HEADS.items())
        raise WeightsError(
            f"The file does not say how many attention heads its encoder of width {width} has.",
            f"Import it with --heads and a divisor of {width}; usual are {known}.",
        )
    size = tuple(side * voxels for side, voxels in zip(cubic_grid(rows - 1), kernel[2:], strict=True))
    return {
        **_named_size(width, depth, heads),
        "patch_size": tuple(kernel[2:]),
        "in_channels": kernel[1],
        "mlp_ratio": hidden / width,
    }, size


def _named_size(width: int, depth: int, heads: int) -> dict[str, Any]:
    name = next((name for name, shape in SIZES.items() if shape == (width, depth, heads)), "")
    given = {"embed_dim": width, "depth": depth, "heads": heads}
    return {"size": name, "embed_dim": None, "depth": None, "heads": heads} if name else given


def _decoder(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = tensors["decoder_embed.weight"].shape[0], told.get("decoder_heads") or DECODER_HEADS
    if width % heads:
        raise WeightsError(
            f"The file does not say how many attention heads its decoder of width {width} has.",
            f"Give method.decoder_heads, a divisor of {width}.",
        )
    return {
        "decoder_embed_dim": width,
        "decoder_depth": _blocks(tensors, "decoder_blocks"),
        "decoder_heads": heads,
        "output": "sigmoid" if "decoder_pred.0.weight" in tensors else "linear",
        "norm_pix_loss": bool(told.get("norm_pix_loss", False)),
        "mask_ratio": float(told.get("mask_ratio", 0.75)),
    }


def _task(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Head: ``head`` alone, or linear layers ``head.0``, ``head.3``, ... with activation and batch norm between."""
    layers = {key: tensor for key, tensor in tensors.items() if re.fullmatch(r"head\.(\d+\.)?weight", key)}
    linear = [layers[key].shape[0] for key in sorted(layers, key=_place) if layers[key].ndim == 2]
    outputs = linear[-1]
    meaning = {"kind": "binary" if outputs == 1 else "multilabel", "classes": outputs}
    return {
        **(meaning if name == "classification" else {"values": outputs}),
        "pooling": "global" if "fc_norm.weight" in tensors else "class",
        "hidden": tuple(linear[:-1]),
    }


def _place(name: str) -> int:
    return int(re.sub(r"\D", "", name) or 0)


def _blocks(tensors: Mapping[str, Tensor], stem: str) -> int:
    found = (re.match(rf"{stem}\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _grid(config: RunConfig) -> tuple[int, int, int]:
    d, h, w = (n // p for n, p in zip(config.data.size, config.method.patch_size, strict=True))  # type: ignore[attr-defined]
    return d, h, w


def _heads_of(config: RunConfig) -> int:
    return int(config.method.heads or SIZES[config.method.size][2])  # type: ignore[attr-defined]


FAMILY = Family(
    name="mae3d",
    known=KNOWN,
    essential=("patch_embed.proj.weight", "pos_embed"),
    describe=describe,
    fit=fit,
    conflict=conflict,
)
