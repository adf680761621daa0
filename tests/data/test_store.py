"""The store gives back what was stored, crop by crop, and never a damaged voxel."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from training_backend.data.dataset import Dataset
from training_backend.data.store import StoredArray, open_case, to_stored, verify_case, write_array
from training_backend.errors import DataError


@pytest.fixture
def copy(dataset, tmp_path):
    shutil.copytree(dataset.folder, tmp_path / "moved elsewhere")
    return Dataset.open(tmp_path / "moved elsewhere")


@pytest.mark.parametrize("dtype", [np.int16, np.float16, np.uint8])
@pytest.mark.parametrize("shape", [(70, 90, 133), (5, 200, 7), (1, 1, 1)])
def test_every_crop_equals_the_array(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    array = (rng.normal(0, 200, shape)).astype(dtype)
    size = write_array(tmp_path / "a.b2nd", array)
    stored = StoredArray(tmp_path / "a.b2nd", size)
    assert np.array_equal(stored.read((0, 0, 0), shape), array)
    for _ in range(20):
        start = [int(rng.integers(0, n)) for n in shape]
        count = [int(rng.integers(1, n - s + 1)) for n, s in zip(shape, start, strict=True)]
        box = tuple(slice(s, s + n) for s, n in zip(start, count, strict=True))
        crop = stored.read(tuple(start), tuple(count))
        assert crop.dtype == dtype
        assert np.array_equal(crop, array[box])


def test_crops_outside_are_refused(tmp_path):
    size = write_array(tmp_path / "a.b2nd", np.zeros((4, 4, 4), np.int16))
    with pytest.raises(DataError, match="outside"):
        StoredArray(tmp_path / "a.b2nd", size).read((2, 0, 0), (3, 4, 4))


@pytest.mark.parametrize("where", np.linspace(0.02, 0.98, 9))
def test_a_flipped_bit_anywhere_is_noticed_or_harmless(tmp_path, where):
    array = np.random.default_rng(0).normal(0, 500, (80, 80, 80)).astype(np.int16)
    size = write_array(tmp_path / "a.b2nd", array)
    data = bytearray((tmp_path / "a.b2nd").read_bytes())
    data[int(where * len(data))] ^= 0x10
    (tmp_path / "a.b2nd").write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        StoredArray(tmp_path / "a.b2nd", size).read((0, 0, 0), array.shape)


def test_only_the_chunks_of_a_crop_are_checked(tmp_path):
    array = np.random.default_rng(0).normal(0, 500, (128, 64, 64)).astype(np.int16)
    size = write_array(tmp_path / "a.b2nd", array)
    data = bytearray((tmp_path / "a.b2nd").read_bytes())
    data[int(0.75 * len(data))] ^= 0x10  # in the second of two chunks
    (tmp_path / "a.b2nd").write_bytes(data)
    stored = StoredArray(tmp_path / "a.b2nd", size)
    assert np.array_equal(stored.read((0, 0, 0), (64, 64, 64)), array[:64])
    with pytest.raises(DataError, match="damaged"):
        stored.read((0, 0, 0), (65, 64, 64))


def test_a_truncated_file_is_refused_before_it_is_mapped(tmp_path):
    size = write_array(tmp_path / "a.b2nd", np.zeros((40, 40, 40), np.int16))
    (tmp_path / "a.b2nd").write_bytes((tmp_path / "a.b2nd").read_bytes()[: size // 2])
    with pytest.raises(DataError, match=f"instead of {size:,}"):
        StoredArray(tmp_path / "a.b2nd", size)


def test_a_moved_dataset_still_opens(copy):
    for case in copy.cases():
        verify_case(copy, case)
        stored = open_case(copy, case)
        assert stored.read_image().shape == (1, *stored.shape)
        assert stored.read_label().shape == stored.shape
        assert stored.native.shape == (32, 48, 48)


def test_points_lie_on_their_labels_and_in_the_body(copy):
    for case in copy.cases():
        stored = open_case(copy, case)
        label, image = stored.read_label(), stored.read_image()[0]
        assert set(stored.points) == {0, *np.unique(label[label > 0]).tolist()}
        for value, places in stored.points.items():
            if value:
                assert (label[tuple(places.T)] == value).all()
            else:
                assert (image[tuple(places.T)] > -1000).mean() > 0.9


def test_missing_and_damaged_parts_are_named(copy):
    case = copy.cases()[0]
    folder = copy.folder / case.store["folder"]
    (folder / "points.npy").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=f"{case.id}/points.npy is damaged"):
        _ = open_case(copy, case).points
    (folder / "label.b2nd").unlink()
    with pytest.raises(DataError, match=f"{case.id}/label.b2nd is missing"):
        open_case(copy, case)
    with pytest.raises(DataError, match="was not ingested"):
        open_case(copy, case.model_copy(update={"store": {}}))


def test_contrasts_are_found_by_name(mr_dataset):
    stored = open_case(mr_dataset, mr_dataset.cases()[0])
    assert stored.channels_of(("T2", "T1")) == (1, 0)
    assert stored.channels_of(()) == (0,)
    assert np.array_equal(stored.read_image(channels=(1, 0)), stored.read_image()[::-1])
    with pytest.raises(DataError, match="no contrast 'FLAIR'; it has T1, T2"):
        stored.channels_of(("FLAIR",))


@pytest.mark.parametrize(
    ("array", "ct", "dtype", "scale"),
    [
        (np.array([-1024.4, 3071.2]), True, np.int16, 1),
        (np.array([0, 4095], np.uint16), False, np.int16, 1),
        (np.array([0.0, 255.0]), False, np.int16, 1),
        (np.array([-0.7, 4.3]), False, np.float16, 1),
        (np.array([0, 60000], np.uint16), False, np.uint16, 1),
        (np.array([0, 60000], np.uint32), False, np.float16, 64),
        (np.array([1e-6, 2e-6]), False, np.float16, 2**-28),
    ],
)
def test_the_smallest_type_that_holds_the_values(array, ct, dtype, scale):
    stored, factor = to_stored(array.reshape(1, 1, -1), ct=ct)
    assert stored.dtype == dtype
    assert factor == pytest.approx(scale)
    np.testing.assert_allclose(stored.astype(float).ravel() * factor, array, rtol=1e-3, atol=0.5 if ct else 0)
