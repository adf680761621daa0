from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.cohort import has_umap, odd_and_twins, umap_places


def cloud(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)


def test_outliers_come_first_by_how_far_they_are() -> None:
    vectors = cloud()
    vectors[7] += 30
    vectors[11] -= 90
    odd, twins = odd_and_twins(vectors, [str(k) for k in range(40)])
    assert [row for row, _ in odd[:2]] == [11, 7]
    assert odd[0][1] > odd[1][1] > 3.5
    assert twins == []


def test_near_duplicates_of_different_cases_are_pairs() -> None:
    vectors = cloud()
    vectors[30] = vectors[4] + 1e-4
    vectors[31] = vectors[5]
    cases = [str(k) for k in range(40)]
    assert [pair[:2] for pair in odd_and_twins(vectors, cases)[1]] == [(5, 31), (4, 30)]
    cases[31] = cases[5]  # two regions of one case
    assert [pair[:2] for pair in odd_and_twins(vectors, cases)[1]] == [(4, 30)]


def test_a_few_cases_have_neither() -> None:
    assert odd_and_twins(cloud(1), ["a"]) == ([], [])
    assert odd_and_twins(np.zeros((2, 3), np.float32), ["a", "b"]) == ([], [])


@pytest.mark.learning  # compiles for a minute
def test_umap_is_a_function_of_the_seed() -> None:
    if not has_umap(12):
        with pytest.raises(ConfigError, match="umap-learn"):
            umap_places(cloud(12))
        return
    places = umap_places(cloud(12))
    assert places.shape == (12, 2)
    assert np.array_equal(places, umap_places(cloud(12)))


def test_umap_that_cannot_be_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin="umap/__init__.py"))
    assert has_umap(4)
    with pytest.raises(DataError, match="UMAP needs 4 points, but there are 3"):
        umap_places(cloud(3))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    assert not has_umap(100)  # a folder called umap
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not has_umap(100)
    with pytest.raises(ConfigError, match="umap-learn"):
        umap_places(cloud(12))
