"""Cases found by words and by scans: the order of their latents, kept on disk, made again when something changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.config.presets import finetune_config
from training_backend.config.registry import task
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.data.prepare import InputProfile, stored_input
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.find_cases import find_by_scan, kept_store
from training_backend.evaluate.two_stage import ScanStore, find_scans
from training_backend.methods.mae3d import METHOD
from training_backend.tasks.base import Cancelled
from training_backend.weights.load import LoadedModel, load_model
from training_backend.weights.save import save_model

TINY = {
    "method": {"embed_dim": 24, "depth": 1, "heads": 3},
    "data": {"size": (16, 16, 16)},
    "task": {"latent": 16, "text": {"width": 24, "layers": 1, "heads": 2}},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("found")
    ingest([write_cohort(root / "cohort", 4, seed=1, shape=(20, 24, 24))], root / "dataset")
    return Dataset.open(root / "dataset")


@pytest.fixture(scope="module")
def loaded(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    run = finetune_config("retrieval", "tiny", dataset.folder, "mae3d", TINY)
    torch.manual_seed(0)
    network = task("retrieval").build(run, METHOD.build_encoder(run))
    contained: Any = task("retrieval").contained
    profile = InputProfile.of(run, dataset.info).model_dump(mode="json")
    card = {"kind": "finetune", "config": contained(network, run).model_dump(mode="json"), "profile": profile}
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, network, card)
    return load_model(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MED3DSSL_CACHE", str(tmp_path))
    return tmp_path


def test_hits_come_in_the_order_of_the_cosines_that_the_task_predicts(loaded: LoadedModel, dataset: Dataset) -> None:
    store = kept_store(loaded, dataset)
    cases = dataset.cases()
    assert store.latents.ids == tuple(case.id for case in cases)
    found = task("retrieval")
    for index, case in enumerate(cases):
        prepared = stored_input(dataset, case, loaded.profile)
        latent = found.predict(loaded.module, loaded.config, torch.from_numpy(prepared.array)[None], None)
        np.testing.assert_allclose(store.latents.latents[index], latent, atol=1e-4)
    words = "There is a solid nodule in the left upper lobe."
    latent = found.truth(loaded.module, loaded.config, cases[0].model_copy(update={"report": words, "target": None}))
    order = np.argsort(-(store.latents.latents @ latent), kind="stable")
    match: Any = loaded.module
    hits = find_scans(match, store, words, top=3)
    assert [case for case, _ in hits] == [store.latents.ids[index] for index in order[:3]]
    itself = find_by_scan(loaded, store, stored_input(dataset, cases[2], loaded.profile), 1)
    assert itself[0] == (cases[2].id, pytest.approx(1, abs=1e-4))


def test_latents_are_kept_until_the_dataset_changes(
    loaded: LoadedModel, dataset: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept_store(loaded, dataset)
    monkeypatch.setattr(ScanStore, "of", lambda *_: pytest.fail("they were kept"))
    again = kept_store(loaded, dataset)
    assert np.array_equal(first.latents.latents, again.latents.latents)
    monkeypatch.undo()
    monkeypatch.setenv("MED3DSSL_CACHE", str(cache))
    (kept,) = cache.rglob("*.npz")
    kept.write_bytes(b"broken")
    assert np.allclose(kept_store(loaded, dataset).latents.latents, first.latents.latents)
    fewer = Dataset(dataset.folder, dataset.info, dataset.cases()[1:])
    assert len(kept_store(loaded, fewer).latents.ids) == 3


def test_no_report_is_kept_with_the_latents(loaded: LoadedModel, dataset: Dataset, cache: Path) -> None:
    kept_store(loaded, dataset)
    content = b"".join(path.read_bytes() for path in cache.rglob("*") if path.is_file())
    assert b"nodule" not in content


def test_what_cannot_be_found_gets_a_sentence_and_a_stop_is_heard(loaded: LoadedModel, dataset: Dataset) -> None:
    with pytest.raises(Cancelled):
        kept_store(loaded, dataset, lambda share: share < 0.4)
    store = kept_store(loaded, dataset)
    with pytest.raises(DataError, match="no words to look for"):
        find_scans(loaded.module, store, "  ")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no scan to be found"):
        kept_store(loaded, Dataset(dataset.folder, dataset.info, []))
    bare = replace(loaded, config=loaded.config.updated({"kind": "pretrain", "task": None}))
    with pytest.raises(ConfigError, match="compares no texts with scans"):
        kept_store(bare, dataset)
