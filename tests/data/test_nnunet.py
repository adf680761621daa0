"""nnU-Net raw folders: written, read back the same, and refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.nnunet import write_nnunet
from training_backend.data.phantoms import mr_contrasts, write_cohort
from training_backend.data.read import read_labels, read_volume
from training_backend.errors import ConfigError, DataError


@pytest.fixture
def heads(tmp_path: Path) -> Dataset:
    """Five heads with two contrasts; one without labels for testing, one with."""
    source = write_cohort(tmp_path / "cohort", 5, seed=4, shape=(12, 16, 14), kind=mr_contrasts, labelled=4)
    ingest([source], tmp_path / "dataset", IngestConfig(workers=0, splits=(0.7, 0.3, 0.0)))
    dataset = Dataset.open(tmp_path / "dataset")
    for case in dataset.cases():
        split = "unlabelled" if case.label is None else "test" if case.id.startswith("case_003") else case.split
        dataset.put(case.model_copy(update={"split": split}))
    dataset.save()
    return dataset


def test_a_dataset_goes_to_nnunet_and_comes_back_the_same(heads: Dataset, tmp_path: Path) -> None:
    report = write_nnunet(heads, tmp_path / "raw", number=7, name="Heads")
    assert report.folder == tmp_path / "raw" / "Dataset007_Heads"
    told = json.loads((report.folder / "dataset.json").read_text(encoding="utf-8"))
    assert told["channel_names"] == {"0": "T1", "1": "T2"}
    assert told["labels"]["background"] == 0
    assert sorted(told["labels"].values()) == list(range(len(told["labels"])))
    assert told["numTraining"] == report.training == len(list((report.folder / "labelsTr").iterdir())) == 3
    assert {path.name for path in (report.folder / "imagesTr").iterdir()} == {
        f"{case.id}_{channel:04d}.nii.gz"
        for case in heads.cases()
        if case.split in ("train", "val")
        for channel in (0, 1)
    }
    ingest([report.folder], tmp_path / "again", IngestConfig(workers=0))
    again = Dataset.open(tmp_path / "again")
    assert again.info.layout == "nnunet"
    assert again.info.contrasts == heads.info.contrasts
    assert [entry.name for entry in again.info.classes] == [entry.name for entry in heads.info.classes]
    for case in heads.cases():
        other = again.case(case.id)
        assert other.split == case.split
        for mine, theirs in zip(case.images, other.images, strict=True):
            one, two = (read_volume(each.source(record)) for each, record in ((heads, mine), (again, theirs)))
            assert one.geometry.same_grid(two.geometry)
            assert np.array_equal(one.array, two.array)
        if case.label is not None and other.label is not None:
            one, two = read_labels(heads.source(case.label)), read_labels(again.source(other.label))
            assert np.array_equal(one.array, two.array)


def test_label_values_get_no_gaps_and_the_report_says_so(heads: Dataset, tmp_path: Path) -> None:
    gap = tuple(entry for entry in heads.info.classes if entry.index != 2)
    first = heads.cases(labelled=True)[0]
    for case in heads.cases(labelled=True):
        assert case.label is not None
        path = heads.source(case.label)
        labels = read_labels(path)
        from training_backend.data.write import write_volume

        write_volume(labels.with_array(np.where(labels.array == 2, 1, labels.array)), path, overwrite=True, labels=True)
        values = {value: n for value, n in case.store["label"]["values"].items() if int(value) != 2}
        store = {**case.store, "label": {**case.store["label"], "values": values}}
        heads.put(case.model_copy(update={"store": store}))
    heads.info = heads.info.model_copy(update={"classes": gap})
    report = write_nnunet(heads, tmp_path / "raw")
    assert report.renumbered == {entry.index: entry.index - 1 for entry in gap if entry.index > 2}
    assert "3 became 2" in str(report)
    assert first.label is not None
    before = read_labels(heads.source(first.label)).array
    after = read_labels(report.folder / "labelsTr" / f"{first.id}.nii.gz").array
    assert np.array_equal(after, np.where(before > 2, before - 1, before))


def test_what_nnunet_would_not_take_is_refused_and_nothing_is_left_behind(heads: Dataset, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    with pytest.raises(ConfigError, match="number from 1 to 999"):
        write_nnunet(heads, raw, number=1000)
    with pytest.raises(ConfigError, match="letters, digits"):
        write_nnunet(heads, raw, name="a b")
    case = heads.cases(split="train")[0]
    heads.put(case.model_copy(update={"images": case.images[:1]}))
    with pytest.raises(DataError, match=rf"Case {case.id} has no T2"):
        write_nnunet(heads, raw)
    heads.put(case)
    heads.source(case.images[0]).unlink()
    with pytest.raises(DataError, match="is not at"):
        write_nnunet(heads, raw)
    assert not raw.exists()
    for one in heads.cases():
        heads.put(one.model_copy(update={"label": None}))
    with pytest.raises(DataError, match="no training case with a label map"):
        write_nnunet(heads, raw)
    (raw / "Dataset501_Dataset").mkdir(parents=True)
    with pytest.raises(DataError, match="exists already and is kept"):
        write_nnunet(heads, raw, name="Dataset")


def test_folds_that_cannot_be_read_are_told(heads: Dataset, tmp_path: Path) -> None:
    report = write_nnunet(heads, tmp_path / "raw")
    (report.folder / "splits_final.json").write_text('{"train": []}', encoding="utf-8")
    with pytest.raises(DataError, match="no list of folds with train and val"):
        ingest([report.folder], tmp_path / "again", IngestConfig(workers=0))


def test_classes_that_nobody_looked_for_are_not_exported_as_background(heads: Dataset, tmp_path: Path) -> None:
    case = heads.cases(split="train", labelled=True)[0]
    heads.put(case.model_copy(update={"annotated": (1,)}))
    with pytest.raises(DataError, match=f"{case.id} was annotated for some classes only"):
        write_nnunet(heads, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
