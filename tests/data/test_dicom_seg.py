from __future__ import annotations

import builtins
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, generate_uid

from tests.data.test_dicom import OBLIQUE, write_series
from training_backend.data.dicom_seg import write_segmentation
from training_backend.data.manifest import ClassEntry
from training_backend.data.read import read_volume
from training_backend.data.volume import Volume
from training_backend.errors import ConfigError, DataError

CLASSES = (ClassEntry(index=3, name="liver", colour="#d55e00"),)


@pytest.fixture(params=[(1, 0, 0, 0, 1, 0), OBLIQUE], ids=["axial", "oblique"])
def series(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return complete(write_series(tmp_path / "scan", [4, 0, 8, 12], request.param))


def complete(folder: Path) -> Path:
    """Identities that scanners write and that reading does not need."""
    study, frame = generate_uid(), generate_uid()
    for path in folder.glob("*"):
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = study, frame
        ds.SOPClassUID, ds.PatientSex, ds.StudyTime = CTImageStorage, "F", "120000"
        ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "", "1", ""
        ds.ImageType, ds.AcquisitionNumber, ds.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], 1, "maker"
        ds.save_as(path)
    return folder


def labels_of(series: Path) -> Volume:
    volume = read_volume(series)
    array = np.zeros(volume.array.shape, np.uint8)
    array[1:3, 2:4, 1:6] = 3
    array[0, 5, 7] = 9
    return Volume(array, volume.geometry, "CT", "organs", {"kind": "labels"})


def test_every_labelled_voxel_lies_where_it_was_drawn(series: Path, tmp_path: Path) -> None:
    labels = labels_of(series)
    written = write_segmentation(labels, CLASSES, series, tmp_path / "organs.dcm")
    found = highdicom.seg.segread(written)
    assert [found.get_segment_description(k).segment_label for k in (1, 2)] == ["liver", "class 9"]
    volume = found.get_volume(combine_segments=True)
    for segment, value in ((1, 3), (2, 9)):
        there = np.argwhere(np.asarray(volume.array) == segment)
        here = np.argwhere(labels.array == value)
        assert len(there) == len(here)
        ones = np.c_[there, np.ones(len(there))] @ np.asarray(volume.affine).T
        truth = np.c_[here, np.ones(len(here))] @ labels.geometry.to_lps.T
        assert np.allclose(sorted(ones[:, :3].round(2).tolist()), sorted(truth[:, :3].round(2).tolist()), atol=0.02)


def test_it_refers_to_the_series_and_takes_its_patient(series: Path, tmp_path: Path) -> None:
    written = pydicom.dcmread(write_segmentation(labels_of(series), CLASSES, series, tmp_path / "organs.dcm"))
    source = pydicom.dcmread(next(series.glob("*")))
    assert written.StudyInstanceUID == source.StudyInstanceUID
    assert written.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert written.PatientID == source.PatientID


def test_of_several_series_the_one_with_the_grid_is_taken(series: Path, tmp_path: Path) -> None:
    labels = labels_of(series)
    complete(write_series(series.parent / "both" / "other", [0, 3]))
    both = series.rename(series.parent / "both" / "mine").parent
    assert write_segmentation(labels, CLASSES, both, tmp_path / "organs.dcm").is_file()


def test_what_does_not_fit_is_told_and_nothing_written(series: Path, tmp_path: Path) -> None:
    labels, out = labels_of(series), tmp_path / "organs.dcm"
    other = complete(write_series(tmp_path / "other", [0, 3]))
    with pytest.raises(DataError, match="No series in other has the grid of organs"):
        write_segmentation(labels, CLASSES, other, out)
    with pytest.raises(DataError, match="no labelled voxel"):
        write_segmentation(labels.with_array(labels.array * 0), CLASSES, series, out)
    with pytest.raises(DataError, match=r"end in \.dcm"):
        write_segmentation(labels, CLASSES, series, tmp_path / "organs.nii")
    for path in series.glob("*"):
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID = ""
        ds.save_as(path)
    with pytest.raises(DataError, match="no identity of the study"):
        write_segmentation(labels, CLASSES, series, out)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(DataError, match="is kept"):
        write_segmentation(labels, CLASSES, series, out)
    assert out.read_text() == "mine"


def test_without_the_package_the_command_that_installs_it_is_told(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "highdicom":
            raise ImportError(name)
        return ordinary(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="dicom-seg"):
        write_segmentation(labels_of(series), CLASSES, series, tmp_path / "organs.dcm")
