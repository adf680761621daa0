"""From a stroke to the filled region, and to the whole scan, through the model process, for encoders of two kinds.

Strokes are drawn from the label map of a generated chest CT, a few voxels of three classes in one slice. Each further
stroke adds voxels in the slice after, as a person would, and the box around the brush is filled anew.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training_backend.bench._explore import MODELS, Clocks, generated_scan, load, model_process, untrained

if TYPE_CHECKING:
    from training_backend.data.volume import Volume
    from training_backend.jobs.client import ServeClient

CLASSES = [{"index": k, "name": name, "colour": "#009e73"} for k, name in enumerate(("background", "lungs", "heart"))]


def main(
    size: tuple[int, int, int] = (192, 192, 192),
    region: int = 128,
    strokes: int = 20,
    voxels: int = 40,
    models: tuple[str, ...] = ("vit", "swin"),
    output: Path | None = None,
) -> dict[str, Any]:
    """Seconds of the first stroke, of those after it in the same region, in a new region, and of the whole scan.

    Args:
        size: voxels of the scan.
        region: voxels along each axis of the box that is filled.
        strokes: how many follow the first.
        voxels: painted per class by each.
        models: of "vit" (384 wide, patches of 8³) and "swin" (its map at 4³ voxels).
        output: folder for models and features; a temporary one where it is missing.
    """
    scan, labels = generated_scan(size)
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(output or temporary).resolve()
        for name in models:
            source = untrained(folder, name)
            with model_process(folder) as client:
                answer[name] = _painted(client, source, MODELS[name][3], scan, labels, region, strokes, voxels)
    return answer


def _painted(
    client: ServeClient, source: str, level: int, scan: Volume, labels: Volume, region: int, strokes: int, voxels: int
) -> dict[str, Any]:
    client.request("load", source=source)
    clocks = {name: Clocks(client.pid or 0) for name in ("features", "first", "stroke", "new_region", "whole")}
    opened = clocks["features"].time(
        lambda: client.request("strokes_open", source=source, volumes=[scan], level=level, overlap=0.0)
    )
    middle = scan.array.shape[0] // 2
    points: list[np.ndarray[Any, Any]] = []
    values: list[np.ndarray[Any, Any]] = []

    def fill(box: int | None, near: list[int]) -> dict[str, Any]:
        size = None if box is None else [box] * 3
        given: dict[str, Any] = {"points": np.concatenate(points), "values": np.concatenate(values), "classes": CLASSES}
        return client.request("strokes_fill", key=opened["key"], size=size, near=near, **given)

    for stroke in range(strokes + 1):
        places, kinds = scripted(labels.array, (0, 1, 2), middle - strokes // 2 + stroke, voxels, stroke)
        points.append(places)
        values.append(kinds)
        near = [int(n) for n in places[-1]]
        name = "stroke" if stroke else "first"
        clocks[name].time(lambda near=near: fill(region, near))  # type: ignore[misc]
    for corner in ([0, 0, 0], [n - 1 for n in scan.array.shape], [0, 0, scan.array.shape[2] - 1]):
        clocks["new_region"].time(lambda corner=corner: fill(region, corner))  # type: ignore[misc]
    for _ in range(2):
        found = clocks["whole"].time(lambda: fill(None, [0, 0, 0]))
    return {
        "load": load(),
        "painted": found["painted"],
        **{name: one.told() for name, one in clocks.items()},
    }


def scripted(
    labels: np.ndarray[Any, Any], classes: tuple[int, ...], z: int, voxels: int, seed: int, background: int = 1
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A line of each class in slice `z` of a label map, as a brush of three voxels leaves it within the class.

    A class that the slice lacks is left out; classes beyond those named count as background.

    Args:
        labels: (z, y, x).
        classes: 0 and the structures.
        z: the slice.
        voxels: length of a line.
        seed: decides where it runs.
        background: lines of background, which looks less alike than a structure does.

    Returns:
        Voxels [N, 3], and their index in `classes` [N].
    """
    rng = np.random.default_rng([seed, z])
    points, values = [], []
    plane = labels[z]
    for index in (*(0 for _ in range(background)), *range(1, len(classes))):
        value = classes[index]
        inside = np.isin(plane, classes[1:], invert=True) if value == 0 else plane == value
        found = np.argwhere(inside)
        if not len(found):
            continue
        start, end = found[rng.integers(len(found), size=2)].astype(float)
        reach = min(1.0, voxels / max(float(np.abs(end - start).max()), 1.0))
        line = np.rint(np.linspace(start, start + reach * (end - start), voxels)).astype(np.int64)
        wide = np.unique([point + step for point in line for step in np.ndindex(3, 3)], axis=0) - 1
        wide = wide[((wide >= 0) & (wide < plane.shape)).all(axis=1)]
        wide = wide[inside[tuple(wide.T)]]
        points.append(np.insert(wide, 0, z, axis=1))
        values.append(np.full(len(wide), index))
    return np.concatenate(points), np.concatenate(values)
