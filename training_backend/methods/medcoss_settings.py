"""Settings of MedCoSS's networks, and the networks that follow from them; a stage's own settings extend these."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import MethodConfig, RunConfig, ui
from training_backend.errors import ConfigError

if TYPE_CHECKING:
    from training_backend.nn.medcoss import MedcossEncoder, MedcossNetwork, MedcossSettings

Kind = Literal["text", "2d", "3d"]
Triple = tuple[int, int, int]

SIZES = {"tiny": (96, 4, 4, 384), "small": (384, 6, 6, 1536), "base": (768, 12, 12, 3072)}
"""Width, layers, attention heads and hidden channels of the MLPs."""
PUBLISHED_SIZES: dict[Kind, Triple] = {"2d": (1, 224, 224), "3d": (16, 192, 192)}
"""Voxels (z, y, x) of the authors' views."""


class MedcossNetworkConfig(MethodConfig):
    """Settings of the encoder and its decoders."""

    name: str = Field("medcoss", json_schema_extra=ui(hidden=True))
    kind: Kind = "3d"
    """What is learnt: text (reports), 2d (images of one slice: X-ray, pathology) or 3d (volumes: CT, MR)."""
    size: Literal["tiny", "small", "base"] = "base"
    """Encoder: tiny 96 x 4 layers, small 384 x 6, base 768 x 12 (published)."""
    mask_ratio: float = Field(0.75, ge=0, lt=1)
    """Share of patches of an image hidden from the encoder."""
    drop_path: float = Field(0.1, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Probability of skipping a branch of a layer while training, the same in every layer."""
    patch_2d: Triple = Field((1, 16, 16), json_schema_extra=ui(advanced=True))
    """Pixels of a patch of a 2-D image along (1, y, x)."""
    patch_3d: Triple = Field((16, 16, 16), json_schema_extra=ui(advanced=True))
    """Voxels of a patch of a volume along (z, y, x)."""
    size_2d: Triple | None = Field(None, json_schema_extra=ui(advanced=True))
    """Pixels (1, y, x) that the positions of 2-D images are made for; empty takes those of the views."""
    size_3d: Triple | None = Field(None, json_schema_extra=ui(advanced=True))
    """Voxels (z, y, x) that the positions of volumes are made for; empty takes those of the views."""
    positions: Literal["interpolate", "flat"] = Field("interpolate", json_schema_extra=ui(advanced=True))
    """On views of another size, interpolate the positions that were trained; flat: take the first rows of the table
    one after the other, most of which were never trained, as published."""
    axes: Literal["zyx", "zxy"] = Field("zyx", json_schema_extra=ui(advanced=True))
    """Frame of the network for volumes. zxy: slices are transposed, as in the authors' pre-training. zyx: as stored."""
    text_mask: Literal["fixed", "compatible"] = Field("fixed", json_schema_extra=ui(advanced=True))
    """Padding of texts. fixed: each report has its own; compatible: mixed up between the reports of a batch, as
    published."""
    random_row: bool = Field(True, json_schema_extra=ui(advanced=True))
    """While training, add a random row of the table of moments to every image, as published."""
    in_channels: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Channels of an image; empty takes as many as `data.contrasts` names, at least one."""
    embed_dim: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Encoder width; empty takes that of `size`."""
    depth: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Encoder layers; empty takes those of `size`."""
    heads: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Attention heads of the encoder; empty takes those of `size`."""
    mlp_dim: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Hidden channels of the encoder's MLPs; empty takes those of `size`."""
    decoder_embed_dim: int = Field(512, ge=1, json_schema_extra=ui(advanced=True))
    """Width of the image decoder."""
    decoder_depth: int = Field(8, ge=1, json_schema_extra=ui(advanced=True))
    """Blocks of the image decoder."""
    decoder_heads: int = Field(16, ge=1, json_schema_extra=ui(advanced=True))
    """Attention heads of the image decoder."""
    vocabulary: int = Field(49411, ge=1, json_schema_extra=ui(advanced=True))
    """Rows of the table of words; at least as many as the tokenizer knows."""
    text_rows: int = Field(512, ge=1, json_schema_extra=ui(advanced=True))
    """Tokens of the longest text."""
    rows_2d: int = Field(1024, ge=1, json_schema_extra=ui(advanced=True))
    """Rows of the table of positions of 2-D images."""
    rows_3d: int = Field(4096, ge=1, json_schema_extra=ui(advanced=True))
    """Rows of the table of positions of volumes."""
    unused_rows: int = Field(0, ge=0, json_schema_extra=ui(hidden=True))
    """Rows of a table that the authors' files hold and nothing uses; 0 leaves it out."""
    encodes: tuple[Kind, ...] = Field((), json_schema_extra=ui(hidden=True))
    """Kinds that the encoder reads besides its own: those of earlier stages."""
    decodes: tuple[Kind, ...] = Field((), json_schema_extra=ui(hidden=True))
    """Kinds whose decoders are held besides the stage's own."""


def network_settings(run: RunConfig) -> MedcossSettings:
    """Sizes of the networks of a run, or a `ConfigError` if they do not fit each other."""
    from training_backend.nn.axes import sizes_turned
    from training_backend.nn.medcoss import MedcossSettings

    config = method_config(run)
    width, depth, heads, mlp_dim = SIZES[config.size]
    width, depth, heads = config.embed_dim or width, config.depth or depth, config.heads or heads
    for name, total, parts in (
        ("heads", width, heads),
        ("decoder_heads", config.decoder_embed_dim, config.decoder_heads),
    ):
        if total % parts:
            raise ConfigError(f"method.{name} is {parts}, which does not divide the width {total}.")
    channels, kind = run.channels(config.in_channels), reads(run)
    if kind == "2d" and channels not in (1, 3):
        raise ConfigError(
            f"2-D images of {channels} channels cannot be read; they are grey or have three colours.",
            "Set method.in_channels to 1 or 3, or name fewer contrasts.",
        )
    return MedcossSettings(
        width=width,
        depth=depth,
        heads=heads,
        mlp_dim=config.mlp_dim or mlp_dim,
        size_2d=trained_size(run, "2d"),
        size_3d=sizes_turned(trained_size(run, "3d"), config.axes),
        patch_3d=sizes_turned(config.patch_3d, config.axes),
        channels_3d=channels if kind == "3d" else 1,
        decoder_width=config.decoder_embed_dim,
        **{name: getattr(config, name) for name in _SAME},
    )


def build(run: RunConfig) -> MedcossNetwork:
    """Network of a stage with fresh weights: what its own kind needs, and the tokenizers of the earlier ones."""
    from training_backend.nn.medcoss import MedcossNetwork

    config = method_config(run)
    grey = run.channels(config.in_channels) == 1
    network = MedcossNetwork(network_settings(run), config.kind, config.encodes, config.decodes, grey=grey)
    network.shown = shown_channels(run)  # type: ignore[assignment]
    return network


def build_encoder(run: RunConfig) -> MedcossEncoder:
    """The encoder alone; that of a task reads the run's own kind only, for segmentation without class token."""
    from training_backend.nn.medcoss import MedcossEncoder

    config = method_config(run)
    kinds = {reads(run), *(() if run.task is not None else config.encodes)}
    class_token = run.task is None or run.task.name != "segmentation"
    grey = run.channels(config.in_channels) == 1
    encoder = MedcossEncoder(network_settings(run), kinds, class_token=class_token, grey=grey)
    encoder.shown = shown_channels(run)  # type: ignore[assignment]
    return encoder


def shown_channels(run: RunConfig) -> Triple | None:
    """Channels of a view that are red, green and blue; None for views that are no colour images."""
    config, contrasts = method_config(run), run.data.contrasts
    if reads(run) != "2d" or run.channels(config.in_channels) != 3:
        return None
    if set(contrasts) != {"red", "green", "blue"}:
        return (0, 1, 2)
    return (contrasts.index("red"), contrasts.index("green"), contrasts.index("blue"))


def reads(run: RunConfig) -> Kind:
    """Kind that a run learns from; that of a task follows from its views, whatever the encoder learnt last."""
    if run.task is None:
        return method_config(run).kind
    if run.data.view == "text":
        return "text"
    return "2d" if run.data.size[0] == 1 else "3d"


def trained_size(run: RunConfig, kind: Kind) -> Triple:
    """Voxels (z, y, x) that the positions of a kind are made for: as set, else of the run's views, else published.

    A task has positions for its own views, as far as the table has rows for them, so that these can learn.
    """
    config, size = method_config(run), run.data.size
    given, patch = (config.size_2d, config.patch_2d) if kind == "2d" else (config.size_3d, config.patch_3d)
    if run.task is not None and reads(run) == kind:
        patches = prod(n // p for n, p in zip(size, patch, strict=True))
        if patches <= (config.rows_2d if kind == "2d" else config.rows_3d):
            return size
    if given is not None:
        return given
    return size if reads(run) == kind else PUBLISHED_SIZES.get(kind, size)


def method_config(run: RunConfig) -> MedcossNetworkConfig:
    """Settings of the networks of a run."""
    known: dict[str, Any] = run.method.model_dump(include=set(MedcossNetworkConfig.model_fields))
    return MedcossNetworkConfig.model_validate(known)


_SAME = (
    "mask_ratio",
    "drop_path",
    "patch_2d",
    "axes",
    "positions",
    "text_mask",
    "random_row",
    "decoder_depth",
    "decoder_heads",
    "vocabulary",
    "text_rows",
    "rows_2d",
    "rows_3d",
    "unused_rows",
)
"""Fields of the same name."""
