"""Findings of written reports beside those of the true ones: numbers by hand, and the whole way with a classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training_backend.api.models import evaluate
from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.data.phantoms import thorax_ct
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError
from training_backend.evaluate.findings import findings_f1

ENGINE = {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0}


def test_numbers_are_those_counted_by_hand() -> None:
    written = [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    true = [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    report = findings_f1(written, true, ("a", "b", "c"), samples=0)
    assert report["findings_precision"] == pytest.approx(3 / 4)
    assert report["findings_recall"] == pytest.approx(3 / 4)
    assert report["findings_f1"] == pytest.approx(3 / 4)
    assert report["findings_f1_a"] == pytest.approx(2 / 3)
    assert report["findings_f1_b"] == pytest.approx(4 / 5)
    assert "findings_f1_c" not in report  # nobody tells it
    assert report["findings_f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_intervals_hold_the_value_and_silence_has_none() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((40, 3)) < 0.4
    written = true ^ (rng.random((40, 3)) < 0.2)
    report = findings_f1(written, true)
    assert report["findings_f1_low"] < report["findings_f1"] < report["findings_f1_high"]
    assert findings_f1(np.zeros((4, 2)), np.zeros((4, 2))) == {}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A dataset of scans with reports, a writer, and a classifier of the same reports."""
    folder = tmp_path_factory.mktemp("findings")
    scans = Dataset(folder / "scans", DatasetInfo(name="scans", modality="CT"))
    scans.save()
    cases = []
    for index in range(6):
        made = thorax_ct(index, (16, 24, 24))
        split = "val" if index > 3 else "train"
        scans.add_case([made.volume], None, id=f"case_{index}", split=split, report=made.report)  # type: ignore[arg-type]
        target = (float("nodule" in made.report), float(index % 2))
        cases.append(CaseRecord(id=f"r{index}", subject=f"r{index}", split=split, report=made.report, target=target))  # type: ignore[arg-type]
    texts = Dataset(folder / "texts", DatasetInfo(name="texts", modality="text"), cases)
    texts.save()
    writer = {
        "method": {"size": "tiny", "window": 3, "heads": (1, 2, 3, 6)},
        "task": {"least_count": 1, "width": 16, "hidden": 16, "heads": 2, "slots": 4, "queries": 2, "longest": 20},
        "data": {"size": (32, 32, 64), "workers": 0},
        "optim": {"max_steps": 2, "batch_size": 2},
        "engine": ENGINE,
    }
    judge = {
        "task": {"kind": "multilabel", "classes": 2, "class_names": ("nodule", "odd"), "reader": "phrases"},
        "data": {"workers": 0},
        "optim": {"max_steps": 2, "batch_size": 4},
        "engine": ENGINE,
    }
    for name, task, data, changes in (
        ("writer", "report_generation", scans, writer),
        ("judge", "text_classification", texts, judge),
    ):
        run = RunDirectory.create(folder / name, finetune_config(task, "tiny", data.folder, "mg3d", changes))
        assert execute(run) == 0, run.error()
    return scans.folder, folder / "writer", folder / "judge"


def test_written_reports_are_judged_by_their_findings_too(models: tuple[Path, Path, Path]) -> None:
    scans, writer, judge = models
    plain = dict(evaluate(str(writer), scans).rows)
    judged = dict(evaluate(str(writer), scans, classifier=str(judge)).rows)
    assert {"bleu_4", "meteor"} <= set(plain)
    assert not any(name.startswith("findings") for name in plain)
    assert {name for name in judged if not name.startswith("findings")} == set(plain)


def test_another_judge_or_another_task_is_refused(models: tuple[Path, Path, Path]) -> None:
    scans, writer, judge = models
    with pytest.raises(ConfigError, match="does not tell the findings of a report"):
        evaluate(str(writer), scans, classifier=str(writer))
    with pytest.raises(ConfigError, match="this model's task is text_classification"):
        evaluate(str(judge), judge.parent / "texts", classifier=str(judge))
