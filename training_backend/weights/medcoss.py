"""Checkpoints of MedCoSS and Uni-Perceiver: stages of pre-training, teachers, and fine-tuned networks.

Our networks use the published parameter names, so a file of any stage loads one to one; what must be worked out is the
configuration, which the files hardly carry. Uni-Perceiver, which the authors start from, calls its encoder and its text
tokenizer alike, but its positions of images by another name, and it has neither a class token nor patches of volumes:
of images only the projection of 2-D patches and the norm are taken, as the authors' own loader does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig, merged
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.errors import WeightsError
from training_backend.methods.medcoss_settings import SIZES, Kind, Triple, method_config, network_settings, reads
from training_backend.methods.medcoss_stage import MODALITIES
from training_backend.weights.families import Described, Family, plain_name, spread_channels

if TYPE_CHECKING:
    from torch import Tensor

HEADS = {width: heads for width, _, heads, _ in SIZES.values()}
"""Attention heads by encoder width."""
DECODER_HEADS = 16
OUTPUTS_OF_OTHERS = 2
"""Classes, background included, of all published segmentations but that of LiTS."""
IMAGES, VOLUMES, WORDS = (
    "video_embed.embeddings.weight",
    "video_embed.embeddings_3D.weight",
    "token_embed.embeddings.weight",
)
ROWS: dict[Kind, str] = {
    "2d": "video_embed.embeddings_st_pos_2D.spatial_pos_embed.weight",
    "3d": "video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight",
}
DECODED: dict[Kind, str] = {
    "2d": "decoder_pos_embed_2D",
    "3d": "decoder_pos_embed_3D",
    "text": "mlm_head.decoder.weight",
}
"""What the decoder of a kind has."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "text": ("token_embed.",),
    "2d": ("video_embed.embeddings.", "video_embed.embeddings_st_pos_2D."),
    "3d": ("video_embed.embeddings_3D.", "video_embed.embeddings_st_pos_3D."),
    "images": (
        "video_embed.embeddings_norm.",
        "cls_token",
        "video_embed.embeddings_pos.",
        "video_embed.embeddings_type.",
    ),
}
"""Names of the tokenizers' tensors by what they read."""
TEXT_ROWS = "token_embed.embeddings_pos.position_embeddings.weight"
UNUSED = "video_embed.embeddings_pos.position_embeddings.weight"
OTHER_ROWS = "video_embed.embeddings_st_pos.spatial_pos_embed.weight"
"""Uni-Perceiver's positions of images."""
FIRST = "fused_encoder.layers.0.self_attn.in_proj_weight"
KNOWN = (
    r"(fused_encoder\.layers\.\d+|token_embed|video_embed|decoder_\w+|mlm_head|cls_head|fc_norm"
    r"|head|encoder[1-4]|decoder[2-5]|out)\..+|cls_token|mask_token|decoder_pos_embed_[23]D"
)
USUAL: Mapping[Kind, str] = {"text": "1D_text", "2d": "2D_path", "3d": "3D_CT"}
"""Modality that is assumed where the file does not tell."""
TASK_SIZES: Mapping[Kind, Triple] = {"2d": (1, 224, 224), "3d": (64, 192, 192)}
"""Voxels (z, y, x) of the authors' views in fine-tuning, but for GlaS, whose images have 512 x 512 pixels."""


def describe(tensors: Mapping[str, Tensor], extras: Mapping[str, Any], changes: Mapping[str, Any]) -> Described:
    """Kind and configuration of a file: sizes from shapes, the modality from the stored arguments.

    Args:
        tensors: by published name.
        extras: what is stored beside them, the authors' ``args`` among it.
        changes: nested changes to the configuration, for what the file does not tell.
    """
    _check_axes(tensors)
    kind, task = kind_of(tensors)
    notes: list[str] = []
    method = _encoder(tensors, changes.get("method", {}), notes)
    if task:
        return _finetuned(tensors, task, method, notes, changes)
    readable = _readable(tensors)
    decodes = tuple(each for each in readable if DECODED[each] in tensors)
    modality = _modality(extras, decodes or readable, notes)
    own = changes.get("method", {}).get("kind") or MODALITIES[modality]
    if own != MODALITIES[modality]:
        modality = USUAL[own]
    method |= {"kind": own, "modality": modality, "encodes": tuple(each for each in readable if each != own)}
    if kind == "pretrain":
        method |= _decoder(tensors, changes.get("method", {}), notes)
        method["decodes"] = tuple(each for each in decodes if each != own)
        if set(decodes) > {own}:
            notes.append(
                f"It holds decoders for {', '.join(decodes)}, but every stage trains only its own ({modality}): what "
                "the others reconstruct means nothing."
            )
    if own == "text" and not changes.get("method", {}).get("text", {}).get("source"):
        notes.append("Its words are in no file of the authors; set method.text.source to Bio_ClinicalBERT's tokenizer.")
    if OTHER_ROWS in tensors:
        notes.append("Uni-Perceiver has no class token, no volumes, and other positions of images: these begin anew.")
    settings = {"method": method, **({"data": {"size": method[f"size_{own}"]}} if own != "text" else {})}
    config = pretrain_config("medcoss", "published", Path(), merged(settings, dict(changes)))
    return Described(kind, config, tuple(notes))


def kind_of(tensors: Mapping[str, Any]) -> tuple[str, str]:
    """Kind of a file with tensors of these names, and the head of a fine-tuned one."""
    heads = {
        "out.conv.conv.weight": "segmentation",
        "fc_norm.weight": "classification",
        "cls_head.0.weight": "text_classification",
    }
    found = next((task for name, task in heads.items() if name in tensors), "")
    if found:
        return "finetune", found
    return ("pretrain" if any(name in tensors for name in DECODED.values()) else "encoder"), ""


def asked(names: set[str], tensors: Mapping[str, Any], config: RunConfig) -> set[str]:
    """Names of an encoder's tensors that must be in a file.

    A stage that teaches a new kind of modality begins with a new tokenizer for it, so those of which a file has nothing
    are not asked for; a task asks for all.
    """
    if config.task is not None:
        return names
    prefixes = tuple(prefix for part in PARTS.values() if not _holds(tensors, part) for prefix in part)
    return {name for name in names if not name.startswith(prefixes)}


def fit(name: str, tensor: Tensor, shape: tuple[int, ...], old: RunConfig, new: RunConfig) -> Tensor | None:
    """Position tables interpolated to the network's grid, projections of volumes spread over its channels."""
    from training_backend.nn.position import resize_table

    kind: Kind = "2d" if "_2D" in name else "3d"
    before, after = network_settings(old), network_settings(new)
    if name == ROWS[kind] and tensor.shape[1] == shape[1]:
        same = before.grid(kind) == after.grid(kind) or after.positions == "flat"
        return tensor if same and tuple(tensor.shape) == shape else _rows(tensor, shape[0], kind, old, new)
    if name == DECODED[kind] and tensor.shape[-1] == shape[-1]:
        return resize_table(tensor, before.grid(kind), after.grid(kind))
    if tuple(tensor.shape) == shape:
        return tensor
    return spread_channels(tensor, shape) if name == VOLUMES else None


def conflict(old: RunConfig, new: RunConfig) -> str:
    """What no shape shows: attention heads, and the frame of volumes where both read such."""
    theirs, ours = network_settings(old).heads, network_settings(new).heads
    if theirs != ours:
        return f"The weights have {theirs} attention heads, this network {ours}; set method.heads."
    before, after = method_config(old), method_config(new)
    both = "3d" in (before.kind, *before.encodes) and "3d" in (reads(new), *after.encodes)
    if both and before.axes != after.axes:
        return f"The weights were made with method.axes {before.axes}, this run has {after.axes}; set method.axes."
    return ""


def authored(tensors: Mapping[str, Tensor], kind: str, config: RunConfig) -> tuple[str, dict[str, Tensor]] | None:
    """Key of the file that the authors' scripts read, and the tensors under it.

    Args:
        tensors: by published name.
        kind: "pretrain", "encoder" or "finetune".
        config: of the model.

    Returns:
        None for a head that the authors do not have.
    """
    if kind == "finetune" and config.task is not None:
        wanted = {"segmentation": ("decoder", "unetr"), "classification": ("pooling", "patches")}.get(config.task.name)
        known = "cls_head.0.weight" in tensors if wanted is None else getattr(config.task, wanted[0], "") == wanted[1]
        if not known:
            return None
    return "model", dict(tensors)


def _finetuned(
    tensors: Mapping[str, Tensor], task: str, method: dict[str, Any], notes: list[str], changes: Mapping[str, Any]
) -> Described:
    """Network of a task; its file has the tokenizers of all kinds of images, of which it looks at one."""
    if task == "text_classification":
        return _sentences(tensors, method, notes, changes)
    if task == "segmentation":
        kind: Kind = "2d" if tensors["out.conv.conv.weight"].ndim == 4 else "3d"
        settings: dict[str, Any] = _segmentation(tensors)
        if len(settings["classes"]) > OUTPUTS_OF_OTHERS and "axes" not in changes.get("method", {}):
            method["axes"] = "zyx"
            notes.append("Slices are taken as stored, as those of LiTS were, in place of transposed.")
        notes.append("Each output is taken for a class of its own; --recipe NAME takes those of a published task.")
    else:
        settings = _classification(tensors)
        kind = changes.get("method", {}).get("kind") or ("3d" if settings["hidden"] else "2d")
        notes.append(f"It is taken for a classifier of {'volumes' if kind == '3d' else '2-D images'}; see method.kind.")
    size = TASK_SIZES[kind]
    notes.append(f"Views of {' x '.join(map(str, size))} voxels are taken as published; see data.size.")
    method |= {"kind": kind, "modality": USUAL[kind]}
    view = "crop" if task == "segmentation" and kind == "3d" else "volume"
    settings = merged({"method": method, "task": settings, "data": {"size": size, "view": view}}, dict(changes))
    return Described("finetune", finetune_config(task, "published", Path(), "medcoss", settings), tuple(notes))


def _sentences(
    tensors: Mapping[str, Tensor], method: dict[str, Any], notes: list[str], changes: Mapping[str, Any]
) -> Described:
    """Classifier of sentences, whose words are in no file of the authors."""
    if not changes.get("method", {}).get("text", {}).get("source"):
        raise WeightsError(
            "The file holds a classifier of sentences, but not the words that it knows.",
            "Import it with method.text.source, the folder or hub name of Bio_ClinicalBERT's tokenizer.",
        )
    classes = tensors[max(name for name in tensors if re.fullmatch(r"cls_head\.\d+\.weight", name))]
    method |= {"kind": "text", "modality": USUAL["text"]}
    settings = merged({"method": method, "task": {"classes": classes.shape[0]}}, dict(changes))
    config = finetune_config("text_classification", "published", Path(), "medcoss", settings)
    return Described("finetune", config, tuple(notes))


def _check_axes(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no weights of the layers that they are called after."""
    axes = {FIRST: 2, "fused_encoder.layers.0.linear1.weight": 2, "decoder_embed.weight": 2, IMAGES: 4, VOLUMES: 5}
    axes |= {WORDS: 2, TEXT_ROWS: 2, UNUSED: 2, ROWS["2d"]: 2, ROWS["3d"]: 2, DECODED["2d"]: 3, DECODED["3d"]: 3}
    for name, wanted in axes.items():
        if name in tensors and tensors[name].ndim != wanted:
            raise WeightsError(
                f"The tensor {name} has {tensors[name].ndim} axes, in MedCoSS's networks it has {wanted}.",
                "Copy the file again, or choose another one.",
            )


def _encoder(tensors: Mapping[str, Tensor], told: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Settings of the encoder and the tokenizers, adding what was assumed to `notes`."""
    try:
        width = tensors[FIRST].shape[1]
        mlp_dim = tensors["fused_encoder.layers.0.linear1.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(
            f"The file lacks {error}, which every MedCoSS encoder has.", "Choose another file."
        ) from error
    depth, heads = _layers(tensors, "fused_encoder.layers"), told.get("heads") or HEADS.get(width)
    if not heads or width % heads:
        raise WeightsError(
            f"The file does not say how many attention heads its encoder of width {width} has.",
            f"Import it with --heads and a divisor of {width}; the published encoder of width 768 has 12.",
        )
    if not told.get("heads"):
        notes.append(f"{heads} attention heads are taken as usual for this width.")
    shape = (width, depth, heads, mlp_dim)
    named = next((name for name, sizes in SIZES.items() if sizes == shape), "")
    found = {"embed_dim": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    method: dict[str, Any] = {"size": named, **dict.fromkeys(found)} if named else found
    method |= {"positions": "interpolate", "text_mask": "fixed"}
    if WORDS in tensors:
        method["vocabulary"] = tensors[WORDS].shape[0]
        if TEXT_ROWS in tensors:
            method["text_rows"] = tensors[TEXT_ROWS].shape[0]
    if IMAGES in tensors:
        method["patch_2d"] = (1, *tensors[IMAGES].shape[2:])
    if VOLUMES in tensors:
        from training_backend.nn.axes import sizes_back

        method["axes"] = told.get("axes", "zxy")
        method["patch_3d"] = sizes_back(tensors[VOLUMES].shape[2:], method["axes"])
        if tensors[VOLUMES].shape[1] > 1:
            method["in_channels"] = tensors[VOLUMES].shape[1]
        if "axes" not in told:
            notes.append("Slices of volumes are taken as transposed, as published; see method.axes.")
    for kind, name in ROWS.items():
        if name in tensors:
            method[f"rows_{kind}"] = tensors[name].shape[0]
        method[f"size_{kind}"] = told.get(f"size_{kind}") or _trained(tensors, kind, method, notes)
    method["unused_rows"] = len(tensors[UNUSED]) if UNUSED in tensors and OTHER_ROWS not in tensors else 0
    return method


def _trained(tensors: Mapping[str, Tensor], kind: Kind, method: Mapping[str, Any], notes: list[str]) -> Triple:
    """Voxels (z, y, x) that positions were trained for: a square of patches of one layer."""
    usual = min(196 if kind == "2d" else 144, len(tensors[ROWS[kind]]) if ROWS[kind] in tensors else 196)
    patch = method.get(f"patch_{kind}", (1, 16, 16) if kind == "2d" else (16, 16, 16))
    rows = tensors[DECODED[kind]].shape[1] - 1 if DECODED[kind] in tensors else isqrt(usual) ** 2
    side = isqrt(rows)
    if side * side != rows:
        raise WeightsError(
            f"The decoder of the file is for {rows} patches, which is no square, and the file does not say which grid "
            "they lie on.",
            f"Import it with method.size_{kind}, the voxels of the views that it was trained on.",
        )
    if kind == "3d" and VOLUMES in tensors:
        notes.append(f"Volumes are taken to be {side} x {side} patches of one layer, as published; see method.size_3d.")
    return (patch[0], side * patch[1], side * patch[2])


def _decoder(tensors: Mapping[str, Tensor], told: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    if "decoder_embed.weight" not in tensors:
        return {}
    width, heads = tensors["decoder_embed.weight"].shape[0], told.get("decoder_heads") or DECODER_HEADS
    if width % heads:
        raise WeightsError(
            f"The file does not say how many attention heads its decoder of width {width} has.",
            f"Give method.decoder_heads, a divisor of {width}.",
        )
    if not told.get("decoder_heads"):
        notes.append(f"{heads} attention heads of the decoder are taken as published.")
    return {
        "decoder_embed_dim": width,
        "decoder_depth": _layers(tensors, "decoder_blocks"),
        "decoder_heads": heads,
    }


def _readable(tensors: Mapping[str, Any]) -> tuple[Kind, ...]:
    """Kinds whose tokenizers, or the better part of them, are in a file."""
    wanted: dict[Kind, str] = {"text": WORDS, "2d": IMAGES, "3d": VOLUMES}
    found = tuple(kind for kind, name in wanted.items() if name in tensors)
    if not found:
        raise WeightsError("The file has an encoder without any tokenizer, so it can read nothing.", "Choose another.")
    return found


def _modality(extras: Mapping[str, Any], kinds: tuple[Kind, ...], notes: list[str]) -> str:
    """Modality of the stage that wrote the file."""
    arguments = extras.get("args")
    told = str(arguments.get("task_modality", "")) if isinstance(arguments, Mapping) else ""
    if told in MODALITIES and MODALITIES[told] in kinds:
        return told
    found = USUAL["3d" if "3d" in kinds else kinds[0]]
    notes.append(f"The file does not say which modality was taught last; {found} is assumed, see method.modality.")
    return found


def _segmentation(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    names = ("background", *(f"class {k}" for k in range(1, 1 + tensors["out.conv.conv.weight"].shape[0])))
    first = tensors.get("encoder1.layer.conv1.conv.weight")
    if first is None:
        raise WeightsError("The file has no UNETR decoder, only its last layer.", "Copy or download it again.")
    return {"classes": names, "decoder": "unetr", "feature_size": first.shape[0], "loss": "dice_bce"}


def _classification(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Head: ``head`` alone, or linear layers ``head.0`` and ``head.3`` with norm and activation between."""
    names = sorted(name for name in tensors if re.fullmatch(r"head\.(\d+\.)?weight", name))
    linear = [tensors[name].shape[0] for name in names if tensors[name].ndim == 2]
    if not linear:
        raise WeightsError("The file has the norm of a classifier, but no head.", "Copy or download it again.")
    return {"kind": "multiclass", "classes": linear[-1], "pooling": "patches", "hidden": tuple(linear[:-1])}


def _rows(tensor: Tensor, rows: int, kind: Kind, old: RunConfig, new: RunConfig) -> Tensor | None:
    """`tensor` [R, E] as a table of `rows` rows: the trained ones moved to the new grid, then what is left of it."""
    from training_backend.nn.position import resize_rows

    before, after = network_settings(old).grid(kind), network_settings(new).grid(kind)
    trained = before[0] * before[1] * before[2]
    if after == before or network_settings(new).positions == "flat":
        moved = tensor[:trained]
    else:
        moved = resize_rows(tensor[:trained], before, after)
    if len(moved) > rows:
        return None
    table = tensor.new_zeros(rows, tensor.shape[1])
    kept = tensor[:rows]
    table[: len(kept)] = kept
    table[: len(moved)] = moved
    return table


def _holds(tensors: Mapping[str, Any], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in tensors)


def _layers(tensors: Mapping[str, Any], stem: str) -> int:
    found = (re.match(rf"{re.escape(stem)}\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


FAMILY = Family(
    name="medcoss",
    known=KNOWN,
    essential=(FIRST,),
    canonical=plain_name,
    describe=describe,
    asked=asked,
    fit=fit,
    conflict=conflict,
    authored=authored,
)
