from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from training_backend.data.dicom import list_series
from training_backend.data.read import can_read, probe, read_volume, read_volumes
from training_backend.errors import DataError

ROWS, COLUMNS = 6, 8
AXIAL = (1, 0, 0, 0, 1, 0)
OBLIQUE = (*np.array([np.cos(0.2), np.sin(0.2), 0]), *np.array([-np.sin(0.2), np.cos(0.2), 0]))
SAGITTAL = (0, 1, 0, 0, 0, -1)


def header(uid: str, sop_class: str = CTImageStorage) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID, uid
    ds.StudyInstanceUID = generate_uid()
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyDate = "Doe^Jane", "4711", "19500102", "20200304"
    ds.SeriesDescription, ds.InstitutionName = "Thorax of Doe", "Hospital"
    ds.Modality, ds.SeriesNumber = "CT", 3
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.WindowCenter, ds.WindowWidth = [40, -600], [400, 1500]
    return ds


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, (n, ROWS, COLUMNS)).astype(np.uint16)


def write_series(folder, depths, orientation=AXIAL, shift=(0.0, 0.0, 0.0), uid=None, stored=None, start=0, **tags):
    """One file per entry of `depths` (mm along the normal), named so that names and positions disagree.

    `shift` is added to the position per millimetre of depth (gantry tilt).
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    stored = pixels(len(depths)) if stored is None else stored
    normal = np.cross(orientation[:3], orientation[3:])
    for index, depth in enumerate(depths):
        ds = header(uid)
        ds.InstanceNumber = index + 1
        ds.ImagePositionPatient = [float(v) for v in np.array([-10.0, -20.0, 5.0]) + depth * (normal + np.array(shift))]
        ds.ImageOrientationPatient = [float(v) for v in orientation]
        ds.PixelSpacing, ds.SliceThickness = [0.75, 0.5], 5.0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        for name, value in tags.items():
            setattr(ds, name, value[index] if isinstance(value, list) and len(value) == len(depths) else value)
        ds.PixelData = stored[index].tobytes()
        ds.save_as(folder / f"{(start + index) * 7919 % 1000:03d}.dcm", enforce_file_format=True)
    return folder


def by_itk(folder) -> tuple[np.ndarray, sitk.Image]:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = sitk.DICOMOrient(reader.Execute(), "LPS")
    return sitk.GetArrayFromImage(image), image


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, SAGITTAL])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_series_is_ordered_by_position_and_agrees_with_itk(orientation, reverse, tmp_path) -> None:
    depths = np.arange(5) * 2.5
    folder = write_series(tmp_path / "Größe 1", depths[::-1] if reverse else depths, orientation)
    volume = read_volume(folder)
    array, image = by_itk(folder)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, array)
    assert volume.geometry.spacing_mm == pytest.approx(image.GetSpacing()[::-1])
    assert volume.geometry.origin_lps == pytest.approx(image.GetOrigin())
    steps = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    assert np.allclose(steps[:, ::-1], volume.geometry.to_lps[:3, :3])
    assert volume.modality == "CT"
    assert volume.warnings == ()
    assert volume.meta["window"] == [-160.0, 240.0]
    facts = probe(folder)
    assert facts.geometry.same_grid(volume.geometry)
    assert facts.dtype == "int16"


def test_spacing_comes_from_positions_not_from_the_thickness(tmp_path) -> None:
    folder = write_series(tmp_path, [0, 1.25, 2.5, 3.75], SliceThickness=5.0, SpacingBetweenSlices=9.0)
    assert read_volume(folder).geometry.spacing_mm == pytest.approx((1.25, 0.75, 0.5))


def test_one_file_stands_for_its_series(tmp_path) -> None:
    folder = write_series(tmp_path, [0, 1, 2])
    write_series(folder, [0, 1], OBLIQUE, start=10)
    write_series(folder / "below", [0, 1])
    one = next(path for path in folder.glob("*.dcm"))
    assert can_read(one)
    assert read_volume(one).array.shape[0] in (2, 3)
    bare = one.rename(one.with_suffix(""))
    assert can_read(bare)
    assert read_volume(bare).array.shape[0] in (2, 3)


def test_two_series_are_listed_and_chosen(tmp_path) -> None:
    write_series(tmp_path / "a", [0, 1, 2, 3], SeriesNumber=2)
    write_series(tmp_path / "b", [0, 2, 4], SeriesNumber=7, stored=pixels(3) + 1, Modality="MR", PatientName="Roe")
    found = list_series(tmp_path)
    assert [(s.number, s.modality, len(s.frames)) for s in found] == [("2", "CT", 4), ("7", "MR", 3)]
    with pytest.raises(DataError, match=r"holds 2 series.*4 slices of 6 x 8; .*3 slices") as caught:
        read_volumes(tmp_path)
    assert all(series.id in str(caught.value) for series in found)
    for choice in (found[1].id, "7", found[1].uid):
        assert read_volume(tmp_path, series=choice).array.shape == (3, 6, 8)
        assert read_volume(tmp_path, key=choice).modality == "MR"
        assert probe(tmp_path, series=choice).spacing_mm[0] == pytest.approx(2)
    with pytest.raises(DataError, match="no series '9'"):
        read_volume(tmp_path, series="9")
    assert [s.id for s in list_series(tmp_path)] == [s.id for s in found], "ids are stable"


def test_missing_slices_are_named_and_everything_else_stays_in_place(tmp_path) -> None:
    depths = [0, 3, 6, 12, 15]
    volume = read_volume(write_series(tmp_path, depths))
    assert volume.array.shape[0] == 6
    assert volume.geometry.spacing_mm[0] == pytest.approx(3)
    assert "Slices are missing: 1, between 11.0 and 17.0 mm." in volume.warnings[0]
    assert volume.meta["missing_slices"] == 1
    expected = pixels(5).astype(int) - 1024
    assert np.array_equal(volume.array[[0, 1, 2, 4, 5]], expected)
    assert (volume.array[3] == expected.min()).all()


def test_uneven_distances_and_blocks_are_named(tmp_path) -> None:
    volume = read_volume(write_series(tmp_path / "a", [0, 2, 4, 7.3, 9.3]))
    assert "varies from 2.00 to 3.30 mm" in volume.warnings[0]
    assert volume.array.shape[0] == 5
    assert volume.geometry.spacing_mm[0] == pytest.approx(9.3 / 4)
    with pytest.raises(DataError, match="blocks far apart"):
        read_volume(write_series(tmp_path / "b", [0, 1, 2, 300, 301, 302]))


def test_duplicates_are_named(tmp_path) -> None:
    stored = pixels(4)
    folder = write_series(tmp_path / "places", [0, 2, 2, 4], stored=stored)
    volume = read_volume(folder)
    assert "Slices lying where another one lies: 1." in volume.warnings[0]
    assert np.array_equal(volume.array, stored[[0, 1, 3]].astype(int) - 1024)
    folder = write_series(tmp_path / "copies", [0, 2, 4])
    for path in list(folder.glob("*.dcm")):
        (folder / f"copy of {path.name}").write_bytes(path.read_bytes())
    volume = read_volume(folder)
    assert "left out: 3." in volume.warnings[0]
    assert volume.array.shape[0] == 3


def test_gantry_tilt_is_named_and_kept(tmp_path) -> None:
    tilt = np.tan(np.radians(12))
    volume = read_volume(write_series(tmp_path, [0, 2, 4, 6], shift=(0.0, tilt, 0.0)))
    assert "gantry tilt of 12.0°" in volume.warnings[0]
    assert len(volume.warnings) == 1
    assert volume.geometry.to_lps @ [3, 0, 0, 1] == pytest.approx([-10, -20 + 6 * tilt, 11, 1])


def test_echoes_become_contrasts_on_one_grid(tmp_path) -> None:
    uid = generate_uid()
    early, late = pixels(3), pixels(3) + 1000
    write_series(tmp_path, [0, 2, 4], uid=uid, stored=early, EchoTime=4.6, Modality="MR")
    write_series(tmp_path, [0, 2, 4], uid=uid, stored=late, EchoTime=12, start=10, Modality="MR")
    volumes = read_volumes(tmp_path)
    assert [v.meta["contrast"] for v in volumes] == ["EchoTime 4.6", "EchoTime 12.0"]
    assert np.array_equal(volumes[0].array, early.astype(int) - 1024)
    assert np.array_equal(volumes[1].array, late.astype(int) - 1024)
    assert volumes[0].geometry.same_grid(volumes[1].geometry)
    assert probe(tmp_path).contrasts == ("EchoTime 4.6", "EchoTime 12.0")


def enhanced(path, positions: list[float], slopes: list[float]) -> None:
    """An enhanced multi-frame MR file with its frames in the given order."""
    ds = header(generate_uid(), EnhancedMRImageStorage)
    ds.Modality, ds.NumberOfFrames = "MR", len(positions)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.75, 0.5], 3
    plane.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for z, slope in zip(positions, slopes, strict=True):
        place, scale, group = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, z]
        scale.RescaleSlope, scale.RescaleIntercept = slope, 0
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Sequence([place]), Sequence([scale])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    ds.PixelData = pixels(len(positions)).tobytes()
    ds.save_as(path, enforce_file_format=True)


def test_multi_frame_files_are_placed_frame_by_frame_and_named(tmp_path) -> None:
    enhanced(tmp_path / "multi.dcm", [4, 0, 8], [1, 2, 1])
    volume = read_volume(tmp_path)
    assert volume.geometry.spacing_mm == pytest.approx((4, 0.75, 0.5))
    assert np.array_equal(volume.array, pixels(3)[[1, 0, 2]].astype(int) * np.array([2, 1, 1])[:, None, None])
    assert "holds 3 slices (multi-frame)" in volume.warnings[0]


def test_multi_frame_without_positions_is_refused(tmp_path) -> None:
    ds = header(generate_uid())
    ds.NumberOfFrames, ds.PixelSpacing = 4, [1, 1]
    ds.PixelData = pixels(4).tobytes()
    ds.save_as(tmp_path / "old.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match="multi-frame file that gives no position"):
        read_volume(tmp_path / "old.dcm")


def test_a_screenshot_and_other_objects_do_not_spoil_a_series(tmp_path) -> None:
    write_series(tmp_path, [0, 2, 4])
    shot = header(generate_uid())
    shot.SamplesPerPixel, shot.PhotometricInterpretation, shot.PlanarConfiguration = 3, "RGB", 0
    shot.PixelData = bytes(ROWS * COLUMNS * 6)
    shot.save_as(tmp_path / "shot.dcm", enforce_file_format=True)
    report = header(generate_uid())
    del report.Rows
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    (tmp_path / "DICOMDIR").write_bytes(b"index")
    (tmp_path / "notes.txt").write_text("notes")
    volume = read_volume(tmp_path)
    assert volume.array.shape == (3, ROWS, COLUMNS)
    assert "Left aside: shot.dcm is a colour image" in volume.warnings[0]
    with pytest.raises(DataError, match="colour image"):
        read_volume(tmp_path / "shot.dcm")
    with pytest.raises(DataError, match="no DICOM images"):
        read_volume(tmp_path / "report.dcm")


def test_a_localiser_with_several_directions_is_a_series_of_its_own(tmp_path) -> None:
    uid = generate_uid()
    write_series(tmp_path, [0, 2, 4], uid=uid)
    write_series(tmp_path, [0, 2], SAGITTAL, uid=uid, start=10)
    assert [len(series.frames) for series in list_series(tmp_path)] == [3, 2]


def test_compressed_and_scaled_pixels(tmp_path) -> None:
    folder = write_series(tmp_path, [0, 2, 4], RescaleSlope=[1.5, 2.5, 0.5], RescaleIntercept=0, Modality="PT")
    for path in folder.glob("*.dcm"):
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless)
        ds.save_as(path)
    volume = read_volume(folder)
    assert volume.modality == "PET"
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, pixels(3) * np.array([1.5, 2.5, 0.5], np.float32)[:, None, None])
    assert probe(folder).dtype == "float32"


def test_truncated_pixels_are_told(tmp_path) -> None:
    folder = write_series(tmp_path, [0, 2, 4])
    path = next(folder.glob("*.dcm"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"pixels of {path.name}"):
        read_volume(folder)


def test_nothing_about_the_patient_is_kept(tmp_path) -> None:
    volume = read_volume(write_series(tmp_path, [0, 2, 4]))
    text = json.dumps([dict(volume.meta), volume.name, volume.modality])
    for word in ("Doe", "4711", "1950", "2020", "Hospital", "1.2.826"):
        assert word not in text


def test_the_real_series_agrees_with_itk(real_data, tmp_path) -> None:
    folder = write_series(tmp_path, np.arange(4) * 2.0)
    if real_data is not None:
        folder = real_data / "totalsegmentator" / "example_ct_dicom"
    volume = read_volume(folder)
    files = [path for _, path in sorted((pydicom.dcmread(p).ImagePositionPatient[2], str(p)) for p in folder.iterdir())]
    image = sitk.DICOMOrient(sitk.ReadImage(files[:3]), "LPS")
    assert np.array_equal(volume.array[:3], sitk.GetArrayFromImage(image))
    assert volume.geometry.spacing_mm == pytest.approx(image.GetSpacing()[::-1])
    assert volume.geometry.origin_lps == pytest.approx(image.GetOrigin())
