"""NoduleMNIST3D: from a file with its arrays to a dataset, splits and classes kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training_backend.data.ar_published import nodules_resized
from training_backend.data.dataset import Dataset
from training_backend.data.prepare import InputProfile, stored_input
from training_backend.data.prepare_nodules import prepare_nodules
from training_backend.errors import DataError

COUNTS = {"train": 5, "val": 2, "test": 3}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in COUNTS.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 14, 14, 14), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    path = tmp_path / "nodulemnist3d.npz"
    np.savez(path, **arrays)
    return path


def seen(dataset: Dataset, name: str, size: int) -> np.ndarray:
    """Voxels that a network of the recipe sees."""
    profile = InputProfile(
        view="volume", size=(size,) * 3, keep_aspect=False, crop_body=False, intensity={"profile": "identity"}
    )
    return stored_input(dataset, dataset.case(name), profile).array[0]


def test_official_splits_and_classes_are_kept(file: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    report = prepare_nodules(file, tmp_path / "data", progress=lambda share: shares.append(share) is None)
    assert report.ok == tuple(sorted(f"{split}_{n:04d}" for split, count in COUNTS.items() for n in range(count)))
    assert shares[-1] == 1.0
    dataset = Dataset.open(tmp_path / "data")
    assert {split: len(dataset.cases(split=split)) for split in COUNTS} == COUNTS
    assert [case.target for case in dataset.cases(split="test")] == [(0.0,), (1.0,), (0.0,)]
    assert (dataset.info.modality, dataset.info.target_names) == ("CT", ("benign", "malignant"))
    assert prepare_nodules(file, tmp_path / "data").resumed == sum(COUNTS.values())


def test_views_are_interpolated_with_fractions(file: Path, tmp_path: Path) -> None:
    prepare_nodules(file, tmp_path / "data")
    volume = np.load(file)["val_images"][1]
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(volume).float()[None, None], size=(32,) * 3, mode="trilinear"
    )
    found = seen(Dataset.open(tmp_path / "data"), "val_0001", 32)
    np.testing.assert_allclose(found, exact[0, 0].numpy() / 255, atol=5e-4)


def test_truncated_cubes_are_the_published_grey_levels(file: Path, tmp_path: Path) -> None:
    prepare_nodules(file, tmp_path / "data", size=20, truncate=True)
    expected = nodules_resized(np.load(file)["train_images"][2:3], 20)[0]
    found = seen(Dataset.open(tmp_path / "data"), "train_0002", 20)
    assert np.array_equal(np.rint(found * 255).astype(np.uint8), expected)


@pytest.mark.parametrize(
    "arrays, sentence",
    [
        ({"train_images": np.zeros((2, 4, 4, 4), np.uint8)}, "no array val_images"),
        ({"train_images": np.zeros((2, 28, 28), np.uint8)}, "uint8 with 3 axes"),
        ({f"{s}_images": np.zeros((2, 4, 4, 4), np.uint8) for s in COUNTS}, "no array train_labels"),
        (
            {f"{s}_images": np.zeros((2, 4, 4, 4), np.uint8) for s in COUNTS}
            | {f"{s}_labels": np.zeros((3, 1)) for s in COUNTS},
            "3 labels for 2 cases",
        ),
    ],
)
def test_files_that_are_something_else_are_refused(arrays: dict, sentence: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError, match=sentence):
        prepare_nodules(tmp_path / "other.npz", tmp_path / "data")


def test_a_damaged_file_is_a_sentence(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        prepare_nodules(file, tmp_path / "data")


def test_stopping_keeps_what_is_done_and_the_next_call_goes_on(file: Path, tmp_path: Path) -> None:
    report = prepare_nodules(file, tmp_path / "data", progress=lambda share: share < 0.3)
    assert report.cancelled
    assert 0 < len(report.ok) < 10
    report = prepare_nodules(file, tmp_path / "data")
    assert (len(report.ok), report.resumed > 0) == (10, True)
