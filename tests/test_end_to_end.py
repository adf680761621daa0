"""From a folder of scans to label volumes on the scans' own grids, through the command line only."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from training_backend.cli import main
from training_backend.data.phantoms import oblique, write_cohort
from training_backend.data.read import read_labels, read_volume
from training_backend.data.write import write_volume

SHAPE = (32, 40, 40)
SMALL = ["--preset", "tiny", "--data.size", "16", "24", "24", "--optim.batch-size", "2", "--engine.threads", "1"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a pre-training run and a fine-tuning run of a few steps, made by commands."""
    root = tmp_path_factory.mktemp("the way") / "mit Leerzeichen und ä"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MED3DSSL_RUNS", str(root / "runs"))
        write_cohort(root / "cohort", 6, seed=3, shape=SHAPE)
        data = ["--data", str(root / "dataset")]
        assert main(["data", "ingest", str(root / "cohort"), "--output", str(root / "dataset")]) == 0
        pretrain = ["pretrain", *data, "--output", str(root / "mae"), *SMALL, "--optim.max-steps", "4"]
        assert main(pretrain) == 0
        assert main(pretrain) == 0  # finished already: says so, trains nothing
        weights = ["--weights", str(root / "mae")]
        finetune = ["finetune", *data, *weights, "--output", str(root / "organs"), *SMALL, "--optim.max-steps", "4"]
        assert main(finetune) == 0
        classify = ["finetune", "--task", "classification", *data, *weights, "--output", str(root / "nodule"), *SMALL]
        assert main([*classify, "--optim.max-steps", "3"]) == 0
    return root


def test_runs_leave_a_model_and_its_card(workspace: Path) -> None:
    for name in ("mae", "organs", "nodule"):
        assert (workspace / name / "model.safetensors").stat().st_size > 1000
        card = json.loads((workspace / name / "card.json").read_text(encoding="utf-8"))
        assert card["config"]["method"]["name"] == "mae3d"
        assert json.loads((workspace / name / "run.json").read_text(encoding="utf-8"))["state"] == "finished"


def test_predictions_lie_on_the_grid_of_the_file(workspace: Path) -> None:
    scan = oblique(5, SHAPE).volume
    path = write_volume(scan, workspace / "schräg.nii.gz")
    assert (
        main(["predict", "--run", str(workspace / "organs"), "--input", str(path), "--output", str(workspace / "out")])
        == 0
    )
    (written,) = (workspace / "out").glob("*.nii.gz")
    assert read_labels(written).geometry.same_grid(read_volume(path).geometry)
    assert np.allclose(read_labels(written).geometry.affine, read_volume(path).geometry.affine, atol=1e-4)


def test_a_table_goes_in_and_comes_back_with_predictions(workspace: Path) -> None:
    images = sorted((workspace / "cohort" / "imagesTr").glob("*.nii.gz"))[:2]
    table, output = workspace / "in.csv", workspace / "out.csv"
    table.write_text("Path,Label\n" + "".join(f"{path},0\n" for path in images), encoding="utf-8")
    assert main(["predict", "--run", str(workspace / "nodule"), "--input", str(table), "--output", str(output)]) == 0
    rows = list(csv.DictReader(output.open(encoding="utf-8")))
    assert [row["Path"] for row in rows] == [str(path) for path in images]
    assert all(0 <= json.loads(row["Predictions"])[0] <= 1 for row in rows)


def test_scans_become_vectors(workspace: Path) -> None:
    image = str(next((workspace / "cohort" / "imagesTr").glob("*.nii.gz")))
    output = workspace / "vectors.npz"
    command = [
        "embed",
        "--weights",
        str(workspace / "mae"),
        "--input",
        image,
        "--output",
        str(output),
        "--kinds",
        "class",
        "concat",
    ]
    assert main(command) == 0
    vectors = np.load(output)
    assert vectors["concat"].shape[1] == 2 * vectors["class"].shape[1]


def test_reconstructions_are_volumes_on_the_scan(workspace: Path) -> None:
    image = next((workspace / "cohort" / "imagesTr").glob("*.nii.gz"))
    command = [
        "reconstruct",
        "--run",
        str(workspace / "mae"),
        "--input",
        str(image),
        "--output",
        str(workspace / "filled"),
    ]
    assert main(command) == 0
    names = {path.name for path in (workspace / "filled").glob("*.nii.gz")}
    assert any("reconstruction" in name for name in names)
    scan = read_volume(image).geometry
    for path in (workspace / "filled").glob("*.nii.gz"):
        found = read_volume(path).geometry
        centre = found.to_lps @ [*(np.array(found.shape) - 1) / 2, 1]
        assert (np.abs(np.linalg.inv(scan.to_lps) @ centre)[:3] < np.array(scan.shape)).all()


def test_scores_and_comparison_are_tables(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = workspace / "scores.csv"
    command = [
        "evaluate",
        "--run",
        str(workspace / "organs"),
        "--data",
        str(workspace / "dataset"),
        "--output",
        str(table),
    ]
    assert main(command) == 0
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert {"case", "class", "dice"} <= set(rows[0])
    shutil.copytree(workspace / "organs", workspace / "organs again")
    assert main(["compare", str(workspace / "organs"), str(workspace / "organs again")]) == 0
    assert "organs again" in capsys.readouterr().out


def test_weights_go_to_the_authors_layout_and_back(workspace: Path) -> None:
    exported, imported = workspace / "mae.pth", workspace / "imported"
    assert main(["weights", "export", str(workspace / "mae"), "--output", str(exported)]) == 0
    assert main(["weights", "inspect", str(exported)]) == 0
    assert main(["weights", "import", str(exported), "--output", str(imported)]) == 0
    assert (imported / "model.safetensors").is_file()


def test_runs_are_listed_shown_and_cloned(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MED3DSSL_RUNS", str(workspace / "runs"))
    assert main(["runs", "list"]) == 0
    assert str(workspace / "mae") in capsys.readouterr().out
    assert main(["runs", "show", str(workspace / "mae")]) == 0
    assert "finished" in capsys.readouterr().out
    clone = [
        "runs",
        "clone",
        str(workspace / "mae"),
        "--output",
        str(workspace / "mae 2"),
        "--set",
        "optim.max_steps=2",
    ]
    assert main(clone) == 0
    assert json.loads((workspace / "mae 2" / "run.json").read_text(encoding="utf-8"))["state"] == "finished"


def test_no_path_of_a_scan_is_in_any_event(workspace: Path) -> None:
    for events in workspace.glob("*/events.jsonl"):
        assert "imagesTr" not in events.read_text(encoding="utf-8")


def test_probing_the_orientation_ranks_forty_eight(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(next((workspace / "cohort" / "imagesTr").glob("*.nii.gz")))
    assert main(["weights", "probe-orientation", "--weights", str(workspace / "mae"), "--input", image]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 49
