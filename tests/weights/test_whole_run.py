"""From a real pre-training run to fine-tuning runs, through every way of naming weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.data.prepare import stored_input
from training_backend.data.read import read_volume
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.evaluate.orientation import probe_orientation
from training_backend.weights.convert import import_file
from training_backend.weights.export import export
from training_backend.weights.load import LoadedModel, load_model

SMALL: dict[str, Any] = {
    "data": {"size": (16, 16, 16), "crops_per_volume": 2, "workers": 0},
    "method": {
        "embed_dim": 24,
        "heads": 2,
        "depth": 2,
        "decoder_embed_dim": 24,
        "decoder_heads": 2,
        "decoder_depth": 1,
    },
    "optim": {"max_steps": 3, "batch_size": 2, "lr": 1e-3, "warmup": 0.0},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 3, "preview_minutes": 0},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort, its dataset, a pre-training run, and that run's weights in every form."""
    root = tmp_path_factory.mktemp("runs")
    ingest([write_cohort(root / "cohort", 6, seed=1, shape=(24, 32, 32))], root / "dataset")
    assert execute(RunDirectory.create(root / "pre", pretrain_config("mae3d", "tiny", root / "dataset", SMALL))) == 0
    export(root / "pre", root / "theirs.pth")
    import_file(root / "theirs.pth", root / "again")
    return root


def finetuned(workspace: Path, task: str, weights: str, settings: dict[str, Any]) -> LoadedModel:
    changes = {**SMALL, "task": settings, "weights": weights}
    config = finetune_config(task, "tiny", workspace / "dataset", changes=changes)
    run = RunDirectory.create(workspace / f"{task} from {Path(weights).name}", config)
    assert execute(run) == 0, run.error()
    return load_model(run.path)


def test_the_run_is_a_model_that_sees_what_it_was_validated_on(workspace: Path) -> None:
    model = load_model(workspace / "pre")
    dataset = Dataset.open(workspace / "dataset")
    prepared = stored_input(dataset, next(iter(dataset.cases("val"))), model.profile)
    view = torch.from_numpy(prepared.array[None, :, :16, :16, :16])
    pictures = model.method.preview(model.module, view, {"seed": 0}, torch.Generator())
    assert {picture.name for picture in pictures} >= {"original", "masked", "reconstruction"}
    assert model.card["dataset"]["name"]
    assert str(workspace) not in json.dumps(model.card)


@pytest.mark.parametrize("weights", ["pre", "pre/model.safetensors", "again", "theirs.pth"])
def test_a_frozen_encoder_is_that_of_the_weights(weights: str, workspace: Path) -> None:
    model = finetuned(workspace, "segmentation", str(workspace / weights), {"freeze": "encoder"})
    expected, found = load_model(workspace / "pre").module.state_dict(), model.encoder.state_dict()  # type: ignore[attr-defined]
    assert len(found) > 20
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_fine_tuning_trains_on_from_the_weights(workspace: Path) -> None:
    model = finetuned(workspace, "classification", str(workspace / "pre"), {"kind": "binary"})
    before, after = load_model(workspace / "pre").encoder, model.encoder
    moved = (after.blocks[0].mlp.fc1.weight - before.blocks[0].mlp.fc1.weight).abs().max()  # type: ignore[attr-defined]
    assert 0 < moved < 0.02


def test_pre_training_goes_on_from_a_run(workspace: Path) -> None:
    changes = {**SMALL, "weights": str(workspace / "pre"), "optim": {**SMALL["optim"], "max_steps": 1, "lr": 1e-12}}
    run = RunDirectory.create(workspace / "on", pretrain_config("mae3d", "tiny", workspace / "dataset", changes))
    assert execute(run) == 0
    before, after = load_model(workspace / "pre").module.state_dict(), load_model(run.path).module.state_dict()
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_weights_that_do_not_fit_end_the_run_with_a_sentence(workspace: Path) -> None:
    changes = {**SMALL, "method": {**SMALL["method"], "depth": 6}, "weights": str(workspace / "pre")}
    run = RunDirectory.create(
        workspace / "deep", finetune_config("segmentation", "tiny", workspace / "dataset", changes=changes)
    )
    assert execute(run) == 1
    error = run.error()
    assert error is not None
    assert error["category"] == "weights"
    assert "encoder tensors" in error["sentence"]
    assert "depth 2 (not 6)" in error["hint"]


def test_the_orientation_of_a_run_is_probed_on_a_scan(workspace: Path) -> None:
    scan = next((workspace / "cohort" / "imagesTr").glob("*.nii.gz"))
    scores = probe_orientation(workspace / "pre", read_volume(scan), masks=1)
    assert len(scores) == 48
