"""Views that do not depend on a method: scales of any pyramid, attention of any transformer, any segmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from training_backend.config import ConfigModel, ui
from training_backend.methods.base import Frame, Method, ModelView, PreviewArray

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

FITTED = 20_000
"""Places from which principal axes are computed, evenly taken where there are more."""
MM = (1.5, 1.5, 1.5)
"""Voxels that the body is looked for with; a view does not tell its own."""


class ScalesOptions(ConfigModel):
    """Which maps are shown."""

    level: int = Field(0, ge=0)
    """Map of the encoder, counted from 1, the finest; 0 shows the first four beside each other."""
    first: int = Field(1, ge=1, le=30)
    """Principal component drawn in red; the next two are green and blue."""
    body_only: bool = True
    """Leave air black, so that colours tell organs apart."""


class TokenAttentionOptions(ConfigModel):
    """Which attention is shown."""

    block: int = Field(0, ge=0)
    """Transformer block, counted from 1; the last one when 0."""
    head: int = Field(0, ge=0)
    """Attention head, counted from 1; the mean of all when 0."""
    point: tuple[int, int, int] = Field((0, 0, 0), json_schema_extra=ui(hidden=True))
    """Voxel (z, y, x) of the view whose patch looks."""


class CertaintyOptions(ConfigModel):
    """Which certainty is shown."""

    temperature: float = Field(1.0, gt=0, le=10)
    """Number that the outputs are divided by before the softmax; above 1 a network that is too sure gets less so."""


def scales(encoder: Any, volume: Tensor, options: ScalesOptions, _generator: torch.Generator) -> Iterator[Frame]:
    """Principal components of each map of an encoder's pyramid as colours, map after map."""
    from training_backend.errors import ConfigError

    pyramid = encoder.encode(volume).pyramid
    if not pyramid:
        raise ConfigError(
            f"{type(encoder).__name__} has features of one scale only.", "Use Compute features and Embedding map."
        )
    if options.level > len(pyramid):
        raise ConfigError(f"The model has {len(pyramid)} maps, so map {options.level} does not exist.")
    chosen = [options.level - 1] if options.level else list(range(min(4, len(pyramid))))
    pictures, said = [], []
    for done, index in enumerate(chosen, 1):
        features = pyramid[index][0]
        rgb, share = colours(features, _body(volume, features) if options.body_only else None, options.first - 1)
        d, h, w = (n // m for n, m in zip(volume.shape[2:], features.shape[1:], strict=True))
        pictures.append(PreviewArray(f"map {index + 1}", rgb, "rgb", voxels=(d, h, w)))
        said.append(f"map {index + 1}, {len(features)} channels every {w} voxels: {share:.0%}")
        text = f"Colours explain of the variance: {'; '.join(said)}. Of {len(pyramid)} maps."
        complete = done == len(chosen)  # shown together, so that they lie beside each other
        yield Frame(pictures if complete else [], text, done / len(chosen))


def colours(features: Tensor, body: Tensor | None, first: int = 0) -> tuple[npt.NDArray[np.uint8], float]:
    """Three principal components of `features` [C, d, h, w] as colours [d, h, w, 3], and their share of the variance.

    Each is stretched over its 2-98 % range. The largest coefficient of each is positive, so colours are stable.

    Args:
        features: at least one channel.
        body: [d, h, w] bool, the places that are fitted and coloured; None, or none at all, takes every place.
        first: index of the component drawn in red; the first three where there are not enough.
    """
    import torch

    grid = features.shape[1:]
    chosen = torch.ones(grid, dtype=torch.bool) if body is None or not body.any() else body.cpu()
    rows = features.float().cpu().flatten(1)[:, chosen.flatten()].T
    rows = rows - rows.mean(dim=0)
    fitted = rows[:: max(1, len(rows) // FITTED)].double()
    values, vectors = torch.linalg.eigh(fitted.T @ fitted)
    order = values.argsort(descending=True)
    wanted = order[first : first + 3] if len(order) >= first + 3 else order[:3]
    basis = vectors[:, wanted]
    basis = basis * basis.gather(0, basis.abs().argmax(dim=0, keepdim=True)).sign()
    projected = rows @ basis.float()
    low, high = (_percentile(projected, share) for share in (0.02, 0.98))
    scaled = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    result = torch.zeros((*grid, 3), dtype=torch.uint8)
    painted = torch.zeros((len(scaled), 3), dtype=torch.uint8)
    painted[:, : scaled.shape[1]] = (scaled * 255).round().to(torch.uint8)
    result[chosen] = painted
    total = values.clamp(min=0).sum().clamp(min=1e-12)
    return result.numpy(), float(values[wanted].clamp(min=0).sum() / total)


def token_attention(
    encoder: Any, volume: Tensor, options: TokenAttentionOptions, _generator: torch.Generator
) -> Iterator[Frame]:
    """What the patch that holds a voxel looks at, as a multiple of looking at all alike."""
    yield attention_frame(encoder, volume, options, encoder.token_attention)


def attention_frame(
    encoder: Any,
    volume: Tensor,
    options: TokenAttentionOptions,
    look: Callable[[Tensor, int, int], Tensor],
    first: str = "class",
) -> Frame:
    """The attention of a patch over a view, with the sentence on it.

    Args:
        encoder: a transformer.
        volume: the view [1, C, D, H, W].
        options: block, head and voxel.
        look: attention [heads, d, h, w] in a block (index) of a patch, by its number in raster order of the view; what
            is missing from a sum of 1 goes to the first token.
        first: what that token is called.
    """
    import numpy as np

    from training_backend.errors import ConfigError

    if options.block > encoder.depth:
        raise ConfigError(f"The model has {encoder.depth} blocks, so block {options.block} does not exist.")
    block = (options.block or encoder.depth) - 1
    grid = [n // p for n, p in zip(volume.shape[2:], encoder.patch_size, strict=True)]
    cell = [v // p for v, p in zip(options.point, encoder.patch_size, strict=True)]
    weights = look(volume, block, int(np.ravel_multi_index(cell, grid))).float()
    if options.head > len(weights):
        raise ConfigError(f"The model has {len(weights)} heads, so head {options.head} does not exist.")
    chosen = weights.mean(dim=0) if options.head == 0 else weights[options.head - 1]
    shown = chosen.detach().cpu().numpy() * math.prod(grid)
    head = f"head {options.head}" if options.head else f"mean of {len(weights)} heads"
    text = (
        f"Block {block + 1}, {head}: the patch at z, y, x = {', '.join(str(k + 1) for k in cell)} looks at most "
        f"{shown.max():.1f} and at least {shown.min():.2f} times as much at a place as if it looked at all alike; "
        f"{100 * max(0.0, 1 - float(chosen.sum())):.0f} % goes to the {first} token."
    )
    low, high = (float(value) for value in np.percentile(shown, [0.5, 99.5]))
    limits = (low, max(high, low + 1e-3))
    return Frame([PreviewArray("attention", shown, "heatmap", voxels=encoder.patch_size, limits=limits)], text)


def certainty(network: Any, volume: Tensor, options: CertaintyOptions, _generator: torch.Generator) -> Iterator[Frame]:
    """The most probable class of every voxel, and how spread its probabilities are."""
    yield certainty_frame(network(volume)[0][0], options.temperature)


def certainty_frame(logits: Tensor, temperature: float = 1.0, names: tuple[str, ...] = ()) -> Frame:
    """Labels and entropy of `logits` [K, D, H, W]; an entropy of 1 is that of all classes being equally probable."""
    probability = (logits.float() / temperature).softmax(dim=0)
    entropy = -(probability * probability.clamp(min=1e-12).log()).sum(dim=0) / math.log(len(probability))
    labels = probability.argmax(dim=0)
    found = sorted({int(value) for value in labels.unique()})
    classes = {value: names[value] if value < len(names) else f"class {value}" for value in found}
    seen = len([value for value in found if value])
    text = (
        f"Mean entropy {float(entropy.mean()):.3f} of at most 1; {float((entropy > 0.5).float().mean()):.1%} of the "
        f"voxels lie above one half. {seen} of {len(probability) - 1} classes are seen here."
    )
    return Frame(
        [
            PreviewArray("labels", labels.cpu().numpy().astype("uint8"), "labels", classes=classes),
            PreviewArray("entropy", entropy.cpu().numpy(), "heatmap", limits=(0.0, 1.0)),
        ],
        text,
    )


def _body(volume: Tensor, features: Tensor) -> Tensor:
    """Places [d, h, w] of a map of which at least half lies inside the body."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from training_backend.data.body import find_body

    array = volume[0, 0].float().cpu().numpy()
    found = find_body(array, MM)
    near = [np.arange(n) // step for n, step in zip(array.shape, found.stride, strict=True)]
    inside = torch.from_numpy(found.mask[np.ix_(*near)]).float()
    d, h, w = features.shape[1:]
    return F.adaptive_avg_pool3d(inside[None, None], (d, h, w))[0, 0] >= 0.5


def _percentile(values: Tensor, share: float) -> Tensor:
    """Per column of `values` [N, K]; without interpolation, for any N."""
    return values.sort(dim=0).values[round(share * (len(values) - 1))]


SCALES = ModelView(
    "scales",
    "Features per scale",
    "Places with the same colour look alike to the model at this scale (principal components of the map).",
    ScalesOptions,
    scales,
    needs="encoder",
)
"""For methods whose encoders have a pyramid."""
TOKEN_ATTENTION = ModelView(
    "token-attention",
    "Attention from a voxel",
    "Click a place; the map shows where its patch looks, by block and head.",
    TokenAttentionOptions,
    token_attention,
    needs="encoder",
    point=True,
)
"""For methods whose encoders have `token_attention`."""
CERTAINTY = ModelView(
    "certainty",
    "Segmentation with certainty",
    "The class of every voxel, and where the model hesitates between classes.",
    CertaintyOptions,
    certainty,
    needs="finetune",
    task="segmentation",
)
SHARED = (CERTAINTY,)
"""Of all methods."""


def all_views(method: Method, task: str | None = None) -> tuple[ModelView, ...]:
    """What can be shown of networks of a method, whatever their kind, and of those of a task."""
    from training_backend.config.registry import task as find_task

    return (*method.views, *SHARED, *(find_task(task).views if task else ()))
