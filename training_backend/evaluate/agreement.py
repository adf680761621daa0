"""Two label maps of one scan beside each other: where they agree, how much, and the places where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training_backend.data.resample import resample
from training_backend.data.volume import Shape, Volume
from training_backend.errors import DataError
from training_backend.evaluate.segmentation_metrics import ClassScore, score_case

BOTH, ONLY_A, ONLY_B, OTHER_CLASS = 1, 2, 3, 4
"""Values of the agreement map."""
NAMES = {BOTH: "both", ONLY_A: "only A", ONLY_B: "only B", OTHER_CLASS: "another class"}
MOST_PLACES = 200


@dataclass(frozen=True)
class Place:
    """One connected disagreement: the voxel in its thickest slice that lies deepest in it, and its volume."""

    voxel: Shape
    ml: float
    kind: int


@dataclass(frozen=True)
class Agreement:
    """What comparing gives.

    Attributes:
        labels: (z, y, x) uint8, values of `NAMES`, 0 where neither map has the class.
        scores: of every class; A is the prediction, B the truth.
        places: disagreements, largest first, at most `MOST_PLACES`.
        left_out: disagreements beyond these.
    """

    labels: npt.NDArray[np.uint8]
    scores: tuple[ClassScore, ...]
    places: tuple[Place, ...]
    left_out: int


def agreement(one: Volume, other: Volume, classes: Mapping[int, str], chosen: int | None = None) -> Agreement:
    """Compare two label maps on the grid of the first.

    Args:
        one: A.
        other: B; put on the grid of A where it lies on another.
        classes: name by label value, to be scored; empty takes the values found.
        chosen: the class that map and places are about; None takes all at once.

    Raises:
        DataError: the maps share no place, or neither has the chosen class.
    """
    first, second = one.array, _on_grid_of(one, other)
    found = {int(value) for value in np.union1d(np.unique(first), np.unique(second))} - {0}
    if not found:
        raise DataError("Both label maps are empty.", "Choose maps with at least one class.")
    if chosen is not None and chosen not in found:
        raise DataError(f"Neither map has the class {classes.get(chosen, chosen)}.", "Choose another class.")
    labels = _map(first, second, chosen)
    named = {value: classes.get(value, f"class {value}") for value in sorted(found)}
    scores = score_case(first, second, one.geometry.spacing_mm, named, case_id=one.name)
    places, left_out = _places(labels, float(np.prod(one.geometry.spacing_mm)) / 1000)
    return Agreement(labels, tuple(scores), places, left_out)


def _on_grid_of(one: Volume, other: Volume) -> npt.NDArray[np.generic]:
    if one.geometry.same_grid(other.geometry):
        return other.array
    moved = resample(other.array, other.geometry, one.geometry, nearest=True)
    if not moved.any() and other.array.any():
        raise DataError("The two label maps lie in different places.", "Compare maps of the same scan.")
    return moved


def _map(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic], chosen: int | None) -> npt.NDArray[np.uint8]:
    in_first, in_second = (first != 0, second != 0) if chosen is None else (first == chosen, second == chosen)
    labels = np.zeros(first.shape, np.uint8)
    labels[in_first & ~in_second], labels[in_second & ~in_first] = ONLY_A, ONLY_B
    shared = in_first & in_second
    labels[shared] = BOTH
    if chosen is None:
        labels[shared & (first != second)] = OTHER_CLASS
    return labels


def _places(labels: npt.NDArray[np.uint8], voxel_ml: float) -> tuple[tuple[Place, ...], int]:
    from scipy import ndimage

    found: list[tuple[int, int, int, tuple[slice, ...]]] = []
    marked = {}
    for kind in (ONLY_A, ONLY_B, OTHER_CLASS):
        marked[kind], count = ndimage.label(labels == kind, np.ones((3, 3, 3)))
        sizes = np.bincount(marked[kind].ravel(), minlength=count + 1)[1:]
        boxes = ndimage.find_objects(marked[kind])
        found += [
            (int(size), kind, number, box) for number, (size, box) in enumerate(zip(sizes, boxes, strict=True), 1)
        ]
    found.sort(key=lambda one: -one[0])
    places = []
    for size, kind, number, box in found[:MOST_PLACES]:
        inside = marked[kind][box] == number
        z = int(inside.sum(axis=(1, 2)).argmax())
        depth = ndimage.distance_transform_edt(np.pad(inside[z], 1))[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        start = [part.start for part in box]
        places.append(Place((start[0] + z, start[1] + int(y), start[2] + int(x)), size * voxel_ml, kind))
    return tuple(places), max(0, len(found) - MOST_PLACES)
