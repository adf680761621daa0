"""Scores of masks as MedCoSS's authors compute them, for comparison with their numbers.

Ours are in `segmentation_metrics`, in millimetres and with means that leave out what is in neither map. Theirs count
voxels, and give an empty mask a number of its own:

====================  ============  =============  ======
in truth, prediction  Dice volumes  Dice pictures  HD95
====================  ============  =============  ======
neither               0             1              0
only one of them      0             0              500
====================  ============  =============  ======
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[Any]

HD95_OF_ONE_EMPTY = 500.0


def dice_volumes(found: Mask, truth: Mask) -> float:
    """``2 overlap / (prediction + truth + 1)`` of two masks, so that a perfect one has a little less than 1."""
    overlap, total = _counts(found, truth)
    return 2 * overlap / (total + 1)


def dice_pictures(found: Mask, truth: Mask) -> float:
    """``2 overlap / (prediction + truth)``, and 1 where both are empty."""
    overlap, total = _counts(found, truth)
    return 2 * overlap / total if total else 1.0


def hd95_voxels(found: Mask, truth: Mask) -> float:
    """95th percentile of the distances between the borders of two masks, both ways together, in voxels."""
    found, truth = np.asarray(found, bool), np.asarray(truth, bool)
    if not found.any() or not truth.any():
        return 0.0 if found.any() == truth.any() else HD95_OF_ONE_EMPTY
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (found, truth)]
    there = [ndimage.distance_transform_edt(~border) for border in borders]
    return float(np.percentile(np.concatenate([there[1][borders[0]], there[0][borders[1]]]), 95))


def _counts(found: Mask, truth: Mask) -> tuple[int, int]:
    found, truth = np.asarray(found, bool), np.asarray(truth, bool)
    return int((found & truth).sum()), int(found.sum()) + int(truth.sum())
