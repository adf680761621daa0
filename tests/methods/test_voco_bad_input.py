"""What cannot be used with VoCo: a sentence each, and no model or checkpoint of a run that never began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training_backend.cli import main
from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.methods.voco import METHOD

NETWORK: dict[str, Any] = {"feature_size": 3, "window": 3, "hidden": 8, "projected": 6}
ENGINE = {"device": "cpu", "threads": 1, "val_steps": 1, "preview_minutes": 0}
SLABS = {"cells": 2, "crop": 32, "depth": 64}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms of 40 x 48 x 48 voxels with label values up to 5."""
    root = tmp_path_factory.mktemp("phantoms")
    ingest([write_cohort(root / "cohort", 4, seed=3, shape=(40, 48, 48))], root / "data", IngestConfig(workers=0))
    return root / "data"


def pretraining(dataset: Path, method: dict[str, Any], **changes: Any) -> RunConfig:
    base = {"method": {**NETWORK, **method}, "data": {"workers": 0}, "optim": {"max_steps": 1}, "engine": ENGINE}
    return pretrain_config("voco", "tiny", dataset, base).updated(changes)


def segmentation(dataset: Path, weights: Path, **method: Any) -> RunConfig:
    changes = {
        "weights": str(weights),
        "method": {"feature_size": 3, "window": 3, **method},
        "data": {"workers": 0, "size": (32, 32, 64)},
        "optim": {"max_steps": 1},
        "engine": ENGINE,
    }
    return finetune_config("segmentation", "tiny", dataset, "voco", changes)


def refused(config: RunConfig, folder: Path) -> str:
    """Sentence and advice of a run that fails before it has anything to keep."""
    run = RunDirectory.create(folder, config)
    assert execute(run) == 1
    assert run.record()["state"] == "failed"
    assert not run.model_path.exists()
    assert not list(run.checkpoints.glob("*/*"))
    error = run.error()
    return f"{error['sentence']} {error['hint']}"


def test_a_crop_that_32_does_not_divide(dataset: Path, tmp_path: Path) -> None:
    told = refused(pretraining(dataset, {"crop": 48, "depth": 64}), tmp_path / "run")
    assert "needs sides of multiples of 32 voxels, but they are 64 x 48 x 48" in told


def test_a_slab_that_is_not_what_the_method_says(dataset: Path, tmp_path: Path) -> None:
    told = refused(pretraining(dataset, SLABS, data={"size": (64, 96, 96)}), tmp_path / "run")
    assert "A slab of 2 x 2 crops of 32 voxels has 64 x 64 x 64 voxels" in told
    assert "Set data.size to (64, 64, 64)" in told


def test_a_scan_smaller_than_a_slab_and_a_step_of_one_are_told_and_trained_on(dataset: Path, tmp_path: Path) -> None:
    config = pretraining(dataset, SLABS, optim={"batch_size": 1})
    run = RunDirectory.create(tmp_path / "run", config)
    assert execute(run) == 0, run.error()
    log = run.log_path.read_text(encoding="utf-8")
    assert "A step sees a single volume at a time" in log
    assert "of a slab of 64 x 64 x 64 voxels, so its border tells most positions" in log


def saved(folder: Path, name: str, **changes: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    run = pretrain_config("voco", "tiny", Path("d"), {"method": {**NETWORK, **changes}})
    tensors = METHOD.build_encoder(run).state_dict()
    return folder / name, tensors


FILES = {
    "head alone": (("student.",), "mine.pt"),
    "first stage alone": (("swinViT.patch_embed", "swinViT.layers1."), "without the convolutions before its stages"),
    "two stages of four": (("swinViT.patch_embed", "swinViT.layers1", "swinViT.layers2", "encoder"), "mine.pt"),
}
"""First letters of the tensors that a file holds, and what the refusal says."""


@pytest.mark.parametrize("what", FILES)
def test_weights_that_are_not_a_whole_encoder(dataset: Path, tmp_path: Path, what: str) -> None:
    starts, sentence = FILES[what]
    path, tensors = saved(tmp_path, "mine.pt")
    chosen = {name: tensor for name, tensor in tensors.items() if name.startswith(starts)}
    torch.save({"state_dict": chosen or {"student.layer1.0.weight": torch.zeros(8, 72)}}, path)
    told = refused(segmentation(dataset, path), tmp_path / "run")
    assert sentence in told
    assert len(told) < 500


def test_weights_of_another_size(dataset: Path, tmp_path: Path) -> None:
    path, tensors = saved(tmp_path, "wide.pt", feature_size=6)
    torch.save({"state_dict": tensors}, path)
    told = refused(segmentation(dataset, path), tmp_path / "run")
    assert "wide.pt" in told
    assert "encoder10.layer.conv1.conv.weight are not among them" in told
    assert "Its settings are method.feature_size empty (not 3)." in told


def test_a_recipe_whose_labels_the_data_lacks_makes_no_run(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    words = ["finetune", "--data", str(dataset), "--output", str(output), "--recipe"]
    assert main([*words, "voco-spleen"]) == 1
    assert "2 classes (background, spleen), but the dataset has label value 5" in capsys.readouterr().err
    assert main([*words, "voco-hip"]) == 1
    assert "The recipe is for MR, but the dataset holds CT" in capsys.readouterr().err
    assert not output.exists()


def test_a_list_of_missing_cases_makes_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"image": "a/gone.nii.gz", "label": "b/gone.nii.gz"}]}))
    assert main(["data", "ingest", str(path), "--output", str(tmp_path / "data")]) == 1
    told = capsys.readouterr().err
    assert "gone.nii.gz does not exist" in told
    assert f"No scan was found in {tmp_path}. " in told
    assert not (tmp_path / "data").exists()
