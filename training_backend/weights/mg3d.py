"""Checkpoints of MG-3D: pre-training files with Swin, U-Net or nnU-Net, flat or wrapped, with or without a text tower.

Names of ours are the published ones; those of an image encoder come without ``vision_encoder.``. Parts of the files
that no published loss reads are known by name and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig, merged
from training_backend.config.presets import pretrain_config
from training_backend.config.text import TextConfig
from training_backend.errors import WeightsError
from training_backend.methods.mg3d_settings import SIZES
from training_backend.weights.families import Described, Family, spread_channels

if TYPE_CHECKING:
    from torch import Tensor

RENAMED: tuple[tuple[str, str], ...] = (
    (r"^encoder\.(?!stages\.)", ""),  # the encoder of a task
    (r"^module\.", ""),  # saved by several processes
    (r"^vision_encoder\.", ""),
    (r"\.mlp\.fc([12])\.", r".mlp.linear\1."),  # very old files
)
"""Beginning of a published name, and what stands there in ours; applied one after the other."""

PATCHES, GENESIS, PLAIN = (
    "patch_embed.proj.weight",
    "down_tr64.ops.0.conv1.weight",
    "encoder.stages.0.0.convs.0.conv.weight",
)
"""First weights of the three encoders."""
VISION = r"(patch_embed|layers[1-4]|proj_head|down_tr\d+|encoder\.stages)\."
LANGUAGE = "language_encoder."
READ = (
    r"(language_encoder|uni_global_text_attention|multi_global_text_attention|uni_emd_sen|multi_modal_language_proj"
    r"|multi_modal_vision_proj|modality_type_embeddings|local_(img|text)_cross_multihead_attention"
    r"|agg_img_cross_attention|(uni|multi)_modal_vision_pooler|multi_modal_agg_vision_pooler\.dense"
    r"|multi_modal_sen_vision_pooler|mlm_head|mim_swin_unter_head|itc_(cross|agg)_head)\..+"
)
"""Parts of the pre-training network, the image encoder aside."""
UNREAD = (
    r"((uni_emd_img|local_cross_attention|agg_text_cross_attention|multi_modal_(vision|language)_layers"
    r"|multi_modal_agg_vision_pooler\.global_attention|(uni|multi)_modal_language_pooler|itc_head"
    r"|mim_swin_unter_head\.fc|language_encoder\.pooler)\..+"
    r"|local_(img|text)_cross_multihead_attention\.\d\.fc[12]\..+|language_encoder\.embeddings\.position_ids"
    r"|.+\.bn1\.(running_mean|running_var|num_batches_tracked)|.+\.all_modules\..+"
    r"|(cml_loss_cls|dcl_loss_cls|ssm_loss_feat)_xbm\..+)"
)
"""Parts of the published files that no published loss reads, queues among them."""
CHANNEL_INPUTS = (PATCHES, GENESIS, PLAIN)
"""Weights that see the channels of a volume."""
SUMS = r"((uni|multi)_modal_vision_pooler\.fc|local_(img|text)_cross_multihead_attention\.\d\.fc[12])\.weight"
"""Weights of sums over the tokens of a scan."""


def canonical(name: str) -> str:
    """Name of a tensor in a published file, or in a network of ours, with that of an image encoder on its own."""
    for pattern, instead in RENAMED:
        name = re.sub(pattern, instead, name)
    return name


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by canonical name under those of the authors' files."""
    return {f"vision_encoder.{name}" if re.match(VISION, name) else name: tensor for name, tensor in tensors.items()}


def describe(tensors: Mapping[str, Tensor], extras: Mapping[str, Any], changes: Mapping[str, Any]) -> Described:
    """Kind and configuration of a file, from its names and shapes.

    The text tower needs its vocabulary and settings, which no file holds: with ``method.text.source`` among the
    changes the file counts as a whole pre-training network, without it as an image encoder.

    Args:
        tensors: by canonical name.
        extras: what is stored beside them; the authors store nothing that matters.
        changes: nested changes to the configuration, for what the file does not tell.
    """
    method, notes = _encoder(tensors), ["Weights of MONAI's old merging order are assumed, as published."]
    text = dict(changes.get("method", {}).get("text", {}))
    tower = f"{LANGUAGE}embeddings.word_embeddings.weight" in tensors
    kind = "encoder"
    if tower and (text.get("source") or text.get("architecture")):
        kind = "pretrain"
        method["text"] = {**text, **_vocabulary(text, tensors)}
    elif tower:
        notes.append(
            "The file holds a text model too, but not its vocabulary and settings; name them with method.text.source "
            "(a folder, or StanfordAIMI/RadBERT as published) to use it. No other weights are read then."
        )
    settings = merged({"method": method}, dict(changes))
    config = pretrain_config("mg3d", "published", Path(), settings)
    if kind == "pretrain":  # the changes name a source, from which no weights shall come
        config = config.updated({"method": {"text": method["text"]}})
    return Described(kind, config, tuple(notes))


def fit(name: str, tensor: Tensor, shape: tuple[int, ...], old: RunConfig, new: RunConfig) -> Tensor | None:
    """A tensor as the network needs it.

    First convolutions are spread over other channels, sums over tokens interpolated to other sizes of views.
    """
    if tuple(tensor.shape) == shape and not (re.fullmatch(SUMS, name) and _grid(old) != _grid(new)):
        return tensor
    if name in CHANNEL_INPUTS:
        return spread_channels(tensor, shape)
    if re.fullmatch(SUMS, name) and tensor.shape[1] == _number(old) and shape == (1, _number(new)):
        from training_backend.nn.gates import stretched

        return stretched(tensor, _grid(old), _grid(new))
    return None


def conflict(old: RunConfig, new: RunConfig) -> str:
    """What no shape shows: the order of merged voxels."""
    theirs, ours = getattr(old.method, "merging", ""), getattr(new.method, "merging", "")
    if theirs != ours:
        return f"The weights were made with method.merging {theirs}, this run has {ours}; set method.merging."
    return ""


def authored(tensors: Mapping[str, Tensor], kind: str, config: RunConfig) -> tuple[str, dict[str, Tensor]] | None:
    """Tensors by the authors' names, flat; None for heads, whose scripts each have names of their own.

    The file holds them below ``state_dict`` too, where the authors' script for LUNA16 looks for them.
    """
    return None if kind == "finetune" else ("", published_names(tensors))


def _encoder(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of the image encoder."""
    first = next((name for name in CHANNEL_INPUTS if name in tensors), None)
    if first is None:
        raise WeightsError(
            "The file has neither the patch embedding of a Swin transformer nor the first convolution of a U-Net, so "
            "no image encoder of MG-3D.",
            "Copy the file again, or choose another one.",
        )
    if tensors[first].ndim != 5:
        raise WeightsError(
            f"{first} has {tensors[first].ndim} axes, those of MG-3D's encoders have 5.",
            "Copy the file again, or choose another one.",
        )
    width, channels = tensors[first].shape[:2]
    if first == PATCHES:
        return {"encoder": "swin", "in_channels": channels, **_named(width), **_attention(tensors)}
    if first == GENESIS:
        return {"encoder": "unet", "in_channels": channels, **_named(width)}
    last = [f"encoder.stages.{stage}.0.convs.0.conv.weight" for stage in range(6)]
    if missing := [name for name in last if name not in tensors]:
        raise WeightsError(f"The nnU-Net encoder of the file lacks {missing[0]}.", "Choose one with six stages.")
    return {"encoder": "nnunet", "in_channels": channels, "features": tuple(tensors[name].shape[0] for name in last)}


def _named(width: int) -> dict[str, Any]:
    size = next((name for name, features in SIZES.items() if features == width), "")
    return {"size": size, "feature_size": None} if size else {"feature_size": width}


def _attention(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Window and heads of a Swin transformer; tables of relative positions tell both."""
    tables = [tensors.get(f"layers{stage}.0.blocks.0.attn.relative_position_bias_table") for stage in range(1, 5)]
    found = [table for table in tables if table is not None and table.ndim == 2]
    if len(found) != len(tables):
        raise WeightsError("The file has not all four stages of a Swin transformer.", "Copy it again.")
    window = (round(found[0].shape[0] ** (1 / 3)) + 1) // 2
    if (2 * window - 1) ** 3 != found[0].shape[0]:
        raise WeightsError(
            f"The file's windows of attention have {found[0].shape[0]} relative positions, so they are no cubes.",
            "Choose another file.",
        )
    return {"window": window, "heads": tuple(table.shape[1] for table in found)}


def _vocabulary(text: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings and vocabulary of the text tower, which must be those that it was trained with."""
    import json

    from training_backend.nn.text_encoder import described

    known = described(TextConfig.model_validate(text))
    settings = json.loads(known.architecture)
    words, width = tensors[f"{LANGUAGE}embeddings.word_embeddings.weight"].shape
    numbers = [int(m[1]) for name in tensors if (m := re.match(r"language_encoder\.encoder\.layer\.(\d+)\.", name))]
    layers = 1 + max(numbers, default=-1)
    theirs = (
        settings.get("vocab_size", 30522),
        settings.get("hidden_size", 768),
        settings.get("num_hidden_layers", 12),
    )
    if theirs != (words, width, layers):
        raise WeightsError(
            f"The text model of the file has {words} tokens, {width} channels and {layers} layers, but that of "
            f"{text.get('source') or 'the settings'} has {theirs[0]}, {theirs[1]} and {theirs[2]}.",
            "Name the text model that the file was trained with.",
        )
    return {"architecture": known.architecture, "tokeniser": known.tokeniser}


def _grid(config: RunConfig) -> tuple[int, int, int]:
    """Tokens of a view along (d, h, w)."""
    from training_backend.nn.mg3d_encoders import TOKEN

    d, h, w = (side // TOKEN for side in config.data.size)
    return (d, h, w)


def _number(config: RunConfig) -> int:
    d, h, w = _grid(config)
    return d * h * w


FAMILY = Family(
    name="mg3d",
    known=f"({VISION}.+|{READ}|{UNREAD})",
    canonical=canonical,
    describe=describe,
    fit=fit,
    conflict=conflict,
    authored=authored,
    text=LANGUAGE,
)
