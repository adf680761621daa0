"""Random numbers that depend on where a run is, never on how it got there.

Every micro-batch of every step has its own seed, so a resumed run draws what an uninterrupted one would have drawn,
and several processes draw what one process would have drawn for the same views.
"""

from __future__ import annotations

import numpy as np
import torch

INIT, STEP, VALIDATION, PREVIEW = 1, 2, 3, 4
"""Purposes; two of them never share a seed."""


def seed_of(seed: int, *place: int) -> int:
    """A 63-bit number that is a hash of the run's seed and of `place`."""
    return int(np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *place: int) -> torch.Generator:
    """CPU generator for one place; also seeds torch's global generators (dropout, initial weights) for it."""
    number = seed_of(seed, *place)
    torch.manual_seed(number)
    return torch.Generator().manual_seed(number)
