from __future__ import annotations

import itertools
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from training_backend.data.read import probe, read_labels, read_volume
from training_backend.data.volume import Geometry, Volume
from training_backend.data.write import WRITABLE, write_volume
from training_backend.errors import DataError

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64", "float32", "float64")


def oriented(order, signs, tilt_deg: float, dtype="int16") -> Volume:
    """A volume whose file axes lie along `order` with `signs`, with a float32 affine as NIfTI stores it."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, size in enumerate((0.7, 1.1, 2.3)):
        affine[order[axis], axis] = signs[axis] * size
    c, s = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    affine[:3, 3] = (-31.4, 12.2, 70.1)
    geometry = Geometry(affine.astype(np.float32).astype(np.float64), (4, 5, 6))
    values = np.random.default_rng(1).integers(-100, 100, geometry.shape)
    return Volume(values.astype(dtype), geometry)


@pytest.mark.parametrize("suffix", WRITABLE)
def test_all_48_orientations_return_with_array_and_affine(suffix, tmp_path) -> None:
    exact = suffix.startswith(".nii")
    for (order, signs), tilt in itertools.product(ORIENTATIONS, (0.0, 11.0)):
        volume = oriented(order, signs, tilt)
        path = write_volume(volume, tmp_path / f"v{suffix}", overwrite=True)
        again = read_volume(path)
        assert again.array.dtype == volume.array.dtype
        assert np.array_equal(again.array, volume.array)
        assert np.allclose(again.geometry.affine, volume.geometry.affine, rtol=0, atol=0 if exact else 1e-12)
        assert again.geometry.source_shape == volume.geometry.source_shape
        assert again.warnings == ()


@pytest.mark.parametrize("tilt", [0.0, 11.0])
def test_nibabel_and_simpleitk_agree_on_the_canonical_array(tilt, tmp_path) -> None:
    for order, signs in ORIENTATIONS:
        volume = oriented(order, signs, tilt)
        path = write_volume(volume, tmp_path / "v.nii", overwrite=True)
        by_nibabel = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)[::-1, ::-1].transpose(2, 1, 0)
        image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
        assert np.array_equal(volume.array, by_nibabel)
        assert np.array_equal(volume.array, sitk.GetArrayFromImage(image))
        assert np.allclose(image.GetOrigin(), volume.geometry.origin_lps, atol=1e-4)
        assert np.allclose(image.GetSpacing()[::-1], volume.geometry.spacing_mm, atol=1e-5)
        steps = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        assert np.allclose(steps[:, ::-1], volume.geometry.to_lps[:3, :3], atol=1e-5)


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_type_returns(suffix, dtype, tmp_path) -> None:
    volume = oriented((1, 2, 0), (1, -1, -1), 5.0, dtype)
    again = read_volume(write_volume(volume, tmp_path / f"v{suffix}"))
    assert again.array.dtype == dtype
    assert np.array_equal(again.array, volume.array)
    assert probe(tmp_path / f"v{suffix}").dtype == dtype


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize(("highest", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (70_000, "uint32")])
def test_labels_take_the_smallest_unsigned_type_and_keep_their_names(suffix, highest, dtype, tmp_path) -> None:
    geometry = oriented((0, 1, 2), (1, 1, 1), 0.0).geometry
    array = np.zeros(geometry.shape, np.int64)
    array[1, 2, 3] = highest
    names = {str(highest): "left <atrium> & größe"}
    path = write_volume(Volume(array, geometry, meta={"kind": "labels", "class_names": names}), tmp_path / f"l{suffix}")
    again = read_labels(path)
    assert again.array.dtype == dtype
    assert np.array_equal(again.array, array)
    assert again.meta["class_names"] == names
    assert read_volume(path).array.dtype == dtype
    assert read_volume(path).meta["kind"] == "labels"


def test_labels_must_be_whole(tmp_path) -> None:
    volume = oriented((0, 1, 2), (1, 1, 1), 0.0, "float32")
    with pytest.raises(DataError, match=r"holds -?\d+\.5"):
        write_volume(volume.with_array(volume.array + 0.5), tmp_path / "l.nii.gz", labels=True)
    assert list(tmp_path.iterdir()) == []


def test_half_floats_and_masks_are_widened(tmp_path) -> None:
    volume = oriented((0, 1, 2), (1, 1, 1), 0.0)
    half = write_volume(volume.with_array(volume.array.astype(np.float16)), tmp_path / "half.nii.gz")
    mask = write_volume(volume.with_array(volume.array > 0), tmp_path / "mask.mha")
    assert read_volume(half).array.dtype == np.float32
    assert np.array_equal(read_volume(mask).array, (volume.array > 0).astype(np.uint8))


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1), (4, 3)])
def test_both_orientations_of_a_nifti_are_restored(codes, tmp_path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    affine = oriented((2, 0, 1), (1, -1, -1), 8.0).geometry.affine
    header.set_sform(affine, codes[0])
    header.set_qform(affine, codes[1])
    header["descrip"] = b"Jane Doe"
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None, header), tmp_path / "in.nii.gz")
    write_volume(read_volume(tmp_path / "in.nii.gz"), tmp_path / "out.nii.gz")
    before, after = (nib.load(tmp_path / name).header for name in ("in.nii.gz", "out.nii.gz"))
    for field in ("sform_code", "qform_code", "pixdim", "srow_x", "srow_z", "quatern_b", "qoffset_y", "xyzt_units"):
        assert np.array_equal(before[field], after[field]) or (field.startswith("srow") and codes[0] == 0), field
    assert bytes(after["descrip"]).strip(b"\0") == b"", "free text may name people"


def test_a_prediction_on_a_crop_does_not_inherit_the_old_header(tmp_path) -> None:
    volume = oriented((0, 1, 2), (1, 1, 1), 8.0)
    volume = read_volume(write_volume(volume, tmp_path / "in.nii.gz"))
    crop = volume.geometry.cropped((1, 1, 1), (2, 3, 3))
    part = Volume(np.ascontiguousarray(volume.array[1:3, 1:4, 1:4]), crop, meta=volume.meta)
    again = read_volume(write_volume(part, tmp_path / "crop.nii.gz"))
    assert np.allclose(again.geometry.affine, crop.affine, atol=1e-5)
    assert again.warnings == ()


def test_nifti_2_stays_nifti_2(tmp_path) -> None:
    affine = oriented((2, 0, 1), (1, -1, -1), 8.0).geometry.affine
    nib.save(nib.Nifti2Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine), tmp_path / "two.nii")
    volume = read_volume(tmp_path / "two.nii")
    path = write_volume(volume, tmp_path / "again.nii.gz")
    assert isinstance(nib.load(path), nib.Nifti2Image)
    assert np.array_equal(read_volume(path).array, volume.array)


def test_a_sheared_volume_returns_from_every_format(tmp_path) -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.25
    volume = Volume(np.arange(120, dtype=np.int16).reshape(6, 5, 4), Geometry(affine, (4, 5, 6)))
    for suffix in WRITABLE:
        again = read_volume(write_volume(volume, tmp_path / f"v{suffix}"))
        assert np.array_equal(again.array, volume.array)
        assert np.allclose(again.geometry.affine, affine)
        assert "sheared" in again.warnings[0]


@pytest.mark.parametrize("suffix", WRITABLE)
def test_nothing_is_overwritten_unasked_and_nothing_is_left_over(suffix, tmp_path) -> None:
    folder = tmp_path / "größe und Ort"
    folder.mkdir()
    volume = oriented((0, 1, 2), (1, 1, 1), 0.0)
    path = write_volume(volume, folder / f"Bild ä{suffix}")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(DataError, match="exists already"):
        write_volume(volume.with_array(volume.array + 1), path)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    write_volume(volume.with_array(volume.array + 1), path, overwrite=True)
    assert sorted(file.name for file in folder.iterdir()) == sorted(files)
    assert np.array_equal(read_volume(path).array, volume.array + 1)


def test_the_data_file_of_a_detached_header_is_not_overwritten_either(tmp_path) -> None:
    (tmp_path / "v.zraw").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"v\.zraw exists already"):
        write_volume(oriented((0, 1, 2), (1, 1, 1), 0.0), tmp_path / "v.mhd")
    assert [file.name for file in tmp_path.iterdir()] == ["v.zraw"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    volume = oriented((0, 1, 2), (1, 1, 1), 0.0)
    for suffix in (".nii.gz", ".nrrd"):
        path = write_volume(volume, tmp_path / f"v{suffix}")
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(Exception, match="disk is full"):
                write_volume(volume, path, overwrite=True)
        assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_equal_volumes_give_equal_files(tmp_path) -> None:
    volume = oriented((0, 1, 2), (1, 1, 1), 0.0)
    one, two = (write_volume(volume, tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert one == two


@pytest.mark.parametrize("name", ["v.tiff", "v.npz", "v", "missing/v.nii.gz"])
def test_unwritable_targets_are_named(name, tmp_path) -> None:
    with pytest.raises(DataError, match=r"no format written|does not exist"):
        write_volume(oriented((0, 1, 2), (1, 1, 1), 0.0), tmp_path / name)


def test_real_scans_return_from_every_format(real_data, tmp_path) -> None:
    source = (real_data / "brain").glob("*.nii.gz") if real_data else ()
    volumes = [read_volume(path) for path in sorted(source) if path.stat().st_size < 1_000_000]
    for volume in volumes or [oriented((0, 2, 1), (-1, 1, 1), 8.0)]:
        for suffix in (".nii.gz", ".nrrd", ".mha"):
            again = read_volume(write_volume(volume, tmp_path / f"v{suffix}", overwrite=True))
            assert np.array_equal(again.array, volume.array)
            assert again.array.dtype == volume.array.dtype
            assert np.allclose(again.geometry.affine, volume.geometry.affine, rtol=0, atol=1e-9)
