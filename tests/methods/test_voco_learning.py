"""VoCo through the real engine: a short run that is stopped and goes on, and a longer one that learns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from training_backend.bench import voco_proof
from training_backend.config import RunConfig
from training_backend.config.presets import pretrain_config
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.engine import worker
from training_backend.engine.events import EventReader
from training_backend.engine.preview import read_preview
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.runtime import Runtime
from training_backend.engine.step import optimise
from training_backend.engine.work import open_work

SMALL: dict[str, Any] = {
    "method": {"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 16, "projected": 8},
    "data": {"workers": 0},
    "optim": {"max_steps": 3, "batch_size": 2, "amsgrad": True},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 3, "preview_minutes": 0.0001, "log_steps": 1},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    ingest([write_cohort(root / "cohort", 5, seed=3, shape=(64, 72, 72))], root / "dataset")
    return root / "dataset"


def config(dataset: Path, **changes: Any) -> RunConfig:
    return pretrain_config("voco", "tiny", dataset, SMALL).updated(changes)


def test_a_run_writes_a_model_and_pictures_and_tells_where_crops_were_found(dataset: Path, tmp_path: Path) -> None:
    from training_backend.weights.load import load_model

    run = RunDirectory.create(tmp_path / "run", config(dataset))
    assert worker.main([str(run.path)]) == 0
    model = load_model(run.path)
    assert model.kind == "pretrain"
    assert model.report.share == 1
    events = EventReader(run.events_path).read()
    metrics = [event for event in events if event["type"] == "metrics" and event["split"] == "train"]
    assert len(metrics) == 3
    assert {"intra", "inter", "reg", "position_accuracy", "position_error"} <= set(metrics[-1]["values"])
    folders = sorted(run.previews.glob("step_*"))
    facts, pictures = read_preview(folders[-1])
    assert facts["spacing_mm"]
    assert {"cells", "crops", "crop 1 overlap", "crop 1 prediction"} <= {picture.name for picture in pictures}


def test_a_run_that_starts_from_a_checkpoint_goes_on_exactly(dataset: Path) -> None:
    whole = open_work(config(dataset), Runtime(config(dataset).engine))
    losses, saved = [], None
    for views in whole.loader.batches():
        losses.append(optimise(whole, views).loss)
        whole.state.progress.step += 1
        saved = saved or copy.deepcopy(whole.state.saved({}))
    assert saved is not None
    resumed = open_work(config(dataset), Runtime(config(dataset).engine), resuming=True)
    resumed.state.restore(saved)
    for views in resumed.loader.batches(resumed.state.progress.step):
        losses.append(optimise(resumed, views).loss)
        resumed.state.progress.step += 1
    assert losses[1:3] == losses[3:]
    expected = whole.state.network.state_dict()
    found = resumed.state.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.learning
@pytest.mark.timeout(1800)
def test_crops_are_found_better_than_by_chance(tmp_path: Path) -> None:
    """The run of ``med3dssl bench voco_proof --parts position``, by what it says of its own crops."""
    steps, tail = 180, 60
    changes = {"method": voco_proof.EASED, "data": {"workers": 0}, "optim": {"max_steps": steps, "lr": 3e-3}}
    dataset = voco_proof._phantoms(tmp_path, 20, (64, 72, 72))
    run = pretrain_config("voco", "tiny", dataset, {**changes, "engine": voco_proof.ENGINE})
    work = open_work(run, Runtime(run.engine))
    accuracy = []
    for views in work.loader.batches():
        accuracy.append(optimise(work, views).scalars["position_accuracy"])
        work.state.progress.step += 1
    late = sum(accuracy[-tail:]) / tail
    crops = tail * run.optim.batch_size * int(voco_proof.EASED["crops"])
    blind = (17 / 32) ** 2  # where two cells are overlapped alike, the first counts
    error = (blind * (1 - blind) / crops) ** 0.5
    assert late > blind + 5 * error, f"{late:.2f} of the crops found; {blind:.2f} by always naming the first cell"
