"""Views of a fixed size of pictures: a random part in training, all of it otherwise, resized smoothly within slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from training_backend.data.store import StoredCase
from training_backend.data.views import Key, View, generator
from training_backend.data.volume import Array, Shape
from training_backend.errors import ConfigError, DataError

RATIO = (3 / 4, 4 / 3)
"""Bounds of width by height of a random part."""
_PART = 3  # sets these numbers apart from those of crops and augmentation
_TRIES = 10
EIGHT_BITS = 255
"""Largest number of the pictures that are resized as picture programs do."""


class Part(NamedTuple):
    """A rectangle of pixels: first row and column, rows and columns."""

    y: int
    x: int
    height: int
    width: int


def random_part(height: int, width: int, area: tuple[float, float], key: Key) -> Part:
    """A rectangle with a share of the picture within `area` and a shape within `RATIO`, drawn from `key`.

    As the published pre-training draws it: the shape on a logarithmic scale; where nothing fits after ten draws, the
    largest allowed rectangle in the middle.
    """
    rng = generator(*key, _PART)
    for _ in range(_TRIES):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            y, x = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            return Part(y, x, rows, columns)
    rows = min(height, max(1, round(width / RATIO[0])))
    columns = min(width, max(1, round(height * RATIO[1])))
    return Part((height - rows) // 2, (width - columns) // 2, rows, columns)


def resized_view(
    stored: StoredCase,
    size: Shape,
    key: Key | None,
    *,
    area: tuple[float, float],
    channels: Sequence[int] = (0,),
    labels: bool = False,
) -> View:
    """A part of each slice, the same one in all contrasts and labels, as `size` voxels (z, y, x).

    Args:
        stored: open case, with as many slices as `size` has.
        size: voxels along (z, y, x).
        key: decides the part; None takes all of it.
        area: bounds of the share of the picture that a part has; from 1 on it is all of it, whatever its shape.
        channels: contrasts to read.
        labels: read the label map too; its classes are never mixed.
    """
    depth, height, width = stored.shape
    check_slices(depth, size, stored.id)
    part = Part(0, 0, height, width) if key is None or area[0] == 1 else random_part(height, width, area, key)
    start, box = (0, part.y, part.x), (depth, part.height, part.width)
    image = stored.read_image(start, box, channels)
    eight = [stored.statistics[channel].largest == EIGHT_BITS for channel in channels]
    planes = [resize(plane, size, eight_bits=bits) for plane, bits in zip(image, eight, strict=True)]
    label = resize_labels(stored.read_label(start, box), size) if labels else None
    dz, dy, dx = stored.geometry.spacing_mm
    spacing = (dz, dy * part.height / size[1], dx * part.width / size[2])
    return View(np.stack(planes), label, None, spacing)


def resize(array: Array, size: Shape, *, eight_bits: bool = False) -> Array:
    """Slices [D, H, W] as [D, h, w] by cubic interpolation that averages where pixels become fewer, float32.

    Args:
        array: stored values.
        size: (D, h, w).
        eight_bits: round to 0 ... 255, as picture programs do, and keep the type.
    """
    kind = np.uint8 if eight_bits else np.float32
    slices = [_slice(plane.astype(kind), size, Image.Resampling.BICUBIC) for plane in array]
    result: Array = np.stack(slices)
    return result.astype(array.dtype) if eight_bits else result


def resize_labels(array: Array, size: Shape) -> Array:
    """Label maps [D, H, W] as [D, h, w] by the nearest pixel."""
    result: Array = np.stack([_slice(plane, size, Image.Resampling.NEAREST) for plane in array])
    return result


def check_slices(depth: int, size: Shape, name: str) -> None:
    """Refuse scans with more or fewer slices than the view."""
    if depth != size[0]:
        raise DataError(
            f"{name} has {depth} slices, resized views of {size[0]} are asked for; only rows and columns are resized.",
            "Set data.view to volume or crop for scans.",
        )


def check_area(area: tuple[float, float]) -> None:
    """Refuse bounds that no part of a picture can have."""
    if not 0 < area[0] <= area[1] <= 1:
        raise ConfigError(
            f"data.area is {area[0]:g} to {area[1]:g}; a share above 0 and up to 1 is expected, smaller one first."
        )


def _slice(plane: Array, size: Shape, how: Image.Resampling) -> Array:
    return np.asarray(Image.fromarray(plane).resize((size[2], size[1]), how))
