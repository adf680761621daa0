"""Sentences of abstracts become cases of reports, with their part as class and their file as split."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.importers import describe
from training_backend.data.ingest import ingest
from training_backend.errors import DataError


def write(folder: Path) -> Path:
    folder.mkdir()
    (folder / "train.txt").write_text(
        "###101\nBACKGROUND\tPain is common .\nRESULTS\tIt fell .\n\n###102\nOBJECTIVE\tWe aimed high .\n"
    )
    (folder / "dev.txt").write_text("###201\nMETHODS\tWe asked @ people .\n\n")
    (folder / "test.txt").write_text("###301\nCONCLUSIONS\tMore is needed .\nAFTERWORD\tThanks .\n\n")
    return folder


def test_every_sentence_is_a_case_also_of_the_last_abstract(tmp_path: Path) -> None:
    found = describe(write(tmp_path / "rct"))
    assert found.info.layout == "abstracts"
    facts = {case.id: (case.split, case.target, case.report, case.subject) for case in found.cases}
    assert facts == {
        "101-01": ("train", (0.0,), "Pain is common .", "101"),
        "101-02": ("train", (4.0,), "It fell .", "101"),
        "102-01": ("train", (3.0,), "We aimed high .", "102"),
        "201-01": ("val", (2.0,), "We asked @ people .", "201"),
        "301-01": ("test", (1.0,), "More is needed .", "301"),
    }
    assert [problem.reason.split(",")[0] for problem in found.problems] == ["Line 3 is no sentence of BACKGROUND"]


def test_they_are_ingested_without_a_scan(tmp_path: Path) -> None:
    report = ingest(write(tmp_path / "rct"), tmp_path / "data", IngestConfig(workers=0))
    dataset = Dataset.open(tmp_path / "data")
    assert len(report.ok) == 5
    assert (dataset.info.modality, dataset.info.target_names[2]) == ("text", "METHODS")
    assert [len(dataset.cases(split=split)) for split in ("train", "val", "test")] == [3, 1, 1]


def test_a_missing_file_and_other_text_get_a_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "rct")
    (folder / "dev.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"dev\.txt cannot be read as text"):
        describe(folder)
    (folder / "dev.txt").unlink()
    with pytest.raises(DataError, match=r"has no dev\.txt"):
        describe(folder, layout="abstracts")
