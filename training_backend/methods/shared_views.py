"""Views that do not depend on a method: scales of any hierarchical encoder, certainty of any segmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from training_backend.config import ConfigModel
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
