"""Paired statistics against scipy, and against what can be counted by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from training_backend.evaluate.paired import FEWEST_PAIRS, compare_pairs, compare_two, holm, signed_rank


def by_case(values) -> dict[str, float]:
    return {f"case_{number}": float(value) for number, value in enumerate(values)}


def all_signs(changes) -> float:
    """Two-sided p value of the signed-rank sum from every choice of signs."""
    size = np.abs(changes)
    ranks = np.array([(size < own).sum() + ((size == own).sum() + 1) / 2 for own in size])
    sums = [float(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    found = float(np.dot(np.sign(changes), ranks))
    return sum(abs(total) >= abs(found) - 1e-9 for total in sums) / len(sums)


def test_p_values_are_those_of_scipy_and_of_all_choices_of_signs():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(size=12), rng.uniform(size=12)
    pair = compare_two("a", by_case(first), "b", by_case(second))
    change = np.round(second - first, 12)
    assert pair.p == pytest.approx(float(wilcoxon(change).pvalue))
    assert pair.p == pytest.approx(all_signs(change))
    assert pair.cases == 12
    assert pair.difference.mean == pytest.approx(float((second - first).mean()))
    assert (pair.first_mean, pair.second_mean) == (pytest.approx(first.mean()), pytest.approx(second.mean()))
    assert pair.note == ""


def test_six_cases_that_all_improve_reach_the_smallest_p_there_is():
    assert signed_rank([0.01 * (k + 1) for k in range(6)])[0] == pytest.approx(2 / 2**6)


def test_ties_are_counted_exactly():
    changes = [0.1, 0.1, 0.1, -0.1, 0.2, 0.2, 0.3]
    assert signed_rank(changes)[0] == pytest.approx(all_signs(np.array(changes)))


@pytest.mark.parametrize("count", [1, 2, FEWEST_PAIRS - 1])
def test_too_few_pairs_are_said_and_not_tested(count):
    p, note = signed_rank([0.1 * (k + 1) for k in range(count)])
    assert p is None
    assert note.startswith(f"Too few pairs to test: {count} case")
    assert note.endswith("needs at least 6.")


def test_equal_cases_count_for_no_side():
    p, note = signed_rank([0.0] * 3 + [0.01 * (k + 1) for k in range(7)])
    assert p == pytest.approx(2 / 2**7)
    assert note == "3 of 10 cases score the same and count for no side."
    p, note = signed_rank([0.0] * 8)
    assert (p, note) == (None, "All 8 cases score the same.")
    p, note = signed_rank([0.0] * 9 + [0.1] * 2)
    assert p is None
    assert "Too few pairs to test: 2 cases differ" in note


def test_the_last_bit_makes_no_difference():
    first, second = by_case([0.1 + 0.2] * 8), by_case([0.3] * 8)
    pair = compare_two("a", first, "b", second)
    assert pair.p is None
    assert pair.note == "All 8 cases score the same."
    assert (pair.difference.low, pair.difference.high) == (0, 0)


def test_intervals_are_drawn_the_same_from_the_same_seed_and_hold_the_mean():
    rng = np.random.default_rng(1)
    first, second = by_case(rng.uniform(size=20)), by_case(rng.uniform(size=20))
    one, same, other = (compare_two("a", first, "b", second, seed=seed).difference for seed in (3, 3, 4))
    assert one == same
    assert (one.low, one.high) != (other.low, other.high)
    assert one.low < one.mean < one.high
    change = np.array(list(second.values())) - np.array(list(first.values()))
    error = change.std() / math.sqrt(20)
    assert one.high - one.low == pytest.approx(2 * 1.96 * error, rel=0.15)  # the mean of 20 is nearly normal


def test_only_cases_that_both_scored_are_compared():
    first = {"a": 0.5, "b": 0.6, "c": math.nan, "d": 0.1}
    second = {"b": 0.7, "a": 0.4, "c": 0.9, "e": 0.2}
    pair = compare_two("one", first, "two", second)
    assert pair.cases == 2
    assert pair.difference.mean == pytest.approx(0.0)
    assert (pair.first_mean, pair.second_mean) == (pytest.approx(0.55), pytest.approx(0.55))
    nothing = compare_two("one", {"a": 1.0}, "two", {"b": 1.0})
    assert (nothing.cases, nothing.p, nothing.note) == (0, None, "No case was scored by both.")


def test_holm_by_hand():
    # smallest times 4, then the next times 3, never smaller than the one before, never above 1
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_pairs_that_are_not_tested_do_not_count_for_the_correction():
    base = [0.5] * 8
    scores = {
        "a": by_case(base),
        "b": by_case(np.array(base) + np.arange(1, 9) / 100),
        "c": by_case(np.array(base) - np.arange(1, 9) / 100),
        "same": by_case(base),
    }
    pairs = {(pair.first, pair.second): pair for pair in compare_pairs(scores)}
    assert len(pairs) == 6
    assert pairs["a", "same"].p is None
    assert pairs["a", "same"].p_holm is None
    tested = [pair for pair in pairs.values() if pair.p is not None]
    assert len(tested) == 5
    assert all(pair.p == pytest.approx(2 / 2**8) for pair in tested)
    assert all(pair.p_holm == pytest.approx(5 * 2 / 2**8) for pair in tested)
