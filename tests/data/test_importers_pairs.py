"""Volumes with reports: CT-RATE, CTRG-Chest, arrow tables and lists become cases with text, or a sentence says why."""

from __future__ import annotations

import builtins
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.importers import describe
from training_backend.data.ingest import ingest
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.data.reports import sections
from training_backend.data.store import open_case
from training_backend.data.text import sentences
from training_backend.data.volume import Geometry, Volume
from training_backend.data.write import write_volume
from training_backend.errors import ConfigError, DataError

NAMES = ("Emphysema", "Pleural effusion")


def scan(path: Path, seed: int = 0, *, offset: int = 0) -> Path:
    """A small CT: air around soft tissue, its numbers moved by `offset`."""
    rng = np.random.default_rng(seed)
    array = np.full((8, 12, 12), -1000, np.int16)
    array[2:7, 3:9, 3:9] = 40 + rng.integers(0, 20, (5, 6, 6))
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_volume(Volume(array + np.int16(offset), Geometry.from_spacing(array.shape, (2.0, 1.0, 1.0))), path)


def voxels(dataset: Dataset, case: CaseRecord) -> np.ndarray[Any, Any]:
    """Stored numbers of the first image of a case, as they were in Hounsfield units or grey levels."""
    return np.asarray(open_case(dataset, case).read_image()[0])


def ct_rate(folder: Path) -> Path:
    """CT-RATE as downloaded, two of its volumes, the second without a report."""
    root = folder / "dataset"
    scan(root / "train" / "train_1" / "train_1_a" / "train_1_a_1.nii.gz", 1, offset=8192)
    scan(root / "valid" / "valid_7" / "valid_7_b" / "valid_7_b_2.nii.gz", 2)
    for name in ("radiology_text_reports", "multi_abnormality_labels", "metadata"):
        (root / name).mkdir(parents=True)
    (root / "radiology_text_reports" / "train_reports.csv").write_text(
        "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN\n"
        'train_1_a_1.nii.gz,cough,spiral,"Bullae, in both lungs. No effusion.",Emphysema.\n'
        "train_2_a_1.nii.gz,,,Normal.,Normal.\n",
        encoding="utf-8",
    )
    (root / "multi_abnormality_labels" / "train_predicted_labels.csv").write_text(
        f"VolumeName,{NAMES[0]},{NAMES[1]}\ntrain_1_a_1.nii.gz,1,0\n"
    )
    (root / "metadata" / "train_metadata.csv").write_text(
        "VolumeName,RescaleSlope,RescaleIntercept\ntrain_1_a_1.nii.gz,1,-8192\nvalid_7_b_2.nii.gz,1,0\n"
    )
    return folder


def test_ct_rate_brings_reports_labels_splits_and_hounsfield_units(tmp_path: Path) -> None:
    found = describe(ct_rate(tmp_path / "rate"))
    assert (found.info.layout, found.info.target_names) == ("ct-rate", NAMES)
    first, second = found.cases
    assert (first.id, first.subject, first.split, first.target) == ("train_1_a_1", "train_1", "train", (1.0, 0.0))
    assert first.report == "Bullae, in both lungs. No effusion.\n\nEmphysema."
    assert (second.split, second.report, second.target) == ("val", "", None)
    assert set(second.problems) == {"Its row has no labels.", "It has no report."}
    (left,) = found.problems
    assert left.reason.startswith("1 volumes with a report are not there: train_2_a_1.nii.gz.")

    ingest(tmp_path / "rate", tmp_path / "data", IngestConfig(workers=0))
    dataset = Dataset.open(tmp_path / "data")
    low, high = (voxels(dataset, dataset.records[name]).min() for name in sorted(dataset.records))
    assert low == high == -1000


def test_ctrg_finds_scans_by_the_end_of_the_authors_paths(tmp_path: Path) -> None:
    scan(tmp_path / "scans" / "a" / "1.nii.gz", 1)
    scan(tmp_path / "scans" / "b" / "1.nii.gz", 2)
    entry = {"report": "Lungs are clear.", "result": "Normal."}
    listed = {
        "train": [{"id": "x1", "image_path": "/data1/xue/scans/b/1.nii.gz", **entry}],
        "val": [{"id": "x2", "image_path": ["/data1/xue/scans/a/1.nii.gz"], **entry}],
        "test": [{"id": "x3", "image_path": "/data1/xue/scans/a/3.nii.gz", **entry}],
    }
    (tmp_path / "ctrg.json").write_text(json.dumps(listed))
    found = describe(tmp_path / "ctrg.json")
    assert found.info.layout == "ctrg"
    paths = {case.id: (case.split, case.images[0].path, case.report) for case in found.cases}
    assert paths == {
        "x1": ("train", "scans/b/1.nii.gz", "Lungs are clear.\n\nNormal."),
        "x2": ("val", "scans/a/1.nii.gz", "Lungs are clear.\n\nNormal."),
    }
    (left,) = found.problems
    assert (left.category, left.case) == ("missing", "x3")
    assert "3.nii.gz of ctrg.json is not below" in left.reason


def slices(seed: int, number: int = 6) -> list[bytes]:
    """Grey slices as JPEG, each brighter than the one before."""
    rng, found = np.random.default_rng(seed), []
    for index in range(number):
        stream = BytesIO()
        plane = np.clip(20 + 30 * index + rng.integers(0, 3, (16, 24)), 0, 255).astype(np.uint8)
        Image.fromarray(plane).save(stream, format="JPEG", quality=95)
        found.append(stream.getvalue())
    return found


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for row in range(table.num_rows):
            writer.write_table(table.slice(row, 1))  # several batches
    return path


def test_arrow_tables_pair_scans_with_their_own_sentences(tmp_path: Path) -> None:
    scan(tmp_path / "RATE" / "train_1_a_1.nii.gz")
    row = {"caption": ["CT Findings: Bullae, large. CT Impression: Emphysema."], "split": "train"}
    told = {"findings_sen": ["Bullae,", "large."], "impression_sen": ["Emphysema."]}
    rows = [
        {"image_id": "/gpfs/RATE/train_1_a_1.nii.gz", **row, **told},
        {"image_id": "/gpfs/RATE/train_9_a_1.nii.gz", **row, **told},
    ]
    write_arrow(tmp_path / "clm_ct_rate_train.arrow", rows)
    write_arrow(tmp_path / "clm_ct_rate_val.arrow", [{"image_id": "/gpfs/RATE/train_1_a_1.nii.gz", "caption": "x y"}])
    found = describe(tmp_path)
    assert found.info.layout == "arrow"
    assert [(case.split, len(case.images)) for case in found.cases] == [("train", 1), ("val", 1)]
    assert sentences(found.cases[0].report) == ["Bullae,", "large.", "Emphysema."]
    assert found.cases[0].report.count("\n\n") == 1
    assert [problem.category for problem in found.problems] == ["missing"]


def test_slices_inside_an_arrow_table_are_volumes(tmp_path: Path) -> None:
    caption = ["CT Findings: Lungs are clear. CT Impression: Normal."]
    rows = [{"image_id": f"Chest/{n}", "image": slices(n), "caption": caption} for n in range(3)]
    path = write_arrow(tmp_path / "clm_chest_ctrg_train.arrow", rows)
    report = ingest(path, tmp_path / "data", IngestConfig(workers=0, crop_body=False))
    assert len(report.ok) == 3  # told apart by their slices, not by the file
    dataset = Dataset.open(tmp_path / "data")
    case = dataset.cases()[0]
    assert (case.images[0].shape, case.split) == ((6, 16, 24), "train")
    assert sections(case.report) == {"findings": "Lungs are clear.", "impression": "Normal."}
    levels = voxels(dataset, case).mean(axis=(1, 2))
    assert (np.diff(levels) < 0).all()  # the last slice comes first
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"clm_chest_ctrg_train\.arrow is no arrow table"):
        describe(path)


def test_without_pyarrow_a_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_arrow(tmp_path / "pairs.arrow", [{"image_id": "a", "caption": "b"}])
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pyarrow.*napari-med3dssl\[parquet\]"):
        describe(path)


def test_another_arrow_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has a, b"):
        describe(write_arrow(tmp_path / "other.arrow", [{"a": 1, "b": 2}]))


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_lists_with_paths_and_reports_are_pairs(ending: str, tmp_path: Path) -> None:
    scan(tmp_path / "one.nii.gz", 1)
    scan(tmp_path / "two.nii.gz", 2)
    rows = [
        {"volume": "one.nii.gz", "findings": "A nodule.", "impression": "Nodule.", "split": "train"},
        {"volume": "two.nii.gz", "report": "Two lines.\nOf text.", "split": "val"},
    ]
    lines = "\n".join(map(json.dumps, rows)) if ending == "jsonl" else json.dumps(rows)
    (tmp_path / f"pairs.{ending}").write_text(lines, encoding="utf-8")
    found = describe(tmp_path / f"pairs.{ending}")
    assert [(case.split, case.report) for case in found.cases] == [
        ("train", "A nodule.\n\nNodule."),
        ("val", "Two lines.\nOf text."),
    ]
    assert all(case.images for case in found.cases)


@pytest.mark.parametrize(
    "report, found",
    [
        ("FINDINGS: A. B.\nIMPRESSION: C.", {"findings": "A. B.", "impression": "C."}),
        ("CT Findings: A. CT Impression: C.", {"findings": "A.", "impression": "C."}),
        ("Technique: spiral.\nFindings:\nA.\nConclusion: C.", {"findings": "A.", "impression": "C."}),
        ("Impression: C.", {"impression": "C."}),
        ("A.\nB.\n\nC.", {"findings": "A.\nB.", "impression": "C."}),
        ("A. B.", {}),
        ("A.\n\nB.\n\nC.", {}),
        ("The finding: is unclear. A.", {}),
        ("", {}),
    ],
)
def test_sections_are_told_by_headings_or_by_two_paragraphs(report: str, found: dict[str, str]) -> None:
    assert sections(report) == found


def test_a_dataset_that_reads_a_part_is_never_saved(tmp_path: Path) -> None:
    cases = [
        CaseRecord(id="a", subject="a", report="One.\n\nTwo."),
        CaseRecord(id="b", subject="b", report="Neither."),
    ]
    dataset = Dataset(tmp_path, DatasetInfo(name="texts", modality="text"), cases)
    read = dataset.reading("impression")
    assert [case.report for case in read.cases()] == ["Two.", ""]
    assert read.reading("impression") is read
    with pytest.raises(ValueError, match="would lose the rest"):
        read.save()
