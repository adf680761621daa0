"""Predictions without the parts that anatomy rules out: all but the largest part of an organ, and specks.

Parts are connected through faces and edges of voxels (18 neighbours, in pictures 8).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

Mask = npt.NDArray[np.bool_]
Values = Collection[int]


def clean_labels(
    labels: Tensor,
    largest: Sequence[Values] = (),
    smallest: Sequence[tuple[Values, int]] = (),
    around: Sequence[Values] = (),
) -> Tensor:
    """Label values [D, H, W] after cleaning, a new tensor.

    Args:
        labels: on the CPU.
        largest: label values of organs; voxels of each beyond its largest part become background.
        smallest: label values of something, with the voxels up to which a part of it is removed.
        around: label values of regions; what is removed from within one becomes the value that this region has besides
            (of LiTS, a removed tumour is liver), or background where no region contains it with one other value.
    """
    result = labels.numpy().copy()
    for values in largest:
        mask = np.isin(result, list(values))
        result[mask & ~largest_part(mask)] = 0
    for values, most in smallest:
        mask = np.isin(result, list(values))
        result[mask & ~larger_parts(mask, most)] = _surrounding(values, around)
    return torch.from_numpy(result)


def clean_probabilities(
    found: Tensor,
    largest: Sequence[Values] = (),
    smallest: Sequence[tuple[Values, int]] = (),
    around: Sequence[Values] = (),
) -> Tensor:
    """Probabilities [K, D, H, W] whose largest class is that of `clean_labels`; certain where this is another."""
    before = found.argmax(0)
    after = clean_labels(before, largest, smallest, around)
    changed = before != after
    if not bool(changed.any()):
        return found
    certain = torch.nn.functional.one_hot(after[changed], len(found)).T.to(found.dtype)
    result = found.clone()
    result[:, changed] = certain
    return result


def largest_part(mask: Mask) -> Mask:
    """The largest connected part of `mask`; the first of several, and nothing of an empty one."""
    parts, sizes = _parts(mask)
    return np.zeros_like(mask) if len(sizes) == 0 else np.asarray(parts == 1 + int(np.argmax(sizes)))


def larger_parts(mask: Mask, most: int) -> Mask:
    """`mask` without its connected parts of at most `most` voxels."""
    parts, sizes = _parts(mask)
    return np.asarray(np.concatenate([[False], sizes > most])[parts])


def _parts(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Number of the part of each voxel, 0 outside, and voxels of part 1, 2, ..."""
    parts, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, 2))
    return parts, np.bincount(parts.ravel(), minlength=count + 1)[1:]


def _surrounding(values: Values, around: Sequence[Values]) -> int:
    besides = [set(region) - set(values) for region in around if set(region) > set(values)]
    return min((min(rest) for rest in besides if len(rest) == 1), default=0)
