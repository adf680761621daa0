"""Folds: every subject is held out once, test cases never move, and a new order of cases changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_backend.cli import main
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.data.splits import fold_splits
from training_backend.errors import ConfigError

CASES = [
    CaseRecord(id=f"s{subject}_{session}", subject=f"s{subject}", split="test" if subject >= 10 else "train")
    for subject in range(12)
    for session in range(2)
]


def test_every_subject_is_held_out_once_and_test_cases_stay() -> None:
    folds = [fold_splits(CASES, 3, fold, 7) for fold in range(3)]
    for cases in folds:
        assert {case.subject for case in cases if case.split == "test"} == {"s10", "s11"}
        held_out = [case.subject for case in cases if case.split == "val"]
        assert all(held_out.count(subject) == 2 for subject in held_out)
    held = [{case.subject for case in cases if case.split == "val"} for cases in folds]
    assert set.union(*held) == {f"s{n}" for n in range(10)}
    assert sum(map(len, held)) == 10
    assert sorted(map(len, held)) == [3, 3, 4]


def test_the_order_of_cases_does_not_matter_and_a_fold_can_be_changed_for_another() -> None:
    first = {case.id: case.split for case in fold_splits(CASES, 5, 2, 0)}
    again = fold_splits(fold_splits(CASES[::-1], 5, 1, 0), 5, 2, 0)
    assert {case.id: case.split for case in again} == first


@pytest.mark.parametrize("folds, fold", [(1, 0), (3, 3), (3, -1), (11, 0)])
def test_folds_that_cannot_be_are_refused(folds: int, fold: int) -> None:
    with pytest.raises(ConfigError, match=r"no fold|10 subjects cannot"):
        fold_splits(CASES, folds, fold, 0)


def test_the_command_rewrites_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Dataset(tmp_path, DatasetInfo(name="folds"), CASES).save()
    assert main(["data", "split", str(tmp_path), "--folds", "5", "--fold", "1"]) == 0
    assert "val         4" in capsys.readouterr().out
    dataset = Dataset.open(tmp_path)
    assert [len(dataset.cases(split=split)) for split in ("train", "val", "test")] == [16, 4, 4]
