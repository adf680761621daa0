from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training_backend.data.ingest import ingest
from training_backend.data.inspect import inspect
from training_backend.data.phantoms import oblique, write_cohort
from training_backend.data.write import write_volume
from training_backend.errors import DataError


def test_a_scan_tells_its_grid_and_its_angle(tmp_path: Path) -> None:
    path = write_volume(oblique(1, (12, 16, 16)).volume, tmp_path / "scan.nii.gz")
    rows = dict(inspect(path).rows)
    assert rows["voxels z, y, x"] == "(12, 16, 16)"
    assert rows["oblique"] == "17.0°"


def test_folders_and_datasets_list_their_cases_and_what_was_left_out(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", 3, shape=(12, 16, 16))
    scan = cohort / "imagesTr" / "case_001.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-200])
    assert inspect(cohort).rows[-1][0] == "3 cases"
    ingest([cohort], tmp_path / "dataset")
    rows = inspect(tmp_path / "dataset").rows
    assert rows[-1][0] == "2 cases"
    assert [row[0] for row in rows if row[1] == "left out"] == ["case_001"]


def test_nothing_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.nii"):
        inspect(tmp_path / "nowhere.nii")


def test_voxels_that_are_not_numbers_do_not_hide_the_others(tmp_path: Path) -> None:
    volume = oblique(1, (12, 16, 16)).volume
    array = volume.array.astype(np.float32)
    array[0] = np.nan
    rows = dict(inspect(write_volume(volume.with_array(array), tmp_path / "scan.nii.gz")).rows)
    assert "nan" not in rows["values"]
    assert "not numbers" in rows["warning"]
