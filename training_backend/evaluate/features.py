"""Token maps of whole scans: every patch of a volume seen by the encoder, laid on the scan in millimetres.

Encoders trained on whole volumes see the volume at once. Encoders trained on crops see overlapping windows of the
size they were trained with, cut on patch borders, so that windows contribute to the same tokens; a token seen by
several windows is their mean, weighted towards the windows in whose middle it lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training_backend.data.volume import Geometry, Shape
from training_backend.errors import ConfigError, ResourceError
from training_backend.tasks.base import Cancelled, Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from training_backend.data.prepare import InputProfile, Prepared
    from training_backend.methods.base import Encoder

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class TokenTiles:
    """How a volume is cut into windows; all numbers count tokens along (d, h, w).

    Attributes:
        patch: voxels of a token.
        grid: tokens that cover the volume.
        window: tokens that the encoder sees at once.
        starts: first token of each window.
    """

    patch: Shape
    grid: Shape
    window: Shape
    starts: tuple[Shape, ...]

    @property
    def padded(self) -> Shape:
        """Voxels along (z, y, x) that the windows cover; the volume is padded at its end to these."""
        z, y, x = (n * p for n, p in zip(_extent(self), self.patch, strict=True))
        return (z, y, x)

    def bytes(self, channels: int) -> int:
        """Memory needed for a half-precision map of so many channels, and for the slab that is summed on the way."""
        extent = _extent(self)
        return math.prod(self.grid) * channels * 2 + self.window[0] * extent[1] * extent[2] * (channels + 1) * 4


@dataclass(frozen=True)
class TokenMap:
    """Values at the tokens of a scan.

    Attributes:
        values: [d, h, w, E] for features, [d, h, w] for one number per token.
        geometry: grid whose voxels are the tokens; it may reach beyond the scan where that was padded.
    """

    values: npt.NDArray[Any]
    geometry: Geometry


def tiling(shape: Shape, patch: Shape, profile: InputProfile, overlap: float = 0.5) -> TokenTiles:
    """Windows with which an encoder sees a volume of `shape` (z, y, x) voxels.

    Args:
        shape: voxels of the prepared volume.
        patch: voxels of a token.
        profile: tells whether the encoder was trained on crops, and of what size.
        overlap: share of a window that the next one sees again.
    """
    grid = _ceil(shape, patch)
    window = grid if profile.view == "volume" else _ceil(profile.size, patch)
    axes = []
    for total, width in zip(grid, window, strict=True):
        last = max(total - width, 0)
        step = max(1, round(width * (1 - overlap)))
        axes.append([*range(0, last, step), last])
    return TokenTiles(patch, grid, window, tuple(itertools.product(*axes)))


def token_features(
    encoder: Encoder,
    prepared: Prepared,
    profile: InputProfile,
    *,
    normalised: bool = True,
    overlap: float = 0.5,
    level: int = 0,
    progress: Progress | None = None,
) -> TokenMap:
    """Tokens of the last block at every patch of a prepared scan, [d, h, w, E] float16.

    Args:
        encoder: network on the device where it shall compute.
        prepared: the scan as the encoder was trained to see it.
        profile: how it was trained to see it.
        normalised: apply the encoder's final norm (comparable lengths); else the tokens as the last block leaves them.
        overlap: of the windows of a crop encoder.
        level: map of a hierarchical encoder in place of its tokens, counted from 1, the finest; 0 takes the tokens.
        progress: told the share done; answers whether to go on.

    Raises:
        ConfigError: the encoder has no such map.
        ResourceError: before anything is computed, if the memory cannot hold the result.
        Cancelled: when `progress` answered False.
    """
    tiles, width = map_tiles(encoder, _spatial(prepared), profile, level, overlap)
    check_memory(tiles.bytes(width))
    norm: nn.Module | None = getattr(encoder, "norm", None)

    def features(view: Tensor) -> Tensor:
        out = encoder.encode(view)
        if level:
            return out.pyramid[level - 1][0]
        tokens = norm(out.tokens) if normalised and norm is not None else out.tokens
        grid: Tensor = tokens.transpose(1, 2).unflatten(2, out.grid)[0]
        return grid

    values = over_tiles(features, prepared.array, tiles, encoder, progress, np.float16)
    return TokenMap(values, token_geometry(prepared.geometry, tiles))


def map_tiles(
    encoder: Encoder, shape: Shape, profile: InputProfile, level: int = 0, overlap: float = 0.5
) -> tuple[TokenTiles, int]:
    """Windows for the tokens of an encoder, or for a map of its pyramid, and the channels of a token or place.

    Windows of all maps are the same, so that a fine map sees what a coarse one sees.

    Args:
        encoder: the network.
        shape: voxels (z, y, x) of the prepared volume.
        profile: how the encoder was trained to see it.
        level: as of `token_features`.
        overlap: of the windows of a crop encoder.
    """
    if not level:
        return tiling(shape, encoder.patch_size, profile, overlap), encoder.width
    channels, stride = check_level(encoder, level)
    coarsest = math.lcm(*(step for _, step in pyramid_of(encoder)), *encoder.patch_size)
    blocks, fine = tiling(shape, (coarsest,) * 3, profile, overlap), coarsest // stride
    starts = tuple(_times(start, fine) for start in blocks.starts)
    return TokenTiles((stride,) * 3, _times(blocks.grid, fine), _times(blocks.window, fine), starts), channels


def check_level(encoder: Encoder, level: int) -> tuple[int, int]:
    """Channels and stride of a map of the encoder's pyramid, counted from 1; a `ConfigError` where it has none such."""
    maps = pyramid_of(encoder)
    if 1 <= level <= len(maps):
        return maps[level - 1]
    if not maps:
        raise ConfigError("This model has features of one scale only.", "Choose its tokens, level 0.")
    raise ConfigError(f"The model has {len(maps)} maps, so map {level} does not exist.", "Map 1 is the finest.")


def pyramid_of(encoder: Encoder) -> list[tuple[int, int]]:
    """Channels, and voxels along each axis of a place, of each map of an encoder; empty for tokens of one size."""
    from training_backend.nn.unetr import pyramid_levels

    return [(channels, round(stride)) for channels, stride in pyramid_levels(encoder)]


def class_attention(
    encoder: Encoder,
    prepared: Prepared,
    profile: InputProfile,
    *,
    block: int = -1,
    head: int | None = None,
    overlap: float = 0.5,
    progress: Progress | None = None,
) -> tuple[TokenMap, int]:
    """Attention of the class token to every patch, [d, h, w] float32, as a multiple of the uniform attention.

    Answers the map and the number of heads that the block has.

    Args:
        encoder: network on the device where it shall compute.
        prepared: the scan as the encoder was trained to see it.
        profile: how it was trained to see it.
        block: index of the block; negative counts from the last.
        head: one head, or None for the mean of all.
        overlap: of the windows of a crop encoder.
        progress: told the share done; answers whether to go on.
    """
    if not -encoder.depth <= block < encoder.depth:
        raise ConfigError(f"The model has {encoder.depth} blocks, so block {block + 1} does not exist.")
    index = range(encoder.depth)[block]
    heads: set[int] = set()
    tiles = tiling(_spatial(prepared), encoder.patch_size, profile, overlap)

    def attention(view: Tensor) -> Tensor:
        weights = encoder.attention(view, index)[0].float()
        heads.add(len(weights))
        if head is not None and not 0 <= head < len(weights):
            raise ConfigError(f"The model has {len(weights)} heads, so head {head + 1} does not exist.")
        weights = weights / weights.sum(dim=(1, 2, 3), keepdim=True) * weights[0].numel()
        return weights.mean(dim=0, keepdim=True) if head is None else weights[head : head + 1]

    values = over_tiles(attention, prepared.array, tiles, encoder, progress)
    return TokenMap(values[..., 0], token_geometry(prepared.geometry, tiles)), heads.pop()


def body_tokens(prepared: Prepared, tiles: TokenTiles) -> npt.NDArray[np.bool_]:
    """Tokens of which at least half lies inside the body, [d, h, w]; tells organs from air."""
    from training_backend.data.body import find_body

    body = find_body(prepared.array[0], prepared.geometry.spacing_mm)
    near = [np.arange(n) // step for n, step in zip(prepared.array.shape[1:], body.stride, strict=True)]
    inside = _padded(body.mask[np.ix_(*near)][None], tiles.padded, fill=0)[0]
    (d, h, w), (pz, py, px) = _ceil(tiles.padded, tiles.patch), tiles.patch
    share = inside.reshape(d, pz, h, py, w, px).mean(axis=(1, 3, 5))
    return np.asarray(share[tuple(slice(n) for n in tiles.grid)] >= 0.5)


def over_tiles(
    function: Callable[[Tensor], Tensor],
    array: npt.NDArray[np.float32],
    tiles: TokenTiles,
    encoder: Encoder,
    progress: Progress | None = None,
    kind: type[np.floating[Any]] = np.float32,
) -> npt.NDArray[Any]:
    """Weighted mean over windows of what `function` gives for each.

    Windows are visited from the first slice to the last. Only a slab as thick as one of them is summed in float32; what
    no later window reaches leaves it in the type wanted.

    Args:
        function: [1, C, D, H, W] of one window on the encoder's device to [E, d, h, w].
        array: [C, D, H, W].
        tiles: the windows.
        encoder: tells the device.
        progress: told the share done; answers whether to go on.
        kind: type of the result; numbers beyond the range of half precision become its largest.

    Returns:
        [d, h, w, E] over `tiles.grid`.
    """
    import torch

    device = next(encoder.parameters()).device  # type: ignore[attr-defined]
    weight, fill = _window_weight(tiles.window)[..., None], float(array.min())
    ends = [*(start[0] for start in tiles.starts[1:]), _extent(tiles)[0]]
    slab: _Slab | None = None
    result: npt.NDArray[Any] | None = None
    for done, (start, end) in enumerate(zip(tiles.starts, ends, strict=True)):
        if progress is not None and not progress(done / len(tiles.starts)):
            raise Cancelled
        view = _window(array, tiles, start, fill)
        with torch.inference_mode():
            values = function(torch.from_numpy(view)[None].to(device)).float().permute(1, 2, 3, 0).cpu().numpy()
        if slab is None or result is None:
            slab, result = _Slab(tiles, values.shape[-1]), np.empty((*tiles.grid, values.shape[-1]), kind)
        slab.add(values * weight, weight, start)
        if end > start[0]:
            slab.finish(end - start[0], result[start[0] : end])
    assert result is not None  # there is at least one window
    return result


class _Slab:
    """Weighted sums of the tokens that windows still reach, [window, h, w, E]."""

    def __init__(self, tiles: TokenTiles, channels: int) -> None:
        shape = (tiles.window[0], *_extent(tiles)[1:])
        self._window = tiles.window
        self._sums, self._weights = np.zeros((*shape, channels), np.float32), np.zeros((*shape, 1), np.float32)

    def add(self, values: npt.NDArray[np.float32], weight: npt.NDArray[np.float32], start: Shape) -> None:
        """Add a window that begins with the first slice of the slab."""
        box = (slice(None), *(slice(s, s + n) for s, n in zip(start[1:], self._window[1:], strict=True)))
        self._sums[box] += values
        self._weights[box] += weight

    def finish(self, count: int, target: npt.NDArray[Any]) -> None:
        """Put the means of the first `count` slices into `target`, as far as it reaches; the others move up."""
        done = self._sums[:count]
        done /= self._weights[:count]
        if target.dtype == np.float16:
            np.clip(done, -FLOAT16_MAX, FLOAT16_MAX, out=done)
        target[:] = done[tuple(slice(n) for n in target.shape[:3])]
        for array in (self._sums, self._weights):
            array[: len(array) - count] = array[count:]
            array[len(array) - count :] = 0


def token_geometry(volume: Geometry, tiles: TokenTiles) -> Geometry:
    """Grid whose voxels are the tokens of a volume, padding at the end included."""
    z, y, x = (n * p for n, p in zip(tiles.grid, tiles.patch, strict=True))
    dz, dy, dx = (s * p for s, p in zip(volume.spacing_mm, tiles.patch, strict=True))
    return volume.cropped((0, 0, 0), (z, y, x)).resampled((dz, dy, dx), tiles.grid)


def check_memory(needed: int) -> None:
    """Refuse work whose result would not fit into the free memory."""
    import psutil

    free = psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise ResourceError(
            f"The features of this scan need {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB of memory are free.",
            "Crop or downsample the scan, or use a model with larger patches.",
        )


def _window(array: npt.NDArray[np.float32], tiles: TokenTiles, start: Shape, fill: float) -> npt.NDArray[np.float32]:
    """Voxels [C, D, H, W] of the window that begins with token `start`, with `fill` beyond the end of the volume."""
    box = tuple(slice(s * p, (s + n) * p) for s, n, p in zip(start, tiles.window, tiles.patch, strict=True))
    size = tuple(n * p for n, p in zip(tiles.window, tiles.patch, strict=True))
    return np.ascontiguousarray(_padded(array[(slice(None), *box)], (size[0], size[1], size[2]), fill))


def _extent(tiles: TokenTiles) -> Shape:
    """Tokens along each axis that the windows cover."""
    d, h, w = (max(g, w) for g, w in zip(tiles.grid, tiles.window, strict=True))
    return (d, h, w)


def _spatial(prepared: Prepared) -> Shape:
    _, depth, height, width = prepared.array.shape
    return (depth, height, width)


def _ceil(shape: Shape, patch: Shape) -> Shape:
    d, h, w = (-(-n // p) for n, p in zip(shape, patch, strict=True))
    return (d, h, w)


def _times(numbers: Shape, factor: int) -> Shape:
    d, h, w = (n * factor for n in numbers)
    return (d, h, w)


def _padded(array: npt.NDArray[Any], shape: Shape, fill: float) -> npt.NDArray[Any]:
    """`array` [C, D, H, W] with `fill` appended at the end of each axis up to `shape`."""
    missing = [(0, 0), *((0, wanted - found) for wanted, found in zip(shape, array.shape[1:], strict=True))]
    if not any(after for _, after in missing):
        return array
    return np.pad(array, missing, constant_values=fill)


def _window_weight(window: Shape) -> npt.NDArray[np.float32]:
    """Weight of each token of a window, largest in the middle, never 0."""
    ramps = [np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32) for n in window]
    weight: npt.NDArray[np.float32] = ramps[0][:, None, None] * ramps[1][:, None] * ramps[2]
    return weight
