"""Frames of networks that learnt on arrays along other axes than ours, (z, y, x) growing to S, P and L."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Triple = tuple[int, int, int]
Axes = Literal["xyz", "xyz-lps", "yxz-pls", "zxy", "zyx"]
"""xyz: (x, y, z) growing to Right, Anterior, Superior. xyz-lps: (x, y, z) to Left, Posterior, Superior. yxz-pls: rows,
columns and slices of axial images, (y, x, z) to Posterior, Left, Superior. zxy: slices of transposed axial images, (z,
x, y) to Superior, Left, Posterior. zyx: as ours."""

_ORDER: dict[str, Triple] = {
    "xyz": (2, 1, 0),
    "xyz-lps": (2, 1, 0),
    "yxz-pls": (1, 2, 0),
    "zxy": (0, 2, 1),
    "zyx": (0, 1, 2),
}
"""Axis of ours that each axis of a network is."""
_AGAINST: dict[str, tuple[int, ...]] = {"xyz": (0, 1)}
"""Axes of a network that run against ours."""


def turned(x: Tensor, axes: Axes, first: int = 2) -> Tensor:
    """`x` [B, C, z, y, x] growing S, P, L as a network of `axes` learnt it; its space begins at dimension `first`."""
    flipped = [first + axis for axis in _AGAINST.get(axes, ())]
    placed = _permuted(x, _ORDER[axes], first)
    return placed.flip(flipped) if flipped else placed


def turned_back(x: Tensor, axes: Axes, first: int = 2) -> Tensor:
    """Inverse of `turned`."""
    flipped = [first + axis for axis in _AGAINST.get(axes, ())]
    return _permuted(x.flip(flipped) if flipped else x, _inverse(_ORDER[axes]), first)


def sizes_turned(sizes: Sequence[int], axes: Axes) -> Triple:
    """Sizes along our axes, in the order of those of a network."""
    return _picked(sizes, _ORDER[axes])


def sizes_back(sizes: Sequence[int], axes: Axes) -> Triple:
    """Inverse of `sizes_turned`."""
    return _picked(sizes, _inverse(_ORDER[axes]))


def _permuted(x: Tensor, order: Triple, first: int) -> Tensor:
    if order == (0, 1, 2):
        return x
    before, after = range(first), range(first + len(order), x.ndim)
    return x.permute(*before, *(first + axis for axis in order), *after)


def _inverse(order: Triple) -> Triple:
    return (order.index(0), order.index(1), order.index(2))


def _picked(sizes: Sequence[int], order: Triple) -> Triple:
    a, b, c = order
    return (sizes[a], sizes[b], sizes[c])
