"""``med3dssl runs compare``: the same numbers as tables, as JSON and as files, and one sentence for what is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.run_kit import eight_patients, scored_run
from training_backend.cli import main
from training_backend.jobs.run_compare import compare_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("compared")
    dataset = eight_patients(root)
    return [str(scored_run(root / name, dataset, shift).path) for name, shift in (("one", 0), ("two", 2))]


def test_tables_json_and_files_tell_the_same_numbers(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare_runs([Path(run) for run in runs], structure="heart")
    files = {name: tmp_path / f"{name}.out" for name in ("csv", "pairs-csv", "cases-csv", "html")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert main(["runs", "compare", *runs, "--structure", "heart", *options]) == 0
    told = capsys.readouterr().out
    assert str(found.runs[1].mean) in told
    assert "two does worse than one on average, Dice" in told
    assert files["csv"].read_text(encoding="utf-8") == found.runs_csv()
    assert files["cases-csv"].read_text(encoding="utf-8") == found.cases_csv()
    with files["pairs-csv"].open(newline="", encoding="utf-8") as stream:
        [pair] = csv.DictReader(stream)
    assert float(pair["difference"]) == found.pairs[0].difference.mean
    assert files["html"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["runs", "compare", *runs, "--structure", "heart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found.to_dict()


def test_the_short_command_is_the_same(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *runs, "--output", str(tmp_path / "runs.csv")]) == 0
    short = capsys.readouterr().out
    assert main(["runs", "compare", *runs]) == 0
    assert capsys.readouterr().out == short
    assert (tmp_path / "runs.csv").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--metric", "auc"], "There is no metric 'auc'"),
        (["--structure", "knee"], "No case of these runs has the structure 'knee'"),
        (["--html", "nowhere/report.html"], "report.html cannot be written to nowhere: there is no such folder"),
        (["--smoothing", "1"], "Smoothing lies between 0 and below 1, found 1"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_printed(
    options: list[str], sentence: str, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "compare", *runs, *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert "Traceback" not in captured.err


def test_a_folder_that_is_no_run_is_said(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "compare", runs[0], str(tmp_path / "gone")]) == 1
    assert "is not a run directory" in capsys.readouterr().err
