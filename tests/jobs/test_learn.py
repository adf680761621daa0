"""Runs that go on from the best model of another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import ConfigError
from training_backend.jobs.learn import continued


def test_settings_are_those_of_the_run_with_all_cases_and_its_weights(tmp_path: Path) -> None:
    former = finetune_config("segmentation", "tiny", tmp_path / "old", changes={"data": {"train_cases": 3}, "seed": 7})
    run = RunDirectory.create(tmp_path / "former", former).path
    with pytest.raises(ConfigError, match="no model yet"):
        continued(run, tmp_path / "new")
    (run / "model.safetensors").write_bytes(b"")
    config = continued(run, tmp_path / "new")
    expected = {"dataset": (tmp_path / "new").resolve(), "train_cases": None, "only": None}
    assert config == former.updated({"weights": str(run.resolve()), "data": expected})
    assert config.data.train_cases is None


def test_what_cannot_go_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run"):
        continued(tmp_path, tmp_path)
    run = RunDirectory.create(tmp_path / "mae", pretrain_config("mae3d", "tiny", tmp_path)).path
    with pytest.raises(ConfigError, match="pre-trained only"):
        continued(run, tmp_path)
