"""What is decided about some cases of a dataset, and taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_backend.cli import main
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.data.subsets import class_names, class_of, classify, exclude, move, undo
from training_backend.errors import DataError


def dataset(folder: Path, targets: list[tuple[float, ...] | None], names: tuple[str, ...] = ()) -> Dataset:
    """Cases a, b, c, ... of subjects A, A, C, D, ..."""
    subjects = ["A", "A", *"CDEFG"]
    cases = [CaseRecord(id="abcdefg"[k], subject=subjects[k], target=target) for k, target in enumerate(targets)]
    made = Dataset(folder, DatasetInfo(name="scans", target_names=names), cases)
    made.save()
    return made


def test_a_subject_is_moved_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    dataset(tmp_path, [None] * 4)
    with pytest.raises(DataError, match="Subject 'A' is in"):
        move(tmp_path, ["a", "c"], "val")
    assert len(Dataset.open(tmp_path).cases("train")) == 4
    done = move(tmp_path, ["a", "b"], "val")
    assert [case.id for case in Dataset.open(tmp_path).cases("val")] == ["a", "b"]
    undo(done)
    assert not Dataset.open(tmp_path).cases("val")


def test_undo_takes_back_its_own_change_only(tmp_path: Path) -> None:
    dataset(tmp_path, [None] * 4)
    first = exclude(tmp_path, ["c", "d"])
    assert exclude(tmp_path, ["c"]).before == {}
    move(tmp_path, ["c"], "test")
    undo(first)
    case = Dataset.open(tmp_path).case("c")
    assert (case.excluded, case.split) == (False, "test")
    with pytest.raises(DataError, match="Every case of scans"):
        exclude(tmp_path, ["a", "b", "c", "d"])


def test_a_finding_becomes_two_classes(tmp_path: Path) -> None:
    known = dataset(tmp_path, [(0.0,), (0.0,), (0.0,), None], ("nodule",))
    assert class_names(known) == ("no nodule", "nodule")
    done = classify(tmp_path, ["d"], "nodule")
    now = Dataset.open(tmp_path)
    assert now.case("d").target == (1.0,)
    assert now.info.target_names == ("no nodule", "nodule")
    assert [class_of(case, class_names(now)) for case in now.cases()] == ["no nodule"] * 3 + ["nodule"]
    undo(done)
    assert Dataset.open(tmp_path).info.target_names == ("nodule",)
    assert Dataset.open(tmp_path).case("d").target is None


def test_the_first_class_is_no_finding(tmp_path: Path) -> None:
    dataset(tmp_path, [None] * 3)
    classify(tmp_path, ["a"], "sharp")
    now = Dataset.open(tmp_path)
    assert class_of(now.case("a"), class_names(now)) == "sharp"
    classify(tmp_path, ["b", "c"], "blurred")
    assert Dataset.open(tmp_path).info.target_names == ("sharp", "blurred")
    classify(tmp_path, ["b"], "")
    assert Dataset.open(tmp_path).case("b").target is None


@pytest.mark.parametrize("target", [(0.5,), (-1.0,), (1.0, 0.0)])
def test_values_and_vectors_are_no_classes(tmp_path: Path, target: tuple[float, ...]) -> None:
    dataset(tmp_path, [target, None])
    with pytest.raises(DataError, match="no classes"):
        classify(tmp_path, ["b"], "sharp")
    assert Dataset.open(tmp_path).case("b").target is None


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, listed = tmp_path / "data", tmp_path / "some.txt"
    dataset(folder, [None] * 4)
    listed.write_text("c\nd\n")
    command = ["data", "assign", str(folder), "--cases", str(listed)]
    assert main([*command, "--split", "val", "--label", "sharp", "--exclude"]) == 0
    assert "2 of 2 cases" in capsys.readouterr().out
    case = Dataset.open(folder).case("c")
    assert (case.split, case.target, case.excluded) == ("val", (0.0,), True)
    assert main([*command, "--include"]) == 0
    assert main(command) == 1
    assert "Nothing was decided" in capsys.readouterr().err
    listed.write_text("a\nb\nc\nd\n")
    before = Dataset.open(folder).records
    assert main([*command, "--split", "test", "--exclude"]) == 1
    assert "Every case" in capsys.readouterr().err
    assert Dataset.open(folder).records == before
