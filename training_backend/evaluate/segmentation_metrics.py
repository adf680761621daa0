"""Dice, HD95, normalised surface Dice and volumes of label maps, per class and case, with spacing.

Rules for classes that are missing, so that no mean hides a failure or rewards an empty case:

====================  ======  ===============================  ======
in truth, prediction  Dice    HD95                             NSD
====================  ======  ===============================  ======
neither               NaN     NaN                              NaN
only one of them      0       diagonal of the volume in mm     0
both                  value   value                            value
====================  ======  ===============================  ======

NaN means that the case says nothing about the class; means leave it out and count the others. Voxels labelled 255 in
the truth are unlabelled: they belong to no class in either map.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.errors import GeometryError

Labels = npt.NDArray[Any]
Triple = tuple[float, float, float]

UNLABELLED = 255
METRICS = ("dice", "hd95_mm", "nsd", "volume_ml", "truth_ml")


@dataclass(frozen=True)
class ClassScore:
    """One class of one case.

    Attributes:
        case_id: the case.
        class_index: label value.
        class_name: name in the class table.
        dice: overlap, 0 to 1.
        hd95_mm: larger of the two directed 95th percentiles of the distances between boundary voxels.
        nsd: share of boundary voxels of both maps that lie within the tolerance of the other boundary, 0 to 1.
        volume_ml: predicted volume.
        truth_ml: true volume.
    """

    case_id: str
    class_index: int
    class_name: str
    dice: float
    hd95_mm: float
    nsd: float
    volume_ml: float
    truth_ml: float


@dataclass(frozen=True)
class Mean:
    """Mean over the cases that count, with the bounds of its 95 % bootstrap interval, and how many there are."""

    mean: float
    low: float
    high: float
    cases: int

    def __str__(self) -> str:
        """Mean and interval as text."""
        return "–" if self.cases == 0 else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def dice_per_class(prediction: Labels, truth: Labels, classes: Iterable[int]) -> dict[int, float]:
    """Dice of each class index; NaN where the class is in neither map."""
    prediction, truth = _labelled(prediction, truth)
    return {index: _dice(prediction == index, truth == index) for index in classes}


def dice_per_region(prediction: Labels, truth: Labels, regions: Mapping[str, Collection[int]]) -> dict[str, float]:
    """Dice of each region, the union of the classes of the given indices, by name; NaN where it is in neither map."""
    return {
        name: dice_per_class(_union(prediction, values), _union(truth, values), [1])[1]
        for name, values in regions.items()
    }


def score_case(
    prediction: Labels,
    truth: Labels,
    spacing_mm: Triple,
    classes: Mapping[int, str],
    *,
    tolerance_mm: float = 2.0,
    case_id: str = "",
) -> list[ClassScore]:
    """All metrics of every class but background (index 0).

    Args:
        prediction: label values along (z, y, x).
        truth: label values on the same grid; 255 where unlabelled.
        spacing_mm: millimetres along (z, y, x).
        classes: name by label value.
        tolerance_mm: distance up to which a boundary counts as right in the surface Dice.
        case_id: put into the scores.
    """
    prediction, truth = _labelled(prediction, truth)
    voxel_ml = math.prod(spacing_mm) / 1000
    diagonal = math.hypot(*(n * mm for n, mm in zip(truth.shape, spacing_mm, strict=True)))
    scores = []
    for index, name in classes.items():
        if index == 0:
            continue
        found, real = prediction == index, truth == index
        hd95, nsd = _surface(found, real, spacing_mm, tolerance_mm, diagonal)
        volumes = (float(found.sum()) * voxel_ml, float(real.sum()) * voxel_ml)
        scores.append(ClassScore(case_id, index, name, _dice(found, real), hd95, nsd, *volumes))
    return scores


def score_regions(
    prediction: Labels,
    truth: Labels,
    spacing_mm: Triple,
    regions: Mapping[str, Collection[int]],
    *,
    tolerance_mm: float = 2.0,
    case_id: str = "",
) -> list[ClassScore]:
    """All metrics of regions, as `score_case` gives those of classes; their class index is 1."""
    return [
        score
        for name, values in regions.items()
        for score in score_case(
            _union(prediction, values),
            _union(truth, values),
            spacing_mm,
            {1: name},
            tolerance_mm=tolerance_mm,
            case_id=case_id,
        )
    ]


def summarise(scores: Sequence[ClassScore], *, seed: int = 0) -> dict[str, dict[str, Mean]]:
    """Means over cases by class name and metric; "mean" is the mean over classes, taken per case first."""
    names = dict.fromkeys(score.class_name for score in scores)
    groups = {name: [score for score in scores if score.class_name == name] for name in names}
    table = {
        name: {metric: bootstrap_mean([getattr(score, metric) for score in group], seed=seed) for metric in METRICS}
        for name, group in groups.items()
    }
    cases = dict.fromkeys(score.case_id for score in scores)
    per_case = {
        metric: [_nan_mean([getattr(s, metric) for s in scores if s.case_id == case]) for case in cases]
        for metric in ("dice", "hd95_mm", "nsd")
    }
    return {**table, "mean": {metric: bootstrap_mean(values, seed=seed) for metric, values in per_case.items()}}


def bootstrap_mean(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Mean:
    """Mean of the values that are not NaN, with the 2.5 and 97.5 percentiles of means of resampled cases."""
    known = np.asarray([value for value in values if not math.isnan(value)], dtype=float)
    if known.size == 0:
        return Mean(math.nan, math.nan, math.nan, 0)
    picks = np.random.default_rng(seed).integers(0, known.size, (draws, known.size))
    low, high = np.percentile(known[picks].mean(axis=1), [2.5, 97.5])
    return Mean(float(known.mean()), float(low), float(high), int(known.size))


def write_scores(scores: Sequence[ClassScore], path: Path) -> Path:
    """One CSV row per case and class."""
    with Path(path).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(ClassScore)])
        writer.writeheader()
        writer.writerows(asdict(score) for score in scores)
    return Path(path)


def _union(labels: Labels, values: Collection[int]) -> Labels:
    """1 inside the classes of `values`, 255 where unlabelled, else 0."""
    result = np.isin(labels, list(values)).astype(np.uint8)
    result[labels == UNLABELLED] = UNLABELLED
    return result


def _labelled(prediction: Labels, truth: Labels) -> tuple[Labels, Labels]:
    if prediction.shape != truth.shape:
        raise GeometryError(
            f"The truth has {truth.shape} voxels, the prediction {prediction.shape}.",
            "Compare label maps on one grid.",
        )
    unlabelled = truth == UNLABELLED
    if not unlabelled.any():
        return prediction, truth
    return np.where(unlabelled, 0, prediction), np.where(unlabelled, 0, truth)


def _dice(found: Labels, real: Labels) -> float:
    total = int(found.sum()) + int(real.sum())
    return 2 * int((found & real).sum()) / total if total else math.nan


def _surface(
    found: Labels, real: Labels, spacing_mm: Triple, tolerance_mm: float, diagonal: float
) -> tuple[float, float]:
    """HD95 in mm and surface Dice of two masks."""
    if not found.any() and not real.any():
        return math.nan, math.nan
    if not found.any() or not real.any():
        return diagonal, 0.0
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    box = _bounding_box(found | real)
    one, other = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (found, real))
    spacing = list(spacing_mm)
    hd95 = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(one, other, [tolerance_mm], include_background=True, spacing=spacing)
    return float(hd95), float(nsd)


def _bounding_box(mask: Labels) -> tuple[slice, ...]:
    """Smallest box around the true voxels; distances need nothing beyond it."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _nan_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
