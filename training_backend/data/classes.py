"""Names and colours of label values, told apart with and without red-green or blue-yellow vision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from training_backend.data.manifest import ClassEntry

Floats = npt.NDArray[np.float64]

OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""The palette of Okabe and Ito without its black, which is the background of scans."""

_LONGEST = 255
# Linear RGB as seen without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1).
_VISIONS = (
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
)


def class_table(
    values: Iterable[int], names: Mapping[int, str] | Mapping[str, str] | Sequence[str] | None = None
) -> tuple[ClassEntry, ...]:
    """One row per label value, background (0) left out, ordered by value.

    Args:
        values: label values found or expected.
        names: by value (keys may be text, as in JSON), or in the order of all values from 0. Values without a name are
            called "class 7"; names of values not in `values` are added, so that one table fits all cases.

    Returns:
        Entries whose colour depends on the value alone, so a class looks the same in every case.
    """
    known = dict(enumerate(names)) if isinstance(names, Sequence) else {int(k): v for k, v in (names or {}).items()}
    wanted = sorted(({int(value) for value in values} | set(known)) - {0})
    return tuple(ClassEntry(index=i, name=known.get(i) or f"class {i}", colour=colour_of(i)) for i in wanted)


def colour_of(value: int) -> str:
    """Colour of a label value as #rrggbb; values 255 apart share one."""
    return palette()[(value - 1) % _LONGEST]


@cache
def palette(count: int = _LONGEST) -> tuple[str, ...]:
    """`count` colours: Okabe and Ito's, then always the one farthest from all before it for the worst-off viewer.

    A shorter palette is the beginning of a longer one.
    """
    levels = np.linspace(0.0, 1.0, 12)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    seen = _seen(grid)
    light = seen[0][:, 0]
    usable = (light > 0.5) & (light < 0.95)  # neither lost in the black of a scan nor in its white
    grid, seen = grid[usable], seen[:, usable]
    chosen = list(OKABE_ITO[:count])
    nearest = np.full(len(grid), np.inf)
    for colour in chosen:
        nearest = np.minimum(nearest, _distance(seen, _seen(_rgb(colour)[None])))
    while len(chosen) < count:
        best = int(nearest.argmax())
        chosen.append("#" + "".join(f"{round(255 * channel):02x}" for channel in grid[best]))
        nearest = np.minimum(nearest, _distance(seen, seen[:, best : best + 1]))
    return tuple(chosen)


def _rgb(colour: str) -> Floats:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _seen(rgb: Floats) -> Floats:
    """(vision, colour, 3) OKLab coordinates of (colour, 3) sRGB values."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.stack([_oklab(np.clip(linear @ vision.T, 0, 1)) for vision in _VISIONS])


def _oklab(linear: Floats) -> Floats:
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    result: Floats = np.cbrt(linear @ np.array(to_cones).T) @ np.array(to_lab).T
    return result


def _distance(many: Floats, one: Floats) -> Floats:
    """Smallest distance over all visions of each colour of `many` (vision, n, 3) to `one` (vision, 1, 3)."""
    result: Floats = np.linalg.norm(many - one, axis=-1).min(axis=0)
    return result
