"""Bad files: each gets a sentence, none gets memory, none yields zeros."""

from __future__ import annotations

import contextlib
import gzip
import zipfile

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from training_backend.data import integrity
from training_backend.data.integrity import check_gzip
from training_backend.data.read import can_read, probe, read_labels, read_volume, read_volumes
from training_backend.data.volume import Geometry, Volume
from training_backend.data.write import write_volume
from training_backend.errors import DataError, GeometryError, Med3dError, ResourceError

COMPRESSED = (".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", ".h5")


def noise(shape=(24, 32, 40)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)


def written(folder, suffix: str):
    """A sound file, and the file that holds its voxels."""
    path = folder / f"scan{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, image=noise())
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("image", data=noise(), compression="gzip", fletcher32=True)
    else:
        write_volume(Volume(noise(), Geometry.from_spacing(noise().shape, (2.0, 1.0, 1.0))), path)
    data = [file for file in folder.iterdir() if file != path]
    return path, data[0] if data else path


def nifti(path, shape=(4, 5, 6), data=None, **fields):
    """A NIfTI-1 file with header fields set by hand, valid or not."""
    header = nib.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(np.int16)
    header["vox_offset"] = 352
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    for name, value in fields.items():
        header[name] = value
    content = np.arange(120, dtype=np.int16).tobytes() if data is None else data
    content = header.structarr.tobytes() + bytes(4) + content
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("suffix", [*COMPRESSED, ".nii"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_told_and_never_read_as_zeros(suffix, share, tmp_path) -> None:
    path, data = written(tmp_path, suffix)
    assert read_volume(path).array.std() > 100
    content = data.read_bytes()
    data.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError):
        read_volumes(path)


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_flipped_bit_is_told(suffix, tmp_path) -> None:
    path, data = written(tmp_path, suffix)
    content = data.read_bytes()
    for place in (0.3, 0.5, 0.9):
        damaged = bytearray(content)
        damaged[int(len(content) * place)] ^= 16
        data.write_bytes(damaged)
        with pytest.raises(DataError):
            read_volumes(path)


def test_simpleitk_alone_would_read_zeros(tmp_path) -> None:
    path, _ = written(tmp_path, ".nii.gz")
    path.write_bytes(path.read_bytes()[:20000])
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[-1] == 0).all()
    with pytest.raises(DataError, match="ends too early"):
        read_volume(path)


def test_check_gzip_accepts_members_and_padding_and_names_damage(tmp_path) -> None:
    path = tmp_path / "two.gz"
    path.write_bytes(gzip.compress(b"one") + gzip.compress(b"two") + bytes(100))
    check_gzip(path)
    assert integrity.read_exactly(path, 6) == b"onetwo"
    path.write_bytes(gzip.compress(b"one") + gzip.compress(b"two")[:-3])
    with pytest.raises(DataError, match=r"two\.gz ends too early"):
        check_gzip(path)
    damaged = bytearray(gzip.compress(b"one" * 100))
    damaged[-6] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="fail the check"):
        check_gzip(path)


@pytest.mark.parametrize("name", ["claims.nii.gz", "claims.nii"])
def test_a_header_claiming_30000_cubed_is_refused_before_allocating(name, tmp_path, monkeypatch) -> None:
    path = nifti(tmp_path / name, shape=(30000, 30000, 30000))
    monkeypatch.setattr(integrity, "bytearray", lambda _: pytest.fail("allocated"), raising=False)
    with pytest.raises(DataError, match=r"claims 30,000 x 30,000 x 30,000 .*cannot hold"):
        read_volumes(path)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("big.nrrd", "NRRD0004\ntype: short\ndimension: 3\nsizes: 30000 30000 30000\nencoding: {}\nendian: little\n\n"),
        (
            "big.mha",
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = {}\nDimSize = 30000 30000 30000\n"
            "ElementType = MET_SHORT\nElementDataFile = LOCAL\n",
        ),
    ],
)
def test_other_headers_claiming_too_much_are_refused(name, header, tmp_path) -> None:
    for word in ("raw", "gzip") if name.endswith("nrrd") else ("False", "True"):
        (tmp_path / name).write_bytes(header.format(word).encode() + gzip.compress(bytes(1000)))
        for action in (read_volumes, probe):
            with pytest.raises(DataError, match="cannot hold"):
                action(tmp_path / name)


def test_a_sound_file_larger_than_the_memory_is_refused(tmp_path, monkeypatch) -> None:
    path, _ = written(tmp_path, ".nii.gz")
    memory = type("Memory", (), {"available": 1000})()
    monkeypatch.setattr(integrity.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(ResourceError, match=r"needs .* of memory, 1\.0 kB are free"):
        read_volume(path)


def test_arrays_claiming_too_much_are_refused(tmp_path) -> None:
    content = bytearray()
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6)))
    content += (tmp_path / "a.npy").read_bytes().replace(b"(4, 5, 6)", b"(30000, 30000, 30000)")[:200]
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError):
        read_volume(tmp_path / "a.npy")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", shape=(30000, 30000, 30000), dtype="i2", chunks=(64, 64, 64), compression="gzip")
    with pytest.raises(DataError, match="cannot hold"):
        read_volume(tmp_path / "a.h5")


def test_python_objects_are_never_loaded(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    objects = np.array([[[Bomb()]]], dtype=object)
    np.savez(tmp_path / "a.npz", image=objects)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    for name in ("a.npz", "a.npy"):
        for action in (read_volumes, probe, read_labels):
            with pytest.raises(DataError, match="Python objects"):
                action(tmp_path / name)


def test_voxels_that_are_no_numbers_are_a_warning(tmp_path) -> None:
    array = np.ones((4, 5, 6), np.float32)
    array[0, 0, :2] = np.nan, np.inf
    path = write_volume(Volume(array, Geometry.from_spacing(array.shape, (1, 1, 1))), tmp_path / "nan.nii.gz")
    volume = read_volume(path)
    assert volume.warnings == ("2 of 120 voxels are not numbers (NaN or infinite).",)
    assert np.isnan(volume.array[0, 0, 0])
    with pytest.raises(DataError, match="not a label map: it holds nan"):
        read_labels(path)


ROWS = {"sform_code": 1, "srow_x": [1, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({**ROWS, "srow_z": [0, 0, 0, 0]}, "zero size"),
        ({**ROWS, "srow_y": [1, 0, 0, 0]}, "one plane|zero size"),
        ({**ROWS, "srow_x": [np.nan, 0, 0, 0]}, "not a finite"),
        ({"qform_code": 1, "pixdim": [1, 1, 1, 0, 0, 0, 0, 0]}, "zero size"),
        ({"qform_code": 1, "pixdim": [1, 1, 1, -2, 0, 0, 0, 0]}, "orientation .* unusable"),
        ({"qform_code": 1, "pixdim": [1, 1, 1, 1, 0, 0, 0, 0], "quatern_b": 3}, "orientation .* unusable"),
    ],
)
def test_unusable_nifti_geometry_names_the_file(fields, words, tmp_path) -> None:
    path = nifti(tmp_path / "größe ß.nii.gz", **fields)
    for action in (read_volume, probe):
        with pytest.raises(GeometryError, match=words) as caught:
            action(path)
        assert "größe ß.nii.gz" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ElementSpacing = 1 0 1\n", "zero or negative size|zero size"),
        ("TransformMatrix = 1 0 0 1 0 0 0 0 1\n", "one plane"),
    ],
)
def test_unusable_metaimage_geometry(line, words, tmp_path) -> None:
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 2 2 2\n"
    tail = "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes((head + line + tail).encode() + bytes(8))
    with pytest.raises(GeometryError, match=words):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("directions", ["(0,0,0) (0,1,0) (0,0,1)", "(1,0,0) (1,0,0) (0,0,1)"])
def test_unusable_nrrd_geometry(directions, tmp_path) -> None:
    head = "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\n"
    head += f"space directions: {directions}\nkinds: domain domain domain\nencoding: raw\nspace origin: (0,0,0)\n\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + bytes(8))
    with pytest.raises((GeometryError, DataError)):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("suffix", [*COMPRESSED, ".nii", ".npy", ".dcm", ""])
@pytest.mark.parametrize("content", [b"", b"a note about the patient, in words\n" * 50, bytes(range(256)) * 8])
def test_files_that_are_not_what_their_name_says(suffix, content, tmp_path) -> None:
    path = tmp_path / f"note{suffix}"
    path.write_bytes(content)
    for action in (read_volumes, probe, read_labels):
        with pytest.raises(Med3dError) as caught:
            action(path)
        assert len(str(caught.value).split()) > 5


@pytest.mark.parametrize("suffix", [*COMPRESSED, ".nii", ".npy", ".dcm", ""])
def test_missing_files_and_folders(suffix, tmp_path) -> None:
    path = tmp_path / f"nothing{suffix}"
    assert not can_read(path)
    with pytest.raises(DataError, match="does not exist"):
        read_volumes(path)
    path.mkdir()
    assert not can_read(path)
    with pytest.raises(DataError, match="holds no DICOM files"):
        read_volumes(path)


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_random_damage_never_escapes_as_a_traceback(suffix, tmp_path) -> None:
    path, data = written(tmp_path, suffix)
    content = data.read_bytes() if suffix in (".nhdr", ".mhd") else path.read_bytes()
    random = np.random.default_rng(3)
    for _ in range(25):
        damaged = bytearray(content)
        for place in random.integers(0, min(len(content), 600), 3):
            damaged[place] = random.integers(256)
        data.write_bytes(damaged)
        with contextlib.suppress(Med3dError):
            read_volumes(path)


def test_a_broken_zip_member_is_told(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("volume.npy", b"no array")
    with pytest.raises(DataError, match="damaged or not what its name says"):
        read_volume(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("datatype", "bits", "words"), [(128, 24, "colour image"), (32, 64, "complex64"), (1536, 128, "expected|unknown")]
)
def test_colour_and_complex_nifti_are_refused(datatype, bits, words, tmp_path) -> None:
    path = nifti(tmp_path / "rgb.nii", datatype=datatype, bitpix=bits, data=bytes(4000))
    with pytest.raises(DataError, match=words):
        read_volume(path)
