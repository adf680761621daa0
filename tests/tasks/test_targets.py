"""Targets that a classification task has no place for are refused when the run is made."""

from __future__ import annotations

import pytest

from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.engine.runtime import Runtime
from training_backend.engine.work import open_work
from training_backend.errors import ConfigError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    ingest([write_cohort(root / "cohort", 3, seed=2, shape=(12, 18, 18))], root / "dataset")
    return root / "dataset"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("task", "target", "sentence"),
    [
        ({"kind": "multiclass", "classes": 3}, (3.0,), "numbered 0 to 2, but case case_002 is of class 3"),
        ({"kind": "multiclass", "classes": 3}, (-1.0,), "of class -1"),
        ({"kind": "multiclass", "classes": 3}, (0.5,), "of class 0.5"),
        ({"kind": "multilabel", "classes": 3}, (1.0, 0.0), "3 labels per case, but case case_00. has 2"),
        ({"kind": "binary", "classes": 1}, (2.0,), r"0 for no or 1 for yes, but case case_002 has 2. For several"),
        ({"kind": "multiclass", "classes": 3}, (2.0,), ""),
        ({"kind": "multilabel", "classes": 2}, (1.0, 0.0), ""),
        ({"kind": "binary", "classes": 1}, (1.0,), ""),
    ],
)
def test_targets_are_compared_with_the_task_before_anything_is_drawn(dataset, split, task, target, sentence):
    opened = Dataset.open(dataset)
    for case in list(opened.records.values()):
        last = case.id == "case_002"
        values = target if last else (0.0,) * len(target)
        opened.put(case.model_copy(update={"split": split if last else "train", "target": values}))
    opened.save()
    changes = {"task": task, "data": {"size": (16, 16, 16), "workers": 0}, "engine": {"device": "cpu"}}
    config = finetune_config("classification", "tiny", dataset, changes=changes)
    if sentence:
        with pytest.raises(ConfigError, match=sentence):
            open_work(config, Runtime(config.engine))
    else:
        open_work(config, Runtime(config.engine))
