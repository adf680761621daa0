"""The command a form shows does exactly what the form does."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from napari_med3dssl.commands import training_command
from training_backend import watch
from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.recipes import recipe_config
from training_backend.data import fits
from training_backend.engine.rundir import RunDirectory
from training_backend.settings import parse_training

CHANGES = {
    "seed": 7,
    "optim": {"lr": 3e-4, "max_steps": 12, "clip_grad": 1.5, "betas": (0.8, 0.9)},
    "data": {"size": (32, 48, 64), "contrasts": ("T1", "T2 ä"), "augment": {"flip": (0.0, 0.5, 0.0)}},
    "engine": {"compile": True, "device": "cpu", "val_steps": None},
}


@pytest.mark.parametrize(
    "config",
    [
        pretrain_config("mae3d", "tiny", Path("/data/my scans")),
        pretrain_config("mae3d", "base", Path("/data/ä"), CHANGES),
        pretrain_config("mae3d", "small", Path("d"), {"method": {"mask_ratio": 0.6, "norm_pix_loss": True}}),
        finetune_config("segmentation", "tiny", Path("d"), changes={**CHANGES, "weights": "/runs/a b"}),
        finetune_config("segmentation", "small", Path("d"), changes={"task": {"classes": ("background", "a b")}}),
        finetune_config("classification", "tiny", Path("d"), changes={"task": {"kind": "multiclass", "classes": 3}}),
        recipe_config("la", Path("d"), weights="/runs/a b", changes={"optim": {"lr": 0.5}}),
        recipe_config("ricord", Path("d"), changes={"task": {"pooling": "global"}}),
    ],
    ids=["preset", "changed", "method", "finetune", "classes", "multiclass", "recipe", "recipe from scratch"],
)
def test_the_command_line_parses_back_to_the_same_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    if config.weights:  # of a run whose own settings are others, which the command must not fall back to
        changes = {"method": {"depth": 3}, "data": {"size": (16, 32, 32), "view": "volume"}}
        before = pretrain_config(
            config.method.name, "tiny", Path("d"), changes if config.method.name == "mae3d" else {}
        )
        config = config.updated({"weights": str(RunDirectory.create(tmp_path / "a b", before).path)})
    monkeypatch.setattr(fits, "check_fit", lambda recipe, folder: None)  # the folders of these runs are not there
    monkeypatch.setattr(watch, "train", lambda run, output, detach=False: seen.update(run=run, output=output))
    program, kind, *arguments = shlex.split(training_command(config, "runs/new one"))
    assert program == "med3dssl"
    parse_training(kind, arguments)
    assert seen["run"] == config
    assert seen["output"] == Path("runs/new one")


def test_only_differences_from_the_preset_become_flags() -> None:
    config = pretrain_config("mae3d", "tiny", Path("d"), {"optim": {"lr": 0.5}})
    assert training_command(config, "o").endswith("--preset tiny --data d --output o --optim.lr 0.5")


def test_what_weights_of_another_kind_may_decide_is_always_said(tmp_path: Path) -> None:
    config = finetune_config("segmentation", "tiny", Path("d"), changes={"weights": str(tmp_path / "authors.pt")})
    words = shlex.split(training_command(config, "o"))
    assert "--method.depth" in words
    assert "--data.intensity.profile" in words
