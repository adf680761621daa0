"""What runs of one answer per case leave of their validation cases."""

from __future__ import annotations

import json

import numpy as np
import pytest

from training_backend.data.dataset import Dataset
from training_backend.engine.worker import execute
from training_backend.jobs.run_compare import compare_runs


@pytest.mark.parametrize(("task", "metric"), [("classification", "correct"), ("regression", "absolute_error")])
def test_answers_of_the_best_model_are_kept_beside_the_truth(dataset, finetune, start, task, metric):
    run, other = start(finetune(task)), start(finetune(task, seed=3), "other")
    assert execute(run) == 0
    assert execute(other) == 0
    entries = json.loads((run.predictions / "values.json").read_text(encoding="utf-8"))
    cases = [case for case in Dataset.open(dataset).cases(split="val") if case.target is not None]
    assert [entry["case"] for entry in entries] == [case.id for case in cases]
    np.testing.assert_allclose([entry["truth"] for entry in entries], [case.target for case in cases])
    assert not (run.predictions / "cases.json").exists()
    found = compare_runs([run.path, other.path])
    assert found.metric.name == metric
    scores = json.loads(run.card_path.read_text(encoding="utf-8"))["scores"]
    expected = scores["accuracy"] if task == "classification" else scores["mae"]
    assert np.mean(list(found.runs[0].values.values())) == pytest.approx(expected, rel=1e-5)
    assert (found.pairs[0].cases, found.pairs[0].p) == (len(cases), None)
