"""The order in which cases are to be labelled, and its reasons."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training_backend.config import IngestConfig
from training_backend.config.presets import finetune_config
from training_backend.config.registry import method, task
from training_backend.data.accept import accept
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.data.prepare import InputProfile, stored_input
from training_backend.data.read import read_classes
from training_backend.engine.export import self_contained
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.next_case import Seen, mean_entropy, next_cases, ranked
from training_backend.weights.load import LoadedModel, load_model
from training_backend.weights.save import save_model


def at(name: str, *place: float, entropy: float = 0.0) -> Seen:
    return Seen(name, np.array(place, np.float32), entropy)


def test_the_most_uncertain_comes_first() -> None:
    cases = [at(name, 0, entropy=entropy) for name, entropy in (("a", 0.1), ("b", 0.5), ("c", 0.3))]
    found = ranked(cases, [], "uncertainty", 2)
    assert [one.case_id for one in found] == ["b", "c"]
    assert "50 %" in found[0].reason
    assert "place 1 of 3" in found[0].reason


def test_the_farthest_comes_first_and_then_counts_as_labelled() -> None:
    """Two twins lie far away: after the first, the other is no news any more."""
    cases = [at("near", 1, 0), at("twin 1", 10, 0), at("twin 2", 10, 0.5), at("aside", 0, 5)]
    found = ranked(cases, [at("known", 0, 0)], "diversity", 4)
    assert [one.case_id for one in found] == ["twin 2", "aside", "near", "twin 1"]
    assert "known, the nearest labelled case" in found[0].reason
    assert "twin 2, which is higher" in found[3].reason


def test_without_labelled_cases_the_most_typical_begins() -> None:
    cases = [at("left", -5), at("middle", 0.1), at("right", 5)]
    found = ranked(cases, [], "diversity", 2)
    assert found[0].case_id == "middle"
    assert "most like all others" in found[0].reason


def test_both_weighs_the_two_ranks() -> None:
    cases = [at("unsure", 0, entropy=0.9), at("far", 9, entropy=0.1), at("plain", 4, entropy=0.2)]
    cases.append(at("fair", 8, entropy=0.8))
    assert ranked(cases, [at("known", 0)], "both", 1)[0].case_id == "fair"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms for training, two of them without label map."""
    root = tmp_path_factory.mktemp("next")
    ingest(write_cohort(root / "cohort", 5, seed=1, shape=(16, 24, 24)), root / "data", IngestConfig(workers=0))
    dataset = Dataset.open(root / "data")
    for case in dataset.cases(split="train")[:2]:
        store = {name: entry for name, entry in case.store.items() if name != "label"}
        dataset.put(case.model_copy(update={"label": None, "store": store}))
    dataset.save()
    return root / "data"


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """An untrained segmentation network."""
    small = {
        "method": {"size": "tiny", "patch_size": (8, 8, 8), "embed_dim": 24, "heads": 2, "depth": 2},
        "task": {"channels": (8, 8, 16)},
        "data": {"size": (16, 16, 16)},
    }
    config = finetune_config("segmentation", "tiny", folder, changes=small)
    torch.manual_seed(0)
    network = task("segmentation").build(config, method("mae3d").build_encoder(config))
    profile = InputProfile.of(config, Dataset.open(folder).info)
    config = self_contained(config)
    card = {"kind": "finetune", "config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
    place = tmp_path_factory.mktemp("model")
    save_model(place, network, card)
    return load_model(place)


def test_cases_of_a_dataset_are_listed_once_they_are_unlabelled(
    folder: Path, model: LoadedModel, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    dataset = Dataset.open(tmp_path / "copy")
    dataset.info = dataset.info.model_copy(update={"root": (folder.parent / "cohort").resolve().as_posix()})
    dataset.save()
    unlabelled = {case.id for case in dataset.cases(split="train", labelled=False)}
    found = next_cases(model, dataset, "both", 10, device="cpu")
    assert {one.case_id for one in found} == unlabelled
    assert all(0 < (one.entropy or 0) <= 1 and (one.distance or 0) > 0 for one in found)
    assert next_cases(model, dataset, "both", 10, device="cpu") == found
    twin = dataset.cases(labelled=True)[0]
    truth = read_classes(dataset.source(twin.label))  # type: ignore[arg-type]
    for one in found:
        accept(dataset.folder, one.case_id, truth)
    with pytest.raises(DataError, match="Every training case"):
        next_cases(model, Dataset.open(dataset.folder), "both", 10, device="cpu")


def test_entropy_is_that_of_the_predicted_shares(folder: Path, model: LoadedModel) -> None:
    """A network whose classes are all alike is as unsure as can be; one that always says the same is sure."""
    dataset = Dataset.open(folder)
    prepared = stored_input(dataset, dataset.cases()[0], model.profile)
    classes = 1 + len(dataset.info.classes)

    class Fixed(torch.nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.logits, self.task = torch.nn.Parameter(torch.tensor(logits)), model.module.task

        def forward(self, volume: torch.Tensor) -> list[torch.Tensor]:
            return [self.logits.view(1, -1, 1, 1, 1).expand(len(volume), -1, *volume.shape[2:])]

    assert mean_entropy(replace(model, module=Fixed([0.0] * classes)), prepared) == pytest.approx(1, abs=1e-3)
    assert mean_entropy(replace(model, module=Fixed([50.0] + [0.0] * (classes - 1))), prepared) < 1e-3
    half = mean_entropy(replace(model, module=Fixed([0.0, 0.0] + [-50.0] * (classes - 2))), prepared)
    assert half == pytest.approx(np.log(2) / np.log(classes), abs=1e-3)


def test_a_model_that_does_not_segment_is_told(folder: Path, model: LoadedModel) -> None:
    pretrained = replace(model, config=model.config.updated({"kind": "pretrain", "task": None}))
    with pytest.raises(ConfigError, match="Only a segmentation model"):
        next_cases(pretrained, Dataset.open(folder), "uncertainty", 3, device="cpu")
