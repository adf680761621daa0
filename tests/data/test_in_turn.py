"""Streams that take turns: which step is whose, exactly and for any start."""

from __future__ import annotations

from collections import Counter

import pytest

from training_backend.data.streams import OWN, Interleaving

ORDER = Interleaving(seed=5, steps={OWN: 6, "2D_xray": 1, "3D_CT": 2})


def test_every_pass_has_the_steps_of_every_stream():
    for number in range(4):
        names = [ORDER.at(step) for step in range(9 * number, 9 * number + 9)]
        assert Counter(names) == {OWN: 6, "2D_xray": 1, "3D_CT": 2}


def test_passes_are_shuffled_by_seed():
    first, second = ([ORDER.at(step) for step in range(9 * k, 9 * k + 9)] for k in range(2))
    assert first != second
    other = Interleaving(seed=6, steps=ORDER.steps)
    assert [other.at(step) for step in range(9)] != first
    assert [Interleaving(5, ORDER.steps).at(step) for step in range(9)] == first


@pytest.mark.parametrize("start", [0, 1, 8, 9, 13, 40])
def test_steps_before_any_step_are_counted(start):
    names = Counter(ORDER.at(step) for step in range(start))
    assert ORDER.before(start) == {name: names[name] for name in ORDER.steps}
