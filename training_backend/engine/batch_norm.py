"""Batch normalisation over whole volumes: it compares the views of a forward pass, and of one view it knows nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from torch import nn


def batch_norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    """Layers in training that cannot normalise a single view; those with voxels to compare (2-D, 3-D) can."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm1d) and module.training]


def parts(network: nn.Module, views: int, micro: int) -> list[slice]:
    """Micro-batches of `views` views: of `micro` each and the rest, or of nearly equal size with `batch_norms`.

    Then no part holds a single view, unless there is no other, even if parts become larger than `micro` for it.
    """
    if not batch_norms(network) or views < 2:
        return [slice(start, min(start + micro, views)) for start in range(0, views, micro)]
    count = max(1, min(math.ceil(views / micro), views // 2))
    ends = [views * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


@contextmanager
def by_running_statistics(network: nn.Module, views: int) -> Iterator[None]:
    """For a single view, left over where others could not be read: normalise by what was seen so far."""
    switched = batch_norms(network) if views == 1 else []
    for module in switched:
        module.eval()
    try:
        yield
    finally:
        for module in switched:
            module.train()
