"""Boxes, intensities and slabs of sequences."""

from __future__ import annotations

import random

import numpy as np
import pytest

from training_backend.data import sequence_crops as crops


def test_a_box_fits_never_uses_the_last_voxel_and_takes_short_axes_whole():
    draws = random.Random(0)
    boxes = [crops.crop_box((9, 30, 20), (8, 10, 8), draws.randint) for _ in range(300)]
    assert {(box.start[0], box.size[0]) for box in boxes} == {(0, 9)}, "8 of 9: no room, so the whole axis"
    assert {box.size for box in boxes} == {(9, 10, 8)}
    assert {box.start[1] for box in boxes} == set(range(20)), "0 to 19: voxel 29 is never in it"
    assert {box.start[2] for box in boxes} == set(range(12))


def test_the_draws_come_in_the_order_x_y_z():
    asked = []

    def randint(low, high):
        asked.append((low, high))
        return low

    crops.crop_box((40, 30, 20), (8, 8, 8), randint)
    assert asked == [(4, 15), (4, 25), (4, 35)]


def test_a_box_around_a_place_is_cut_off_at_the_border_and_not_shifted():
    box = crops.box_around((1, 10, 19), (20, 20, 20), (8, 8, 8))
    assert (box.start, box.size) == ((0, 6, 15), (5, 8, 5))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_intensities_run_from_the_first_to_the_last_but_a_thousandth(dtype):
    crop = np.random.default_rng(0).normal(0, 300, (12, 14, 16)).astype(dtype)
    low, high = np.percentile(crop.astype(np.float64), (1, 99.9))
    expected = np.clip((crop - low) / (high - low), 0, 1)
    np.testing.assert_allclose(crops.prepared(crop, crop.shape), expected, atol=2e-6)


def test_counted_percentiles_are_the_interpolated_ones():
    rng = np.random.default_rng(1)
    for values in (rng.integers(-1000, 3000, 5000), rng.integers(0, 3, 777), np.array([5] * 99 + [7])):
        crop = values.astype(np.int16).reshape(1, 1, -1)
        np.testing.assert_allclose(crops._counted_percentiles(crop), np.percentile(values, (1, 99.9)), rtol=1e-12)


def test_a_constant_crop_becomes_zero():
    assert not crops.prepared(np.full((4, 4, 4), -1000, np.int16), (4, 4, 4)).any()
    assert not crops.prepared(np.full((4, 4, 4), 7.0, np.float32), (8, 8, 8)).any()


def test_percentiles_are_those_of_the_resized_crop():
    crop = np.random.default_rng(2).normal(size=(5, 7, 9)).astype(np.float32)
    larger = crops.resized(crop, (10, 14, 18))
    low, high = np.percentile(larger, (1, 99.9))
    np.testing.assert_allclose(
        crops.prepared(crop, (10, 14, 18)), np.clip((larger - low) / (high - low), 0, 1), atol=1e-6
    )


def test_the_first_slab_starts_in_the_first_half_as_published():
    assert crops.last_start(128, 128, slabs=4, stride=8) == 63
    assert crops.stack_extent(128, slabs=4, stride=8) == 56
    assert crops.last_start(32, 32, slabs=4, stride=8) == 0, "no later, or the last slab would not fit"


def test_slabs_are_slices_of_the_crop_side_by_side():
    crop = np.arange(32)[:, None, None] * np.ones((1, 2, 2))
    view = crops.glued(crop, 3, slabs=4, stride=2)
    assert view[:, 0, 0].tolist() == [3 + 2 * n + k for n in range(4) for k in range(8)]
    along_last = crops.glued(crop.transpose(1, 2, 0), 3, slabs=4, stride=2, axis=2)
    assert np.array_equal(along_last.transpose(2, 0, 1), view)
