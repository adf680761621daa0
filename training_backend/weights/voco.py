"""Checkpoints of VoCo, Large-Scale-Medical and VoComni: backbones, whole networks and training files.

Names of ours are the published ones of a network on its own; the table below leads from every published layout there.
The files hold tensors alone: what no shape tells (the frame of the network, the order of merged voxels) is as the
authors' code has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig, merged
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.errors import WeightsError
from training_backend.methods.voco_settings import REGIONS, SIZES, VOCOMNI
from training_backend.weights.families import Described, Family, spread_channels

if TYPE_CHECKING:
    from torch import Tensor

RENAMED: tuple[tuple[str, str], ...] = (
    (r"^encoder\.(?!stages\.)", ""),  # the encoder of a task
    (r"^module\.", ""),  # saved by several processes
    (r"^backbone\.", ""),  # training files of version 2
    (r"^student\.(?=swinViT|swin_vit|encoder\d|proj_head)", ""),  # training files of 2024, whose student is a network
    (r"^(teacher\.)?swin_vit\.", r"\1swinViT."),  # older releases
)
"""Beginning of a published name, and what stands there in ours; applied one after the other."""

PATCHES, HEAD, HEAD_2024 = "swinViT.patch_embed.proj.weight", "student.layer1.0.weight", "proj_head.layer1.0.weight"
PLAIN = "encoder.stages.0.0.convs.0.conv.weight"
LOGITS = "out.conv.conv.weight"
KNOWN = (
    r"((teacher\.)?(swinViT|encoder\d+|decoder\d|proj_head|out|head)\..+"
    r"|(student|teacher)\.layer[123]\.0\.(weight|bias))"
)
CHANNEL_INPUTS = (PATCHES, "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight")
"""Weights that see the channels of a volume."""
WINDOWS_2024 = {"cells": 4, "crop": 96, "resized": 64, "hidden": 2048, "projected": 2048}


def canonical(name: str) -> str:
    """Name of a tensor in a published file, or in a network of ours, as a network on its own has it."""
    for pattern, instead in RENAMED:
        name = re.sub(pattern, instead, name)
    return name


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by canonical name under those of the authors' training files, as the version that they belong to."""
    prefix: str = ""
    others: tuple[str, ...] = ()
    if HEAD in tensors:
        prefix, others = "backbone.", ("student.", "teacher.")
    elif HEAD_2024 in tensors:
        prefix, others = "student.", ("teacher.",)
    return {name if name.startswith(others) else prefix + name: tensor for name, tensor in tensors.items()}


def describe(tensors: Mapping[str, Tensor], extras: Mapping[str, Any], changes: Mapping[str, Any]) -> Described:
    """Kind and configuration of a file, from its names and shapes.

    Args:
        tensors: by canonical name.
        extras: what is stored beside them; the authors store nothing that matters.
        changes: nested changes to the configuration, for what the file does not tell.
    """
    if PATCHES not in tensors:
        raise WeightsError(*_no_transformer(tensors))
    kind = "pretrain" if _teacher(tensors) else "finetune" if LOGITS in tensors else "encoder"
    method = {**_encoder(tensors), **(_training(tensors) if kind == "pretrain" else {})}
    notes = ["Weights of axes (x, y, z) and of MONAI's old merging order are assumed, as published."]
    data: dict[str, Any] = {}
    if kind == "encoder":
        data["size"] = (64, 64, 64)
    if not changes.get("data", {}).get("intensity") and not changes.get("method", {}).get("region"):
        low, high = REGIONS["abdomen"].window
        data["intensity"] = {"profile": "window", "low": low, "high": high}
        notes.append(f"The window of the abdomen, {low:g} to {high:g} HU, is assumed; chests were seen differently.")
    settings: dict[str, Any] = {"method": {"region": "custom", **method}, "data": data}
    if kind != "finetune":
        config = pretrain_config("voco", "published", Path(), merged(settings, dict(changes)))
        return Described(kind, config, tuple(notes))
    outputs = tensors[LOGITS].shape[0]
    names = VOCOMNI if outputs == len(VOCOMNI) else ("background", *(f"class {k}" for k in range(1, outputs)))
    if outputs == len(VOCOMNI):
        notes.append("Its classes are taken for those of VoComni.")
    settings["task"] = {"classes": names, "decoder": "swinunetr", "loss": "dice_ce_foreground"}
    settings["task"] |= {"overlap": 0.75, "blend": "constant"}
    data["size"] = (96, 96, 96)
    settings = merged(settings, dict(changes))
    return Described(kind, finetune_config("segmentation", "published", Path(), "voco", settings), tuple(notes))


def fit(name: str, tensor: Tensor, shape: tuple[int, ...], old: RunConfig, new: RunConfig) -> Tensor | None:
    """Tensors that see the channels of a volume are spread over those of the network; all others must agree."""
    if tuple(tensor.shape) == shape:
        return tensor
    return spread_channels(tensor, shape) if name in CHANNEL_INPUTS else None


def conflict(old: RunConfig, new: RunConfig) -> str:
    """What no shape shows: the order of merged voxels and the frame of the network."""
    for name in ("merging", "axes"):
        theirs, ours = getattr(old.method, name), getattr(new.method, name)
        if theirs != ours:
            return f"The weights were made with method.{name} {theirs}, this run has {ours}; set method.{name}."
    return ""


def authored(tensors: Mapping[str, Tensor], kind: str, config: RunConfig) -> tuple[str, dict[str, Tensor]] | None:
    """Key of the file that the authors' scripts read, and the tensors under it by the authors' names.

    Args:
        tensors: by canonical name.
        kind: "pretrain", "encoder" or "finetune".
        config: of the model.

    Returns:
        None for a head that the authors do not have.
    """
    if kind == "finetune" and getattr(config.task, "decoder", "") != "swinunetr":
        return None
    return "state_dict", published_names(tensors) if kind == "pretrain" else dict(tensors)


def _encoder(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if tensors[PATCHES].ndim != 5:
        raise WeightsError(
            f"The patch embedding has {tensors[PATCHES].ndim} axes, those of VoCo's networks have 5.",
            "Copy the file again, or choose another one.",
        )
    width, channels = tensors[PATCHES].shape[:2]
    table = tensors.get("swinViT.layers1.0.blocks.0.attn.relative_position_bias_table")
    if table is None or table.ndim != 2:
        raise WeightsError(
            "The file has no attention of a Swin transformer, so it is none of VoCo's.", "Choose another file."
        )
    window = (round(table.shape[0] ** (1 / 3)) + 1) // 2
    if table.shape[1] != 3 or (2 * window - 1) ** 3 != table.shape[0]:
        raise WeightsError(
            f"The file has {table.shape[1]} attention heads and {table.shape[0]} relative positions in its first "
            "stage; VoCo's networks have 3 heads and cubic windows.",
            "Choose another file.",
        )
    if "swinViT.layers1c.0.layer.conv1.conv.weight" not in tensors:
        raise WeightsError(
            "The file is a SwinUNETR without the convolutions before its stages, so not one of VoCo's.",
            "Choose weights of version 2 of that network.",
        )
    size = next((name for name, features in SIZES.items() if features == width), "")
    named = {"size": size, "feature_size": None} if size else {"feature_size": width}
    return {**named, "in_channels": channels, "window": window}


def _training(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    version = "2" if HEAD in tensors else "2024"
    first = tensors[HEAD if version == "2" else HEAD_2024]
    last = tensors["student.layer3.0.weight" if version == "2" else "proj_head.layer3.0.weight"]
    if first.shape[1] != 24 * tensors[PATCHES].shape[0]:
        raise WeightsError(
            f"The projections of the file take {first.shape[1]} numbers, but its encoder gives "
            f"{24 * tensors[PATCHES].shape[0]}.",
            "It was put together from two files; choose another.",
        )
    classes = tensors[LOGITS].shape[0] if LOGITS in tensors else 0
    told = {"hidden": first.shape[0], "projected": last.shape[0], "decoder_classes": classes, "version": version}
    return told if version == "2" else {**WINDOWS_2024, **told}


def _teacher(tensors: Mapping[str, Tensor]) -> bool:
    return {HEAD, "teacher.layer1.0.weight"} <= set(tensors) or {HEAD_2024, f"teacher.{HEAD_2024}"} <= set(tensors)


def _no_transformer(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    if PLAIN in tensors:
        return (
            "The file is a plain U-Net of nnU-Net, which is a network of its own and no encoder of the method voco.",
            "Hand it to nnU-Net: med3dssl weights export FILE --layout nnunet --output FILE.",
        )
    lacking = "The file is a checkpoint of VoCo without its transformer: "
    if HEAD in tensors or HEAD_2024 in tensors:
        return lacking + "it holds projections only.", "Choose the file that holds the backbone."
    return lacking + f"{PATCHES} is not in it.", "Choose another file."


FAMILY = Family(
    name="voco",
    known=KNOWN,
    essential=(PATCHES, "encoder1.layer.conv1.conv.weight", "encoder10.layer.conv1.conv.weight"),
    canonical=canonical,
    describe=describe,
    fit=fit,
    conflict=conflict,
    authored=authored,
)
