"""The manifest: open, choose, change, refuse leakage, survive a move."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from training_backend.data.dataset import Dataset, check_splits, relative_root
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord
from training_backend.data.phantoms import thorax_ct
from training_backend.data.splits import assign_splits
from training_backend.data.store import open_case
from training_backend.errors import ConfigError, DataError


def case(id, subject="", split="train", sha="", **changes):
    images = (ImageRecord(path=f"{id}.nii.gz", sha256=sha),)
    return CaseRecord(id=id, subject=subject or id, split=split, images=images, **changes)


@pytest.fixture
def copy(dataset, tmp_path):
    shutil.copytree(dataset.folder, tmp_path / "copy")
    return Dataset.open(tmp_path / "copy")


def test_saved_is_what_is_opened(tmp_path):
    records = [case("b", report="Ein Befund: Lungenrundherd rechts, ä"), case("a", split="val", target=(1.0, 0.0))]
    Dataset(tmp_path, DatasetInfo(name="Größe"), records).save()
    opened = Dataset.open(tmp_path)
    assert opened.info.name == "Größe"
    assert opened.cases() == [records[1], records[0]]


def test_cases_are_chosen_by_split_and_label(dataset):
    assert {one.split for one in dataset.cases()} == {"train", "val"}
    assert len(dataset.cases("train")) == 5
    assert len(dataset.cases("val", labelled=True)) == 1
    assert dataset.cases(labelled=False) == []


def test_excluded_cases_stay_in_the_manifest(copy):
    victim = copy.cases()[0]
    before = copy.fingerprint()
    copy.put(victim.model_copy(update={"excluded": True}))
    copy.save()
    opened = Dataset.open(copy.folder)
    assert victim.id not in [one.id for one in opened.cases()]
    assert opened.case(victim.id).excluded
    assert opened.fingerprint() != before


def test_the_fingerprint_follows_content_not_place(dataset, copy):
    assert dataset.fingerprint() == copy.fingerprint()
    one = copy.cases()[0]
    copy.put(one.model_copy(update={"report": "other words"}))
    assert dataset.fingerprint() == copy.fingerprint()
    copy.put(one.model_copy(update={"split": "test"}))
    assert dataset.fingerprint() != copy.fingerprint()


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (case("a", "anna"), case("b", "anna", "val"), "Subject 'anna' is in train"),
        (case("a", sha="x"), case("b", sha="x", split="test"), "The image 'b.nii.gz' is in train"),
        (case("a", "anna", "unlabelled"), case("b", "anna", "val"), "Subject 'anna' is in unlabelled"),
    ],
)
def test_leakage_is_refused(tmp_path, one, other, words):
    with pytest.raises(DataError, match=words):
        Dataset(tmp_path, DatasetInfo(name="leaky"), [one, other]).save()
    assert not (tmp_path / "manifest.jsonl").exists()
    check_splits([one, other.model_copy(update={"excluded": True})])
    check_splits([one, other.model_copy(update={"split": one.split})])


def test_splits_are_by_subject_seeded_and_near_their_shares():
    cases = [case(f"{n}-{session}", f"s{n}") for n in range(20) for session in range(2)]
    drawn = assign_splits(cases, (0.7, 0.2, 0.1), seed=1)
    check_splits(drawn)
    counts = {split: sum(one.split == split for one in drawn) for split in ("train", "val", "test")}
    assert counts == {"train": 28, "val": 8, "test": 4}
    assert assign_splits(cases[::-1], (0.7, 0.2, 0.1), seed=1)[::-1] == drawn
    assert assign_splits(cases, (0.7, 0.2, 0.1), seed=2) != drawn
    for count in range(1, 6):
        few = [one.split for one in assign_splits(cases[: 2 * count : 2], (0.8, 0.2, 0.0), seed=0)]
        assert few.count("val") == (1 if count > 1 else 0)
        assert "test" not in few
    assert {one.split for one in assign_splits(cases, (0, 0, 1), seed=0)} == {"test"}
    with pytest.raises(ConfigError, match="none may be negative"):
        assign_splits(cases, (1.2, -0.2, 0), seed=0)


def test_given_splits_stay_and_their_subjects_follow():
    cases = [
        case("a", "anna", "val"),
        case("b", "anna"),
        case("c", "carl"),
        case("d", "dora", "unlabelled"),
        case("e", "dora"),
    ]
    drawn = {one.id: one.split for one in assign_splits(cases, (1, 0, 0), seed=0, given={"a", "d"})}
    assert drawn == {"a": "val", "b": "val", "c": "train", "d": "unlabelled", "e": "train"}


def test_volumes_from_memory_become_a_case(copy):
    phantom = thorax_ct(77, (20, 30, 30))
    copy.add_case(phantom.volumes, phantom.labels, id="opened", target=(1.0,), report=phantom.report)
    opened = Dataset.open(copy.folder)
    record = opened.case("opened")
    stored = open_case(opened, record)
    assert record.target == (1.0,)
    assert stored.native.same_grid(phantom.volume.geometry)
    start = record.store["start"]
    box = tuple(slice(s, s + n) for s, n in zip(start, stored.shape, strict=True))
    assert np.array_equal(stored.read_image()[0], phantom.volume.array[box])
    assert np.array_equal(stored.read_label(), phantom.labels.array[box])
    assert opened.source(record.images[0]).is_file()
    with pytest.raises(DataError, match="already has a case 'opened'"):
        copy.add_case(phantom.volumes, id="opened")
    copy.add_case(phantom.volumes, id="opened", replace=True)
    assert not open_case(copy, copy.case("opened")).labelled
    with pytest.raises(DataError, match="at least one image"):
        copy.add_case([], id="empty")


def test_what_is_missing_is_said(tmp_path, copy):
    with pytest.raises(DataError, match=r"is not a dataset: it has no dataset\.json"):
        Dataset.open(tmp_path)
    with pytest.raises(DataError, match="has no case 'nobody'"):
        copy.case("nobody")
    one = copy.cases()[0]
    shutil.move(copy.folder, tmp_path / "a" / "b" / "c" / "d")
    moved = Dataset.open(tmp_path / "a" / "b" / "c" / "d")
    assert open_case(moved, moved.cases()[0]).read_image().size
    gone = moved.info.model_copy(update={"root": "../nowhere"})
    with pytest.raises(DataError, match=r"Training does not need it"):
        Dataset(moved.folder, gone).source(one.images[0])
    (moved.folder / "manifest.jsonl").write_text('{"id": "a", "subject": "a"}\n{"id": \n')
    with pytest.raises(DataError, match=r"manifest\.jsonl line 2 is not valid JSON"):
        Dataset.open(moved.folder)
    (moved.folder / "manifest.jsonl").unlink()
    with pytest.raises(DataError, match="Copy the whole dataset folder"):
        Dataset.open(moved.folder)


def test_the_root_is_relative_only_when_near(tmp_path):
    assert relative_root(tmp_path / "scans", tmp_path / "dataset") == "../scans"
    assert relative_root(tmp_path / "d" / "scans", tmp_path / "d") == "scans"
    assert relative_root(tmp_path, tmp_path / "a" / "b" / "c" / "d") == tmp_path.resolve().as_posix()
