"""Strokes through the model process's operations: what is kept between them, and what cannot be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training_backend.data.phantoms import Phantom, thorax_ct
from training_backend.errors import DataError, RunError, WeightsError
from training_backend.jobs.serve_ops import Session
from training_backend.jobs.stroke_ops import StrokeOps

CLASSES = [{"index": k, "name": name, "colour": "#009e73"} for k, name in enumerate(("background", "lungs"))]


def quiet(share: float, text: str = "") -> bool:
    return True


@pytest.fixture
def strokes() -> StrokeOps:
    return StrokeOps(Session("cpu"))


@pytest.fixture
def opened(strokes: StrokeOps, phantom: Phantom, model: str) -> dict[str, Any]:
    """Answer to the opening of the phantom, painted around its middle."""
    given = {"source": model, "volumes": [phantom.volume], "near": [9, 17, 13], "size": [8, 16, 16]}
    return strokes.open(given, quiet)  # type: ignore[arg-type]


def drawn(phantom: Phantom, count: int = 20) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    places = [np.argwhere((phantom.labels.array == 1) == inside) for inside in (False, True)]
    points = np.concatenate([found[rng.choice(len(found), count, replace=False)] for found in places])
    return {"points": points, "values": np.repeat([0, 1], count), "classes": CLASSES}


def test_the_region_is_ready_before_the_first_stroke(
    strokes: StrokeOps, opened: dict[str, Any], phantom: Phantom
) -> None:
    scan = strokes._scan
    assert scan is not None
    assert len(scan._kept) == 1
    given = {"key": opened["key"], "near": [10, 18, 12], "size": [8, 16, 16], **drawn(phantom)}
    found = strokes.fill(given, quiet)  # type: ignore[arg-type]
    assert found["start"] == [5, 9, 5]
    assert found["labels"].shape == (8, 16, 16)
    assert len(scan._kept) == 1  # the brush is in the region that was made ready


def test_a_part_is_what_the_whole_is(strokes: StrokeOps, opened: dict[str, Any], phantom: Phantom) -> None:
    given = {"key": opened["key"], "near": [9, 17, 13], **drawn(phantom)}
    part = strokes.fill({**given, "size": [8, 16, 16]}, quiet)  # type: ignore[arg-type]
    whole = strokes.fill({**given, "size": None}, quiet)  # type: ignore[arg-type]
    z, y, x = part["start"]
    assert (part["labels"] == whole["labels"][z : z + 8, y : y + 16, x : x + 16]).mean() > 0.99
    assert part["geometry"].shape == (8, 16, 16)
    assert part["painted"] == {"background": 20, "lungs": 20}


def test_strokes_beside_the_region_teach_too(strokes: StrokeOps, opened: dict[str, Any], phantom: Phantom) -> None:
    """The brush left the region, which moves there; what was painted outside of it still counts."""
    given = {"key": opened["key"], "near": [0, 0, 0], "size": [6, 8, 8], **drawn(phantom)}
    found = strokes.fill(given, quiet)  # type: ignore[arg-type]
    assert found["start"] == [0, 0, 0]
    assert found["painted"] == {"background": 20, "lungs": 20}


def test_what_teaches_nothing_loses_nothing(strokes: StrokeOps, opened: dict[str, Any], phantom: Phantom) -> None:
    good = {"key": opened["key"], "near": [9, 17, 13], "size": [8, 16, 16], **drawn(phantom)}
    before = strokes.fill(good, quiet)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Only lungs is painted"):
        strokes.fill({**good, "points": good["points"][20:], "values": good["values"][20:]}, quiet)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="lie outside the scan"):
        strokes.fill({**good, "points": good["points"] + [[0, 0, 26]]}, quiet)  # type: ignore[arg-type]
    after = strokes.fill(good, quiet)  # type: ignore[arg-type]
    np.testing.assert_array_equal(after["labels"], before["labels"])


def test_another_scan_another_model_and_nothing_taught(
    strokes: StrokeOps, opened: dict[str, Any], phantom: Phantom, model: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="Nothing was learnt"):
        strokes.save({"key": opened["key"], "path": str(tmp_path / "none.safetensors")}, quiet)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="not have this scan ready any more"):
        strokes.fill({"key": "another", "size": None, **drawn(phantom)}, quiet)  # type: ignore[arg-type]
    strokes.fill({"key": opened["key"], "size": None, **drawn(phantom)}, quiet)  # type: ignore[arg-type]
    strokes.save({"key": opened["key"], "path": str(tmp_path / "lungs.safetensors")}, quiet)  # type: ignore[arg-type]
    other = thorax_ct(4, (19, 34, 26)).volume
    given = {"source": model, "volumes": [other], "path": str(tmp_path / "lungs.safetensors")}
    found = strokes.apply(given, quiet)  # type: ignore[arg-type]
    assert found["notes"] == []
    assert found["labels"].shape == other.array.shape
    with pytest.raises(WeightsError, match="another model or scale"):
        strokes.apply({**given, "normalised": False}, quiet)  # type: ignore[arg-type]
