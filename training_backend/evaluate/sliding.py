"""Prediction of a large volume from overlapping windows, without ever holding what it does not need.

Windows are visited from the first slice to the last, and a slice is finished as soon as no later window reaches it.
So only a slab as thick as one window is accumulated in float32; finished slices leave it as float16 or float32
probabilities, or at once as labels, for which an array of classes x volume never exists.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from training_backend.tasks.base import Cancelled, Progress

Triple = tuple[int, int, int]
Predictor = Callable[[Tensor], Tensor]
"""Probabilities [B, K, d, h, w] of windows [B, C, d, h, w]."""
Blend = Literal["gaussian", "constant", "nnunet"]

HALF_PRECISION_FROM = 2**30
"""Bytes of float32 probabilities from which float16 is returned instead."""


@dataclass(frozen=True)
class Tiling:
    """How a volume is covered.

    Attributes:
        window: voxels along (z, y, x).
        overlap: share of a window that the next one repeats, from 0 to below 1.
        batch: windows per forward pass.
        accumulate_on: device of the running slab; None is where the predictor's output is.
        blend: weights of a window's voxels: a Gaussian, the same for all, or nnU-Net's Gaussian; see `importance`.
        fill: value around volumes smaller than a window; None takes the minimum of each channel, as in training.
        sigma: of a Gaussian, as a share of the window.
        pad_end: put all that `fill` stands for behind a small volume, in place of on both sides.
        finish: class probabilities [K, n, H, W] of blended outputs, where these are something else.
    """

    window: Triple
    overlap: float = 0.5
    batch: int = 1
    accumulate_on: torch.device | None = None
    blend: Blend = "gaussian"
    fill: float | None = None
    sigma: float = 1 / 8
    pad_end: bool = False
    finish: Callable[[Tensor], Tensor] | None = None


def predict_probabilities(
    predictor: Predictor, volume: Tensor, tiling: Tiling, progress: Progress | None = None
) -> Tensor:
    """Blended probabilities [K, D, H, W] of `volume` [1, C, D, H, W], on the CPU.

    Volumes smaller than the window are padded on both sides. Otherwise equals
    ``monai.inferers.sliding_window_inference`` with `mode` as `Tiling.blend`; "nnunet" with `pad_end` is how nnU-Net's
    first version and MedCoSS (sigma: 1/8 of volumes, 1/4 of pictures) do it.

    Args:
        predictor: network with its softmax; receives windows on the device of `volume`.
        volume: any size.
        tiling: window, overlap, batch and where to accumulate.
        progress: told the share done; answering False raises `Cancelled`.

    Returns:
        float32, or float16 when float32 would take more than a gibibyte.
    """
    result: Tensor | None = None
    shape = tuple(volume.shape[2:])
    for first, slab in _slabs(predictor, volume, tiling, progress):
        if result is None:
            bytes_needed = 4 * slab.shape[0] * math.prod(shape)
            dtype = torch.float16 if bytes_needed > HALF_PRECISION_FROM else torch.float32
            result = torch.empty((slab.shape[0], *shape), dtype=dtype)
        result[:, first : first + slab.shape[1]] = slab.to("cpu", result.dtype)
    assert result is not None  # a volume has at least one slab
    return result


def predict_labels(predictor: Predictor, volume: Tensor, tiling: Tiling, progress: Progress | None = None) -> Tensor:
    """Most probable class per voxel [D, H, W] (uint8, int16 from 256 classes), with the arguments of the above."""
    result: Tensor | None = None
    for first, slab in _slabs(predictor, volume, tiling, progress):
        if result is None:
            result = torch.empty(tuple(volume.shape[2:]), dtype=torch.uint8 if slab.shape[0] <= 256 else torch.int16)
        result[first : first + slab.shape[1]] = slab.argmax(0).to("cpu", result.dtype)
    assert result is not None  # a volume has at least one slab
    return result


def with_flips(predictor: Predictor, axes: Sequence[int] = (0, 1, 2)) -> Predictor:
    """The mean of `predictor` over all combinations of flips along `axes` of (z, y, x)."""
    combinations = [c for n in range(len(axes) + 1) for c in itertools.combinations([axis + 2 for axis in axes], n)]

    def averaged(windows: Tensor) -> Tensor:
        total = predictor(windows)
        for dims in combinations[1:]:
            total = total + predictor(windows.flip(dims)).flip(dims)
        return total / len(combinations)

    return averaged


def _slabs(
    predictor: Predictor, volume: Tensor, tiling: Tiling, progress: Progress | None
) -> Iterator[tuple[int, Tensor]]:
    """Finished slices in order: (first slice, probabilities [K, n, H, W])."""
    shape = tuple(volume.shape[2:])
    before = [0 if tiling.pad_end else max(0, size - n) // 2 for size, n in zip(tiling.window, shape, strict=True)]
    after = [max(0, size - n) - b for size, n, b in zip(tiling.window, shape, before, strict=True)]
    padded = _padded(volume, before, after, tiling.fill)
    starts = [_starts(n, size, tiling.overlap) for n, size in zip(padded.shape[2:], tiling.window, strict=True)]
    inside = tuple(slice(b, b + n) for b, n in zip(before[1:], shape[1:], strict=True))
    slab = _Slab(tiling, tuple(padded.shape[3:]))
    done, total = 0, math.prod(len(axis) for axis in starts)
    for row, z in enumerate(starts[0]):
        for corners in _batched(list(itertools.product(starts[1], starts[2])), tiling.batch):
            windows = torch.cat([_window(padded, (z, y, x), tiling.window) for y, x in corners])
            slab.add(predictor(windows), corners)
            done += len(corners)
            if progress is not None and not progress(done / total):
                raise Cancelled
        step = (starts[0][row + 1] if row + 1 < len(starts[0]) else padded.shape[2]) - z
        finished = slab.finish(step)
        low, high = max(z, before[0]), min(z + step, before[0] + shape[0])
        if high > low:
            part = finished[:, low - z : high - z, inside[0], inside[1]]
            yield low - before[0], part if tiling.finish is None else tiling.finish(part)


def _padded(volume: Tensor, before: Sequence[int], after: Sequence[int], fill: float | None) -> Tensor:
    """`volume` [1, C, D, H, W] with `fill` (None: each channel's minimum) around it; itself where none is needed."""
    if not any(before) and not any(after):
        return volume
    shape = [b + n + a for b, n, a in zip(before, volume.shape[2:], after, strict=True)]
    around = volume.amin(dim=(2, 3, 4), keepdim=True) if fill is None else volume.new_full((1, 1, 1, 1, 1), fill)
    padded = around.expand(*volume.shape[:2], *shape).clone()
    z, y, x = (slice(b, b + n) for b, n in zip(before, volume.shape[2:], strict=True))
    padded[:, :, z, y, x] = volume
    return padded


class _Slab:
    """Weighted sums over the slices that windows still reach: [K, window depth, H, W]."""

    def __init__(self, tiling: Tiling, plane: tuple[int, ...]) -> None:
        self.tiling, self.plane = tiling, plane
        self.sums: Tensor | None = None
        self.weights = torch.empty(0)

    def add(self, output: Tensor, corners: Sequence[tuple[int, int]]) -> None:
        """Add windows [B, K, d, h, w] whose first voxels in the plane are `corners`."""
        output = output.float() if self.tiling.accumulate_on is None else output.float().to(self.tiling.accumulate_on)
        depth, height, width = self.tiling.window
        if self.sums is None:
            self.sums = output.new_zeros((output.shape[1], depth, *self.plane))
            self.weights = output.new_zeros((depth, *self.plane))
        weight = importance(self.tiling.window, self.tiling.blend, self.tiling.sigma).to(output.device)
        for window, (y, x) in zip(output, corners, strict=True):
            box = (..., slice(y, y + height), slice(x, x + width))
            self.sums[box].addcmul_(window, weight)
            self.weights[box].add_(weight)

    def finish(self, count: int) -> Tensor:
        """Mean over windows of the first `count` slices; the others move up for the next row of windows."""
        assert self.sums is not None  # every row has at least one window
        done = self.sums[:, :count] / self.weights[:count]
        for tensor in (self.sums.movedim(1, 0), self.weights):
            rest = tensor[count:].clone()
            tensor[: len(rest)] = rest
            tensor[len(rest) :] = 0
        return done


@lru_cache(maxsize=8)
def importance(window: Triple, blend: Blend = "gaussian", sigma: float = 1 / 8) -> Tensor:
    """Weight [d, h, w] of a window's voxels.

    Args:
        window: voxels along (z, y, x).
        blend: "gaussian" is MONAI's, around the middle and at least 0.001 anywhere. "nnunet" is that of nnU-Net's first
            version, around voxel n // 2, cut off at four sigma, where it is as small as its smallest number above 0.
            "constant" is 1.
        sigma: share of the window along each axis.
    """
    if blend == "constant":
        return torch.ones(window)
    curves = []
    for size in window:
        middle = size // 2 if blend == "nnunet" else (size - 1) / 2
        distance = torch.arange(size, dtype=torch.float64) - middle
        curve = torch.exp(-(distance**2) / (2 * (size * sigma) ** 2))
        if blend == "nnunet":
            curve[distance.abs() > int(4 * size * sigma + 0.5)] = 0
        curves.append(curve)
    weight = curves[0][:, None, None] * curves[1][None, :, None] * curves[2][None, None, :]
    smallest = float(weight[weight > 0].min())
    return weight.clamp_min(smallest if blend == "nnunet" else max(smallest, 1e-3)).float()


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """First voxels of windows along one axis; the last window ends with the volume."""
    step = max(int(window * (1 - overlap)), 1)
    count = math.ceil(max(length - window, 0) / step) + 1
    return [min(index * step, length - window) for index in range(count)]


def _window(volume: Tensor, start: Triple, size: Triple) -> Tensor:
    (z, y, x), (d, h, w) = start, size
    return volume[:, :, z : z + d, y : y + h, x : x + w]


def _batched(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for index in range(0, len(items), size):
        yield items[index : index + size]
