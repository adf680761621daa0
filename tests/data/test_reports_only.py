"""Datasets of reports without images: from tables to batches, never into a log, with a sentence for what is wrong."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from tests.data.loader_kit import same, steps
from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.importers import describe, layout_of
from training_backend.data.ingest import ingest
from training_backend.data.inspect import inspect
from training_backend.data.loader import ViewLoader
from training_backend.data.phantom_modalities import write_modality
from training_backend.data.report_clean import cleaned, cleaned_sentences
from training_backend.errors import DataError

ROWS = [
    {"id": "a", "findings": "The heart is large.", "impression": "Cardiomegaly.", "label": "sick", "split": "train"},
    {"id": "b", "findings": "Clear lungs,\nno effusion.", "impression": "", "label": "well", "split": "val"},
    {"id": "c", "findings": "", "impression": "Old fracture of a rib.", "label": "sick", "split": "test"},
]


def table(path, rows, separator=",", encoding="utf-8"):
    def cell(value):
        return '"' + str(value).replace('"', '""') + '"'

    lines = [separator.join(rows[0]), *(separator.join(cell(value) for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Twelve reports with a class, nine of them for training."""
    folder = tmp_path_factory.mktemp("reports")
    source = write_modality(folder / "files", "1D_text", 12)
    ingest(source, folder / "dataset", IngestConfig(splits=(0.75, 0.25, 0)))
    return Dataset.open(folder / "dataset")


@pytest.fixture
def config(reports, run_config):
    def make(**changes):
        return run_config(reports.folder, data={"view": "text", **changes.pop("data", {})}, **changes)

    return make


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "datalist"])
def test_tables_of_reports_in_every_form(tmp_path, kind):
    if kind in ("csv", "tsv"):
        path = table(tmp_path / f"reports.{kind}", ROWS, "\t" if kind == "tsv" else ",")
    elif kind == "jsonl":
        path = tmp_path / "reports.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    else:
        path = tmp_path / "reports.json"
        parts = {"training": [ROWS[0]], "validation": [ROWS[1]], "test": [ROWS[2]]}
        bare = {name: [{k: v for k, v in row.items() if k != "split"} for row in rows] for name, rows in parts.items()}
        path.write_text(json.dumps(ROWS if kind == "json" else bare))
    found = describe(path)
    assert found.info.layout == "reports"
    assert found.info.modality == "text"
    assert found.info.target_names == ("sick", "well")
    assert [case.id for case in found.cases] == ["a", "b", "c"]
    assert [case.split for case in found.cases] == ["train", "val", "test"]
    assert [case.target for case in found.cases] == [(0.0,), (1.0,), (0.0,)]
    assert found.cases[0].report == "The heart is large.\n\nCardiomegaly."
    assert found.cases[1].report == "Clear lungs,\nno effusion."
    assert not found.problems


def test_a_list_of_images_with_reports_stays_one_of_images(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"image": "a.nii.gz", "report": "Clear."}]))
    assert layout_of(path) == "monai"


def test_what_is_wrong_with_a_table_is_said(tmp_path):
    with pytest.raises(DataError, match=r"has no column Path; it has id, words"):
        describe(table(tmp_path / "a.csv", [{"id": 1, "words": "x"}]))
    with pytest.raises(DataError, match=r"has no column with reports; it has id, words.*Name it Report"):
        describe(table(tmp_path / "b.csv", [{"id": 1, "words": "x"}]), layout="reports")
    latin = table(tmp_path / "c.csv", [{"id": 1, "report": "Größe der Leber"}], encoding="latin-1")
    with pytest.raises(DataError, match=r"c\.csv is not in UTF-8: byte \d+ is no letter of it.*Save it as UTF-8"):
        describe(latin)
    gap = describe(table(tmp_path / "d.csv", [{"report": "Clear lungs."}, {"report": ""}]))
    assert [problem.reason for problem in gap.problems] == ["Row 2 has no report."]
    (tmp_path / "e.jsonl").write_text('{"report": "Clear."}\nnot json\n')
    with pytest.raises(DataError, match=r"e\.jsonl cannot be read as JSON: line 2: Expecting value\."):
        describe(tmp_path / "e.jsonl")


def test_nothing_is_stored_for_reports_and_ingest_can_be_repeated(reports, tmp_path):
    assert reports.info.contrasts == ()
    assert reports.info.modality == "text"
    assert not list((reports.folder / "store").iterdir())
    source = write_modality(tmp_path / "files", "1D_text", 12)
    first = ingest(source, tmp_path / "dataset", IngestConfig())
    mark = Dataset.open(tmp_path / "dataset").fingerprint()
    again = ingest(source, tmp_path / "dataset", IngestConfig())
    assert first.ok == again.ok
    dataset = Dataset.open(tmp_path / "dataset")
    assert dataset.fingerprint() == mark
    case = dataset.cases()[0]
    dataset.put(case.model_copy(update={"report": "Something else."}))
    assert dataset.fingerprint() != mark, "training sees the text"
    assert "12 cases" in str(inspect(tmp_path / "dataset"))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers_or_on_where_one_starts(reports, config, workers):
    alone = steps(ViewLoader(reports, config()))
    others = steps(ViewLoader(reports, config(data={"workers": workers})))
    for one, other in zip(alone, others, strict=True):
        same(one, other)
        assert one.extra["texts"] == other.extra["texts"] == [reports.case(id).report for id in one.case_ids]
    for one, other in zip(alone[2:], steps(ViewLoader(reports, config()), 2), strict=True):
        same(one, other)
    assert alone[0].volume.shape == (4, 0, 1, 1, 1)
    assert alone[0].volume.dtype == torch.float32
    assert alone[0].target.shape == (4,)


def test_every_report_comes_once_an_epoch_and_keys_tell_which(reports, config):
    loader = ViewLoader(reports, config(optim={"batch_size": 9, "max_steps": 2}))
    assert loader.views_per_epoch == 9
    for views in loader.batches():
        assert sorted(views.case_ids) == [case.id for case in reports.cases("train")]
        assert [loader.cases[key[2]].id for key in views.keys] == views.case_ids
        part = loader.to_batch(views[2:5], "cpu")
        assert part.volume.shape == (3, 0, 1, 1, 1)
        assert part.extra["texts"] == [reports.case(id).report for id in views.case_ids[2:5]]


def test_reports_only_are_refused_where_voxels_are_needed(reports, run_config):
    with pytest.raises(DataError, match=r"it holds reports only\. Set data\.view to text"):
        ViewLoader(reports, run_config(reports.folder))


def test_reports_do_not_reach_the_log(tmp_path, caplog):
    source = table(tmp_path / "reports.csv", [{"report": "Secret finding of a patient."}, {"report": "1. 2."}])
    with caplog.at_level(logging.DEBUG):
        report = ingest(source, tmp_path / "dataset", IngestConfig(clean_reports=True))
    told = [caplog.text, str(report), (tmp_path / "dataset" / "quarantine.jsonl").read_text()]
    assert not any("ecret finding" in text for text in told)
    assert Dataset.open(tmp_path / "dataset").cases()[0].report == "secret finding of a patient"
    assert [entry.case for entry in report.quarantined] == ["report-2"]
    assert "no sentence left after cleaning, and there is no image" in report.quarantined[0].reason


def test_a_table_without_any_usable_report_says_so(tmp_path):
    source = table(tmp_path / "reports.csv", [{"report": "1."}, {"report": "ok"}])
    with pytest.raises(DataError, match="None of the 2 cases can be used; the first: report-1: Its report has no sent"):
        ingest(source, tmp_path / "dataset", IngestConfig(clean_reports=True))


def test_cleaning_follows_the_published_rules():
    assert cleaned_sentences("1. Heart is normal. 2. Lungs\nare clear; 3.5 cm mass.") == [
        "heart is normal",
        "lungs are clear",
        "5 cm mass",
    ]
    assert cleaned("The PICC\ufffd\ufffdline. café au lait") == "the picc line caf au lait"
    assert cleaned("ok.") == cleaned("two words") == ""
    assert cleaned("Snake_case stays whole.") == "snake_case stays whole"
