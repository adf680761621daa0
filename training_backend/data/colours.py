"""Random changes of the colours of pictures: brightness, contrast, saturation, hue, and grey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training_backend.config.data import AugmentConfig

if TYPE_CHECKING:
    from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in grey."""


@dataclass(frozen=True)
class ColourChange:
    """What happens to the colours of one view.

    Attributes:
        brightness: factor of all values, or 1.
        contrast: factor of distances from the mean of the grey view, or 1.
        saturation: factor of distances from the grey view, or 1.
        hue: turn of the hue, in circles.
        order: in which these four happen, by their place here.
        grey: take the colours out at the end.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = (0, 1, 2, 3)
    grey: bool = False


def draw_colours(config: AugmentConfig, rng: np.random.Generator) -> ColourChange | None:
    """The change of a view, or None; every number is drawn whether used or not."""
    chance, wide = rng.random(2), rng.uniform(-1, 1, 4) * np.asarray(config.jitter)
    order = tuple(int(place) for place in rng.permutation(4))
    grey = bool(chance[1] < config.grey)
    if chance[0] < config.colours:
        brightness, contrast, saturation = (max(0.0, 1 + float(part)) for part in wide[:3])
        return ColourChange(brightness, contrast, saturation, float(wide[3]), order, grey)
    return ColourChange(grey=True) if grey else None


def recoloured(view: Tensor, change: ColourChange) -> Tensor:
    """`view` [C, ...] of values in [0, 1] with other colours; of views without three channels brightness and contrast.

    The three channels are taken for red, green and blue whatever they are, as in the published pipelines.
    """
    coloured = view.shape[0] == len(LUMA)
    steps: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: _mixed(x, 0.0, change.brightness),
        lambda x: _mixed(x, _grey(x).mean(), change.contrast),
        lambda x: _mixed(x, _grey(x), change.saturation) if coloured else x,
        lambda x: _turned(x, change.hue) if coloured and change.hue else x,
    )
    for place in change.order:
        view = steps[place](view)
    return _grey(view).expand_as(view) if change.grey and coloured else view


def _mixed(view: Tensor, other: Tensor | float, share: float) -> Tensor:
    return view if share == 1 else (view * share + other * (1 - share)).clamp(0, 1)


def _grey(view: Tensor) -> Tensor:
    if view.shape[0] != len(LUMA):
        return view
    return (view * view.new_tensor(LUMA).view(-1, *[1] * (view.ndim - 1))).sum(0, keepdim=True)


def _turned(view: Tensor, turn: float) -> Tensor:
    """`view` [3, ...] with its hue turned by a share of the circle; value and saturation stay."""
    import torch

    value, lowest = view.amax(0), view.amin(0)
    chroma = value - lowest
    safe = chroma.clamp_min(1e-8)
    red, green, blue = view
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = (hue / 6 + turn) * 6
    corners = view.new_tensor([5.0, 3.0, 1.0]).view(-1, *[1] * value.ndim)
    place = (corners + hue) % 6
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)
