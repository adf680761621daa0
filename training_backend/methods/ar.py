"""AR-SSL4M: predict the next patch of sequences of slabs (AAAI 2025, 39(8):7871)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import MethodConfig, RunConfig, ui
from training_backend.methods.ar_views import VIEWS
from training_backend.methods.base import Batch, Card, Encoder, Method, PreviewArray, StepOutput

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.nn.ar_predict import TeacherForced
    from training_backend.nn.ar_pretrain import NextPatch, Scored

SIZES = {
    "tiny": (192, 4, 6, 768),
    "small": (384, 6, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1152, 24, 18, 4608),
}
"""Width, layers, attention heads and MLP width; sine-cosine positions need widths that are multiples of 6."""
BUCKETS = 4
"""Ranges of prefix lengths that the loss is reported for."""
_GOLDEN = (math.sqrt(5) - 1) / 2


class ArConfig(MethodConfig):
    """Settings of next-patch prediction."""

    name: str = Field("ar", json_schema_extra=ui(hidden=True))
    size: Literal["tiny", "small", "base", "large"] = "base"
    """Encoder: tiny 192 x 4 layers, small 384 x 6, base 768 x 12 (published), large 1152 x 24."""
    patch_size: tuple[int, int, int] = (16, 16, 16)
    """Voxels of a patch along (z, y, x); the views must be multiples of it."""
    attention: Literal["prefix", "causal"] = "prefix"
    """prefix: a random number of patches is given as context and seen in both directions ("random startup").
    causal: none is, and every patch sees only what came before it."""
    norm_pixel_loss: bool = True
    """Predict patches normalised to zero mean and unit variance: texture, not absolute intensity."""
    order: Literal["interleaved", "slab-major"] = "interleaved"
    """Order in which patches are predicted. interleaved: columns along z, so the slabs take turns, as published.
    slab-major: all of the first slab, then all of the second."""
    positions: Literal["sincos3d", "learnable"] = Field("sincos3d", json_schema_extra=ui(advanced=True))
    """sincos3d: a fixed code without parameters. learnable: a table, interpolated to views of another size."""
    position_scaling: Literal["absolute", "rescaled"] = Field("absolute", json_schema_extra=ui(advanced=True))
    """What sincos3d does on views of another size than that of training. absolute: count patches from the corner, as
    published. rescaled: spread them over the extent of the training view."""
    trained_size: tuple[int, int, int] | None = Field(None, json_schema_extra=ui(advanced=True))
    """Voxels (z, y, x) of the views that positions are made for; empty takes `data.size`."""
    axes: Literal["xyz", "xyz-lps", "yxz-pls", "zyx"] = Field("xyz", json_schema_extra=ui(advanced=True))
    """Frame of the network. xyz: (x, y, z) growing to the right, anterior, superior, as the authors read NIfTI.
    xyz-lps: (x, y, z) to the left, posterior, superior, as they read left atria and NoduleMNIST3D. yxz-pls: rows,
    columns, slices, as they read RICORD. zyx: as stored."""
    slabs: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Slabs of a view, for the order slab-major; empty takes `data.sequence.slabs`."""
    in_channels: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Channels of a volume; empty takes as many as `data.contrasts` names, at least one."""
    embed_dim: int | None = Field(None, ge=6, json_schema_extra=ui(advanced=True))
    """Width of a token; empty takes that of `size`."""
    depth: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Layers; empty takes those of `size`."""
    heads: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Attention heads; empty takes those of `size`."""
    mlp_dim: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Channels inside the MLPs; empty takes those of `size`, or four times `embed_dim`."""


_INTENSITY = {"profile": "percentile", "low": 1.0, "high": 99.9}
_UNCHANGED = {"flip": (0.0, 0.0, 0.0)}
_DATA = {"view": "sequence", "intensity": _INTENSITY, "augment": _UNCHANGED}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "method": {"size": "tiny", "patch_size": (8, 8, 8)},
        "data": {**_DATA, "size": (32, 48, 48), "crops_per_volume": 4, "sequence": {"stride": 4}},
        "optim": {"epochs": 1000, "max_steps": 400, "batch_size": 8, "lr": 1e-3, "warmup": 0.1},
        "engine": {"device": "auto", "val_steps": 50, "preview_minutes": 0.25},
    },
    "small": {
        "method": {"size": "small"},
        "data": {**_DATA, "size": (128, 96, 96), "crops_per_volume": 2},
        "optim": {"epochs": 400, "batch_size": 32, "lr": 3e-4},
        "engine": {"micro_batch": 16},
    },
    "base": {
        "method": {"size": "base"},
        "data": {**_DATA, "size": (128, 128, 128), "crops_per_volume": 2},
        "optim": {"epochs": 400, "batch_size": 64, "lr": 2e-4},
        "engine": {"micro_batch": 16},
    },
    "published": {
        "method": {"size": "base"},
        "data": {
            **_DATA,
            "size": (128, 128, 128),
            "crops_per_volume": 50,
            "sequence": {"spatial": 1.0, "contrast": 1.0, "semantic": 1.0},
        },
        "optim": {
            "epochs": 50,
            "batch_size": 288,
            "lr": 1e-4,
            "min_lr": 0.0,
            "warmup": 0.0,
            "weight_decay": 0.01,
            "decay_all": True,
            "betas": (0.9, 0.999),
        },
        "engine": {"micro_batch": 72},
    },
}
"""The authors concatenate the lists of spatial, contrast and semantic sequences; they train on 4 x 72 views a step."""


def build(run: RunConfig) -> NextPatch:
    """Network with fresh weights for views of `run.data.size`."""
    from training_backend.nn.ar import ArEncoder
    from training_backend.nn.ar_pretrain import NextPatch

    config = _config(run)
    encoder = ArEncoder(**_encoder_settings(run), pretraining=True)
    return NextPatch(encoder, config.norm_pixel_loss, config.attention == "causal")


def build_encoder(run: RunConfig) -> Encoder:
    """The encoder alone, without end token."""
    from training_backend.nn.ar import ArEncoder

    return ArEncoder(**_encoder_settings(run))


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Mean squared error over all patches behind the prefix; the prefix lengths are drawn from `generator`.

    Patches that lie outside the scan are not scored; views of other kinds than sequences have such.

    With ``batch.extra["slots"]``, the numbers of fixed validation views, the prefix lengths are a fixed function of
    these. Scalars tell the loss by range of prefix lengths and by ``batch.extra["kinds"]``, the kind of each sequence.
    """
    prefix = prefix_lengths(network, batch, generator)
    scored: Scored = network.score(batch.volume, prefix, batch.padding)  # type: ignore[operator]
    length = math.prod(_grid(network, batch.volume))
    groups = {
        f"loss_prefix_{100 * k // BUCKETS}_{100 * (k + 1) // BUCKETS}": prefix * BUCKETS // length == k
        for k in range(BUCKETS)
    }
    kinds: Sequence[str] = batch.extra.get("kinds", ())
    for kind in sorted(set(kinds)):
        groups[f"loss_{kind}"] = prefix.new_tensor([each == kind for each in kinds]).bool()
    scalars, counts = _group_means(scored, groups)
    return StepOutput(loss=scored.loss, scalars=scalars, counts={"loss": float(len(scored.view)), **counts})


def prefix_lengths(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Patches given as context of each view, [B] on the CPU: uniform over 0 to L - 1, or 0 for causal networks.

    Fixed views get the points of an even (golden ratio) sequence, so that a validation curve does not jump about.
    """
    import torch

    d, h, w = _grid(network, batch.volume)
    length, views = d * h * w, len(batch.volume)
    if network.causal:
        return torch.zeros(views, dtype=torch.int64)
    slots = batch.extra.get("slots")
    if slots is not None:
        return torch.tensor([int((0.5 + slot * _GOLDEN) % 1.0 * length) for slot in slots])
    return torch.randint(length, (views,), generator=generator)


def preview(
    network: nn.Module, volume: Tensor, options: Mapping[str, Any], generator: torch.Generator
) -> list[PreviewArray]:
    """What the network predicts of one view [1, C, D, H, W], each patch from the true ones before it.

    Args:
        network: made by `build`.
        volume: one view, normalised.
        options: `prefix`, the number of patches given as context; or `mask_ratio`, the share that is predicted
            (default three quarters; all for causal networks).
        generator: not used.
    """
    from training_backend.nn.ar_predict import teacher_forced

    d, h, w = _grid(network, volume)
    length = d * h * w
    ratio = options.get("mask_ratio")
    usual = 0 if network.causal else round(length * (1 - (0.75 if ratio is None else float(ratio))))
    given = options.get("prefix")
    prefix = min(max(usual if given is None else int(given), 0), length - 1)
    return teacher_forced_pictures(network, volume, teacher_forced(network, volume, prefix))  # type: ignore[arg-type]


def teacher_forced_pictures(network: NextPatch, volume: Tensor, found: TeacherForced) -> list[PreviewArray]:
    """Pictures of the first channel of one view: original, prediction, error, and which patches were predicted."""
    import torch

    original, drawn, error = (each[0, 0].float().cpu().numpy() for each in (volume, found.volume, found.error))
    low, high = float(original.min()), float(original.max())
    shown = (low, high if high > low else low + 1.0)
    behind = found.error[0][found.error[0] > 0]
    worst = float(torch.quantile(behind[:: max(1, behind.numel() // 1_000_000)], 0.99)) if behind.numel() else 1.0
    patch = network.patch_size
    slabs = (found.slabs + 1).cpu().numpy().astype("uint8")
    return [
        PreviewArray("original", original, "image", limits=shown),
        PreviewArray("prediction", drawn, "image", limits=shown),
        PreviewArray("error", error, "error", limits=(0.0, worst or 1.0)),
        PreviewArray(
            "mask",
            found.predicted[0].cpu().numpy().astype("uint8"),
            "mask",
            voxels=patch,
            classes={0: "prefix", 1: "predicted"},
        ),
        PreviewArray(
            "slab", slabs, "labels", voxels=patch, classes={k: f"slab {k}" for k in range(1, int(slabs.max()) + 1)}
        ),
    ]


def _config(run: RunConfig) -> ArConfig:
    return ArConfig.model_validate(run.method.model_dump())


def _encoder_settings(run: RunConfig) -> dict[str, Any]:
    from training_backend.errors import ConfigError

    config = _config(run)
    width, depth, heads, hidden = SIZES[config.size]
    if config.embed_dim:
        width, hidden = config.embed_dim, 4 * config.embed_dim
    heads = config.heads or heads
    if width % heads:
        raise ConfigError(f"method.heads is {heads}, which does not divide the width {width}.")
    return {
        "size": config.trained_size or run.data.size,
        "patch_size": config.patch_size,
        "in_channels": run.channels(config.in_channels),
        "width": width,
        "depth": config.depth or depth,
        "heads": heads,
        "mlp_width": config.mlp_dim or hidden,
        "positions": config.positions,
        "scaling": config.position_scaling,
        "axes": config.axes,
        "order": config.order,
        "slabs": config.slabs or run.data.sequence.slabs,
    }


def _grid(network: nn.Module, volume: Tensor) -> tuple[int, int, int]:
    from training_backend.nn.patch import patch_grid

    return patch_grid(tuple(volume.shape[2:]), network.patch_size)  # type: ignore[arg-type]


def _group_means(scored: Scored, groups: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Mean error of the patches of each group of views ([B] bool by name) that has any, and how many these are.

    Sums are made on the device, counts on the CPU, where the numbers of the patches are: nothing waits.
    """
    import torch

    device = scored.errors.device
    members = {name: chosen[scored.view] for name, chosen in groups.items()}
    counts = {name: float(rows.sum()) for name, rows in members.items() if rows.any()}
    if not counts:
        return {}, {}
    shares = torch.stack([members[name] / count for name, count in counts.items()]).to(device, non_blocking=True)
    means = shares.float() @ scored.errors.detach().float()
    return dict(zip(counts, means.unbind(), strict=True)), counts


METHOD = Method(
    name="ar",
    config=ArConfig,
    card=Card(
        title="AR-SSL4M",
        summary="Reads volumes as sequences of patches and learns by predicting the next one.",
        paper="Wang et al., AAAI 39(8):7871 (2025), arXiv 2409.08691",
        url="https://github.com/serena9525/AR-SSL4M",
        weights_licence="not stated",
    ),
    presets=PRESETS,
    build=build,
    training_step=training_step,
    preview=preview,
    encoder=lambda network: network.model,  # type: ignore[arg-type, return-value]
    build_encoder=build_encoder,
    family="ar",
    views=VIEWS,
)
