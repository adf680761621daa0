"""Buffers: which cases are chosen, what is written, and what is said when they cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.medcoss_kit import dataset
from training_backend.data import rehearsal
from training_backend.data.dataset import Dataset
from training_backend.data.rehearsal import choose
from training_backend.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    """Three well separated clusters of 40, 15 and 5 cases."""
    rng = np.random.default_rng(0)
    middles = np.repeat([[0, 0], [50, 0], [0, 50]], [40, 15, 5], axis=0)
    return (middles + rng.normal(0, 1, (60, 2))).astype(np.float32)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"), "3D_CT", 5)


def test_kmeans_takes_the_nearest_of_each_cluster(blobs):
    chosen = choose(blobs, "kmeans", 0.3, clusters=3)
    assert np.bincount(chosen.labels[chosen.indices]).tolist() in ([6, 6, 5], [6, 5, 6], [5, 6, 6])
    for number in range(3):
        inside = np.flatnonzero(chosen.labels == number)
        kept = [index for index in chosen.indices if chosen.labels[index] == number]
        assert kept == inside[np.argsort(chosen.distances[inside])][: len(kept)].tolist()
    middle = blobs[chosen.labels == chosen.labels[0]].mean(axis=0)
    np.testing.assert_allclose(chosen.centres[chosen.labels[0]], middle, atol=1e-4)
    np.testing.assert_allclose(chosen.distances[0], np.linalg.norm(blobs[0] - middle), atol=1e-4)


def test_small_clusters_are_made_up_for_when_asked(blobs):
    assert len(choose(blobs, "kmeans", 0.5, clusters=3).indices) == 25  # 10 + 10 + 5
    filled = choose(blobs, "kmeans", 0.5, clusters=3, fill=True).indices
    assert len(filled) == len(set(filled.tolist())) == 30


def test_the_same_seed_chooses_the_same_and_random_differs_by_seed(blobs):
    for policy in ("kmeans", "random", "herding"):
        first, second = (choose(blobs, policy, 0.2, seed=3).indices for _ in range(2))
        assert np.array_equal(first, second)
    assert not np.array_equal(choose(blobs, "random", 0.2, seed=3).indices, choose(blobs, "random", 0.2).indices)


def test_herding_comes_nearer_to_the_mean_than_chance(blobs):
    def gap(policy: str, seed: int = 0) -> float:
        kept = choose(blobs, policy, 0.2, seed=seed).indices
        return float(np.linalg.norm(blobs[kept].mean(axis=0) - blobs.mean(axis=0)))

    assert gap("herding") < min(gap("random", seed) for seed in range(5))


def test_many_cases_are_clustered_in_blocks_as_well_as_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    middles = rng.normal(0, 20, (12, 8))
    features = (middles[rng.integers(12, size=3000)] + rng.normal(0, 1, (3000, 8))).astype(np.float32)

    def spread() -> float:
        labels, centres = rehearsal.cluster(features, 12)
        return float(np.square(features - centres[labels]).sum())

    in_blocks = spread()
    monkeypatch.setattr(rehearsal, "SMALL", 10_000)
    assert in_blocks < 1.1 * spread()


def test_more_clusters_than_cases_is_told(blobs):
    with pytest.raises(ConfigError, match="61 clusters were asked for, but there are only 60 cases"):
        choose(blobs, "kmeans", clusters=61)


def test_features_that_are_no_numbers_are_told(blobs):
    broken = blobs.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match="no finite numbers"):
        choose(broken)


def _saved(ct: Path, folder: Path) -> rehearsal.Buffer:
    opened = Dataset.open(ct)
    cases = opened.cases(split="train")
    features = np.random.default_rng(0).normal(size=(len(cases), 4)).astype(np.float32)
    chosen = choose(features, "random", 0.5)
    made = rehearsal.make("3D_CT", "3d", opened, {"view": "crop"}, cases, chosen, policy="random", ratio=0.5, seed=0)
    return made.save(folder, features, chosen)


def test_a_buffer_is_read_as_it_was_saved_and_moves_with_its_dataset(ct, tmp_path):
    shutil.copytree(ct.parent, tmp_path / "one" / "data")
    buffer = _saved(tmp_path / "one" / "data" / "3D_CT", tmp_path / "one" / "buffer")
    assert json.loads((tmp_path / "one" / "buffer" / "buffer.json").read_text())["dataset"] == "../data/3D_CT"
    assert rehearsal.load(tmp_path / "one" / "buffer") == buffer
    (tmp_path / "one").rename(tmp_path / "two")
    moved = rehearsal.load(tmp_path / "two" / "buffer")
    assert moved.open().folder == tmp_path / "two" / "data" / "3D_CT"
    assert moved.ids == buffer.ids
    arrays = rehearsal.arrays(tmp_path / "two" / "buffer")
    assert arrays["features"].shape == (buffer.cases, 4)
    assert [Dataset.open(ct).cases(split="train")[index].id for index in arrays["chosen"]] == list(buffer.ids)


def test_runs_and_datasets_that_are_moved_as_one_find_each_other(ct, tmp_path):
    shutil.copytree(ct, tmp_path / "one" / "datasets" / "3D_CT")
    place = Path("runs", "plan", "stages", "01-3D_CT", "buffer")
    _saved(tmp_path / "one" / "datasets" / "3D_CT", tmp_path / "one" / place)
    (tmp_path / "one").rename(tmp_path / "two")
    moved = rehearsal.load(tmp_path / "two" / place)
    assert moved.open().folder == tmp_path / "two" / "datasets" / "3D_CT"
    shutil.copytree(tmp_path / "two", tmp_path / "one")  # where it was is there again: that is meant
    assert rehearsal.load(tmp_path / "two" / place).dataset == tmp_path / "one" / "datasets" / "3D_CT"


def test_files_that_moved_are_told(ct, tmp_path):
    shutil.copytree(ct, tmp_path / "data")
    buffer = _saved(tmp_path / "data", tmp_path / "buffer")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"rehearses cases of the dataset 3D_CT, which is not at .*buffer\.json"):
        buffer.open()
    (tmp_path / "elsewhere").rename(tmp_path / "data")
    cases = [buffer.open().case(name) for name in buffer.ids]
    shutil.rmtree(tmp_path / "data" / cases[0].store["folder"])
    with pytest.raises(DataError, match="stored views of 1 of the"):
        buffer.check(cases)


def test_members_that_are_gone_are_told(ct, tmp_path):
    shutil.copytree(ct, tmp_path / "data")
    buffer = _saved(tmp_path / "data", tmp_path / "buffer")
    opened = Dataset.open(tmp_path / "data")
    opened.put(opened.case(buffer.ids[0]).updated({"excluded": True}))
    opened.save()
    with pytest.raises(DataError, match=f"1 of the {len(buffer.ids)} cases .* not in the dataset"):
        buffer.open()


def test_no_buffer_and_a_damaged_one_are_told(tmp_path):
    with pytest.raises(DataError, match="holds no rehearsal buffer"):
        rehearsal.load(tmp_path)
    (tmp_path / "buffer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        rehearsal.load(tmp_path)
