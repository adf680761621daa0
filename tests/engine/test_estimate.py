from __future__ import annotations

import pytest

from training_backend.config.presets import pretrain_config
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.engine.estimate import estimate
from training_backend.engine.runtime import Runtime
from training_backend.errors import ConfigError, ResourceError


def test_a_few_real_steps_foretell_the_run(pretrain):
    found = estimate(pretrain(optim={"max_steps": 1000}), steps=2)
    assert found.total_steps == 1000
    assert found.teacher_step_s is None
    assert "labels for it" not in str(found)
    assert found.total_s == pytest.approx(1000 * found.step_s)
    assert 0 < found.loader_s < found.step_s < 100
    assert found.memory_mb > 50
    assert (found.micro_batch, found.device, found.precision) == (4, "cpu", "fp32")
    assert f"{found.parameters / 1e6:.1f} M parameters" in str(found)


def test_run_shorter_than_the_measurement(finetune):
    assert estimate(finetune(optim={"max_steps": 1}), steps=3).total_steps == 1


@pytest.mark.parametrize(("device", "words"), [("tpu", "must be auto, cpu"), ("cuda:99", "PyTorch finds")])
def test_device_that_is_not_there_is_a_sentence(pretrain, device, words):
    with pytest.raises(ResourceError, match=words):
        Runtime(pretrain(engine={"device": device}).engine)


def test_fp16_on_a_cpu_is_refused(pretrain):
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        Runtime(pretrain(engine={"precision": "fp16"}).engine)


def test_a_teacher_of_half_time_is_counted(tmp_path):
    ingest([write_cohort(tmp_path / "cohort", 3, seed=3, shape=(64, 72, 72))], tmp_path / "dataset")
    sizes = {"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 8, "projected": 6}
    changes = {
        "method": {**sizes, "stage": "omni", "crops": 1, "decoder_classes": 8},
        "data": {"workers": 0},
        "optim": {"max_steps": 11, "batch_size": 2},
        "engine": {"device": "cpu", "threads": 1},
    }
    found = estimate(pretrain_config("voco", "tiny", tmp_path / "dataset", changes), steps=0)
    assert (found.total_steps, found.teacher_step) == (11, 5)
    assert found.total_s == pytest.approx(5 * found.step_s + 6 * found.teacher_step_s)
    assert "From step 5 on a copy of the network labels for it" in str(found)
