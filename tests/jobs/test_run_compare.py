"""Runs beside each other: the numbers, what is said of runs that lack something, and the page."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.run_kit import eight_patients, scored_run, write_events
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.data.dataset import Dataset
from training_backend.data.read import read_classes
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import ConfigError, RunError
from training_backend.evaluate.segmentation_metrics import bootstrap_mean, score_case
from training_backend.files import write_json, write_text
from training_backend.jobs import svg_chart
from training_backend.jobs.curves import offered, read_curves, smoothed, title
from training_backend.jobs.run_compare import check_target, compare_runs, pair_sentence, save
from training_backend.jobs.run_report import draw_cases, report, write_report
from training_backend.jobs.serve_ops import Session
from training_backend.jobs.settings_diff import distinct_ends


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return eight_patients(tmp_path_factory.mktemp("eight"))


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """A run that is always right, and two that are wrong by more and more."""
    root = tmp_path_factory.mktemp("runs")
    return [
        scored_run(root / "exact", dataset, 0),
        scored_run(root / "near", dataset, 1, optim={"lr": 0.5}),
        scored_run(root / "far", dataset, 3, seed=7),
    ]


def paths(runs):
    return [run.path for run in runs]


def test_means_pairs_and_settings_are_those_of_the_files(runs):
    found = compare_runs(paths(runs))
    assert found.metric.name == "dice"
    assert found.metrics == ("dice", "hd95_mm", "nsd")
    assert [run.label for run in found.runs] == ["exact", "near", "far"]
    expected = []
    for run in runs:
        entries = json.loads((run.predictions / "cases.json").read_text(encoding="utf-8"))
        expected.append({entry["case"]: np.mean(list(entry["dice"].values())) for entry in entries})
    for run, values in zip(found.runs, expected, strict=True):
        assert run.values == pytest.approx(values)
        assert run.mean == bootstrap_mean(list(run.values.values()))
        assert run.mean.cases == 8
    assert [(pair.first, pair.second) for pair in found.pairs] == [("exact", "near"), ("exact", "far"), ("near", "far")]
    change = [expected[1][case] - expected[0][case] for case in expected[0]]
    assert found.pairs[0].difference.mean == pytest.approx(np.mean(change))
    assert [pair.p for pair in found.pairs] == pytest.approx([2 / 2**8] * 3)
    assert [pair.p_holm for pair in found.pairs] == pytest.approx([3 * 2 / 2**8] * 3)
    rate = str(found.runs[0].config.optim.lr)
    assert dict(found.differences) == {"seed": ("0", "0", "7"), "optim.lr": (rate, "0.5", rate)}
    sentence = pair_sentence(found.pairs[0], found.metric)
    assert sentence.startswith("near does worse than exact on average, Dice -0.")
    assert sentence.endswith("on 8 cases, p = 0.008, = 0.023 after Holm's correction.")
    assert found.notes == ()


def test_distances_are_measured_on_the_label_volumes(runs, dataset):
    seen = []
    found = compare_runs(paths(runs[:2]), "hd95_mm", progress=lambda share, text: seen.append((share, text)) or True)
    opened = Dataset.open(dataset)
    names = {row.index: row.name for row in opened.info.classes}
    case = opened.cases(split="val")[3]
    truth = read_classes(opened.source(case.label))
    moved = read_classes(runs[1].predictions / f"{case.id}.nii.gz").array
    scores = score_case(moved, truth.array, truth.geometry.spacing_mm, names)
    known = [score.hd95_mm for score in scores if not math.isnan(score.hd95_mm)]
    assert found.runs[1].values[case.id] == pytest.approx(np.mean(known))
    assert set(found.runs[0].values.values()) == {0.0}
    assert seen[0] == (0.0, "Measuring exact")
    assert seen[-1][1] == "Measuring near"
    assert found.pairs[0].difference.mean > 0
    assert "near does worse than exact" in pair_sentence(found.pairs[0], found.metric)  # more millimetres are worse


def test_one_structure_can_be_compared(runs):
    found = compare_runs(paths(runs), structure="heart")
    assert "heart" in found.structures
    assert found.runs[1].values == {case: values["heart"] for case, values in found.runs[1].scores.items()}
    with pytest.raises(ConfigError, match=r"No case of these runs has the structure 'knee'.*heart"):
        compare_runs(paths(runs), structure="knee")


def test_runs_with_other_cases_are_compared_on_the_common_ones(runs, dataset, tmp_path):
    fewer = scored_run(tmp_path / "fewer", dataset, 2, leave_out=4)
    found = compare_runs([runs[0].path, fewer.path])
    assert found.pairs[0].cases == 4
    assert found.pairs[0].p is None
    assert "Too few pairs to test: 4 cases differ" in found.pairs[0].note
    assert any("different cases (8, 4), 4 of them in common" in note for note in found.notes)
    head, *rows = found.case_rows()
    assert head == ["case", "structure", "exact", "fewer"]
    assert sum(row[1] == "mean" and row[3] is None for row in rows) == 4


def test_tables_are_read_back_from_csv(runs):
    found = compare_runs(paths(runs))
    rows = list(csv.DictReader(io.StringIO(found.runs_csv())))
    assert [row["run"] for row in rows] == ["exact", "near", "far"]
    assert [float(row["mean"]) for row in rows] == [run.mean.mean for run in found.runs]
    assert rows[0]["dataset"] == "patients"
    pairs = list(csv.DictReader(io.StringIO(found.pairs_csv())))
    assert [float(row["p_holm"]) for row in pairs] == [pair.p_holm for pair in found.pairs]
    cases = [row for row in csv.DictReader(io.StringIO(found.cases_csv())) if row["structure"] == "mean"]
    assert {row["case"]: float(row["near"]) for row in cases} == found.runs[1].values
    json.dumps(found.to_dict(), allow_nan=False)  # whatever is not known is null


def test_what_a_run_lacks_is_said_and_the_rest_is_compared(runs, dataset, tmp_path):
    unfinished = RunDirectory.create(tmp_path / "unfinished", finetune_config("segmentation", "tiny", dataset))
    write_events(unfinished, 2.0)
    with unfinished.events_path.open("ab") as stream:
        stream.write(b'{"type": "metr\n{"type": "metrics", "step": 11, "spl')
    unfinished.update(state="failed")
    pretrained = RunDirectory.create(tmp_path / "before", pretrain_config("mae3d", "tiny", dataset))
    found = compare_runs([runs[0].path, unfinished.path, pretrained.path])
    assert found.pairs == ()
    assert found.runs[1].curves.series["train/loss"].steps == list(range(1, 11))
    told = "\n".join(found.notes)
    assert "unfinished: It has no scored validation cases" in told
    assert "unfinished: 2 lines of its events are damaged" in told
    assert "before: It was pre-trained only" in told
    assert "do different things (segmentation, pre-train)" in told
    neither = compare_runs([unfinished.path, pretrained.path])
    assert neither.metric is None
    assert "Only curves and settings are compared, because fewer than two have scored cases." in neither.notes
    assert neither.runs_csv().count("\n") == 3
    assert "<svg" in report(neither, 0.0, [])


@pytest.mark.parametrize("text", ["{", '{"a": 1}', '[{"case": "a", "dice": {"heart": "x"}}]', "[1]"])
def test_a_damaged_list_of_scores_is_said(text, runs, dataset, tmp_path):
    broken = scored_run(tmp_path / "broken", dataset, 0)
    write_text(broken.predictions / "cases.json", text)
    found = compare_runs([runs[0].path, broken.path])
    assert found.runs[1].note == ("Its list of scored cases (predictions/cases.json) cannot be read. Train it again.")
    assert found.pairs == ()


def test_predictions_or_truths_that_are_gone_are_said(runs, dataset, tmp_path):
    broken = scored_run(tmp_path / "gone", dataset, 0)
    next(broken.predictions.glob("*.nii.gz")).unlink()
    found = compare_runs([runs[0].path, broken.path], "nsd")
    assert "is gone from the run gone" in found.runs[1].note
    drawn, problems = draw_cases(compare_runs([runs[0].path, broken.path]))
    assert len(drawn) + len(problems) == 3


def test_comparisons_that_make_no_sense_are_refused(runs, tmp_path):
    with pytest.raises(RunError, match="at least two runs, but none was named"):
        compare_runs([])
    with pytest.raises(RunError, match="at least two runs, but 1 was named"):
        compare_runs(paths(runs[:1]))
    with pytest.raises(RunError, match="exact was named twice"):
        compare_runs([runs[0].path, runs[0].path])
    with pytest.raises(RunError, match="is not a run directory"):
        compare_runs([runs[0].path, tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match=r"There is no metric 'f1'.*dice"):
        compare_runs(paths(runs), "f1")
    with pytest.raises(ConfigError, match=r"cannot be compared by brier.*dice, hd95_mm, nsd"):
        compare_runs(paths(runs), "brier")


def answered(folder, dataset, kind, rows, name="classification"):
    task = {"kind": kind, "classes": len(rows[0][0])} if name == "classification" else {}
    run = RunDirectory.create(folder, finetune_config(name, "tiny", dataset, changes={"task": task}))
    run.predictions.mkdir()
    entries = [{"case": f"c{k}", "values": values, "truth": truth} for k, (values, truth) in enumerate(rows)]
    write_json(run.predictions / "values.json", entries)
    write_events(run, 1.0)
    return run


def test_answers_per_case_are_compared(dataset, tmp_path, runs):
    one = answered(tmp_path / "one", dataset, "binary", [([0.9], [1.0]), ([0.4], [1.0]), ([0.2], [0.0])])
    other = answered(tmp_path / "other", dataset, "binary", [([0.8], [1.0]), ([0.6], [1.0]), ([0.7], [0.0])])
    found = compare_runs([one.path, other.path])
    assert found.metrics == ("correct", "brier")
    assert found.runs[0].values == {"c0": 1.0, "c1": 0.0, "c2": 1.0}
    assert found.runs[1].values == {"c0": 1.0, "c1": 1.0, "c2": 0.0}
    brier = compare_runs([one.path, other.path], "brier")
    assert brier.runs[0].values == pytest.approx({"c0": 0.01, "c1": 0.36, "c2": 0.04})
    classes = answered(
        tmp_path / "classes", dataset, "multiclass", [([0.2, 0.5, 0.3], [1.0]), ([0.7, 0.2, 0.1], [2.0])]
    )
    many = compare_runs([one.path, classes.path], "brier").runs[1].values
    assert many == pytest.approx({"c0": 0.04 + 0.25 + 0.09, "c1": 0.49 + 0.04 + 0.81})
    ages = answered(tmp_path / "ages", dataset, "", [([61.0], [60.0]), ([50.0], [53.0])], "regression")
    again = answered(tmp_path / "again", dataset, "", [([60.5], [60.0]), ([53.0], [53.0])], "regression")
    assert compare_runs([ages.path, again.path]).runs[0].values == {"c0": 1.0, "c1": 3.0}
    mixed = compare_runs([one.path, ages.path, runs[0].path])
    assert mixed.metric is None
    assert any("no metric of a single case is shared" in note for note in mixed.notes)


def test_a_run_without_validation_cases_says_so(dataset, tmp_path):
    one = answered(tmp_path / "one", dataset, "binary", [([0.9], [1.0])])
    none = answered(tmp_path / "none", dataset, "binary", [([0.9], [1.0])])
    write_json(none.predictions / "values.json", [])
    found = compare_runs([one.path, none.path])
    assert found.runs[1].note == "None of its validation cases has the truth to score against."
    assert found.pairs == ()
    assert found.runs_csv().count("\n") == 3
    write_text(none.predictions / "values.json", '[{"case": "a", "values": ["x"], "truth": [1]}]')
    assert "cannot be read" in compare_runs([one.path, none.path]).runs[1].note


def test_tasks_without_a_number_per_case_say_so(dataset, tmp_path, runs):
    written = RunDirectory.create(tmp_path / "written", finetune_config("report_generation", "tiny", dataset, "mg3d"))
    found = compare_runs([runs[0].path, written.path])
    assert "written: Its task has no number of a single case (report generation)." in found.notes


class Page(HTMLParser):
    """Tags, attributes and texts of a page, and whether every tag was closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.texts, self.links, self.tables, self.svg = [], [], [], [], 0, 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [value for key, value in given.items() if key in ("src", "href", "srcset") and value]
        self.images += [given] if tag == "img" else []
        self.tables += tag == "table"
        self.svg += tag == "svg"
        assert tag != "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_needs_nothing_else_and_tells_the_same_numbers(runs, tmp_path):
    found = compare_runs(paths(runs))
    path = write_report(tmp_path / "report.html", found, smoothing=0.5)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tables == 4
    assert text.count("<td class=number>") == 3 * 4 + 3 * 6 + 2 * 3 + 3 * (len(found.case_rows()) - 1)
    assert page.svg == 3 + 2  # samples of the legend, loss and score
    assert len(page.images) == 3 * 4  # three cases: the truth and three runs
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "url(" not in text
    words = " ".join(page.texts)
    for run in found.runs:
        assert f"{run.mean.mean:.3f} [{run.mean.low:.3f}, {run.mean.high:.3f}]" in words
    for pair in found.pairs:
        assert pair_sentence(pair, found.metric) in words
    worst = min(found.runs[0].values, key=lambda case: sum(run.values[case] for run in found.runs))
    assert f"{worst}, slice" in words
    assert str(runs[0].path.parent) not in text


def test_pictures_show_truth_and_masks_where_they_are(runs):
    found = compare_runs(paths(runs[:2]))
    drawn, problems = draw_cases(found)
    assert problems == []
    near = found.runs[1].values
    assert [case.case for case in drawn][::2] == [min(near, key=near.get), max(near, key=near.get)]
    far = compare_runs(paths(runs[:2]), "hd95_mm")
    assert draw_cases(far)[0][0].case == max(far.runs[1].values, key=far.runs[1].values.get)  # most millimetres
    for case in drawn:
        assert list(case.pictures) == ["truth", "exact", "near"]
        truth, exact, near = (np.asarray(Image.open(io.BytesIO(data))) for data in case.pictures.values())
        assert truth.shape[2] == 3
        assert max(truth.shape) == 240
        np.testing.assert_array_equal(truth, exact)
        assert (truth != near).any()
        coloured = truth.max(axis=2).astype(int) - truth.min(axis=2)
        assert 0 < (coloured > 20).mean() < 0.9


def test_names_cannot_break_out_of_the_page(dataset, tmp_path):
    evil = "<script>alert('x')</script> & \"more\""
    run = scored_run(tmp_path / "one", dataset, 1)
    run.update(name=evil)
    other = scored_run(tmp_path / "two", dataset, 2)
    found = compare_runs([run.path, other.path])
    page = Page(write_report(tmp_path / "evil.html", found).read_text(encoding="utf-8"))
    assert evil in " ".join(page.texts)
    for given in page.images:
        base64.b64decode(given["src"].partition(",")[2], validate=True)


def test_targets_that_cannot_be_written_are_refused_before_any_work(tmp_path):
    with pytest.raises(RunError, match=r"r.html cannot be written to .*nowhere: there is no such folder"):
        check_target(tmp_path / "nowhere" / "r.html")
    with pytest.raises(RunError, match="is a folder"):
        save(tmp_path, "text")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="no such folder"):
        save(tmp_path / "file" / "r.html", "text")
    assert save(tmp_path / "r.html", "text").read_text(encoding="utf-8") == "text"


def test_the_model_process_answers_the_same(runs, tmp_path):
    operations = Session("cpu").operations()
    asked = {"runs": [str(path) for path in paths(runs)], "metric": "dice", "structure": "heart"}
    values = operations["compare_runs"](asked, lambda share, text="": True)
    found = compare_runs(paths(runs), "dice", "heart")
    assert values["pairs"] == found.pair_rows()
    assert values["cases_csv"] == found.cases_csv()
    target = tmp_path / "page.html"
    operations["report_runs"]({**asked, "path": str(target), "smoothing": 0.9}, lambda share, text="": True)
    assert "Smoothed with weight 0.9" in target.read_text(encoding="utf-8")
    with pytest.raises(RunError, match="no such folder"):
        operations["report_runs"]({**asked, "path": str(tmp_path / "a" / "b")}, lambda share, text="": True)


def test_runs_of_one_name_are_told_apart_by_their_folders(dataset, tmp_path):
    twins = [scored_run(tmp_path / parent / "run", dataset, 1) for parent in ("a", "b")]
    assert [run.label for run in compare_runs(paths(twins)).runs] == ["a/run", "b/run"]
    assert distinct_ends(["/x/a/w", "/y/a/w", "zoo:w"]) == ["x/a/w", "y/a/w", "zoo:w"]
    assert distinct_ends(["/x/w", "/x/w"]) == ["w", "w"]


def test_curves_are_read_named_and_smoothed(runs):
    curves = read_curves(runs[1])
    assert curves.damaged == 0
    assert offered([curves.series]) == ["train/loss", "val/score", "train/lr", "val/dice"]
    assert title("val/cross_entropy") == "cross entropy · validation"
    assert smoothed([1.0, 2.0, 4.0], 0.0) == [1.0, 2.0, 4.0]
    # weights 1; 1/3 and 2/3; 1/7, 2/7 and 4/7 of a moving mean that forgets half
    assert smoothed([1.0, 2.0, 4.0], 0.5) == pytest.approx([1.0, 5 / 3, 3.0])
    assert smoothed([5.0] * 4, 0.9) == pytest.approx([5.0] * 4)
    kept = smoothed([1.0, math.nan, 3.0], 0.5)
    assert math.isnan(kept[1])
    assert kept[2] == pytest.approx(7 / 3)


def test_charts_are_well_formed_and_inside_their_frame():
    lines = [svg_chart.Line("a <b>", [1, 2, 3], [0.5, math.nan, 2.0]), svg_chart.Line("one", [2], [1.0])]
    drawn = ElementTree.fromstring(svg_chart.chart('x & "y"', lines))
    space = "{http://www.w3.org/2000/svg}"
    [line] = drawn.findall(f"{space}polyline")
    places = [tuple(map(float, place.split(","))) for place in line.attrib["points"].split()]
    assert len(places) == 2
    assert places[0][1] > places[1][1]  # a larger value is higher up
    assert all(0 <= x <= svg_chart.WIDTH and 0 <= y <= svg_chart.HEIGHT for x, y in places)
    assert line.find(f"{space}title").text == "a <b>"
    assert len(drawn.findall(f"{space}circle")) == 1
    assert svg_chart.chart("empty", [svg_chart.Line("a", [], [])]) == ""
    flat = svg_chart.chart("flat", [svg_chart.Line("a", [1, 2], [3.0, 3.0])])
    assert "nan" not in flat
    assert svg_chart.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert svg_chart.ticks(0.013, 0.021) == pytest.approx([0.014, 0.016, 0.018, 0.02])
    long = svg_chart.Line("long", range(5000), [float(k) for k in range(5000)])
    assert svg_chart.chart("long", [long]).count(",") <= svg_chart.MOST_POINTS + 2
