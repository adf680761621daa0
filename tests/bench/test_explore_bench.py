"""What the measurements of Explore draw, count and tell; one of them runs through a real model process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training_backend.bench import _explore, explore_strokes
from training_backend.bench._explore import Clocks, generated_scan
from training_backend.bench.explore_click import _clicks
from training_backend.bench.explore_strokes import scripted
from training_backend.bench.strokes_vs_finetune import BACKGROUND, drawn_strokes, markdown

TINY: dict[str, Any] = {
    "method": {"patch_size": (8, 8, 8), "depth": 1, "decoder_depth": 1},
    "data": {"size": (16, 16, 16)},
}


def blocks() -> np.ndarray:
    """Two structures in background; the second ends before the last slices."""
    labels = np.zeros((12, 30, 40), np.uint8)
    labels[:, 4:14, 4:18] = 1
    labels[:6, 16:28, 20:36] = 2
    return labels


def test_strokes_lie_in_their_classes() -> None:
    labels = blocks()
    points, values = scripted(labels, (0, 1, 2), 3, 10, seed=0)
    assert set(values.tolist()) == {0, 1, 2}
    assert (labels[tuple(points.T)] == values).all()
    assert (points[:, 0] == 3).all()
    assert all(4 <= (values == k).sum() <= 54 for k in (1, 2))  # ten steps of a brush of three voxels, cut at a border
    assert set(scripted(labels, (0, 1, 2), 8, 10, seed=0)[1].tolist()) == {0, 1}
    more = scripted(labels, (0, 1, 2), 3, 10, seed=0, background=3)[1]
    assert (more == 0).sum() > (values == 0).sum()


def test_classes_that_are_not_named_are_background() -> None:
    labels = blocks()
    points, values = scripted(labels, (0, 2), 3, 30, seed=1, background=8)
    assert ((labels[tuple(points.T)] == 2) == (values == 1)).all()
    assert 1 in labels[tuple(points.T)]


def test_slices_with_strokes_are_spread_over_the_structure() -> None:
    labels = np.moveaxis((blocks() == 1).astype(np.uint8), 0, 2)  # fewest voxels along the last axis
    points, values = drawn_strokes(labels, 3, 10, seed=0)
    assert (labels[tuple(points.T)] == values).all()
    assert np.unique(points[:, 2]).tolist() == [2, 5, 8]
    assert BACKGROUND > 1


def test_the_table_has_a_line_for_each_way_and_annotation() -> None:
    rows = [{"arm": "own", "annotated": "3 slices", "dice": dice, "processor_s": 0.5} for dice in (0.4, 0.6)]
    rows.append({"arm": "masks", "annotated": "1 scan", "dice": 0.55, "processor_s": 8.0})
    lines = markdown(rows).splitlines()
    assert lines[-2] == "| 3 slices | stroke model, rest of the same scan | 0.500 (0.400 to 0.600) | 0.5 s |"
    assert lines[-1] == "| 1 scan | fine-tuned on whole masks | 0.550 (0.550 to 0.550) | 8 s |"


def test_clocks_tell_work_from_waiting() -> None:
    import time

    clocks = Clocks(os.getpid())
    assert clocks.time(lambda: 7) == 7
    clocks.time(lambda: time.sleep(0.05))
    told = clocks.told()
    assert told["calls"] == 2
    assert told["max_s"] >= 0.05 > told["processor_s"]


def test_clicks_are_counted_by_kind() -> None:
    tokens = np.random.default_rng(0).normal(size=(3, 4, 5, 8)).astype(np.float16)
    answer = _clicks(tokens, np.ones((3, 4, 5), bool), 4)
    assert {name: one["calls"] for name, one in answer.items()} == {
        "prepared": 1,
        "click_one": 4,
        "click_like_and_unlike": 4,
    }


def test_a_generated_scan_has_the_shape_that_was_asked_for() -> None:
    scan, labels = generated_scan((21, 32, 33))
    assert scan.array.shape == labels.array.shape == scan.geometry.shape == (21, 32, 33)
    assert labels.array.max() > 0


def test_strokes_are_measured_through_the_model_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.setitem(_explore.MODELS, "vit", ("mae3d", "tiny", TINY, 0))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("MED3DSSL_CACHE", raising=False)
    answer = explore_strokes.main((24, 32, 32), region=16, strokes=2, models=("vit",), output=tmp_path)["vit"]
    assert [answer[name]["calls"] for name in ("first", "stroke", "new_region", "whole")] == [1, 2, 3, 2]
    assert set(answer["painted"]) == {"background", "lungs", "heart"}
    assert list((tmp_path / "cache" / "features").glob("*.npz"))
    assert "MED3DSSL_CACHE" not in os.environ
