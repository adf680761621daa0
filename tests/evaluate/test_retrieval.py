"""Ranks, recalls and the store of latents."""

from __future__ import annotations

import time

import numpy as np
import pytest

from training_backend.errors import DataError
from training_backend.evaluate.retrieval import LatentStore, ranks, retrieval_report, shared_labels


def unit(rng, *shape):
    vectors = rng.standard_normal(shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_ranks_count_those_ahead_and_half_of_those_level():
    scores = np.array([[3, 1, 2, 0], [5, 4, 4, 1], [1, 1, 1, 1], [4, 3, 2, 1]])
    assert ranks(scores).tolist() == [1, 3, 3, 4]
    assert ranks(np.zeros((9, 9))).tolist() == [5] * 9  # knowing nothing is the middle


def test_recall_of_right_and_of_random_latents():
    rng = np.random.default_rng(0)
    images = unit(rng, 200, 16)
    report = retrieval_report(images, images, "same_", samples=50)
    assert report["same_recall_1"] == report["same_reciprocal_rank"] == report["same_median_rank"] == 1
    chance = retrieval_report(unit(rng, 200, 16), images, samples=50)
    assert chance["chance_100"] == 0.5
    assert chance["recall_100_low"] < 0.5 < chance["recall_100_high"]
    few = retrieval_report(images[:4], images[:4], samples=0)
    assert "recall_5" not in few
    assert few["recall_1"] == 1


def test_neighbours_share_findings():
    labels = np.repeat(np.eye(3), 4, axis=0)
    assert shared_labels(labels, labels, top=3) == 1
    assert shared_labels(labels, labels, top=11) == pytest.approx(3 / 11)
    assert np.isnan(shared_labels(labels, np.zeros_like(labels)))


def test_a_store_is_searched_saved_and_read(tmp_path):
    rng = np.random.default_rng(1)
    store = LatentStore.of([f"case {i}" for i in range(50)], 3 * rng.standard_normal((50, 8)))
    found = store.search(5 * store.latents[7], top=3)
    assert found[0] == ("case 7", pytest.approx(1, abs=1e-5))
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    again = LatentStore.load(store.save(tmp_path / "latents.npz"))
    assert again.ids == store.ids
    assert np.array_equal(again.latents, store.latents)
    with pytest.raises(DataError, match="same model"):
        store.search(np.zeros(9))
    (tmp_path / "other.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no stored latents"):
        LatentStore.load(tmp_path / "other.npz")


def test_ten_thousand_latents_are_searched_within_a_tenth_of_a_second():
    store = LatentStore.of([str(i) for i in range(10_000)], np.random.default_rng(0).standard_normal((10_000, 768)))
    store.search(store.latents[0])
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        assert store.search(store.latents[42], top=100)[0][0] == "42"
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.1
