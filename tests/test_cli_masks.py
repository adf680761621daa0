"""Strokes and agreement from the command line, with a real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training_backend.cli import main
from training_backend.data.phantoms import Phantom
from training_backend.data.read import read_labels
from training_backend.data.write import write_volume


def test_strokes_are_learnt_kept_and_applied(
    phantom: Phantom, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED3DSSL_CACHE", str(tmp_path / "cache"))
    truth = phantom.labels.array == 1
    painted = np.zeros(truth.shape, np.uint8)
    for value, place in ((1, ~truth), (2, truth)):
        found = np.argwhere(place)
        painted[tuple(found[np.random.default_rng(value).choice(len(found), 40, replace=False)].T)] = value
    write_volume(phantom.volume, tmp_path / "scan.nii.gz")
    write_volume(phantom.volume.with_array(painted), tmp_path / "painted.nii.gz", labels=True)
    write_volume(phantom.volume.with_array(truth.astype(np.uint8)), tmp_path / "truth.nii.gz", labels=True)
    common = ["strokes", "--weights", model, "--input", str(tmp_path / "scan.nii.gz")]
    taught = [*common, "--painted", str(tmp_path / "painted.nii.gz"), "--output", str(tmp_path / "filled.nii.gz")]
    assert main([*taught, "--save", str(tmp_path / "lungs.safetensors")]) == 0
    assert "structure 1" in capsys.readouterr().out
    applied = [*common, "--model", str(tmp_path / "lungs.safetensors"), "--output", str(tmp_path / "again.nii.gz")]
    assert main([*applied, "--truth", str(tmp_path / "none.nii.gz")]) == 1
    assert not (tmp_path / "again.nii.gz").exists()  # a truth that cannot be read is told before anything is done
    capsys.readouterr()
    assert main([*applied, "--truth", str(tmp_path / "truth.nii.gz")]) == 0
    said = capsys.readouterr().out
    filled, again = (read_labels(tmp_path / f"{name}.nii.gz").array for name in ("filled", "again"))
    np.testing.assert_array_equal(filled, again)
    dice = 2 * (filled.astype(bool) & truth).sum() / (filled.sum() + truth.sum())
    assert dice > 0.7
    assert "structure 1 against truth.nii.gz" in said
    assert f"Dice {dice:.3f}, HD95" in said
    assert (tmp_path / "doubt_filled.nii.gz").is_file()
    assert main(taught) == 1  # nothing is overwritten
    assert "exists" in capsys.readouterr().err

    assert main(["agreement", str(tmp_path / "filled.nii.gz"), str(tmp_path / "truth.nii.gz")]) == 0
    said = capsys.readouterr().out
    assert "class 1" in said
    assert "differs: only" in said


def test_learning_and_applying_at_once_is_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "strokes",
        "--weights",
        model,
        "--input",
        str(tmp_path / "x.nii"),
        "--output",
        str(tmp_path / "y.nii"),
    ]
    assert main(arguments) == 1
    assert "either learnt or applied" in capsys.readouterr().err
