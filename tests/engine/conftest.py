from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.engine.rundir import RunDirectory

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
    "optim": {"max_steps": 6, "batch_size": 4, "lr": 1e-3, "warmup": 0.0},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 3, "checkpoint_steps": 2, "preview_minutes": 0},
}
"""A network of a few thousand parameters; a step takes milliseconds."""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantom patients with labels and targets, ingested."""
    root = tmp_path_factory.mktemp("phantoms")
    ingest([write_cohort(root / "cohort", 6, seed=1, shape=(24, 32, 32))], root / "dataset")
    return root / "dataset"


@pytest.fixture
def pretrain(dataset: Path) -> Callable[..., RunConfig]:
    """Settings of a small pre-training run with nested changes."""

    def make(**changes: Any) -> RunConfig:
        return pretrain_config("mae3d", "tiny", dataset, SMALL).updated(changes)

    return make


@pytest.fixture
def finetune(dataset: Path) -> Callable[..., RunConfig]:
    """Settings of a small fine-tuning run of a task with nested changes."""

    def make(task: str = "segmentation", **changes: Any) -> RunConfig:
        return finetune_config(task, "tiny", dataset, changes=SMALL).updated(changes)

    return make


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Makes a run directory."""

    def make(config: RunConfig, name: str = "run") -> RunDirectory:
        return RunDirectory.create(tmp_path / name, config)

    return make
