"""The frame of networks that learnt on (x, y, z) arrays growing towards Right, Anterior and Superior."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Axes = Literal["xyz", "zyx"]


def turned(x: Tensor, axes: Axes) -> Tensor:
    """`x` [B, C, z, y, x] growing S, P, L as a network of `axes` "xyz" learnt it: [B, C, x, y, z] growing R, A, S."""
    return x.permute(0, 1, 4, 3, 2).flip(2, 3) if axes == "xyz" else x


def turned_back(x: Tensor, axes: Axes) -> Tensor:
    """Inverse of `turned`."""
    return x.flip(2, 3).permute(0, 1, 4, 3, 2) if axes == "xyz" else x
