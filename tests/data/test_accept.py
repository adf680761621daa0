"""Accepting masks: what changes, what is kept, the way back, and that nothing half-done is left."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training_backend.config import IngestConfig, RunConfig
from training_backend.data import accept as module
from training_backend.data.accept import AcceptReport, Origin, accept, undo
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.loader import ViewLoader
from training_backend.data.read import read_labels
from training_backend.data.store import open_case, verify_case
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import DataError, GeometryError, ResourceError
from training_backend.files import disk_error


@pytest.fixture
def folder(dataset: Dataset, cohort: Path, tmp_path: Path) -> Path:
    """A copy of the dataset in which one training case lost its label map and another is unlabelled."""
    shutil.copytree(dataset.folder, tmp_path / "data")
    copy = Dataset.open(tmp_path / "data")
    copy.info = copy.info.model_copy(update={"root": cohort.resolve().as_posix()})
    for number, case in enumerate(copy.cases(split="train")[:2]):
        store = {name: entry for name, entry in case.store.items() if name != "label"}
        change = {"label": None, "store": store, "split": "unlabelled" if number else "train"}
        copy.put(case.model_copy(update=change))
    copy.save()
    return copy.folder


def mask_of(folder: Path, number: int = 0, labelled: bool = False) -> tuple[str, Volume]:
    """Id of a case and a mask on its scan: a box of class 1 below one of class 2."""
    dataset = Dataset.open(folder)
    case = dataset.cases(labelled=labelled)[number]
    stored = open_case(dataset, case)
    array = np.zeros(stored.native.shape, np.uint8)
    z, y, x = (n // 2 for n in array.shape)
    array[z - 4 : z, y - 4 : y + 4, x - 4 : x + 4] = 1
    array[z : z + 4, y - 4 : y + 4, x - 4 : x + 4] = 2
    return case.id, Volume(array, stored.native, name="mask")


def put_in(folder: Path, number: int = 0, **options: object) -> AcceptReport:
    case, mask = mask_of(folder, number)
    return accept(folder, case, mask, **options)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files but the lock."""
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != ".lock"}


def test_a_mask_is_stored_like_an_ingested_one_and_its_origin_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    case, mask = mask_of(folder)
    accept(folder, case, mask, origin=Origin("prediction, corrected", str(tmp_path), "AB"))
    dataset = Dataset.open(folder)
    record = dataset.case(case)
    verify_case(dataset, record)
    stored = open_case(dataset, record)
    start = record.store["start"]
    box = tuple(slice(first, first + n) for first, n in zip(start, stored.shape, strict=True))
    assert np.array_equal(stored.read_label(), mask.array[box])
    assert record.store["label"]["values"] == {"1": 256, "2": 256}
    assert set(stored.points) == {0, 1, 2}
    assert all(mask.array[box][tuple(p)] == 2 for p in stored.points[2])
    assert record.label is not None
    assert np.array_equal(read_labels(dataset.source(record.label)).array, mask.array)
    (origin,) = record.accepted
    assert (origin.how, origin.by, origin.label) == ("prediction, corrected", "AB", None)
    assert origin.model_sha256 == hashlib.sha256(b"weights").hexdigest()


def test_splits_are_kept_and_unlabelled_cases_become_training_cases(folder: Path) -> None:
    dataset = Dataset.open(folder)
    val = dataset.cases(split="val")[0].id
    case, mask = mask_of(folder, 1)
    assert dataset.case(case).split == "unlabelled"
    assert accept(folder, case, mask).case.split == "train"
    native = open_case(dataset, dataset.case(val)).native
    array = np.zeros(native.shape, np.uint8)
    array[tuple(slice(n // 2 - 2, n // 2 + 2) for n in native.shape)] = 1
    assert accept(folder, val, Volume(array, native)).case.split == "val"
    assert {c.id for c in Dataset.open(folder).cases(split="train", labelled=True)} >= {case}


def test_undo_brings_everything_back_in_order(folder: Path) -> None:
    before = Dataset.open(folder)
    unlabelled = put_in(folder, 1).case.id
    labelled, mask = mask_of(folder, labelled=True)
    accept(folder, labelled, mask)
    accept(folder, labelled, mask.with_array(np.where(mask.array == 2, 255, mask.array)))
    assert undo(folder).case.id == labelled
    now = Dataset.open(folder)
    assert np.array_equal(np.unique(open_case(now, now.case(labelled)).read_label()), [0, 1, 2])
    undo(folder)
    undo(folder, unlabelled)
    after = Dataset.open(folder)
    assert after.records == before.records
    assert after.info == before.info
    for case in after.cases():
        verify_case(after, case)
    with pytest.raises(DataError, match="nothing to undo"):
        undo(folder)


def test_what_training_reads_leaves_unlabelled_voxels_out(folder: Path) -> None:
    case, mask = mask_of(folder)
    partial = np.full_like(mask.array, 255)
    partial[mask.array == 1] = 1
    partial[mask.array == 2] = 0
    record = accept(folder, case, mask.with_array(partial), annotated=[1]).case
    assert record.annotated == (1,)
    assert set(record.store["label"]["values"]) == {"1"}
    config = RunConfig.parse(
        {
            "method": {"name": "mae3d"},
            "data": {"dataset": folder, "size": (16, 24, 24), "workers": 0, "foreground": 1.0},
            "optim": {"batch_size": 8, "max_steps": 4},
            "engine": {"device": "cpu"},
        }
    )
    loader = ViewLoader(Dataset.open(folder), config, needs="labels")
    told, seen = [], set()
    for views in loader.batches():
        batch = loader.to_batch(views, "cpu")
        assert batch.labels is not None
        for id, labels, known in zip(batch.case_ids, batch.labels, batch.extra["annotated"], strict=True):
            told.append((id == case, known))
            if id == case:
                seen |= set(labels.unique().tolist())
                assert (labels == 1).any()  # crops are centred on what is labelled
    assert set(told) == {(True, (1,)), (False, None)}
    assert seen == {0, 1, 255}


@pytest.mark.parametrize("fails", ["write_volume", "write_label", "write_points", "save"])
def test_a_full_disk_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    case, mask = mask_of(folder, 1)
    before = files(folder)

    def full(*args: object, **options: object) -> None:
        raise disk_error(OSError(errno.ENOSPC, "No space left on device"), folder / "x")

    monkeypatch.setattr(Dataset if fails == "save" else module, fails, full)
    with pytest.raises(ResourceError, match="disk is full"):
        accept(folder, case, mask)
    assert files(folder) == before


def test_files_of_the_mask_before_are_never_touched(folder: Path) -> None:
    """A run that trains meanwhile goes on reading what it opened."""
    case, mask = mask_of(folder, labelled=True)
    dataset = Dataset.open(folder)
    old = open_case(dataset, dataset.case(case))
    label = old.read_label()
    before = files(folder / "store")
    accept(folder, case, mask)
    accept(folder, case, mask)
    after = files(folder / "store")
    assert all(after[name] == content for name, content in before.items())
    assert len(after) == len(before) + 4
    assert np.array_equal(old.read_label(), label)


def test_another_grid_is_resampled_and_a_foreign_place_refused(folder: Path) -> None:
    case, mask = mask_of(folder)
    half = mask.geometry.cropped((0, 0, 0), (mask.geometry.shape[0], 30, mask.geometry.shape[2]))
    report = accept(folder, case, Volume(np.ascontiguousarray(mask.array[:, :30]), half))
    assert "put on the grid" in str(report)
    values = np.unique(read_labels(Dataset.open(folder).source(report.case.label)).array)  # type: ignore[arg-type]
    assert values.tolist() == [0, 1, 2, 255]  # what the layer does not reach is unlabelled
    before = files(folder)["manifest.jsonl"]
    far = Geometry.from_spacing(mask.geometry.shape, (1.0, 1.0, 1.0), (1e4, 1e4, 1e4))
    with pytest.raises(GeometryError, match="do not overlap"):
        accept(folder, case, Volume(mask.array, far))
    assert files(folder)["manifest.jsonl"] == before


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda a: a.astype(np.int16) * 200, {}, "0 to 254 are classes"),
        (lambda a: np.where(a > 0, 255, 0).astype(np.uint8), {}, "unlabelled voxels only"),
        (lambda a: a, {"annotated": [1]}, "not among the annotated"),
        (lambda a: a, {"annotated": ["spleen"]}, "no class of"),
        (lambda a: a, {"names": {1: "spleen"}}, "calls it"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(
    folder: Path, change: Callable[[Any], Any], options: dict[str, Any], sentence: str
) -> None:
    case, mask = mask_of(folder)
    before = files(folder)
    with pytest.raises(DataError, match=sentence):
        accept(folder, case, mask.with_array(change(mask.array)), **options)
    assert files(folder) == before


def test_a_new_class_comes_with_its_mask_and_goes_with_it(folder: Path) -> None:
    case, mask = mask_of(folder)
    accept(folder, case, mask, values={2: 77}, names={77: "spleen"})
    assert [c.name for c in Dataset.open(folder).info.classes if c.index == 77] == ["spleen"]
    undo(folder)
    assert 77 not in [c.index for c in Dataset.open(folder).info.classes]


def test_a_second_ingest_keeps_what_was_accepted(cohort: Path, tmp_path: Path) -> None:
    folder, config = tmp_path / "again", IngestConfig(workers=0)
    ingest(cohort, folder, config)
    case, mask = mask_of(folder, labelled=True)
    record = accept(folder, case, mask, values={2: 77}, names={77: "spleen"}).case
    ingest(cohort, folder, config)
    again = Dataset.open(folder)
    assert again.case(case) == record
    assert [c.name for c in again.info.classes if c.index == 77] == ["spleen"]
    verify_case(again, again.case(case))
    with pytest.raises(DataError, match="undo what was accepted"):
        ingest(cohort, folder, IngestConfig(workers=0, spacing_mm=(4.0, 4.0, 4.0)))
    undo(folder)
    assert ingest(cohort, folder, IngestConfig(workers=0, spacing_mm=(4.0, 4.0, 4.0))).ok
