"""Segmentation metrics against brute force, their rules for missing classes, and their means."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from training_backend.errors import GeometryError
from training_backend.evaluate.segmentation_metrics import (
    bootstrap_mean,
    dice_per_class,
    score_case,
    summarise,
    write_scores,
)

SPACING = (2.5, 0.8, 1.3)


def blob(seed: int, shape: tuple[int, int, int] = (9, 14, 11)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    centre, radius = rng.uniform(0.3, 0.7, 3) * shape, rng.uniform(2, 4, 3)
    return (((grid - centre) / radius) ** 2).sum(-1) < 1 + 0.3 * rng.standard_normal(shape)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Indices of voxels of the mask with a face neighbour outside it; outside the array is outside."""
    padded = np.pad(mask, 1)
    core = tuple(slice(1, -1) for _ in range(3))
    inner = np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[core]
    return np.argwhere(mask & ~inner)


def by_brute_force(found: np.ndarray, real: np.ndarray, tolerance: float) -> tuple[float, float]:
    a, b = boundary(found) * SPACING, boundary(real) * SPACING
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    to_real, to_found = distances.min(1), distances.min(0)
    hd95 = max(np.percentile(to_real, 95), np.percentile(to_found, 95))
    close = (to_real <= tolerance).sum() + (to_found <= tolerance).sum()
    return float(hd95), float(close / (len(a) + len(b)))


@pytest.mark.parametrize("seed", range(6))
def test_equal_brute_force_with_anisotropic_spacing(seed: int) -> None:
    found, real = blob(seed), blob(seed + 100)
    (score,) = score_case(found.astype(np.uint8), real.astype(np.int16), SPACING, {0: "rest", 1: "organ"})
    hd95, nsd = by_brute_force(found, real, 2.0)
    assert score.dice == pytest.approx(2 * (found & real).sum() / (found.sum() + real.sum()))
    assert score.hd95_mm == pytest.approx(hd95, abs=1e-4)
    assert score.nsd == pytest.approx(nsd, abs=1e-6)
    assert score.volume_ml == pytest.approx(found.sum() * 2.6e-3)
    assert score.truth_ml == pytest.approx(real.sum() * 2.6e-3)


def test_masks_touching_the_border_count_it_as_boundary() -> None:
    found, real = np.zeros((6, 6, 6), np.uint8), np.zeros((6, 6, 6), np.uint8)
    found[:3], real[:4] = 1, 1
    (score,) = score_case(found, real, SPACING, {1: "organ"}, tolerance_mm=1.0)
    assert (score.hd95_mm, score.nsd) == pytest.approx(by_brute_force(found == 1, real == 1, 1.0))


def test_missing_classes_follow_the_rules() -> None:
    truth, prediction = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    truth[0, 0, :2], prediction[1, 1, 0] = 1, 2
    missed, invented, absent = score_case(prediction, truth, SPACING, {1: "missed", 2: "invented", 3: "absent"})
    diagonal = math.hypot(4 * 2.5, 5 * 0.8, 6 * 1.3)
    for score in (missed, invented):
        assert (score.dice, score.nsd) == (0.0, 0.0)
        assert score.hd95_mm == pytest.approx(diagonal)
    assert all(math.isnan(value) for value in (absent.dice, absent.hd95_mm, absent.nsd))
    assert absent.volume_ml == absent.truth_ml == 0.0


def test_unlabelled_voxels_count_for_no_class() -> None:
    truth, prediction = np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
    truth[0], truth[1] = 1, 255
    assert dice_per_class(prediction, truth, [1]) == {1: 1.0}
    assert prediction.all()


def test_other_grids_are_refused() -> None:
    with pytest.raises(GeometryError, match="one grid"):
        dice_per_class(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), [1])


def test_summary_leaves_out_what_says_nothing() -> None:
    empty, full = np.zeros((3, 3, 3), np.uint8), np.ones((3, 3, 3), np.uint8)
    classes = {1: "a", 2: "b"}
    scores = [
        *score_case(full, full, SPACING, classes, case_id="one"),
        *score_case(empty, full, SPACING, classes, case_id="two"),
        *score_case(empty, empty, SPACING, classes, case_id="three"),
    ]
    table = summarise(scores)
    assert (table["a"]["dice"].mean, table["a"]["dice"].cases) == (0.5, 2)
    assert table["b"]["dice"].cases == 0
    assert (table["mean"]["dice"].mean, table["mean"]["dice"].cases) == (0.5, 2)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        mean = bootstrap_mean(list(rng.normal(0.8, 0.1, 30)), draws=400, seed=trial)
        hits += mean.low <= 0.8 <= mean.high
    assert 180 <= hits <= 199
    assert bootstrap_mean([0.5]) == bootstrap_mean([0.5, math.nan])


def test_scores_are_written_as_csv(tmp_path: Path) -> None:
    truth = np.ones((2, 2, 2), np.uint8)
    path = write_scores(score_case(truth, truth, SPACING, {1: "left atrium"}, case_id="c1"), tmp_path / "s.csv")
    (row,) = csv.DictReader(path.open(encoding="utf-8"))
    assert (row["case_id"], row["class_name"], float(row["dice"])) == ("c1", "left atrium", 1.0)
