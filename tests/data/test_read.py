from __future__ import annotations

import gzip
import subprocess
import sys

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from training_backend.data.read import can_read, probe, read_labels, read_volume, read_volumes
from training_backend.errors import DataError

AFFINE = np.array([[-0.7, 0, 0, 10], [0, 1.1, 0, -20], [0, 0, 2.3, 30], [0, 0, 0, 1]])


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-50, 50, shape).astype(np.int16)


def check_probe(path, **choice) -> None:
    """A probe gives, without voxels, what reading gives."""
    facts, volume = probe(path, **choice), read_volume(path, **choice)
    assert facts.shape == volume.array.shape
    assert facts.geometry.same_grid(volume.geometry)
    assert facts.spacing_mm == volume.geometry.spacing_mm
    assert facts.dtype == volume.array.dtype.name


def test_one_scan_in_every_format_is_one_volume(tmp_path) -> None:
    image = sitk.GetImageFromArray(values(4, 5, 6))
    image.SetSpacing((0.7, 1.1, 2.3))
    image.SetOrigin((1.5, -2.5, 3.5))
    image.SetDirection(np.eye(3)[[1, 2, 0]].ravel().tolist())
    expected = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))
    for suffix in (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"):
        path = tmp_path / f"ein Bild, größer{suffix}"
        sitk.WriteImage(image, str(path))
        volume = read_volume(path)
        assert np.array_equal(volume.array, expected)
        assert volume.name == "ein Bild, größer"
        assert volume.meta["file"] == path.name
        assert can_read(path)
        check_probe(path)


def test_contrasts_of_a_4d_nifti_share_one_grid(tmp_path) -> None:
    data = values(4, 5, 6, 3)
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "dyn.nii.gz")
    volumes = read_volumes(tmp_path / "dyn.nii.gz")
    assert [v.name for v in volumes] == ["dyn 0", "dyn 1", "dyn 2"]
    assert [v.meta["contrast"] for v in volumes] == ["0", "1", "2"]
    for index, volume in enumerate(volumes):
        assert np.array_equal(volume.geometry.to_source(volume.array), data[..., index])
        assert volume.geometry.same_grid(volumes[0].geometry)
    [second] = read_volumes(tmp_path / "dyn.nii.gz", key="1")
    assert np.array_equal(second.array, volumes[1].array)
    assert probe(tmp_path / "dyn.nii.gz").contrasts == ("0", "1", "2")
    check_probe(tmp_path / "dyn.nii.gz", key="2")
    with pytest.raises(DataError, match="no contrast '3'"):
        read_volumes(tmp_path / "dyn.nii.gz", key="3")
    with pytest.raises(DataError, match="holds 3 volumes; a label map is one"):
        read_labels(tmp_path / "dyn.nii.gz")


def test_contrasts_of_nrrd_and_metaimage(tmp_path) -> None:
    data = values(3, 4, 5, 6)
    frames = [sitk.GetImageFromArray(frame) for frame in data]
    series = sitk.JoinSeries(frames)
    vector = sitk.Compose(frames)
    for image, name in ((series, "t.nrrd"), (series, "t.mha"), (vector, "v.nrrd"), (vector, "v.mha")):
        sitk.WriteImage(image, str(tmp_path / name), useCompression=True)
        volumes = read_volumes(tmp_path / name)
        assert np.array_equal([volume.array for volume in volumes], data)
        assert len(probe(tmp_path / name).contrasts) == 3
        assert np.array_equal(read_volume(tmp_path / name, key="2").array, data[2])


def test_trailing_axes_of_one_and_single_slices(tmp_path) -> None:
    nib.save(nib.Nifti1Image(values(4, 5, 6, 1), AFFINE), tmp_path / "one.nii")
    nib.save(nib.Nifti1Image(values(4, 5), AFFINE), tmp_path / "slice.nii")
    nib.save(nib.Nifti1Image(values(4, 5, 6, 1, 2), AFFINE), tmp_path / "vector.nii")
    assert [v.name for v in read_volumes(tmp_path / "one.nii")] == ["one"]
    assert read_volume(tmp_path / "slice.nii").array.shape == (1, 5, 4)
    assert len(read_volumes(tmp_path / "vector.nii")) == 2


def test_colour_images_are_refused(tmp_path) -> None:
    colour = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    for name in ("rgb.nrrd", "rgb.mha", "rgb.nii"):
        sitk.WriteImage(colour, str(tmp_path / name))
        with pytest.raises(DataError, match="colour image"):
            read_volumes(tmp_path / name)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.uint8)), str(tmp_path / "flat.mha"))
    with pytest.raises(DataError, match="2 axes"):
        read_volumes(tmp_path / "flat.mha")


def test_both_byte_orders(tmp_path) -> None:
    data = values(4, 5, 6)
    for order in "<>":
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(np.int16)
        nib.save(nib.Nifti1Image(data, AFFINE, header), tmp_path / "v.nii")
        volume = read_volume(tmp_path / "v.nii")
        assert volume.array.dtype.isnative
        assert np.array_equal(volume.geometry.to_source(volume.array), data)


@pytest.mark.parametrize(
    ("slope", "intercept", "stored", "dtype"),
    [
        (1, -1024, "uint16", "int16"),
        (2, 0, "int16", "int16"),
        (1, -70_000, "int16", "int32"),
        (0.5, 1, "int16", "float32"),
        (0.5, 1, "float64", "float64"),
        (0, 7, "int16", "int16"),
        (np.nan, np.nan, "uint8", "uint8"),
    ],
)
def test_scaled_numbers_stay_whole_where_they_can(slope, intercept, stored, dtype, tmp_path) -> None:
    data = np.arange(120).reshape(4, 5, 6).astype(stored)
    header = nib.Nifti1Header()
    header.set_data_shape(data.shape)
    header.set_data_dtype(stored)
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, slope, intercept
    (tmp_path / "v.nii").write_bytes(header.structarr.tobytes() + bytes(4) + data.tobytes(order="F"))
    volume = read_volume(tmp_path / "v.nii")
    unscaled = not slope or np.isnan(slope)
    expected = data if unscaled else data * float(slope) + intercept
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.geometry.to_source(volume.array), expected)
    assert np.allclose(volume.geometry.to_source(volume.array), nib.load(tmp_path / "v.nii").get_fdata())


def test_compression_is_seen_in_the_content_not_the_name(tmp_path) -> None:
    nib.save(nib.Nifti1Image(values(4, 5, 6), AFFINE), tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "a.nii").read_bytes())
    (tmp_path / "c.nii").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    expected = read_volume(tmp_path / "a.nii").array
    assert np.array_equal(read_volume(tmp_path / "b.nii.gz").array, expected)
    assert np.array_equal(read_volume(tmp_path / "c.nii").array, expected)


def test_unusual_orientations_are_warned_of(tmp_path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 0.8
    nib.save(nib.Nifti1Image(values(4, 5, 6), sheared), tmp_path / "sheared.nii")
    volume = read_volume(tmp_path / "sheared.nii")
    assert "sheared" in volume.warnings[0]
    assert np.allclose(volume.geometry.affine, sheared, atol=1e-6)
    image = nib.Nifti1Image(values(4, 5, 6), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.eye(4), 1)
    nib.save(image, tmp_path / "two.nii")
    assert "two orientations" in read_volume(tmp_path / "two.nii").warnings[0]
    image = nib.Nifti1Image(values(4, 5, 6), None)
    nib.save(image, tmp_path / "none.nii")
    assert "no orientation" in probe(tmp_path / "none.nii").warnings[0]


def ua_mt(path, image, label=None):
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image, compression="gzip")
        if label is not None:
            file.create_dataset("label", data=label, compression="gzip")
    return path


def test_ua_mt_files_are_xyz_at_the_assumed_spacing(tmp_path) -> None:
    image, label = values(7, 6, 5).astype(np.float32), (values(7, 6, 5) > 0).astype(np.int64)
    path = ua_mt(tmp_path / "mri_norm2.h5", image, label)
    volume, truth = read_volume(path), read_labels(path)
    assert volume.array.shape == (5, 6, 7)
    assert np.array_equal(volume.array, image.transpose(2, 1, 0))
    assert np.array_equal(truth.array, label.transpose(2, 1, 0))
    assert truth.array.dtype == np.uint8
    assert volume.geometry.same_grid(truth.geometry)
    assert volume.geometry.spacing_mm == (0.625, 0.625, 0.625)
    assert volume.meta["spacing_assumed"] is True
    assert volume.modality == "MR"
    assert volume.warnings == ()
    check_probe(path)
    assert np.array_equal(read_volume(path, key="label").array, truth.array)


def test_npz_is_zyx_at_one_millimetre_with_a_warning(tmp_path) -> None:
    array = np.linspace(0, 1, 120, dtype=np.float32).reshape(4, 5, 6)
    np.savez_compressed(tmp_path / "t.npz", volume=array, other=np.zeros(3))
    np.save(tmp_path / "t.npy", array)
    np.save(tmp_path / "f.npy", np.asfortranarray(array))
    volume = read_volume(tmp_path / "t.npz")
    assert np.array_equal(volume.array, array)
    assert volume.meta["key"] == "volume"
    assert volume.meta["normalised"] is True
    assert volume.geometry.spacing_mm == (1, 1, 1)
    assert "1 mm" in volume.warnings[0]
    for name in ("t.npz", "t.npy", "f.npy"):
        assert np.array_equal(read_volume(tmp_path / name).array, array)
        check_probe(tmp_path / name)


def test_the_array_of_an_npz_can_be_chosen(tmp_path) -> None:
    np.savez(tmp_path / "t.npz", ct=values(4, 5, 6), pet=values(4, 5, 6) + 1, mr=values(2, 4, 5, 6), flat=values(4, 5))
    with pytest.raises(DataError, match=r"several arrays.*ct \(4 x 5 x 6\)"):
        read_volume(tmp_path / "t.npz")
    assert np.array_equal(read_volume(tmp_path / "t.npz", key="pet").array, values(4, 5, 6) + 1)
    assert [v.meta["key"] for v in read_volumes(tmp_path / "t.npz", key="mr")] == ["mr/0", "mr/1"]
    assert np.array_equal(read_volume(tmp_path / "t.npz", key="mr/1").array, values(2, 4, 5, 6)[1])
    with pytest.raises(DataError, match="no array 'us'"):
        read_volume(tmp_path / "t.npz", key="us")
    with pytest.raises(DataError, match="three axes is expected"):
        read_volume(tmp_path / "t.npz", key="flat")


def test_float_labels_become_integers_and_negative_ones_stay(tmp_path) -> None:
    data = np.zeros((4, 5, 6), np.float64)
    data[0, 0, 0] = 300
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "l.nii")
    assert read_labels(tmp_path / "l.nii").array.dtype == np.uint16
    data[0, 0, 1] = -1
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "l.nii")
    assert read_labels(tmp_path / "l.nii").array.dtype == np.int16
    assert read_labels(tmp_path / "l.nii").array.min() == -1


def test_ct_is_recognised_by_its_hounsfield_units(tmp_path) -> None:
    hu = np.full((20, 20, 20), -1000, np.int16)
    hu[5:15, 5:15, 5:15] = 40
    nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "ct.nii")
    phase = np.random.default_rng(0).integers(-4096, 4096, (20, 20, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(phase, AFFINE), tmp_path / "phase.nii")
    assert read_volume(tmp_path / "ct.nii").modality == "CT"
    assert read_volume(tmp_path / "ct.nii").meta["modality_guessed"] is True
    assert read_volume(tmp_path / "phase.nii").modality == "unknown"


def test_facts_of_volumes_are_plain_json_without_free_text(tmp_path) -> None:
    import json

    image = nib.Nifti1Image(values(4, 5, 6), AFFINE)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = b"Doe^Jane"
    nib.save(image, tmp_path / "v.nii")
    text = json.dumps(dict(read_volume(tmp_path / "v.nii").meta))
    assert "Doe" not in text


EXPECTED = {
    "brain/chris_t1.nii.gz": ((190, 256, 188), (0.88, 0.88, 0.88), 0.0, "unknown"),
    "brain/chris_PD.nii.gz": ((54, 256, 191), (2.4, 0.859, 0.858), 8.55, "unknown"),
    "brain/CT_pitch.nii.gz": ((58, 248, 175), (2.397, 0.8125, 0.8125), 16.5, "unknown"),
    "totalsegmentator/example_ct_sm.nii.gz": ((30, 101, 122), (3.0, 3.0, 3.0), 0.0, "CT"),
    "totalsegmentator/example_mr_sm.nii.gz": ((20, 91, 117), (3.0, 3.0, 3.0), 0.0, "unknown"),
    "totalsegmentator/example_ct_dicom": ((20, 512, 512), (2.0, 0.977, 0.977), 0.0, "CT"),
    "la/06SR5RBREL16DQ6M8LWS.h5": ((88, 140, 183), (0.625, 0.625, 0.625), 0.0, "MR"),
}


def test_real_scans_have_the_known_shapes(real_data, tmp_path) -> None:
    if real_data is None:  # the same questions to a scan made here
        nib.save(nib.Nifti1Image(values(122, 101, 30), np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / "v.nii.gz")
        expected = {tmp_path / "v.nii.gz": ((30, 101, 122), (3.0, 3.0, 3.0), 0.0, "unknown")}
    else:
        expected = {real_data / name: facts for name, facts in EXPECTED.items()}
    for path, (shape, spacing, oblique, modality) in expected.items():
        volume = read_volume(path)
        assert volume.array.shape == shape
        assert volume.geometry.spacing_mm == pytest.approx(spacing, abs=2e-3)
        assert volume.geometry.oblique_deg == pytest.approx(oblique, abs=0.05)
        assert volume.modality == modality
        assert volume.warnings == ()
        assert probe(path).geometry.same_grid(volume.geometry)


def test_names_inside_a_segmentation_are_kept(real_data, tmp_path) -> None:
    if real_data is not None:
        labels = read_labels(real_data / "totalsegmentator" / "example_seg.nii.gz")
        assert labels.meta["class_names"]["1"] == "spleen"
        assert len(labels.meta["class_names"]) > 100
        return
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), AFFINE)
    table = b'<CaretExtension><LabelTable><Label Key="1" Red="0">spleen</Label></LabelTable></CaretExtension>'
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, table))
    nib.save(image, tmp_path / "l.nii.gz")
    assert read_labels(tmp_path / "l.nii.gz").meta["class_names"] == {"1": "spleen"}


def test_importing_the_reader_is_cheap() -> None:
    code = (
        "import sys, training_backend.data.read as r; "
        "print(sorted({'torch', 'SimpleITK', 'nibabel', 'pydicom', 'h5py'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
