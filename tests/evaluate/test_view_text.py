"""Views that read a report or compare cases, from files as the command line asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.config.presets import pretrain_config
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.data.prepare import InputProfile
from training_backend.data.read import read_volume
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.view import draw_file
from training_backend.methods.mg3d import METHOD
from training_backend.weights.save import save_model

SMALL: dict[str, Any] = {
    "feature_size": 2,
    "window": 3,
    "heads": (1, 1, 2, 2),
    "text": {"width": 32, "heads": 4, "layers": 1, "longest": 64},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohort, dataset and a model with random weights."""
    root = tmp_path_factory.mktemp("texts")
    ingest([write_cohort(root / "cohort", 3, seed=1, shape=(20, 28, 32))], root / "dataset")
    run = pretrain_config("mg3d", "tiny", root / "dataset", {"method": SMALL, "data": {"size": (64, 32, 32)}})
    torch.manual_seed(0)
    network = METHOD.build(run)
    profile = InputProfile.of(run, Dataset.open(root / "dataset").info).model_dump(mode="json")
    config = METHOD.contained(network, run).model_dump(mode="json")
    save_model(root / "model", network, {"kind": "pretrain", "config": config, "profile": profile})
    (root / "report.txt").write_text("There is a nodule. The heart is large.", encoding="utf-8")
    return root


def draw(root: Path, name: str, output: Path, options: dict[str, Any] | None = None, **beside: Any) -> Any:
    scan = root / "cohort" / "imagesTr" / "case_000.nii.gz"
    return draw_file(str(root / "model"), scan, output, name, options, device="cpu", **beside)


def test_a_sentence_becomes_a_volume_on_the_scan(root: Path, tmp_path: Path) -> None:
    written, text = draw(root, "sentences", tmp_path / "out", {"sentence": 2}, report=root / "report.txt")
    assert [path.name for path in written] == ["gates.nii.gz"]
    assert text.startswith("Sentence 2 of 2.")
    map, scan = read_volume(written[0]), read_volume(root / "cohort" / "imagesTr" / "case_000.nii.gz")
    box = [
        np.stack([one.geometry.to_lps @ np.array([*corner, 1.0]) for corner in _corners(one)]) for one in (map, scan)
    ]
    middles = [corners[:, :3].mean(axis=0) for corners in box]
    assert np.abs(middles[0] - middles[1]).max() < 4  # millimetres: the body box is not the whole scan
    assert "large" not in "".join(path.name for path in (tmp_path / "out").iterdir())


def _corners(volume: Any) -> list[tuple[int, int, int]]:
    d, h, w = (n - 1 for n in volume.geometry.shape)
    return [(z, y, x) for z in (0, d) for y in (0, h) for x in (0, w)]


def test_cases_become_tables(root: Path, tmp_path: Path) -> None:
    beside = {"dataset": root / "dataset", "cases": ("case_000", "case_002")}
    written, text = draw(root, "patients", tmp_path / "out", **beside)
    assert len(written) == 4
    assert all(path.suffix == ".csv" for path in written)
    whole = np.loadtxt(written[-1], delimiter=",")
    assert whole.shape == (2, 2)
    assert "cosine" in text.lower()


def test_what_does_not_belong_together_gets_a_sentence(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads no report"):
        draw(root, "query", tmp_path / "out", {"text": "nodule"}, report=root / "report.txt")
    with pytest.raises(DataError, match="no report with a sentence"):
        draw(root, "sentences", tmp_path / "out")
    with pytest.raises(ConfigError, match="looks at one scan"):
        draw(root, "query", tmp_path / "out", {"text": "nodule"}, dataset=root / "dataset", cases=("case_000",))
    with pytest.raises(ConfigError, match="compares cases of a dataset"):
        draw(root, "patients", tmp_path / "out")
    with pytest.raises(ConfigError, match="Cases belong to a dataset"):
        draw(root, "patients", tmp_path / "out", cases=("case_000", "case_001"))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Knöchel".encode("latin-1"))
    with pytest.raises(DataError, match="no UTF-8"):
        draw(root, "words", tmp_path / "out", report=latin)
    with pytest.raises(DataError, match="cannot be read"):
        draw(root, "words", tmp_path / "out", report=tmp_path / "gone.txt")
    assert not (tmp_path / "out").exists()
