"""Two masks against each other: the map, the numbers and the places, on one grid and on two."""

from __future__ import annotations

import numpy as np
import pytest

from training_backend.data.volume import Geometry, Volume
from training_backend.errors import DataError
from training_backend.evaluate.agreement import BOTH, ONLY_A, ONLY_B, OTHER_CLASS, agreement

SHAPE = (10, 20, 22)


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> Volume:
    return Volume(array.astype(np.uint8), Geometry.from_spacing(array.shape, spacing), "unknown", "a mask", {})


def pair() -> tuple[np.ndarray, np.ndarray]:
    one, other = np.zeros(SHAPE), np.zeros(SHAPE)
    one[2:8, 4:12, 4:12] = other[2:8, 4:12, 4:12] = 1
    one[4, 15, 3:6] = 1  # a small disagreement
    other[3:7, 4:10, 15:20] = 2  # a large one
    return one, other


def test_the_map_tells_who_sees_what_and_places_are_sorted_by_size() -> None:
    one, other = pair()
    found = agreement(volume(one), volume(other), {1: "organ", 2: "lesion"})
    assert [(found.labels == kind).sum() for kind in (BOTH, ONLY_A, ONLY_B)] == [384, 3, 120]
    assert [(place.kind, round(place.ml, 4)) for place in found.places] == [(ONLY_B, 0.24), (ONLY_A, 0.006)]
    for place in found.places:
        assert found.labels[place.voxel] == place.kind
    assert {score.class_name: round(score.dice, 4) for score in found.scores} == {
        "organ": round(2 * 384 / (387 + 384), 4),
        "lesion": 0.0,
    }


def test_one_class_alone_and_voxels_of_another_class() -> None:
    one, other = pair()
    other[2, 4:12, 4:12] = 2
    both = agreement(volume(one), volume(other), {})
    assert (both.labels == OTHER_CLASS).sum() == 64
    organ = agreement(volume(one), volume(other), {}, chosen=1)
    assert (organ.labels == ONLY_A).sum() == 64 + 3
    assert not (organ.labels == OTHER_CLASS).any()


def test_a_map_on_another_grid_is_put_on_the_first_one() -> None:
    one, _ = pair()
    halved = volume(one[:, ::1, ::1].repeat(2, axis=1).repeat(2, axis=2), (2.0, 0.5, 0.5))
    shifted = Geometry.from_spacing(halved.array.shape, (2.0, 0.5, 0.5), (-0.25, -0.25, 0.0))
    found = agreement(volume(one), Volume(halved.array, shifted, "unknown", "fine", {}), {1: "organ"})
    assert found.scores[0].dice == 1.0
    assert found.places == ()


def test_what_cannot_be_compared_is_said() -> None:
    one, other = pair()
    with pytest.raises(DataError, match="empty"):
        agreement(volume(one * 0), volume(other * 0), {})
    with pytest.raises(DataError, match="Neither map has the class spleen"):
        agreement(volume(one), volume(other), {7: "spleen"}, chosen=7)
    far = Volume(
        other.astype(np.uint8), Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0), (500.0, 0.0, 0.0)), "unknown", "far", {}
    )
    with pytest.raises(DataError, match="different places"):
        agreement(volume(one), far, {})
