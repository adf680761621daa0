"""Random changes of training views: parameters drawn per view from its key, applied to the batch on its device.

Drawing is apart from applying: `draw` needs numpy only and a view's key, so a view is changed in the same way in any
batch, with any number of workers; `apply` then works on all views of a micro-batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training_backend.config.data import AugmentConfig
from training_backend.data.colours import ColourChange, draw_colours, recoloured
from training_backend.data.views import IGNORED, Batch, Key, generator
from training_backend.data.volume import Triple

if TYPE_CHECKING:
    from torch import Tensor

_AUGMENT = 1  # sets these numbers apart from those that placed the crop


@dataclass(frozen=True)
class Change:
    """What happens to one view.

    Attributes:
        flip: axes (z, y, x) to flip.
        matrix: 3 x 3 from output to input millimetres about the centre, or None without rotation and zoom.
        noise: standard deviation, in units of the network input.
        sigma: of the smoothing, voxels along (z, y, x), or None.
        gamma: exponent of the contrast change, or None.
        seed: of the noise pattern.
        gamma_keeps: restore mean and standard deviation after the gamma change.
        contrast: factor of distances from the mean, or 1.
        factor: multiplies the view.
        offset: is added to the view.
        quarters: turns by 90 degrees from y to x.
        elastic: standard deviation of the displacement and distance of its control points, voxels; or None.
        zoom: share of the resolution that is left, or 1.
        flat: `matrix` for views of one slice, which stay in their plane.
        gamma_inverts: change the negative of the view by gamma.
        colours: of the colours of views with three channels, or None.
    """

    flip: tuple[bool, bool, bool]
    matrix: npt.NDArray[np.float64] | None
    noise: float
    sigma: Triple | None
    gamma: float | None
    seed: int
    gamma_keeps: bool = False
    contrast: float = 1.0
    factor: float = 1.0
    offset: float = 0.0
    quarters: int = 0
    elastic: tuple[float, float] | None = None
    zoom: float = 1.0
    flat: npt.NDArray[np.float64] | None = None
    gamma_inverts: bool = False
    colours: ColourChange | None = None


def draw(config: AugmentConfig, key: Key) -> Change:
    """The change of the view with `key`; every number is drawn whether used or not, so settings do not interfere."""
    rng = generator(*key, _AUGMENT)
    chance = rng.random(8)
    angles = np.radians(config.rotate_deg) * rng.uniform(-1, 1, 3)
    zoom = 1 + config.scale_range * rng.uniform(-1, 1)
    noise = rng.uniform(0, config.noise_std)
    sz, sy, sx = rng.uniform(*config.smooth_sigma, 3)
    gamma = rng.uniform(*config.gamma_range)
    seed = int(rng.integers(2**62))
    turned, zoomed = chance[3] < config.rotate, chance[4] < config.scale
    matrix = flat = None
    if turned or zoomed:
        matrix = (_rotation(angles) if turned else np.eye(3)) / (zoom if zoomed else 1.0)
        flat = (_rotation(angles * [1, 0, 0]) if turned else np.eye(3)) / (zoom if zoomed else 1.0)
        flat[0] = 1, 0, 0
    further = _further(config, rng)
    held = rng.random() >= config.flipped
    flips = [bool(chance[axis] < config.flip[axis]) and not held for axis in range(3)]
    return Change(
        flip=(flips[0], flips[1], flips[2]),
        matrix=matrix,
        noise=float(noise) if chance[5] < config.noise else 0.0,
        sigma=(float(sz), float(sy), float(sx)) if chance[6] < config.smooth else None,
        gamma=float(gamma) if chance[7] < config.contrast else None,
        seed=seed,
        gamma_keeps=config.gamma_keeps,
        flat=flat,
        gamma_inverts=config.gamma_inverts,
        **further,
    )


def _further(config: AugmentConfig, rng: np.random.Generator) -> dict[str, Any]:
    """What was added later; it is drawn last, so that views of earlier settings stay what they were."""
    chance = rng.random(6)
    contrast = rng.uniform(0.75, 1.25)
    factor = 1 + config.brightness_range * rng.uniform(-1, 1)
    offset = config.shift_range * rng.uniform(-1, 1)
    quarters = int(rng.integers(1, 4))
    elastic = (config.elastic_voxels * rng.uniform(), rng.uniform(9, 13))
    zoom = rng.uniform(0.5, 1)
    return {
        "contrast": contrast if chance[0] < config.linear_contrast else 1.0,
        "factor": factor if chance[1] < config.brightness else 1.0,
        "offset": offset if chance[2] < config.shift else 0.0,
        "quarters": quarters if chance[3] < config.quarter_turn else 0,
        "elastic": elastic if chance[4] < config.elastic else None,
        "zoom": zoom if chance[5] < config.low_resolution else 1.0,
        "colours": draw_colours(config, rng),
    }


def apply(batch: Batch, changes: Sequence[Change], spacing_mm: Sequence[Triple]) -> Batch:
    """`batch` with each view changed; labels and padding follow the geometry with nearest neighbours.

    Args:
        batch: intensity-normalised views; its tensors may be changed in place.
        changes: one per view.
        spacing_mm: of each view along (z, y, x), so that rotations are rigid in space.
    """
    _flip(batch, changes)
    _quarter_turn(batch, changes)
    _turn(batch, changes, spacing_mm)
    for index, change in enumerate(changes):
        change_intensity(batch.volume[index], change)
    return batch


def change_intensity(view: Tensor, change: Change) -> None:
    """Apply all of `change` that leaves voxels where they are to one view [C, D, H, W], in place."""
    if change.colours is not None:
        view.copy_(recoloured(view, change.colours))
    if change.noise:
        view += change.noise * _normal(view, change.seed)
    if change.sigma is not None:
        view.copy_(_smoothed(view, change.sigma))
    if change.factor != 1 or change.offset:
        view.mul_(change.factor).add_(change.offset)
    if change.contrast != 1:
        low, high = view.amin(dim=(1, 2, 3), keepdim=True), view.amax(dim=(1, 2, 3), keepdim=True)
        mean = view.mean(dim=(1, 2, 3), keepdim=True)
        view.copy_(((view - mean) * change.contrast + mean).clamp(low, high))
    if change.zoom != 1:
        view.copy_(_coarsened(view, change.zoom))
    if change.gamma is not None:
        if change.gamma_inverts:
            view.neg_()
        before = (view.mean(dim=(1, 2, 3), keepdim=True), view.std(dim=(1, 2, 3), keepdim=True))
        low, high = view.amin(dim=(1, 2, 3), keepdim=True), view.amax(dim=(1, 2, 3), keepdim=True)
        width = (high - low).clamp_min(1e-7)
        view.copy_(((view - low) / width) ** change.gamma * width + low)
        if change.gamma_keeps:
            mean, std = view.mean(dim=(1, 2, 3), keepdim=True), view.std(dim=(1, 2, 3), keepdim=True)
            view.sub_(mean).mul_(before[1] / std.clamp_min(1e-7)).add_(before[0])
        if change.gamma_inverts:
            view.neg_()


def _flip(batch: Batch, changes: Sequence[Change]) -> None:
    for pattern in {change.flip for change in changes if any(change.flip)}:
        chosen = [index for index, change in enumerate(changes) if change.flip == pattern]
        axes = [axis - 3 for axis in range(3) if pattern[axis]]
        for tensor in (batch.volume, batch.labels, batch.padding):
            if tensor is not None:
                tensor[chosen] = tensor[chosen].flip(axes)


def _quarter_turn(batch: Batch, changes: Sequence[Change]) -> None:
    """Turns by right angles in the plane of y and x, where views are square there."""
    if batch.volume.shape[-1] != batch.volume.shape[-2]:
        return
    for index, change in enumerate(changes):
        if change.quarters:
            for tensor in (batch.volume, batch.labels, batch.padding):
                if tensor is not None:
                    tensor[index] = tensor[index].rot90(change.quarters, (-2, -1))


def _turn(batch: Batch, changes: Sequence[Change], spacing_mm: Sequence[Triple]) -> None:
    """Rotation, zoom and deformation of the views that have them, through one resampling."""
    import torch
    from torch.nn import functional

    size = batch.volume.shape[-3:]
    wanted = [change.flat if size[0] == 1 else change.matrix for change in changes]
    matrices = {
        index: np.eye(3) if matrix is None else matrix
        for index, (change, matrix) in enumerate(zip(changes, wanted, strict=True))
        if matrix is not None or change.elastic is not None
    }
    if not matrices:
        return
    chosen = list(matrices)
    rows = []
    for index, matrix in matrices.items():
        half = np.asarray(size) * np.asarray(spacing_mm[index]) / 2  # grid_sample's units: half the extent
        scaled = matrix * half[None, :] / half[:, None]
        rows.append(np.column_stack([scaled[::-1, ::-1], np.zeros(3)]))  # grid_sample orders (x, y, z)
    theta = torch.from_numpy(np.stack(rows).astype(np.float32)).to(batch.volume.device)
    grid = functional.affine_grid(theta, [len(chosen), 1, *size], align_corners=False)
    for place, index in enumerate(chosen):
        grid[place] += _displacement(changes[index], grid[place])
    sample = functional.grid_sample
    batch.volume[chosen] = sample(batch.volume[chosen], grid, padding_mode="border", align_corners=False)
    if batch.labels is not None:
        marks = (batch.labels[chosen] + 1).float()[:, None]  # 0 marks what comes from outside
        marks = sample(marks, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0].long() - 1
        batch.labels[chosen] = torch.where(marks < 0, IGNORED, marks)
    inside = (
        torch.ones_like(batch.volume[chosen][:, :1])
        if batch.padding is None
        else (~batch.padding[chosen]).float()[:, None]
    )
    empty = sample(inside, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0] < 0.5
    if batch.padding is None:
        batch.padding = torch.zeros(batch.volume.shape[0], *size, dtype=torch.bool, device=batch.volume.device)
    batch.padding[chosen] = empty


def _displacement(change: Change, grid: Tensor) -> Tensor | float:
    """A smooth random field like `grid` [D, H, W, 3], in the units of `grid_sample`; 0 without deformation."""
    import torch
    from torch.nn import functional

    if change.elastic is None:
        return 0.0
    strength, distance = change.elastic
    size = grid.shape[:3]
    controls = [max(2, round(n / distance)) for n in size]
    noise = torch.Generator().manual_seed(change.seed ^ 1)
    field = torch.randn(1, 3, *controls, generator=noise).to(grid)
    fine = functional.interpolate(field, size=tuple(size), mode="trilinear", align_corners=True)[0]
    voxels = torch.tensor([2 / n if n > 1 else 0.0 for n in reversed(size)]).to(grid)  # one voxel along (x, y, z)
    return fine.movedim(0, -1) * (strength * voxels)


def _coarsened(view: Tensor, zoom: float) -> Tensor:
    """`view` [C, D, H, W] sampled at `zoom` of its resolution and interpolated back."""
    from torch.nn import functional

    size = [max(1, round(n * zoom)) for n in view.shape[1:]]
    coarse = functional.interpolate(view[None], size=size, mode="trilinear", align_corners=False)
    return functional.interpolate(coarse, size=view.shape[1:], mode="trilinear", align_corners=False)[0]


def _normal(view: Tensor, seed: int) -> Tensor:
    import torch

    noise = torch.Generator(view.device).manual_seed(seed)
    return torch.randn(view.shape, generator=noise, device=view.device, dtype=view.dtype)


def _smoothed(view: Tensor, sigma: Triple) -> Tensor:
    """Gaussian smoothing of [C, D, H, W] with a sigma per axis, borders repeated."""
    import torch
    from torch.nn import functional

    result = view[:, None]
    for axis, width in enumerate(sigma):
        radius = min(math.ceil(3 * width), view.shape[axis + 1] - 1)
        offsets = torch.arange(-radius, radius + 1, device=view.device, dtype=view.dtype)
        kernel = torch.exp(-0.5 * (offsets / width) ** 2)
        shape = [1, 1, 1, 1, 1]
        shape[axis + 2] = -1
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        result = functional.conv3d(functional.pad(result, pad, mode="replicate"), (kernel / kernel.sum()).view(shape))
    return result[:, 0]


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """3 x 3 rotation about z, then y, then x (radians), for (z, y, x) coordinates."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result
