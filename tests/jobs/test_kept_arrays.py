"""Large arrays are sent and hashed once, and again when a voxel of them changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training_backend.data.volume import Geometry, Volume
from training_backend.evaluate.feature_cache import content_hash
from training_backend.jobs.kept_arrays import LARGE, Digests, KeptArrays, checksum
from training_backend.jobs.protocol import array_files, decode, encode


def scan(voxels: int = LARGE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(-1000, 1000, (2, 2, voxels // 4)).astype(np.int16)


def test_the_same_voxels_are_written_once(tmp_path: Path) -> None:
    kept, array = KeptArrays(), scan()
    volume = Volume(array, Geometry.from_spacing(array.shape, (1.0, 1.0, 1.0)), "CT", "scan")
    first = encode({"volumes": [volume]}, tmp_path, kept.write)
    kept.release(tmp_path)
    again = encode({"volumes": [volume], "small": np.arange(3)}, tmp_path, kept.write)
    (file,) = array_files(first, tmp_path)
    assert kept.keeps(file)
    assert file in array_files(again, tmp_path)
    assert [kept.keeps(path) for path in array_files(again, tmp_path)] == [True, False]
    np.testing.assert_array_equal(decode(again, tmp_path)["volumes"][0].array, array)


def test_a_scan_that_was_changed_in_place_is_sent_anew_and_the_old_file_goes(tmp_path: Path) -> None:
    kept, array = KeptArrays(), scan()
    before = kept.write(array, tmp_path)
    kept.release(tmp_path)
    array[0, 1, 5] += 1
    after = kept.write(array, tmp_path)
    kept.release(tmp_path)
    assert after != before
    assert [path.name for path in tmp_path.iterdir()] == [after]


def test_requests_without_a_scan_leave_it_there(tmp_path: Path) -> None:
    kept = KeptArrays()
    name = kept.write(scan(), tmp_path)
    kept.release(tmp_path)
    kept.write(np.arange(3), tmp_path)
    kept.release(tmp_path)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("voxels", [4, 4 * 511, LARGE + 4])
def test_sums_tell_changed_and_moved_voxels(voxels: int) -> None:
    array = scan(voxels)
    sums = {checksum(array), checksum(array + np.int16(1))}
    moved = array.copy()
    moved[0, 0, 0], moved[1, 1, -1] = array[1, 1, -1], array[0, 0, 0]
    assert len({*sums, checksum(moved)}) == 3
    assert checksum(array) == checksum(array.copy())


def test_hashes_are_remembered_for_files_alone(tmp_path: Path) -> None:
    array, digests = scan(), Digests()
    np.save(tmp_path / "a.npy", array)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="c")
    assert digests.of(mapped) == digests.of(np.asarray(mapped)) == digests.of(array) == content_hash(array)
    part = mapped[:, :, 1:]
    assert digests.of(part) == content_hash(part)
    array[0, 0, 0] += 1
    assert digests.of(array) == content_hash(array)
