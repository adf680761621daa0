"""Models against each other on the cases that they share: differences with intervals, and tests that fit few cases.

Everything is paired by case, so what makes a case hard for all models cancels. Free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from training_backend.evaluate.segmentation_metrics import Mean, bootstrap_mean

FEWEST_PAIRS = 6
"""Fewer pairs than this cannot reach 5 % in a two-sided Wilcoxon test, so none is reported."""
DECIMALS = 12
"""Differences are rounded to so many decimals, so that what is equal but for the last bit counts as equal."""


@dataclass(frozen=True)
class Pair:
    """Two runs on the cases that both scored.

    Attributes:
        first: name of the run that is subtracted.
        second: name of the other one.
        cases: how many both scored.
        first_mean: of the first run on these cases; NaN without any.
        second_mean: of the second run on these cases.
        difference: second minus first: mean over the cases with its 95 % bootstrap interval.
        p: two-sided Wilcoxon signed-rank p value, or None where `note` says why there is none.
        p_holm: the same after Holm's correction for all pairs that were tested together.
        note: a sentence on what was not tested, or was left out; may be empty.
    """

    first: str
    second: str
    cases: int
    first_mean: float
    second_mean: float
    difference: Mean
    p: float | None = None
    p_holm: float | None = None
    note: str = ""


def compare_pairs(scores: Mapping[str, Mapping[str, float]], *, seed: int = 0) -> list[Pair]:
    """Every pair of runs on the cases that both scored, with Holm's correction over all of them.

    Args:
        scores: value by case, by name of the run; NaN says nothing about a case.
        seed: of the bootstrap.
    """
    pairs = [
        compare_two(first, scores[first], second, scores[second], seed=seed)
        for first, second in combinations(scores, 2)
    ]
    tested = [number for number, pair in enumerate(pairs) if pair.p is not None]
    corrected = holm([pair.p for pair in pairs if pair.p is not None])
    for number, value in zip(tested, corrected, strict=True):
        pairs[number] = replace(pairs[number], p_holm=value)
    return pairs


def compare_two(
    first: str, first_scores: Mapping[str, float], second: str, second_scores: Mapping[str, float], *, seed: int = 0
) -> Pair:
    """One pair, without correction."""
    shared = [case for case in sorted(first_scores) if case in second_scores]
    both = np.array([(first_scores[case], second_scores[case]) for case in shared], dtype=float).reshape(-1, 2)
    both = both[np.isfinite(both).all(axis=1)]
    if not len(both):
        nothing = Mean(math.nan, math.nan, math.nan, 0)
        return Pair(first, second, 0, math.nan, math.nan, nothing, note="No case was scored by both.")
    change = np.round(both[:, 1] - both[:, 0], DECIMALS)
    p, note = signed_rank(change.tolist())
    first_mean, second_mean = (float(mean) for mean in both.mean(axis=0))
    difference = bootstrap_mean(change.tolist(), seed=seed)
    return Pair(first, second, len(both), first_mean, second_mean, difference, p, note=note)


def signed_rank(changes: Sequence[float]) -> tuple[float | None, str]:
    """Two-sided Wilcoxon signed-rank p value of differences, or None; and a sentence on what was left out, or why.

    Differences of zero are left out, as Wilcoxon did. The p value is exact for few cases, whether or not absolute
    differences tie, and from the normal approximation for many (see ``scipy.stats.wilcoxon``).
    """
    counted = [change for change in changes if change]
    equal = len(changes) - len(counted)
    if not counted:
        return None, f"All {len(changes)} cases score the same." if len(changes) > 1 else "The case scores the same."
    left = f"{equal} of {len(changes)} cases score the same and count for no side." if equal else ""
    if len(counted) < FEWEST_PAIRS:
        count = f"{len(counted)} case{'s differ' if len(counted) > 1 else ' differs'}"
        return None, f"Too few pairs to test: {count}, and the test needs at least {FEWEST_PAIRS}."
    from scipy.stats import wilcoxon

    return float(wilcoxon(counted).pvalue), left


def holm(values: Sequence[float]) -> list[float]:
    """P values after Holm's step-down correction, in the given order."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, number in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[number]))
        corrected[number] = largest
    return corrected
