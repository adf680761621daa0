"""Crops around candidates: the right place in the scan, splits, the draw of negatives, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from training_backend.config.presets import finetune_config
from training_backend.data.balance import balanced
from training_backend.data.dataset import Dataset
from training_backend.data.loader import ViewLoader
from training_backend.data.manifest import CaseRecord
from training_backend.data.prepare_candidates import COLUMNS, crop_at, prepare_candidates, read_candidates
from training_backend.data.store import open_case
from training_backend.data.volume import Geometry, Volume
from training_backend.data.write import write_volume
from training_backend.errors import ConfigError, DataError

SHAPE = (24, 40, 36)
SPACING = (2.5, 0.8, 0.7)


def scan(seed: int) -> tuple[Volume, list[tuple[float, float, float]]]:
    """Air with three balls of 8 mm, and the places of their centres in LPS millimetres."""
    rng = np.random.default_rng(seed)
    grid = Geometry.from_spacing(SHAPE, SPACING, (-40.0 + seed, 12.0, 100.0))
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    world = voxels @ grid.to_lps[:3, :3].T + grid.to_lps[:3, 3]
    array = np.full(SHAPE, -900, np.int16)
    centres = []
    for _ in range(3):
        centre = grid.to_lps[:3, :3] @ (rng.uniform(0.2, 0.8, 3) * SHAPE) + grid.to_lps[:3, 3]
        array[np.linalg.norm(world - centre, axis=-1) < 4] = 50
        centres.append((float(centre[0]), float(centre[1]), float(centre[2])))
    return Volume(array, grid, "CT", f"scan {seed}"), centres


@pytest.fixture
def luna(tmp_path: Path) -> tuple[Path, Path]:
    """A table of candidates and a folder of scans, in three subsets."""
    rows = []
    for seed, subset in ((0, 0), (1, 3), (2, 6), (3, 8)):
        volume, centres = scan(seed)
        folder = tmp_path / "scans" / f"subset{subset}"
        folder.mkdir(parents=True)
        write_volume(volume, folder / f"1.2.{seed}.mhd")
        rows += [(f"1.2.{seed}", *centre, 1) for centre in centres[:1]]
        middle = volume.geometry.to_lps @ [12, 3, 3, 1]
        rows += [(f"1.2.{seed}", *(middle[:3] + 0.5 * shift), 0) for shift in range(5)]
    table = tmp_path / "candidates.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return table, tmp_path / "scans"


def test_crops_lie_around_their_candidates(luna: tuple[Path, Path], tmp_path: Path) -> None:
    report = prepare_candidates(*luna, tmp_path / "out", size=16, negatives=2)
    dataset = Dataset.open(tmp_path / "out")
    assert len(report.ok) == 4 * (1 + 2)
    assert not report.quarantined
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        assert len(dataset.cases(split=split)) == count  # type: ignore[arg-type]
    for case in dataset.cases():
        stored = open_case(dataset, case)
        crop = stored.read_image()[0] * stored.statistics[0].scale
        assert crop.shape == (16, 16, 16)
        assert stored.geometry.spacing_mm == (1.0, 1.0, 1.0)
        assert case.target is not None
        middle = crop[7:9, 7:9, 7:9].mean()
        assert middle > 0 if case.target[0] else middle < -800
    again = prepare_candidates(*luna, tmp_path / "out", size=16, negatives=2)
    assert again.resumed == len(report.ok)
    assert prepare_candidates(*luna, tmp_path / "out", size=12, negatives=2).resumed == 0


def test_all_negatives_or_a_share_that_the_seed_draws(luna: tuple[Path, Path], tmp_path: Path) -> None:
    assert len(prepare_candidates(*luna, tmp_path / "all", size=8, negatives=0).ok) == 4 * 6
    one, two, three = (
        set(prepare_candidates(*luna, tmp_path / f"draw{n}", size=8, negatives=1, seed=seed).ok)
        for n, seed in enumerate((0, 0, 5))
    )
    assert one == two != three


def test_lines_and_places_that_cannot_be_used_are_listed_with_the_reason(
    luna: tuple[Path, Path], tmp_path: Path
) -> None:
    table, scans = luna
    with table.open("a", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(
            [("1.2.0", 5000, 0, 0, 1), ("1.2.0", "left", 0, 0, 1), ("1.2.0", 0, 0, 0, 2), ("9.9", 0, 0, 0, 0)]
        )
    report = prepare_candidates(table, scans, tmp_path / "out", size=8)
    reasons = " ".join(problem.reason for problem in report.quarantined)
    assert len(report.quarantined) == 4
    assert "(5000.0, 0.0, 0.0) mm lies outside its scan" in reasons
    assert reasons.count("needs three numbers of millimetres and a class of 0 or 1") == 2
    assert "9.9 has 1 candidates, but there is no scan of it" in reasons


def test_tables_and_folders_that_do_not_fit_are_refused(luna: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"None of the series of candidates\.csv has a scan"):
        prepare_candidates(luna[0], tmp_path / "empty", tmp_path / "out")
    bare = tmp_path / "bare.csv"
    bare.write_text("seriesuid,coordX\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column coordY, coordZ, class"):
        read_candidates(bare)
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_candidates(tmp_path / "none.csv")
    volume, _ = scan(0)
    with pytest.raises(DataError, match="LPS millimetres"):
        crop_at(volume, (999.0, 0.0, 0.0), 8, 1.0)


def test_balanced_training_shows_both_classes_equally_often(luna: tuple[Path, Path], tmp_path: Path) -> None:
    prepare_candidates(*luna, tmp_path / "out", size=8, negatives=5)
    dataset = Dataset.open(tmp_path / "out")
    changes = {
        "data": {"size": (8, 8, 8), "workers": 0, "balanced": True},
        "optim": {"batch_size": 4, "max_steps": 10},
        "engine": {"device": "cpu"},
    }
    run = finetune_config("classification", "tiny", dataset.folder, changes=changes)
    loader = ViewLoader(dataset, run, needs="target")
    assert loader.visits == 2 * 10
    steps = list(loader.batches())[:5]  # one epoch
    targets = np.concatenate([step.target.numpy() for step in steps if step.target is not None])
    assert targets.mean() == 0.5
    plain = ViewLoader(dataset, run.updated({"data": {"balanced": False}}), needs="target")
    assert plain.visits == 12
    assert ViewLoader(dataset, run, needs="target", split="val").visits == 6  # scores see what there is


def test_balance_needs_two_classes() -> None:
    cases = [CaseRecord(id=str(n), subject=str(n), target=(float(n > 2),)) for n in range(5)]
    assert [case.id for case in balanced(cases)] == ["0", "1", "2", "3", "4", "3"]
    with pytest.raises(ConfigError, match="all training cases have the same"):
        balanced(cases[:2])
    with pytest.raises(ConfigError, match="one class number per case"):
        balanced([cases[0].model_copy(update={"target": (0.5,)})])
