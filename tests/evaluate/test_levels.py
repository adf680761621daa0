"""Maps of a hierarchical encoder over a whole scan, one by one, kept apart, and their means in tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.cli import main
from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method
from training_backend.data.phantoms import thorax_ct
from training_backend.data.prepare import InputProfile, prepare
from training_backend.data.write import write_volume
from training_backend.errors import ConfigError
from training_backend.evaluate.features import body_tokens, map_tiles, pyramid_of, token_features
from training_backend.jobs.serve import Progress
from training_backend.jobs.serve_ops import Session
from training_backend.weights.load import load_model
from training_backend.weights.save import save_model

VOCO = method("voco")
TINY: dict[str, Any] = {
    "method": {"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 16, "projected": 8}
}
SLAB = (64, 64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = pretrain_config("voco", "tiny", Path(), TINY)
    profile = InputProfile(size=SLAB, crop_body=False, intensity=config.data.intensity).model_dump(mode="json")
    path = tmp_path_factory.mktemp("models") / "voco"
    save_model(
        path, VOCO.build(config), {"kind": "pretrain", "config": config.model_dump(mode="json"), "profile": profile}
    )
    return str(path)


@pytest.fixture(scope="module")
def encoder(folder: str) -> Any:
    return load_model(folder).encoder


def test_the_method_says_which_scales_its_encoder_has(encoder: Any) -> None:
    assert tuple(stride for _, stride in pyramid_of(encoder)) == VOCO.scales


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5, 6])
def test_one_window_is_the_map_itself_and_more_of_them_lie_on_the_scan(level: int, encoder: Any) -> None:
    profile = InputProfile(size=SLAB, crop_body=False)
    prepared = prepare([thorax_ct(2, SLAB).volume], profile)
    found = token_features(encoder, prepared, profile, level=level)
    with torch.no_grad():
        expected = encoder.encode(torch.from_numpy(prepared.array)[None]).pyramid[level - 1][0].permute(1, 2, 3, 0)
    np.testing.assert_allclose(found.values, expected.numpy(), atol=5e-3, rtol=5e-3)
    scan = prepare([thorax_ct(3, (70, 60, 90)).volume], profile)
    found = token_features(encoder, scan, profile, level=level)
    stride = VOCO.scales[level - 1]
    np.testing.assert_allclose(np.array(found.geometry.spacing_mm), np.array(scan.geometry.spacing_mm) * stride)
    assert found.values.shape[:3] == found.geometry.shape
    assert all(n * stride >= wanted for n, wanted in zip(found.geometry.shape, scan.geometry.shape))
    tiles, channels = map_tiles(encoder, scan.geometry.shape, profile, level)
    assert found.values.shape[3] == channels
    body = body_tokens(scan, tiles)
    assert body.shape == found.values.shape[:3]
    assert 0.05 < body.mean() < 0.95


def test_levels_that_are_not_there_are_told(encoder: Any) -> None:
    profile = InputProfile(size=SLAB, crop_body=False)
    prepared = prepare([thorax_ct(2, SLAB).volume], profile)
    with pytest.raises(ConfigError, match="6 maps, so map 7 does not exist"):
        token_features(encoder, prepared, profile, level=7)
    plain = pretrain_config("mae3d", "tiny", Path(), {"data": {"size": (16, 16, 16)}, "method": {"depth": 1}})
    with pytest.raises(ConfigError, match="features of one scale only"):
        token_features(method("mae3d").build_encoder(plain), prepared, profile, level=1)


def test_features_of_every_level_are_kept_apart(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MED3DSSL_CACHE", str(tmp_path))
    session, scan = Session("cpu"), thorax_ct(2, (40, 60, 50)).volume
    progress = Progress(lambda share, text: None, lambda: False)

    def asked(level: int) -> dict[str, Any]:
        return session.features({"source": folder, "volumes": [scan], "level": level}, progress)

    first = {level: asked(level) for level in (0, 2, 3)}
    assert [first[level]["cached"] for level in first] == [False, False, False]
    assert [first[level]["tokens"].shape[3] for level in first] == [72, 3, 6]
    for level, values in first.items():
        again = asked(level)
        assert again["cached"]
        np.testing.assert_array_equal(again["tokens"], values["tokens"])


def test_means_of_maps_are_columns_of_a_table(folder: str, tmp_path: Path, capsys: Any) -> None:
    scans = [write_volume(thorax_ct(k, SLAB).volume, tmp_path / f"scan{k}.nii.gz") for k in (1, 2)]
    table = tmp_path / "seen.csv"
    common = ["embed", "--weights", folder, "--input", *map(str, scans), "--output"]
    assert main([*common, str(table), "--levels", "1", "6"]) == 0
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [len(json.loads(rows[0][f"Embedding_map{level}"])) for level in (1, 6)] == [3, 48]
    loaded = load_model(folder)
    prepared = prepare([thorax_ct(2, SLAB).volume], loaded.profile)
    with torch.no_grad():
        maps = loaded.encoder.encode(torch.from_numpy(prepared.array)[None]).pyramid
    for level in (1, 6):
        expected = maps[level - 1][0].mean(dim=(1, 2, 3)).numpy()
        np.testing.assert_allclose(json.loads(rows[1][f"Embedding_map{level}"]), expected, atol=1e-4)
    capsys.readouterr()
    assert main([*common, str(tmp_path / "none.csv"), "--levels", "7"]) != 0
    assert "map 7 does not exist" in capsys.readouterr().err
    assert not (tmp_path / "none.csv").exists()
