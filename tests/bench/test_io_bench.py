"""The crop benchmark runs and reports what the docs quote; here at a size that says nothing about speed."""

from __future__ import annotations

import json

from training_backend.bench import io


def test_the_crop_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "SHAPE", (24, 30, 28))
    monkeypatch.setattr(io, "CROP", (8, 8, 8))
    monkeypatch.setattr(io, "VOLUMES", 1)
    monkeypatch.setattr(io, "ROUNDS", 2)
    result = io.main(tmp_path / "io.json")
    assert json.loads((tmp_path / "io.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["crops_per_s"]) == set(io.PER_ROUND)
    assert all(rate > 0 for rate in result["crops_per_s"].values())
    assert result["ratio"]["store / nii.gz"] > 0
