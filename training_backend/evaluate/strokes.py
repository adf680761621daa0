"""From a few painted voxels to a segmentation: a small classifier on features of an encoder and on the scan itself.

What a voxel is follows from the token around it and from its intensity and edges. The classifier is additive: a
straight line on the principal components of the tokens, and a curve with a few knots on each channel of the scan. So a
region is filled by one product at the resolution of the tokens and one look-up per channel, quickly enough to follow
the brush; and the whole model is a handful of arrays that can be kept, applied to other scans, and read by eye.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from training_backend.data.manifest import ClassEntry
from training_backend.data.volume import Geometry, Shape
from training_backend.errors import DataError, WeightsError
from training_backend.tasks.base import Cancelled, Progress

Floats = npt.NDArray[np.float32]

COMPONENTS = 32
"""Principal components of the tokens that the classifier sees."""
KNOTS = 12
"""Of the curve on a channel."""
LEVELS = 256
"""Steps into which a channel is divided."""
MOST = 3000
"""Painted voxels of a class that are learnt from; of more, these are drawn."""
SLAB = 32
"""Slices that are filled at once."""
CACHED = 4
"""Slices whose numbers stay in the processor's cache while they are worked on."""
SMOOTH_MM = (1.0, 3.0)
"""Standard deviations at which the scan is seen besides its own resolution."""
CHANNELS = len(SMOOTH_MM) + 2
"""The scan as it is, smoothed, and its edges."""
_MARGIN = 4.0  # standard deviations by which a region is enlarged for its filters
_FITTED = 20000  # tokens that the principal components are computed from
_FORMAT = "med3dssl-strokes-1"


@dataclass(frozen=True)
class Box:
    """A box of voxels of a scan, along (z, y, x)."""

    start: Shape
    size: Shape

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing."""
        z, y, x = (slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Filled:
    """What a stroke model makes of a box.

    Attributes:
        labels: (z, y, x) uint8, 0 background.
        doubt: (z, y, x) uint8, entropy of the classes: 0 certain, 255 no idea.
    """

    labels: npt.NDArray[np.uint8]
    doubt: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FeatureFacts:
    """Which features a stroke model was taught with; others mean something else to it."""

    features: str
    """Hash of the encoder's weights and of how its features were computed."""
    modality: str = "unknown"
    """Of the scan."""


@dataclass
class StrokeScan:
    """A scan with its features, ready to be painted on.

    Attributes:
        array: (z, y, x) as read.
        geometry: of the array.
        tokens: [d, h, w, E].
        token_geometry: grid whose voxels are the tokens.
        facts: of the features.
    """

    array: npt.NDArray[Any]
    geometry: Geometry
    tokens: npt.NDArray[Any]
    token_geometry: Geometry
    facts: FeatureFacts
    _kept: dict[tuple[Box, float, float], list[npt.NDArray[np.uint8]]] = field(default_factory=dict)
    _known: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]] | None = None

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Intensities that the channels tell apart: percentiles 0.5 and 99.5 of the scan."""
        low, high = np.percentile(self.array[::2, ::2, ::2] if self.array.size > 2**20 else self.array, [0.5, 99.5])
        return float(low), float(max(high, low + 1e-3))

    @cached_property
    def components(self) -> tuple[Floats, Floats]:
        """Mean [E] and principal axes [K, E] of the tokens, scaled so that every component has unit variance."""
        flat = self.tokens.reshape(-1, self.tokens.shape[-1])
        flat = flat[:: max(1, len(flat) // _FITTED)].astype(np.float32)
        mean = flat.mean(axis=0)
        centred = flat - mean
        values, vectors = np.linalg.eigh((centred.T @ centred / len(centred)).astype(np.float64))
        count = min(COMPONENTS, len(flat) - 1, len(values))
        order = np.argsort(values)[::-1][:count]
        scale = np.sqrt(np.maximum(values[order], 1e-8 * values.max() + 1e-12))
        return mean, (vectors[:, order] / scale).T.astype(np.float32)

    def channels(self, box: Box, bounds: tuple[float, float]) -> list[npt.NDArray[np.uint8]]:
        """The scan in `box` as steps of `LEVELS`: as it is, smoothed, and its edges; kept for the boxes seen last."""
        key = (box, *bounds)
        if key not in self._kept:
            while len(self._kept) >= 2:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = _channels(self.array, box, self.geometry.spacing_mm, bounds)
        return self._kept[key]

    def steps_at(self, points: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Steps [N, channels] of voxels [N, 3]; kept, so that a further stroke costs its own voxels only."""
        places = np.ravel_multi_index(tuple(points.T), self.array.shape)
        known = (np.zeros(0, np.int64), np.zeros((0, CHANNELS), np.uint8)) if self._known is None else self._known
        new = np.setdiff1d(places, known[0])
        if len(new):
            added = _steps_at(self, np.stack(np.unravel_index(new, self.array.shape), axis=1), self.bounds)
            merged, steps = np.concatenate([known[0], new]), np.concatenate([known[1], added])
            order = np.argsort(merged)
            self._known = known = (merged[order], steps[order])
        found: npt.NDArray[np.uint8] = known[1][np.searchsorted(known[0], places)]
        return found

    def token_index(self) -> npt.NDArray[np.float64]:
        """[3, 2]: factor and offset that lead from voxels to (fractional) tokens, along each axis."""
        matrix = np.linalg.solve(self.token_geometry.to_lps, self.geometry.to_lps)
        return np.stack([np.diag(matrix)[:3], matrix[:3, 3]], axis=1)


@dataclass(frozen=True)
class StrokeModel:
    """A trained stroke classifier of K classes.

    Attributes:
        tokens: [K, E] weights on the tokens.
        curves: [K, channels, LEVELS] what every step of every channel adds.
        bias: [K].
        bounds: intensities of the first and last step.
        classes: names and colours; the first is background.
        facts: of the features it was taught with.
        relative: whether intensities are counted from the scan's own bounds (all but CT).
    """

    tokens: Floats
    curves: Floats
    bias: Floats
    bounds: tuple[float, float]
    classes: tuple[ClassEntry, ...]
    facts: FeatureFacts
    relative: bool

    def fill(self, scan: StrokeScan, box: Box) -> Filled:
        """Classes and doubt of every voxel of `box`."""
        logits = _on_voxels(np.moveaxis(_near(scan, box) @ self.tokens.T, -1, 0), scan, box)
        channels = scan.channels(box, scan.bounds if self.relative else self.bounds)
        labels, doubt = (np.empty(box.size, np.uint8) for _ in range(2))
        for start in range(0, box.size[0], CACHED):
            slices = slice(start, start + CACHED)
            scores = logits[:, slices]
            scores += self.bias[:, None, None, None]
            for number, channel in enumerate(channels):
                steps = channel[slices].astype(np.intp)
                for score, curve in zip(scores, self.curves[:, number], strict=True):
                    score += curve.take(steps)
            labels[slices], doubt[slices] = _decided(scores)
        return Filled(labels, doubt)

    def fill_all(self, scan: StrokeScan, progress: Progress | None = None) -> Filled:
        """Classes and doubt of the whole scan, slab after slab.

        Raises:
            Cancelled: when `progress` answered False.
        """
        depth, height, width = scan.array.shape
        labels, doubt = (np.zeros(scan.array.shape, np.uint8) for _ in range(2))
        for start in range(0, depth, SLAB):
            box = Box((start, 0, 0), (min(SLAB, depth - start), height, width))
            part = self.fill(scan, box)
            labels[box.slices], doubt[box.slices] = part.labels, part.doubt
            if progress is not None and not progress(min(1.0, (start + SLAB) / depth)):
                raise Cancelled
        return Filled(labels, doubt)

    def save(self, path: Path) -> None:
        """Write the model as one safetensors file, whole or not at all."""
        from safetensors.numpy import save

        from training_backend.files import atomic

        card = {
            "bounds": list(self.bounds),
            "classes": [entry.model_dump() for entry in self.classes],
            "facts": vars(self.facts),
            "relative": self.relative,
        }
        tensors = {"tokens": self.tokens, "curves": self.curves, "bias": self.bias}
        with atomic(path) as stream:
            stream.write(save(tensors, {"format": _FORMAT, "card": json.dumps(card)}))

    @classmethod
    def load(cls, path: Path) -> StrokeModel:
        """A model that `save` wrote.

        Raises:
            WeightsError: no such file, or another kind of file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as opened:
                told = opened.metadata() or {}
                if told.get("format") != _FORMAT:
                    raise WeightsError(f"{path.name} is no stroke model.", "Choose a file saved by Strokes.")
                tensors = {name: opened.get_tensor(name) for name in ("tokens", "curves", "bias")}
            card = json.loads(told["card"])
            return cls(
                **tensors,
                bounds=(float(card["bounds"][0]), float(card["bounds"][1])),
                classes=tuple(ClassEntry(**entry) for entry in card["classes"]),
                facts=FeatureFacts(**card["facts"]),
                relative=bool(card["relative"]),
            )
        except FileNotFoundError as error:
            raise WeightsError(f"{path} does not exist.", "Choose a file saved by Strokes.") from error
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise WeightsError(
                f"{path.name} cannot be read as a stroke model: it is damaged.", "Save it anew."
            ) from error

    def check(self, facts: FeatureFacts) -> list[str]:
        """Warnings for a scan with features of `facts`.

        Raises:
            WeightsError: the features come from another encoder, or from another of its scales.
        """
        if facts.features != self.facts.features:
            raise WeightsError(
                "The stroke model was taught with the features of another model or scale.",
                "Choose the model and the scale that it was taught with, or teach it anew.",
            )
        known = {facts.modality, self.facts.modality} - {"unknown"}
        if len(known) > 1:
            return [f"The strokes were painted on {self.facts.modality}, but this scan is {facts.modality}."]
        return []


def teach(
    scan: StrokeScan,
    points: npt.NDArray[Any],
    values: npt.NDArray[Any],
    classes: Sequence[ClassEntry],
    seed: int = 0,
) -> StrokeModel:
    """A classifier that learns from painted voxels; classes weigh alike, however much of each was painted.

    Args:
        scan: what was painted on.
        points: [N, 3] voxels (z, y, x).
        values: [N] index of a class in `classes`.
        classes: the first is background; those that were not painted are left out of the answers.
        seed: decides which voxels are learnt from where many were painted.

    Raises:
        DataError: strokes of fewer than two classes, or outside the scan.
    """
    from sklearn.linear_model import LogisticRegression

    points, values = _usable(scan, np.asarray(points), np.asarray(values), classes)
    chosen = _drawn(values, seed)
    points, values = points[chosen], values[chosen]
    mean, axes = scan.components
    tokens = (_tokens_at(scan, points) - mean) @ axes.T
    steps = scan.steps_at(points)
    basis = _hats()
    curves = basis[steps].reshape(len(points), -1)
    fitted = LogisticRegression(C=1.0, class_weight="balanced", max_iter=300).fit(
        np.concatenate([tokens, curves], axis=1), values
    )
    weights, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # one row tells the second class from the first
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    count, channels = len(classes), steps.shape[1]
    on_tokens = np.zeros((count, tokens.shape[1]))
    on_steps, offset = np.zeros((count, channels, LEVELS)), np.full(count, -1e4)
    on_tokens[fitted.classes_] = weights[:, : tokens.shape[1]]
    on_steps[fitted.classes_] = weights[:, tokens.shape[1] :].reshape(-1, channels, KNOTS) @ basis.T
    folded = on_tokens @ axes
    offset[fitted.classes_] = bias - folded[fitted.classes_] @ mean
    return StrokeModel(
        folded.astype(np.float32),
        on_steps.astype(np.float32),
        offset.astype(np.float32),
        scan.bounds,
        tuple(classes),
        scan.facts,
        relative=scan.facts.modality != "CT",
    )


def around(points: npt.NDArray[Any], shape: Shape, size: Shape) -> Box:
    """Box of `size` voxels (or the whole scan where that is smaller) around the middle of `points` [N, 3]."""
    middle = (np.min(points, axis=0) + np.max(points, axis=0)) / 2
    start, length = [], []
    for centre, whole, wanted in zip(middle, shape, size, strict=True):
        count = min(wanted, whole)
        start.append(int(min(max(round(centre - count / 2), 0), whole - count)))
        length.append(count)
    return Box((start[0], start[1], start[2]), (length[0], length[1], length[2]))


def _decided(scores: Floats) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Likeliest class, and entropy of the classes in 255ths, of scores [K, z, y, x], which are used up."""
    scores -= scores.max(axis=0)
    labels = np.zeros(scores.shape[1:], np.uint8)
    for value in reversed(range(len(scores))):  # quicker than argmax along the first axis
        labels[scores[value] == 0] = value
    shares = np.exp(scores)
    total = shares.sum(axis=0)
    shares *= scores
    entropy = (np.log(total) - shares.sum(axis=0) / total) * (255 / np.log(max(len(scores), 2)))
    return labels, np.rint(np.clip(entropy, 0, 255)).astype(np.uint8)


def _usable(
    scan: StrokeScan, points: npt.NDArray[Any], values: npt.NDArray[Any], classes: Sequence[ClassEntry]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    painted = sorted(set(values.tolist()))
    if len(painted) < 2:
        what = "Nothing is painted yet" if not painted else f"Only {classes[painted[0]].name} is painted"
        raise DataError(f"{what}; strokes of two classes at least are needed.", "Paint some voxels of another class.")
    if painted[-1] >= len(classes) or painted[0] < 0:
        raise DataError(f"Strokes have the values {painted}, but there are {len(classes)} classes.")
    inside = ((points >= 0) & (points < scan.array.shape)).all(axis=1)
    if not inside.all():
        raise DataError(
            f"{int((~inside).sum())} painted voxels lie outside the scan.",
            "Paint on a layer with the grid of the scan.",
        )
    return points.astype(np.int64), values.astype(np.int64)


def _drawn(values: npt.NDArray[Any], seed: int) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    found = [np.flatnonzero(values == value) for value in np.unique(values)]
    drawn = [np.sort(rng.choice(one, MOST, replace=False)) if len(one) > MOST else one for one in found]
    return np.concatenate(drawn)


def _hats() -> npt.NDArray[np.float64]:
    """[LEVELS, KNOTS]: how near each step is to each knot; weights on the knots are a curve of straight parts."""
    place = np.linspace(0, KNOTS - 1, LEVELS)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(KNOTS)))


def _steps_at(scan: StrokeScan, points: npt.NDArray[Any], bounds: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """[N, channels] of painted voxels, from boxes around them, so that far strokes need no large filter."""
    found = np.zeros((len(points), CHANNELS), np.uint8)
    blocks = points // 64
    for block in np.unique(blocks, axis=0):
        mine = np.flatnonzero((blocks == block).all(axis=1))
        low, high = points[mine].min(axis=0), points[mine].max(axis=0)
        box = Box(tuple(low.tolist()), tuple((high - low + 1).tolist()))  # type: ignore[arg-type]
        place = tuple((points[mine] - low).T)
        channels = _channels(scan.array, box, scan.geometry.spacing_mm, bounds)
        found[mine] = np.stack([channel[place] for channel in channels], axis=1)
    return found


def _channels(
    array: npt.NDArray[Any], box: Box, spacing_mm: Sequence[float], bounds: tuple[float, float]
) -> list[npt.NDArray[np.uint8]]:
    margin = [int(np.ceil(_MARGIN * max(SMOOTH_MM) / step)) for step in spacing_mm]
    low = [max(0, a - m) for a, m in zip(box.start, margin, strict=True)]
    high = [min(w, a + n + m) for a, n, m, w in zip(box.start, box.size, margin, array.shape, strict=True)]
    around_box = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32)
    inner = tuple(slice(a - b, a - b + n) for a, b, n in zip(box.start, low, box.size, strict=True))
    scaled = (around_box - bounds[0]) * ((LEVELS - 1) / (bounds[1] - bounds[0]))
    found = [scaled[inner]]
    for sigma in SMOOTH_MM:
        smooth = ndimage.gaussian_filter(scaled, [sigma / step for step in spacing_mm], truncate=3.0)
        found.append(smooth[inner])
        if sigma == SMOOTH_MM[0]:
            slopes = [
                np.gradient(smooth, axis=axis) * (min(spacing_mm) / spacing_mm[axis])
                for axis in range(3)
                if smooth.shape[axis] > 1
            ]
            edges = 2 * np.sqrt(sum(slope**2 for slope in slopes)) if slopes else np.zeros_like(smooth)
            found.append(edges[inner])
    return [np.clip(np.rint(one), 0, LEVELS - 1).astype(np.uint8) for one in found]


def _near(scan: StrokeScan, box: Box) -> Floats:
    """[d, h, w, E] tokens that the voxels of `box` lie between."""
    return scan.tokens[tuple(slice(first, last) for first, last in _token_range(scan, box))].astype(np.float32)


def _token_range(scan: StrokeScan, box: Box) -> list[tuple[int, int]]:
    found = []
    for (factor, offset), start, size, count in zip(
        scan.token_index(), box.start, box.size, scan.tokens.shape, strict=False
    ):
        ends = (factor * start + offset, factor * (start + size - 1) + offset)
        first = min(max(int(np.floor(min(ends))), 0), count - 1)
        found.append((first, min(max(int(np.floor(max(ends))) + 2, first + 1), count)))
    return found


def _on_voxels(values: Floats, scan: StrokeScan, box: Box) -> Floats:
    """Values [K, d, h, w] at the tokens of `_near` on the voxels of `box`, linear between the tokens' middles."""
    shares = []
    for (factor, offset), start, size, (first, last) in zip(
        scan.token_index(), box.start, box.size, _token_range(scan, box), strict=True
    ):
        place = np.clip(factor * np.arange(start, start + size) + offset, first, last - 1) - first
        below = np.minimum(place.astype(np.int64), last - first - 1)
        above = np.minimum(below + 1, last - first - 1)
        share = (place - below).astype(np.float32)
        weights = np.zeros((size, last - first), np.float32)
        weights[np.arange(size), below] += 1 - share
        weights[np.arange(size), above] += share
        shares.append(weights)
    along_z, along_y, along_x = shares
    count, depth, height, width = values.shape
    deep = (along_z @ values.reshape(count, depth, -1)).reshape(count, -1, height, width)
    found: Floats = along_y @ deep @ along_x.T
    return found


def _tokens_at(scan: StrokeScan, points: npt.NDArray[Any]) -> Floats:
    """[N, E] tokens at voxels, linear between the tokens' middles."""
    index = scan.token_index()
    place = points * index[:, 0] + index[:, 1]
    place = np.clip(place, 0, np.array(scan.tokens.shape[:3]) - 1)
    below = np.floor(place).astype(np.int64)
    share = (place - below).astype(np.float32)
    found = np.zeros((len(points), scan.tokens.shape[3]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        at = np.minimum(below + corner, np.array(scan.tokens.shape[:3]) - 1)
        weight = np.prod(np.where(np.array(corner) == 1, share, 1 - share), axis=1)
        found += weight[:, None] * scan.tokens[tuple(at.T)].astype(np.float32)
    return found
