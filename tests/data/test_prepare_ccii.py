"""CC-CCII from folders of slices: order, classes, patients, what is refused, and the middle that training sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training_backend.cli import main
from training_backend.config.recipes import recipe_config
from training_backend.data.dataset import Dataset
from training_backend.data.loader import ViewLoader
from training_backend.data.prepare import InputProfile, stored_input
from training_backend.data.prepare_ccii import CLASSES, prepare_ccii
from training_backend.data.store import open_case
from training_backend.data.volume import Array
from training_backend.errors import DataError

SIDE, DEPTH = 64, 12
"""Slices here are an eighth of the published ones along each side."""


def slices(target: int, patient: int) -> Array:
    """(z, y, x): each slice brighter than the one before, a ramp along x, and a mark at the corners."""
    array = np.zeros((DEPTH, SIDE, SIDE), np.uint8)
    array += np.arange(DEPTH, dtype=np.uint8)[:, None, None] * 3 + 10 * target + patient
    array += np.linspace(0, 100, SIDE).astype(np.uint8)
    array[:, :4, :4] = 255
    return array


def write(folder: Path, planes: Array, colours: bool = False) -> None:
    folder.mkdir(parents=True)
    for number, plane in enumerate(planes):
        picture = Image.fromarray(plane)
        (picture.convert("RGB") if colours else picture).save(folder / f"{number}.png")  # 10.png follows 9.png


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Classes as they are downloaded: some in folders of single downloads, one scan in grey colours."""
    root = tmp_path / "ccii"
    for target, place in enumerate(("Normal", "CP-1/CP", "NCP")):
        for patient in range(5):
            write(root / place / str(100 + patient) / "3001", slices(target, patient), colours=patient == 2)
    write(root / "NCP" / "100" / "3002", slices(2, 9))
    return root


def test_scans_are_stacked_in_order_with_their_class(source: Path, tmp_path: Path) -> None:
    report = prepare_ccii(source, tmp_path / "out")
    assert (len(report.ok), report.quarantined) == (16, ())
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.info.target_names == CLASSES
    case = dataset.case("cp-102-3001")
    assert (case.target, case.subject) == ((1.0,), "cp-102")
    stored = open_case(dataset, case)
    assert np.array_equal(stored.read_image()[0] * stored.statistics[0].scale, slices(1, 2))
    first, second = (dataset.case(f"ncp-100-{scan}") for scan in (3001, 3002))
    assert first.split == second.split
    assert {case.split for case in dataset.cases()} == {"train", "val"}
    assert prepare_ccii(source, tmp_path / "out").resumed == 16


def test_what_is_no_scan_is_told_and_the_rest_kept(source: Path, tmp_path: Path) -> None:
    broken = source / "Normal" / "100" / "3001" / "5.png"
    broken.write_bytes(broken.read_bytes()[:60])
    Image.fromarray(np.zeros((SIDE, SIDE + 1), np.uint8)).save(source / "Normal" / "101" / "3001" / "5.png")
    Image.fromarray(np.random.default_rng(0).integers(255, size=(SIDE, SIDE, 3)).astype(np.uint8)).save(
        source / "Normal" / "102" / "3001" / "5.png"
    )
    write(source / "Lesion" / "1" / "1", slices(0, 0))
    (source / "NCP" / "metadata.csv").write_text("a,b\n")
    report = prepare_ccii(source, tmp_path / "out")
    told = " ".join(one.reason for one in report.quarantined)
    assert len(report.ok) == 13
    assert len(report.quarantined) == 4
    for words in ("5.png", "is not as large as 0.png", "has colours", "in no folder called Normal, CP or NCP"):
        assert words in told


@pytest.mark.parametrize("make", [lambda root: None, lambda root: write(root / "Normal", slices(0, 0))])
def test_a_folder_that_is_something_else_makes_no_dataset(tmp_path: Path, make: object) -> None:
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")  # type: ignore[operator]
    with pytest.raises(DataError, match="holds no scans of CC-CCII"):
        prepare_ccii(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_makes_what_the_recipe_takes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", "cc-ccii", str(source), "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    size = (4, 32, 32)
    run = recipe_config("voco-cc-ccii", tmp_path / "out", changes={"data": {"size": size, "wander": 2, "workers": 0}})
    dataset = Dataset.open(tmp_path / "out")
    loader = ViewLoader(dataset, run, needs="target")
    views = next(loader.batches())
    assert views.images.shape == (4, 1, *size)
    assert views.target is not None
    assert all(value in (0, 1, 2) for value in views.target.tolist())


def test_training_sees_a_part_whose_middle_moves_and_validation_the_middle(source: Path, tmp_path: Path) -> None:
    prepare_ccii(source, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    size = (DEPTH, 32, 32)  # of 48 of 64 pixels, so 1.5 pixels each, as published
    changes = {"data": {"size": size, "wander": 4, "workers": 0}, "optim": {"max_steps": 30}}
    run = recipe_config("voco-cc-ccii", tmp_path / "out", changes=changes)
    profile = InputProfile.of(run, dataset.info)
    for case in dataset.cases(split="val"):
        prepared = stored_input(dataset, case, profile)
        assert prepared.array.max() < 1  # the mark in the corner is outside
        low, high = prepared.array[0, 0, 16, 0], prepared.array[0, 0, 16, -1]
        assert (high - low) * 255 == pytest.approx(100 * 31 * 1.5 / 63, abs=2)
        assert prepared.restore(prepared.array[0]).shape == (DEPTH, SIDE, SIDE)
    loader = ViewLoader(dataset, run, needs="target")
    seen = set()
    for views in loader.batches():
        for image, key in zip(views.images, views.keys, strict=True):
            darkest = open_case(dataset, loader.cases[key[2]]).read_image()[0, 0].min()
            seen.add(round(float(image[0, 0, 16, 0] - darkest)))  # how far along the ramp the view begins
    assert len(seen) > 5
    assert max(seen) - min(seen) == pytest.approx(100 * 2 * 4 * 1.5 / 63, abs=4)
    again = next(ViewLoader(dataset, run, needs="target").batches(7))
    assert np.array_equal(again.images, next(loader.batches(7)).images)
