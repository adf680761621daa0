"""What the Explore panel computes from a grid of tokens; numpy only, fast enough to follow the mouse.

A token grid is an array [d, h, w, E]: E channels of each token along (z, y, x). It lies on the scan through a
`Geometry` whose voxels are the tokens, so odd sizes, padding and crops need no special case here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.data.volume import Geometry

Floats = npt.NDArray[np.float32]
Index = tuple[int, int, int]

FITTED = 10_000
"""Tokens from which principal axes are computed, evenly taken where there are more."""


class TokenIndex:
    """Tokens prepared for similarity queries: each scaled to length 1 once, so that a query is one product.

    Args:
        tokens: [d, h, w, E], any float type.
    """

    def __init__(self, tokens: npt.NDArray[Any]) -> None:
        self.grid: Index = (tokens.shape[0], tokens.shape[1], tokens.shape[2])
        flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float32)
        lengths = np.sqrt(np.einsum("nc,nc->n", flat, flat))  # needs no second copy of the tokens, as a norm does
        flat /= np.maximum(lengths, 1e-12)[:, None]
        self._unit = flat

    def similarity(self, positive: Sequence[Index], negative: Sequence[Index] = ()) -> Floats:
        """Mean cosine to the `positive` tokens less the mean cosine to the `negative` ones, [d, h, w]."""
        return self.matches(self.query(positive, negative))

    def query(self, positive: Sequence[Index], negative: Sequence[Index] = ()) -> Floats:
        """What `matches` looks for, [E]: the mean of the `positive` tokens less that of the `negative` ones."""
        return self._mean(positive) - self._mean(negative)

    def matches(self, query: Floats) -> Floats:
        """Likeness [d, h, w] of each token to `query` [E], which may be of another scan under the same model."""
        result: Floats = (self._unit @ query).reshape(self.grid)
        return result

    def _mean(self, tokens: Sequence[Index]) -> Floats:
        if not tokens:
            return np.zeros(self._unit.shape[1], np.float32)
        rows = [np.ravel_multi_index(token, self.grid) for token in tokens]
        mean: Floats = self._unit[rows].mean(axis=0)
        return mean


@dataclass(frozen=True)
class PcaMap:
    """Principal components of a token grid as colours.

    Attributes:
        rgb: [d, h, w, 3] uint8; black outside the mask.
        basis: [3, E], orthonormal rows; the largest coefficient of each is positive, so colours are stable.
        explained: share of the variance of each component.
    """

    rgb: npt.NDArray[np.uint8]
    basis: Floats
    explained: Floats


def pca_rgb(tokens: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None = None, first: int = 0) -> PcaMap:
    """Components `first` .. `first` + 2 of the tokens as red, green and blue, each stretched over its 2-98 % range.

    Args:
        tokens: [d, h, w, E] with E >= `first` + 3.
        mask: [d, h, w]; where given, only its tokens are fitted and coloured.
        first: index of the component shown as red.
    """
    grid, width = tokens.shape[:3], tokens.shape[3]
    chosen = np.ones(grid, bool) if mask is None or not mask.any() else mask
    flat = tokens[chosen].astype(np.float32)
    centred = flat - flat.mean(axis=0)
    basis, explained = principal_axes(centred, first if width >= first + 3 else 0, 3)
    projected = centred @ basis.T
    low, high = np.percentile(projected, [2, 98], axis=0)
    scaled = np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)
    rgb = np.zeros((*grid, 3), np.uint8)
    rgb[chosen, : len(basis)] = np.round(scaled * 255).astype(np.uint8)
    return PcaMap(rgb, basis, explained)


def pca_points(features: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Places [N, 2] of `features` [N, E] along their two principal axes, and the share of the variance of each."""
    rows = features.astype(np.float32)
    centred = rows - rows.mean(axis=0)
    basis, explained = principal_axes(centred, 0, 2)
    places = np.zeros((len(rows), 2), np.float32)
    places[:, : len(basis)] = centred @ basis.T
    return places, np.resize(np.append(explained, 0.0), 2).astype(np.float32)


def principal_axes(centred: Floats, first: int, count: int) -> tuple[Floats, Floats]:
    """`count` principal axes of rows with mean 0 from number `first` on, [K, E], and the share of each of the variance.

    The largest coefficient of each is positive.
    """
    fitted = centred[:: max(1, len(centred) // FITTED)]
    values, vectors = np.linalg.eigh((fitted.T @ fitted).astype(np.float64))
    wanted = np.argsort(values)[::-1][first : first + count]
    basis = vectors[:, wanted].T
    largest = np.abs(basis).argmax(axis=1)
    basis *= np.sign(basis[np.arange(len(basis)), largest])[:, None]
    total = max(float(np.clip(values, 0, None).sum()), 1e-12)
    return basis.astype(np.float32), (np.clip(values[wanted], 0, None) / total).astype(np.float32)


def contrast_limits(values: npt.NDArray[Any], low: float = 2.0, high: float = 98.0) -> tuple[float, float]:
    """Limits of a heat map at the given percentiles; never empty."""
    bottom, top = (float(value) for value in np.percentile(values, [low, high]))
    return (bottom, top) if top > bottom else (bottom, bottom + 1e-3)


def token_at(voxel: Sequence[float], scan: Geometry, tokens: Geometry) -> Index | None:
    """The token that contains a point of the scan, or None outside the token grid.

    Args:
        voxel: (z, y, x) index on the scan's grid; fractions allowed, whole numbers are voxel centres.
        scan: grid of the scan.
        tokens: grid whose voxels are the tokens.
    """
    point = index_map(scan, tokens) @ np.array([*voxel, 1.0])
    index = np.floor(point[:3] + 0.5 + 1e-6).astype(int)
    if (index < 0).any() or (index >= tokens.shape).any():
        return None
    return (int(index[0]), int(index[1]), int(index[2]))


def voxel_of(token: Sequence[int | np.integer[Any]], tokens: Geometry, scan: Geometry) -> Index:
    """The voxel of the scan nearest to the middle of a token, which may lie in padding beyond its end."""
    point = index_map(tokens, scan) @ np.array([*token, 1.0])
    z, y, x = (int(value) for value in np.clip(np.rint(point[:3]), 0, np.array(scan.shape) - 1))
    return (z, y, x)


def index_map(source: Geometry, target: Geometry) -> npt.NDArray[np.float64]:
    """4 x 4 from (z, y, x) indices of `source` to (z, y, x) indices of `target`."""
    return np.asarray(np.linalg.solve(target.to_lps, source.to_lps), np.float64)


def on_scan(values: npt.NDArray[Any], tokens: Geometry, scan: Geometry, outside: float = 0) -> npt.NDArray[Any]:
    """Token values [d, h, w] on the voxels (z, y, x) of the scan, each voxel taking those of the token around it.

    Both grids share their axes (a token grid is cut along the scan's own), which keeps this a look-up per axis.
    """
    matrix = index_map(scan, tokens)
    result = np.full(scan.shape, outside, values.dtype)
    inside, rows = [], []
    for axis, length in enumerate(scan.shape):
        index = np.floor(np.arange(length) * matrix[axis, axis] + matrix[axis, 3] + 0.5 + 1e-6).astype(int)
        valid = (index >= 0) & (index < tokens.shape[axis])
        inside.append(np.flatnonzero(valid))
        rows.append(index[valid])
    result[np.ix_(*inside)] = values[np.ix_(*rows)]
    return result
