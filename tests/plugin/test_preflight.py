"""What is said before a run starts."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from napari_med3dssl.preflight import checks
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.data.dataset import Dataset


def sentences(config: object, folder: Path, kind: str) -> str:
    return " ".join(check.sentence for check in checks(config, folder) if check.kind == kind)


def test_a_sound_run_has_no_errors(dataset: Path, tmp_path: Path) -> None:
    small = {"data": {"size": (16, 32, 32)}}
    config = pretrain_config("mae3d", "tiny", dataset, small)
    assert sentences(config, tmp_path / "runs", "error") == ""
    assert sentences(config, tmp_path, "warning") == ""
    assert "3 cases to train on in phantoms" in sentences(config, tmp_path, "ok")


def test_a_view_that_is_no_multiple_of_the_patch_names_the_nearest_size(dataset: Path, tmp_path: Path) -> None:
    config = pretrain_config("mae3d", "tiny", dataset, {"data": {"size": (20, 32, 32)}})
    assert "nearest size is 16×32×32" in sentences(config, tmp_path, "error")


def test_missing_dataset_labels_backbone_and_contrast_are_named(dataset: Path, tmp_path: Path) -> None:
    assert "is not a dataset" in sentences(pretrain_config("mae3d", "tiny", tmp_path), tmp_path, "error")
    config = finetune_config("segmentation", "tiny", dataset)
    assert "No backbone" in sentences(config, tmp_path, "warning")
    assert "smaller than a view" in sentences(config, tmp_path, "warning")
    wrong = pretrain_config("mae3d", "tiny", dataset, {"data": {"contrasts": ("T9",)}})
    assert "no contrast T9" in sentences(wrong, tmp_path, "error")
    unlabelled = shutil.copytree(dataset, tmp_path / "copy")
    opened = Dataset.open(unlabelled)
    opened.records = {id: case.model_copy(update={"label": None}) for id, case in opened.records.items()}
    opened.save()
    error = sentences(finetune_config("segmentation", "tiny", unlabelled), tmp_path, "error")
    assert "no training case with a label map" in error


def test_a_full_disk_and_missing_torch_forbid_the_start(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    error = sentences(pretrain_config("mae3d", "tiny", dataset), tmp_path, "error")
    assert "0.1 GB are free" in error
    assert "PyTorch is not installed" in error


def test_sequences_that_the_data_cannot_give_are_told(dataset: Path, tmp_path: Path) -> None:
    view = {"view": "sequence", "size": (16, 32, 32), "augment": {"flip": (0, 0, 0)}, "sequence": {"stride": 4}}
    config = pretrain_config("mae3d", "tiny", dataset, {"data": view})
    assert "can give every kind of sequence" in sentences(config, tmp_path, "ok")
    longer = config.updated({"data": {"sequence": {"stride": 8}}})
    assert "shorter than the stack of its slabs" in sentences(longer, tmp_path, "error")
    everything = config.updated({"data": {"sequence": {"contrast": 1.0, "semantic": 1.0}}})
    warning = sentences(everything, tmp_path, "warning")
    assert "goes on without contrast sequences" in warning
    assert "goes on without semantic sequences" in warning
    assert "sequences" not in sentences(everything, tmp_path, "error")
