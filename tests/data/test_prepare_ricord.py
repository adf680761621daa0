"""RICORD: DICOM folders and a table become a dataset in Hounsfield units, whatever the files' offset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from training_backend.cli import main
from training_backend.data.dataset import Dataset
from training_backend.data.prepare_ricord import prepare_ricord
from training_backend.data.store import open_case
from training_backend.errors import DataError

SIZE = (8, 12, 10)


def hounsfield(seed: int, slices: int) -> np.ndarray:
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (slices, 20, 16)), indexing="ij"))
    return np.rint(300 * places.sum(0) - 400 + seed).astype(np.int16)


def write_scan(folder: Path, hu: np.ndarray, intercept: int, patient: str = "4711") -> None:
    folder.mkdir(parents=True)
    series, study = generate_uid(), generate_uid()
    for index, image in enumerate(hu):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.PatientID, ds.Modality = series, study, patient, "CT"
        ds.Rows, ds.Columns = image.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.InstanceNumber, ds.ImagePositionPatient = index + 1, [0.0, 0.0, 2.5 * index]
        ds.ImageOrientationPatient, ds.PixelSpacing, ds.SliceThickness = [1, 0, 0, 0, 1, 0], [0.8, 0.7], 2.5
        ds.RescaleSlope, ds.RescaleIntercept = 1, intercept
        ds.PixelData = (image - intercept).astype(np.int16).tobytes()
        ds.save_as(folder / f"{index:03d}.dcm", enforce_file_format=True)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of one anatomy with different offsets, one of another, and a scout."""
    root = tmp_path_factory.mktemp("ricord")
    write_scan(root / "a", hounsfield(0, 14), -1024)
    write_scan(root / "b", hounsfield(0, 14) + 0, 0, "4712")
    write_scan(root / "c", hounsfield(200, 16), -1024, "4713")
    write_scan(root / "scout", hounsfield(5, 3), -1024, "4714")
    return root


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    def write(rows: str) -> Path:
        path = tmp_path / "labels.csv"
        path.write_text(rows)
        return path

    return write


def voxels(output: Path, name: str) -> np.ndarray:
    dataset = Dataset.open(output)
    return open_case(dataset, dataset.case(name)).read_image()[0]


def test_files_with_and_without_an_offset_give_the_same_hounsfield_units(
    scans: Path, table: Callable[[str], Path], tmp_path: Path
) -> None:
    labels = table("Path,Label,Split\na,1,train\nc,0,val\n")
    assert prepare_ricord(scans, labels, tmp_path / "one", size=SIZE).ok == ("a", "c")
    prepare_ricord(scans, table("Path,Label,Split\nb,1,train\nc,0,val\n"), tmp_path / "two", size=SIZE)
    first, second = voxels(tmp_path / "one", "a"), voxels(tmp_path / "two", "b")
    assert first.shape == SIZE
    assert first.dtype == np.int16
    assert np.array_equal(first, second)
    assert abs(float(first.mean()) - float(hounsfield(0, 14).mean())) < 10
    dataset = Dataset.open(tmp_path / "one")
    assert [(case.split, case.target) for case in dataset.cases()] == [("train", (1.0,)), ("val", (0.0,))]
    assert dataset.info.target_names == ("negative", "positive")
    assert "4711" not in (tmp_path / "one" / "manifest.jsonl").read_text()


def test_the_published_window_takes_numbers_as_stored(
    scans: Path, table: Callable[[str], Path], tmp_path: Path
) -> None:
    labels = table("Path,Label,Split\na,positive,train\nb,negative,train\n")
    prepare_ricord(scans, labels, tmp_path / "raw", size=SIZE, raw_window=True)
    with_offset, without = voxels(tmp_path / "raw", "a"), voxels(tmp_path / "raw", "b")
    assert with_offset.min() >= 0
    assert with_offset.max() <= 1
    assert float(with_offset.mean()) == pytest.approx(
        np.clip(hounsfield(0, 14) + 1024, 0, 1400).mean() / 1400, abs=0.05
    )
    assert not np.allclose(with_offset, without, atol=0.1)


def test_rows_that_cannot_be_used_are_listed_with_the_reason(
    scans: Path, table: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = (
        "Path,Label,Subject,Split\na,1,p1,train\nnowhere,1,p2,train\nc,maybe,p3,val\nscout,0,p4,test\nb,0,p5,holdout\n"
    )
    report = prepare_ricord(scans, table(rows), tmp_path / "data", size=SIZE)
    assert report.ok == ("a",)
    reasons = " ".join(entry.reason for entry in report.quarantined)
    for part in ("nowhere, which is not below", "label 'maybe'", "no series of 11 or more", "split 'holdout'"):
        assert part in reasons


def test_a_patient_in_two_splits_is_refused(scans: Path, table: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Subject 'p1' is in train"):
        prepare_ricord(scans, table("Path,Label,Subject,Split\na,1,p1,train\nc,0,p1,test\n"), tmp_path / "data")


def test_the_command_line_wants_a_table_and_says_what_it_needs(
    scans: Path, table: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "prepare", "ricord", str(scans), "--output", str(tmp_path / "data")]
    assert main(command) == 1
    assert "ricord needs a table of labels" in capsys.readouterr().err
    assert main([*command, "--labels", str(table("Scan,Class\na,1\n"))]) == 1
    assert "needs the columns Path and Label; it has class, scan" in capsys.readouterr().err
    assert main([*command, "--labels", str(table("Path,Label,Split\na,1,train\nc,0,val\n"))]) == 0
    assert voxels(tmp_path / "data", "a").shape == (64, 128, 128)
    wide = [*command[:-1], str(tmp_path / "wide"), "--size", "160"]
    assert main([*wide, "--labels", str(table("Path,Label,Split\na,1,train\nc,0,val\n"))]) == 0
    assert voxels(tmp_path / "wide", "a").shape == (64, 160, 160)
