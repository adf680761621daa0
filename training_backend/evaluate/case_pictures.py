"""Small pictures of scored cases: one slice of the scan with the truth, and with the mask of each run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.data.dataset import Dataset
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import Med3dError
from training_backend.evaluate.case_scores import label_entries, labelled_as, read_pair

SIDE = 240
"""Pixels of a picture along its longer side."""
STRENGTH = 0.45
"""How much of a mask's colour covers the scan."""
SHOWN = 3
"""Cases with pictures."""
TRUTH = "truth"


@dataclass(frozen=True)
class CasePicture:
    """One slice of one case, as PNG files in memory: the truth first, then each run by its name."""

    case: str
    slice: int
    pictures: Mapping[str, bytes]


def typical_cases(scores: Sequence[Mapping[str, float]], *, higher: bool, count: int = SHOWN) -> list[str]:
    """Cases that all runs scored, evenly spread from the worst mean over the runs to the best.

    Args:
        scores: value by case, of each run.
        higher: whether more is better.
        count: how many at most.
    """
    shared = set.intersection(*(set(values) for values in scores)) if scores else set()
    sign = 1 if higher else -1
    ordered = sorted(shared, key=lambda case: (sign * sum(values[case] for values in scores), case))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(place)] for place in np.linspace(0, len(ordered) - 1, count)]


def case_picture(case: str, runs: Mapping[str, tuple[Path, Path]]) -> CasePicture:
    """The slice in the middle of the true structures of a case, once for the truth and once for each run.

    Args:
        case: id in the lists of all runs.
        runs: run directory and dataset folder, by name of the run.

    Raises:
        DataError: a prediction or the truth is gone.
    """
    masks: dict[str, Volume] = {}
    scan: Volume | None = None
    colours: dict[int, str] = {}
    for name, (run, folder) in runs.items():
        dataset = Dataset.open(folder)
        entry = next(entry for entry in label_entries(run) if entry["case"] == case)
        prediction, truth = read_pair(run, dataset, entry)
        if not masks:
            scan = _scan(dataset, entry)
            colours = {row.index: row.colour for row in dataset.info.classes}
            masks[TRUTH] = prediction.with_array(np.zeros_like(prediction.array)) if truth is None else truth
        masks[name] = prediction
    geometry = masks[TRUTH].geometry if scan is None else scan.geometry
    arrays = {name: _on(mask, geometry) for name, mask in masks.items()}
    number = _middle(arrays[TRUTH] if arrays[TRUTH].any() else np.maximum.reduce(list(arrays.values())))
    plane = np.zeros(geometry.shape[1:], np.uint8) if scan is None else _grey(scan.array[number])
    pictures = {name: _png(plane, mask[number], colours, geometry) for name, mask in arrays.items()}
    return CasePicture(case, number, pictures)


def _scan(dataset: Dataset, entry: Mapping[str, Any]) -> Volume | None:
    """The first contrast of a case, or None where its file is gone."""
    from training_backend.data.read import read_volume, rescaled

    record = labelled_as(dataset, entry)
    if record is None or not record.images:
        return None
    image = record.images[0]
    try:
        return rescaled(read_volume(dataset.source(image), key=image.key), image.rescale)
    except Med3dError:
        return None


def _on(mask: Volume, geometry: Geometry) -> npt.NDArray[Any]:
    from training_backend.data.resample import resample

    if mask.geometry.same_grid(geometry):
        return mask.array
    return resample(mask.array, mask.geometry, geometry, nearest=True)


def _middle(mask: npt.NDArray[Any]) -> int:
    """Index of the slice in the middle of what is marked."""
    filled = np.flatnonzero(mask.any(axis=(1, 2)))
    return int(filled[0] + filled[-1]) // 2 if len(filled) else mask.shape[0] // 2


def _grey(plane: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    low, high = np.percentile(plane, (0.5, 99.5))
    scaled = (plane.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


def _png(plane: npt.NDArray[np.uint8], mask: npt.NDArray[Any], colours: Mapping[int, str], geometry: Geometry) -> bytes:
    from PIL import Image

    from training_backend.data.classes import colour_of

    drawn = np.repeat(plane[..., None], 3, axis=-1).astype(np.float32)
    for value in np.unique(mask):
        if 0 < value < 255:  # 255 is unlabelled
            text = colours.get(int(value)) or colour_of(int(value))
            ink = np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
            inside = mask == value
            drawn[inside] = (1 - STRENGTH) * drawn[inside] + STRENGTH * ink
    _, dy, dx = geometry.spacing_mm
    height, width = plane.shape[0] * dy, plane.shape[1] * dx
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(np.round(drawn).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
