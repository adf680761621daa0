"""3D-MAE / TANGERINE: reconstruct hidden patches of a whole volume from the visible ones (Commun Med 6:83, 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import MethodConfig, RunConfig, ui
from training_backend.methods.base import Batch, Card, Encoder, Method, PreviewArray, StepOutput
from training_backend.methods.shared_views import TOKEN_ATTENTION

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.nn.mae import MaskedAutoencoder

SIZES = {
    "tiny": (192, 4, 6),
    "small": (384, 6, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""Width, blocks and attention heads of the encoder."""


class Mae3dConfig(MethodConfig):
    """Settings of the masked autoencoder."""

    name: str = Field("mae3d", json_schema_extra=ui(hidden=True))
    size: Literal["tiny", "small", "base", "large", "huge"] = "base"
    """Encoder: tiny 192 x 4 blocks, small 384 x 6, base 768 x 12, large 1024 x 24 (TANGERINE), huge 1280 x 32."""
    patch_size: tuple[int, int, int] = (16, 16, 16)
    """Voxels of a patch along (z, y, x); the views must be multiples of it."""
    mask_ratio: float = Field(0.75, ge=0, lt=1)
    """Share of patches hidden from the encoder."""
    norm_pix_loss: bool = False
    """Predict patches normalised to zero mean and unit variance: more texture, less absolute intensity."""
    output: Literal["auto", "sigmoid", "linear"] = Field("auto", json_schema_extra=ui(advanced=True))
    """End of the decoder. sigmoid: as published, fits only intensities within [0, 1]. linear: fits everything.
    auto: sigmoid where targets lie within [0, 1] (windowed or percentile intensities, patches not normalised)."""
    in_channels: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Channels of a volume; empty takes as many as `data.contrasts` names, at least one."""
    embed_dim: int | None = Field(None, ge=6, json_schema_extra=ui(advanced=True))
    """Encoder width; empty takes that of `size`."""
    depth: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Encoder blocks; empty takes those of `size`."""
    heads: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Attention heads of the encoder; empty takes those of `size`."""
    decoder_embed_dim: int = Field(512, ge=6, json_schema_extra=ui(advanced=True))
    """Decoder width."""
    decoder_depth: int = Field(8, ge=1, json_schema_extra=ui(advanced=True))
    """Decoder blocks."""
    decoder_heads: int = Field(16, ge=1, json_schema_extra=ui(advanced=True))
    """Attention heads of the decoder."""
    mlp_ratio: float = Field(4.0, gt=0, json_schema_extra=ui(advanced=True))
    """Hidden channels of the MLPs per channel of a token."""
    drop_path: float = Field(0.0, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Stochastic depth of the encoder, growing linearly to this in the last block; useful when fine-tuning."""
    reference_positions: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Number the patches of non-cubic volumes as the authors' code does, which mixes up their positions."""


_SMALL_DECODER = {"decoder_embed_dim": 256, "decoder_depth": 4, "decoder_heads": 8}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "method": {
            "size": "tiny",
            "patch_size": (8, 8, 8),
            "decoder_embed_dim": 96,
            "decoder_depth": 2,
            "decoder_heads": 4,
        },
        "data": {"size": (48, 48, 48), "crops_per_volume": 4},
        "optim": {"epochs": 1000, "max_steps": 400, "batch_size": 8, "lr": 1e-3, "warmup": 0.1},
        "engine": {"device": "auto", "val_steps": 50, "preview_minutes": 0.25},
    },
    "small": {
        "method": {"size": "small", **_SMALL_DECODER},
        "data": {"size": (96, 96, 96), "crops_per_volume": 2},
        "optim": {"epochs": 400, "batch_size": 32, "lr": 3e-4},
        "engine": {"micro_batch": 16},
    },
    "base": {
        "method": {"size": "base"},
        "data": {"size": (128, 128, 128), "crops_per_volume": 2},
        "optim": {"epochs": 400, "batch_size": 64, "lr": 2e-4},
        "engine": {"micro_batch": 16},
    },
    "published": {
        "method": {"size": "large", "output": "sigmoid"},
        "data": {
            "view": "volume",
            "size": (256, 256, 256),
            "keep_aspect": False,
            "crops_per_volume": 1,
            "intensity": {"profile": "window", "low": -1200.0, "high": 800.0},
            "augment": {"flip": (0.0, 0.2, 0.2)},
        },
        "optim": {
            "epochs": 400,
            "batch_size": 224,
            "lr": 1e-4,
            "min_lr": 0.0,
            "warmup": 0.05,
            "weight_decay": 0.05,
            "betas": (0.9, 0.95),
        },
        "engine": {"micro_batch": 14},
    },
}
"""Warm-up of "published" is 20 of 400 epochs."""


def build(run: RunConfig) -> MaskedAutoencoder:
    """Autoencoder with fresh weights for views of `run.data.size`."""
    from training_backend.nn.mae import MaskedAutoencoder

    config = _config(run)
    return MaskedAutoencoder(
        **_encoder_settings(run),
        decoder_width=config.decoder_embed_dim,
        decoder_depth=config.decoder_depth,
        decoder_heads=config.decoder_heads,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
        sigmoid=ends_in_sigmoid(run),
    )


def build_encoder(run: RunConfig) -> Encoder:
    """The encoder alone."""
    from training_backend.nn.vit import VitEncoder

    return VitEncoder(**_encoder_settings(run))


def ends_in_sigmoid(run: RunConfig) -> bool:
    """Whether the decoder of a run ends in a sigmoid."""
    config = _config(run)
    if config.output == "auto":
        return not config.norm_pix_loss and run.data.intensity.profile not in ("zscore", "zscore_nonzero", "identity")
    return config.output == "sigmoid"


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Mean squared error over hidden voxels inside the scan; the masking is drawn from `generator`."""
    noise = _noise(network, batch.volume, generator)
    return StepOutput(loss=network(batch.volume, noise, padding=batch.padding))


def preview(
    network: nn.Module, volume: Tensor, options: Mapping[str, Any], generator: torch.Generator
) -> list[PreviewArray]:
    """Original, masked view, reconstruction and errors of the first channel of one view [1, C, D, H, W].

    Args:
        network: made by `build`.
        volume: one view, normalised.
        options: `mask_ratio` (default: that of training), `seed` (default: from `generator`), `full` (show the
            prediction of visible patches too, instead of the input).
        generator: on the CPU; not used when `seed` is given.
    """
    import torch

    from training_backend.nn.patch import patchify, unpatchify

    ratio = options.get("mask_ratio")
    if options.get("seed") is not None:
        generator = torch.Generator().manual_seed(int(options["seed"]))
    noise = _noise(network, volume, generator)
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        result = network.reconstruct(volume, noise, ratio)  # type: ignore[operator]
        predicted = network.denormalise(result.prediction.float(), volume)  # type: ignore[operator]
        pixels = patchify(volume.float(), network.patch_size)  # type: ignore[arg-type]
        hidden = result.mask[..., None]
        drawn = predicted if options.get("full") else torch.where(hidden > 0, predicted, pixels)
        error = (predicted - pixels).abs() * hidden
        pictures = [pixels, pixels * (1 - hidden), drawn, error]
        channels = volume.shape[1]
        arrays = [unpatchify(p, network.patch_size, result.grid, channels)[0, 0].cpu().numpy() for p in pictures]  # type: ignore[arg-type]
    network.train(was_training)
    mask = result.mask[0].reshape(result.grid).cpu().numpy().astype("uint8")
    low, high = float(arrays[0].min()), float(arrays[0].max())
    shown = (low, high if high > low else low + 1.0)
    worst = float(torch.quantile(_sample(error), 0.99)) or 1.0
    patch: tuple[int, int, int] = network.patch_size  # type: ignore[assignment]
    return [
        PreviewArray("original", arrays[0], "image", limits=shown),
        PreviewArray("masked", arrays[1], "image", limits=shown),
        PreviewArray("reconstruction", arrays[2], "image", limits=shown),
        PreviewArray("error", arrays[3], "error", limits=(0.0, worst)),
        PreviewArray("mask", mask, "mask", voxels=patch, classes={0: "visible", 1: "hidden"}),
    ]


def _config(run: RunConfig) -> Mae3dConfig:
    return Mae3dConfig.model_validate(run.method.model_dump())


def _encoder_settings(run: RunConfig) -> dict[str, Any]:
    from training_backend.errors import ConfigError

    config = _config(run)
    width, depth, heads = SIZES[config.size]
    width, depth, heads = config.embed_dim or width, config.depth or depth, config.heads or heads
    for name, total, parts in (
        ("heads", width, heads),
        ("decoder_heads", config.decoder_embed_dim, config.decoder_heads),
    ):
        if total % parts:
            raise ConfigError(f"method.{name} is {parts}, which does not divide the width {total}.")
    return {
        "size": run.data.size,
        "patch_size": config.patch_size,
        "in_channels": run.channels(config.in_channels),
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": config.mlp_ratio,
        "drop_path": config.drop_path,
        "reference_positions": config.reference_positions,
    }


def _noise(network: nn.Module, volume: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers [B, L], one per patch; drawn on the CPU, so that every device hides the same patches."""
    import torch

    from training_backend.nn.patch import patch_grid

    d, h, w = patch_grid(tuple(volume.shape[2:]), network.patch_size)  # type: ignore[arg-type]
    return torch.rand(len(volume), d * h * w, generator=generator).to(volume.device, non_blocking=True)


def _sample(values: Tensor) -> Tensor:
    """At most a million of `values`, evenly taken, which is all that a quantile can be computed of."""
    flat = values.flatten()
    return flat[:: max(1, -(-len(flat) // 1_000_000))]


METHOD = Method(
    name="mae3d",
    config=Mae3dConfig,
    card=Card(
        title="3D-MAE / TANGERINE",
        summary="Hides most patches of a volume and learns by reconstructing them.",
        paper="McConnell et al., Communications Medicine 6:83 (2026), doi 10.1038/s43856-025-01328-1",
        url="https://github.com/niccolo246/3D-MAE-MedImaging",
        weights_licence="CC-BY-NC-4.0",
    ),
    presets=PRESETS,
    build=build,
    training_step=training_step,
    preview=preview,
    encoder=lambda network: network,  # type: ignore[arg-type, return-value]
    build_encoder=build_encoder,
    family="mae3d",
    views=(TOKEN_ATTENTION,),
)
