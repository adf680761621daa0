"""What MedCoSS's networks show of a scan: mixtures for rehearsal, how far a stage moved features, learnt positions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import ConfigModel, ui
from training_backend.methods.base import Frame, ModelView, PreviewArray
from training_backend.methods.shared_views import TOKEN_ATTENTION

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training_backend.nn.medcoss import MedcossEncoder
    from training_backend.nn.medcoss_tokens import Kind

_SLIDER = ui(widget="slider")
_TOKENS = 4096
"""Places that the likeness of a table's neighbours is averaged over, at most."""


class MixtureOptions(ConfigModel):
    """How two scans are mixed, and what is hidden of the mixture."""

    share: float = Field(0.5, ge=0, le=1, json_schema_extra=_SLIDER)
    """Share of this scan; the rest is the other one. In training it is drawn anew for every sample."""
    mask_ratio: float = Field(0.75, ge=0, le=0.95, json_schema_extra=_SLIDER)
    """Share of patches hidden from student and teacher alike."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Number that decides which patches are hidden."""


class DriftOptions(ConfigModel):
    """How the distance of features is measured."""

    measure: Literal["squared", "cosine"] = "squared"
    """squared: mean squared difference, of which the distillation loss is the mean. cosine: 1 less the cosine."""
    highest: float = Field(0.0, ge=0)
    """Distance of the brightest colour, to compare scans and stages; 0 takes the 99th percentile of this scan."""


class PositionRowsOptions(ConfigModel):
    """Which place is compared with all others."""

    point: tuple[int, int, int] = Field((0, 0, 0), json_schema_extra=ui(hidden=True))
    """Voxel (z, y, x) of the view whose patch is meant."""


def mixture(
    network: Any, volume: Tensor, options: MixtureOptions, generator: torch.Generator, *, other: Tensor
) -> Iterator[Frame]:
    """Two scans mixed as in a step on a buffer, and what student and teacher see of the mixture (section 3.3)."""
    import torch
    import torch.nn.functional as F

    from training_backend.errors import DataError
    from training_backend.methods.medcoss_pictures import shown
    from training_backend.nn.mae import Masking
    from training_backend.nn.medcoss_distil import mix_images

    if volume.shape != other.shape:
        told = " and ".join(" × ".join(map(str, one.shape[2:])) for one in (volume, other))
        raise DataError(f"Only views of one size are mixed; these have {told} voxels.", "Choose scans of one size.")
    pair = torch.cat([volume, other])
    share = torch.full((2, 1, 1, 1, 1), options.share, device=volume.device)
    mixed = mix_images(pair, torch.tensor([1, 0], device=volume.device), share)[:1]
    masking = Masking.draw(network.draw_noise(mixed, generator), options.mask_ratio)
    kind: Kind = network.kind_of(volume)
    mask = _on_our_grid(network, masking.mask[..., None], volume, kind)[..., 0]
    patch = network.settings.our_patch(kind)
    seen = mixed * F.interpolate(1 - mask[None, None], size=mixed.shape[2:])
    limits = (float(pair[:, 0].min()), float(pair[:, 0].max()))
    pictures = [
        shown(name, one[0].float().cpu().numpy(), network.shown, limits)
        for name, one in (("this scan", volume), ("other scan", other), ("mixture", mixed), ("seen", seen))
    ]
    drawn = mask.cpu().numpy().astype("uint8")
    pictures.append(PreviewArray("mask", drawn, "mask", voxels=patch, classes={0: "visible", 1: "hidden"}))
    text = (
        f"{options.share:.0%} of this scan and {1 - options.share:.0%} of the other one. Student and teacher see "
        f"{int((drawn == 0).sum())} of {drawn.size} patches of the mixture, the same ones, and shall find the same "
        "features in them."
    )
    yield Frame(pictures, text)


def drift(
    network: MedcossEncoder, volume: Tensor, options: DriftOptions, _generator: torch.Generator, *, against: Any
) -> Iterator[Frame]:
    """Distance of the features of each token under two encoders, nothing hidden; its mean is the distillation loss."""
    import torch
    import torch.nn.functional as F

    from training_backend.errors import ConfigError

    mine = network.encode(volume)
    yield Frame((), share=0.5)
    theirs = against.encode(volume)
    if mine.grid != theirs.grid or mine.tokens.shape != theirs.tokens.shape:
        raise ConfigError(
            f"This model has {_described(mine)} of the scan, the other one {_described(theirs)}.",
            "Compare stages of one plan, or models of the same size and patches.",
        )
    now, then = (torch.cat([x.tokens[0], *([] if x.summary is None else [x.summary])]).float() for x in (mine, theirs))
    squared, cosine = (now - then).square().mean(dim=1), F.cosine_similarity(now, then, dim=1)
    patches = len(mine.tokens[0])
    values = (squared if options.measure == "squared" else 1 - cosine)[:patches].cpu()
    drawn = values.reshape(mine.grid).numpy()
    top = options.highest or max(float(values.quantile(0.99)), 1e-6)
    place = [int(n) for n in torch.unravel_index(values.argmax(), mine.grid)]
    d, h, w = (n // m for n, m in zip(volume.shape[2:], mine.grid, strict=True))
    patch = (d, h, w)
    middle = ", ".join(str(int((k + 0.5) * step)) for k, step in zip(place, patch, strict=True))
    text = (
        f"Mean squared distance {float(squared.mean()):.3g}, the loss of distillation with nothing hidden; mean square "
        f"of the features {float(then.square().mean()):.3g}. Cosine {float(cosine.mean()):.3f} on average, "
        f"{float(cosine.min()):.3f} at worst. Farthest around z, y, x = {middle} of the view."
    )
    yield Frame([PreviewArray("drift", drawn, "heatmap", voxels=patch, limits=(0.0, top))], text)


def position_rows(
    network: Any, volume: Tensor, options: PositionRowsOptions, _generator: torch.Generator
) -> Iterator[Frame]:
    """Cosine of the position of one patch with those of all others; rows that were never trained resemble none."""
    import torch
    import torch.nn.functional as F

    kind: Kind = network.kind_of(volume)
    patch = network.settings.our_patch(kind)
    grid = _network_grid(network, volume, kind)
    rows = _on_our_grid(network, network.video_embed.positions(kind, grid)[None], volume, kind).float()
    place = tuple(voxel // step for voxel, step in zip(options.point, patch, strict=True))
    cosine = F.cosine_similarity(rows, rows[place], dim=-1)
    far = torch.ones(cosine.shape, dtype=torch.bool)
    far[place] = False
    nearest = float(cosine[far.to(cosine.device)].max()) if far.any() else math.nan
    picture = PreviewArray("likeness", cosine.cpu().numpy(), "heatmap", voxels=patch, limits=(-1.0, 1.0))
    text = f"The most alike position of another patch has a cosine of {nearest:.2f}. {_told_of_table(network, kind)}"
    yield Frame([picture], text)


def _told_of_table(network: Any, kind: Kind) -> str:
    """Which rows of the table a stage trains, and how alike neighbours are among these and among the others."""
    import torch.nn.functional as F

    tables = network.video_embed.embeddings_st_pos_2D if kind == "2d" else network.video_embed.embeddings_st_pos_3D
    table = tables.spatial_pos_embed.weight[:_TOKENS].float()
    used = math.prod(network.settings.grid(kind))
    cosine = F.cosine_similarity(table[:-1], table[1:], dim=1)
    text = f"Pre-training fills the first {used} of {len(tables.spatial_pos_embed.weight)} rows of the table"
    if used < 2:
        return f"{text}."
    text += f"; a row resembles the next one by {float(cosine[: used - 1].mean()):.2f}"
    return f"{text}, one of the others by {float(cosine[used:].mean()):.2f}." if len(cosine) > used else f"{text}."


def _network_grid(network: Any, volume: Tensor, kind: Kind) -> tuple[int, int, int]:
    from training_backend.nn.patch import patch_grid

    turned = network.settings.turned(volume, kind)
    return patch_grid(tuple(turned.shape[2:]), network.settings.patch(kind))


def _on_our_grid(network: Any, values: Tensor, volume: Tensor, kind: Kind) -> Tensor:
    """`values` [1, L, E] of patches in the network's order as [d, h, w, E] along our axes."""
    grid = _network_grid(network, volume, kind)
    ours: Tensor = network.settings.turned_back(values.unflatten(1, grid), kind, first=1)[0]
    return ours


def _described(features: Any) -> str:
    return f"{' × '.join(map(str, features.grid))} tokens of {features.tokens.shape[-1]} numbers"


VIEWS = (
    ModelView(
        "mixture",
        "Mixture for rehearsal",
        "Two scans mixed as the samples of a rehearsal buffer are, and the patches of the mixture that are seen.",
        MixtureOptions,
        mixture,
        needs="encoder",
        other=True,
    ),
    ModelView(
        "drift",
        "Drift between two stages",
        "Where two encoders see the same scan differently: what a stage changed of what was known before.",
        DriftOptions,
        drift,
        needs="encoder",
        against=True,
    ),
    ModelView(
        "positions",
        "Position table",
        "Click a place: how alike its learnt position is to those of all others. Rows that were never trained "
        "resemble none.",
        PositionRowsOptions,
        position_rows,
        needs="encoder",
        point=True,
    ),
    TOKEN_ATTENTION,
)
