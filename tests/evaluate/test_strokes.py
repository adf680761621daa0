"""A few painted voxels fill a phantom, whatever grid the tokens have; the small model is kept and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training_backend.data.manifest import ClassEntry
from training_backend.data.volume import Geometry
from training_backend.errors import DataError, WeightsError
from training_backend.evaluate.strokes import Box, FeatureFacts, StrokeModel, StrokeScan, _on_voxels, around, teach
from training_backend.tasks.base import Cancelled

CLASSES = [ClassEntry(index=k, name=f"class {k}", colour="#009e73") for k in range(3)]
SHAPE = (24, 40, 44)
PATCH = 4


def painted_scan(modality: str = "MR", seed: int = 0) -> tuple[StrokeScan, np.ndarray]:
    """Two balls of the same brightness; only the tokens tell one from the other, only intensities draw the edge."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    truth = np.zeros(SHAPE, np.uint8)
    truth[np.linalg.norm(place - (12, 12, 12), axis=-1) < 8] = 1
    truth[np.linalg.norm(place - (12, 28, 32), axis=-1) < 8] = 2
    array = (100.0 * (truth > 0) + rng.normal(0, 12, SHAPE)).astype(np.float32)
    geometry = Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0))
    grid = tuple(n // PATCH for n in SHAPE)
    blocks = truth.reshape(grid[0], PATCH, grid[1], PATCH, grid[2], PATCH).transpose(0, 2, 4, 1, 3, 5)
    shares = np.stack([(blocks == k).mean(axis=(3, 4, 5)) for k in range(3)], axis=-1)
    mixed = shares @ rng.normal(size=(3, 48)) + rng.normal(0, 0.05, (*grid, 48))
    spacing = (2.0 * PATCH, 1.0 * PATCH, 1.0 * PATCH)
    tokens = geometry.resampled(spacing, grid)
    return StrokeScan(array, geometry, mixed.astype(np.float16), tokens, FeatureFacts("f", modality)), truth


def strokes(truth: np.ndarray, slices: tuple[int, ...] = (12,), count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    points, values = [], []
    for value in np.unique(truth):
        found = np.argwhere((truth == value) & np.isin(np.arange(len(truth)), slices)[:, None, None])
        points.append(found[rng.choice(len(found), count)])
        values.append(np.full(count, value))
    return np.concatenate(points), np.concatenate(values)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_strokes_in_one_slice_fill_the_whole_scan() -> None:
    scan, truth = painted_scan()
    model = teach(scan, *strokes(truth), CLASSES)
    filled = model.fill_all(scan)
    assert filled.labels.shape == truth.shape
    assert all(dice(filled.labels == k, truth == k) > 0.9 for k in (1, 2))
    wrong = filled.labels != truth
    assert filled.doubt[wrong].mean() > 2 * filled.doubt[~wrong].mean()  # it doubts where it errs


def test_a_box_is_filled_as_the_whole_is() -> None:
    scan, truth = painted_scan()
    model = teach(scan, *strokes(truth), CLASSES)
    whole = model.fill_all(scan)
    box = Box((3, 9, 5), (15, 21, 30))
    part = model.fill(scan, box)
    assert (part.labels == whole.labels[box.slices]).mean() > 0.999  # filters end at other borders
    assert np.abs(part.doubt.astype(int) - whole.doubt[box.slices]).mean() < 1


def test_tokens_are_linear_between_their_middles() -> None:
    scan, _ = painted_scan()
    box = Box((1, 2, 3), (10, 12, 14))
    place = np.stack(np.meshgrid(*(np.arange(n) for n in scan.tokens.shape[:3]), indexing="ij")).astype(np.float32)
    from training_backend.evaluate.strokes import _token_range

    near = place[(slice(None), *(slice(first, last) for first, last in _token_range(scan, box)))]
    found = _on_voxels(near, scan, box)
    for axis, (start, size) in enumerate(zip(box.start, box.size, strict=True)):
        expected = np.clip((np.arange(start, start + size) - (PATCH - 1) / 2) / PATCH, 0, None)
        np.testing.assert_allclose(np.moveaxis(found[axis], axis, 0)[:, 0, 0], expected, atol=1e-5)


def test_classes_weigh_alike_however_much_was_painted() -> None:
    scan, truth = painted_scan()
    points, values = strokes(truth)
    rare = np.flatnonzero(values == 2)[:6]
    few = np.concatenate([np.flatnonzero(values != 2), rare])
    model = teach(scan, points[few], values[few], CLASSES)
    assert dice(model.fill_all(scan).labels == 2, truth == 2) > 0.8


def test_a_class_that_was_not_painted_is_never_answered() -> None:
    scan, truth = painted_scan()
    points, values = strokes(truth)
    kept = values != 1
    assert 1 not in teach(scan, points[kept], values[kept], CLASSES).fill_all(scan).labels


def test_kept_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    scan, truth = painted_scan()
    model = teach(scan, *strokes(truth), CLASSES)
    model.save(tmp_path / "organs.safetensors")
    again = StrokeModel.load(tmp_path / "organs.safetensors")
    other, truth = painted_scan(seed=0)
    np.testing.assert_array_equal(again.fill_all(other).labels, model.fill_all(scan).labels)
    assert [entry.name for entry in again.classes] == ["class 0", "class 1", "class 2"]
    assert again.check(scan.facts) == []


def test_other_features_are_refused_and_another_modality_is_told(tmp_path: Path) -> None:
    scan, truth = painted_scan()
    model = teach(scan, *strokes(truth), CLASSES)
    with pytest.raises(WeightsError, match="another model or scale"):
        model.check(FeatureFacts("g", "MR"))
    assert "painted on MR, but this scan is CT" in model.check(FeatureFacts("f", "CT"))[0]
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(WeightsError, match="damaged"):
        StrokeModel.load(tmp_path / "broken.safetensors")
    with pytest.raises(WeightsError, match="does not exist"):
        StrokeModel.load(tmp_path / "none.safetensors")


def test_strokes_that_teach_nothing_are_refused() -> None:
    scan, truth = painted_scan()
    points, values = strokes(truth)
    with pytest.raises(DataError, match="Nothing is painted yet"):
        teach(scan, points[:0], values[:0], CLASSES)
    with pytest.raises(DataError, match="Only class 2 is painted"):
        teach(scan, points[values == 2], values[values == 2], CLASSES)
    with pytest.raises(DataError, match="1 painted voxels lie outside"):
        teach(scan, np.vstack([points, [[99, 0, 0]]]), np.append(values, 1), CLASSES)


def test_filling_can_be_stopped() -> None:
    scan, truth = painted_scan()
    with pytest.raises(Cancelled):
        teach(scan, *strokes(truth), CLASSES).fill_all(scan, lambda share: False)


def test_the_box_lies_around_the_strokes_and_inside_the_scan() -> None:
    assert around(np.array([[2, 10, 40], [4, 12, 43]]), SHAPE, (8, 16, 64)) == Box((0, 3, 0), (8, 16, 44))
