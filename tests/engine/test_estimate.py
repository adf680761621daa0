from __future__ import annotations

import pytest

from training_backend.engine.estimate import estimate
from training_backend.engine.runtime import Runtime
from training_backend.errors import ConfigError, ResourceError


def test_a_few_real_steps_foretell_the_run(pretrain):
    found = estimate(pretrain(optim={"max_steps": 1000}), steps=2)
    assert found.total_steps == 1000
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
