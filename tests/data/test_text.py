"""Sentences, words and vocabularies of reports, and what ingest says about reports."""

from __future__ import annotations

import csv
import json

import pytest

from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.importers import describe
from training_backend.data.ingest import ingest
from training_backend.data.reports import report_of, report_problems
from training_backend.data.text import Words, readable, sentences, vocabulary, words

REPORT = "CT of 3.5 mm, as seen by Dr. Who. No nodule! Heart: normal.\nLiver\nis well-defined (approx. 12,5 cm)."


def test_sentences_end_at_stops_and_lines_but_not_at_abbreviations_or_decimals():
    assert sentences(REPORT) == [
        "CT of 3.5 mm, as seen by Dr. Who.",
        "No nodule!",
        "Heart: normal.",
        "Liver",
        "is well-defined (approx. 12,5 cm).",
    ]


def test_clauses_end_at_commas_and_colons_too():
    assert sentences(REPORT, "clause")[:4] == ["CT of 3.5 mm,", "as seen by Dr. Who.", "No nodule!", "Heart:"]


@pytest.mark.parametrize("text", ["", "  \n ", "...", "!? --"])
def test_text_without_words_has_no_sentence(text):
    assert sentences(text) == []
    assert words(text) == []


def test_words_are_lower_case_and_keep_numbers_and_hyphens():
    assert words("Well-defined 3.5 mm nodule (L3), T2: ok. Größe") == (
        ["well-defined", "3.5", "mm", "nodule", "l3", "t2", "ok", ".", "größe", "."]
    )


def test_a_vocabulary_holds_what_is_said_often_enough():
    reports = ["nodule left", "nodule right", "nodule left left"]
    assert vocabulary(reports, 3) == (".", "left", "nodule")
    assert vocabulary(reports, 4) == ()


def test_words_are_numbered_and_come_back():
    table = Words([".", "<unk>", "left", "nodule"])
    numbers = table.encode("Nodule, left. Strange.", 20)
    assert numbers == [0, 4, 3, 1, 2, 1, 0]
    assert table.decode(numbers[1:]) == "nodule left . <unk> ."
    assert table.encode("nodule left. nodule.", 4) == [0, 4, 3, 0]
    assert Words(["nodule"]).encode("no nodule", 9) == [0, 1, 0]


def test_written_words_become_prose():
    assert readable("no nodule . heart is normal .") == "No nodule. Heart is normal."
    assert readable("no end") == "No end"
    assert readable("") == ""


def test_columns_of_a_report():
    assert report_of({"report_text": " a ", "findings": "b"}) == "a"
    assert report_of({"findings_en": "b", "impressions_en": "c"}) == "b\n\nc"
    assert report_of({"impression": "c"}) == "c"
    assert report_of({"label": "1"}) == ""


@pytest.mark.parametrize(
    "report, sentence", [(" ", "no report"), ("...", "no sentence"), ("LÃ¼nge", "encoding"), ("a\x00b", "control")]
)
def test_what_is_wrong_with_a_report_is_said_without_quoting_it(report, sentence):
    (found,) = report_problems(report)
    assert sentence in found
    assert report not in found or not report.strip("., ")
    assert report_problems("A good one.") == ()


def rows_of(cohort):
    with (cohort / "cases.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_reports_of_several_lines_stay_whole_in_tables(cohort):
    rows = rows_of(cohort)
    table = cohort / "lines.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Path", "Findings", "Impression"])
        writer.writerows([[row["Path"], 'Line one.\nLine "two",\u2028same.', "Fine."] for row in rows])
    found = describe(table).cases
    assert {case.report for case in found} == {'Line one.\nLine "two",\u2028same.\n\nFine.'}


def test_lists_of_json_lines_hold_reports(cohort):
    rows = rows_of(cohort)
    lines = [json.dumps({"image": row["Path"], "findings": row["Report"], "label": 1}) for row in rows]
    path = cohort / "cases.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = describe(path).cases
    assert [case.report for case in found] == [row["Report"] for row in rows]


def test_ingest_notes_cases_without_a_usable_report(cohort, tmp_path):
    rows = rows_of(cohort)[:3]
    table = cohort / "gaps.csv"
    texts = [rows[0]["Report"], "", "LÃ¼nge frei."]
    table.write_text(
        "Path,Report\n" + "".join(f'{row["Path"]},"{text}"\n' for row, text in zip(rows, texts)), encoding="utf-8"
    )
    report = ingest(table, tmp_path / "set", IngestConfig(workers=0))
    assert set(report.noted) >= {"It has no report."}
    assert any("another encoding" in sentence for sentence in report.noted)
    assert "frei" not in str(report)
    assert [case.has("text") for case in Dataset.open(tmp_path / "set").records.values()] == [True, False, True]
