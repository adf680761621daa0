"""VoCo as a method: presets, what they imply, a step, its randomness, warnings, pictures, and its encoder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.config import RunConfig
from training_backend.config.presets import PRESETS, finetune_config, pretrain_config
from training_backend.engine.optim import make_optimizer
from training_backend.errors import ConfigError
from training_backend.methods.base import Batch
from training_backend.methods.voco import METHOD
from training_backend.methods.voco_settings import REGIONS, SIZES

TINY: dict[str, Any] = {
    "method": {"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 8, "projected": 6}
}
SHAPE = (64, 64, 64)


def config(**changes: Any) -> RunConfig:
    return pretrain_config("voco", "tiny", Path("d"), TINY).updated(changes)


def network(run: RunConfig | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    return METHOD.build(run or config()).train()


def batch(number: int = 2, **more: Any) -> Batch:
    volume = torch.rand(number, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    return Batch(volume=volume, case_ids=[f"case {index}" for index in range(number)], **more)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_and_its_views_are_slabs(preset: str) -> None:
    run = pretrain_config("voco", preset, Path("d"))
    with torch.device("meta"):
        model = METHOD.build(run)
    assert model.sampling.slab == run.data.size
    assert model.feature_size == SIZES[run.method.size]
    assert run.data.augment.flip == (0, 0, 0)  # crops are flipped one by one


def test_the_published_preset_is_the_published_recipe() -> None:
    run = pretrain_config("voco", "published", Path("d"))
    with torch.device("meta"):
        model = METHOD.build(run)
    assert sum(parameter.numel() for parameter in model.parameters()) == 59_723_890
    assert (run.data.size, run.data.foreground, run.data.crops_per_volume) == ((64, 192, 192), 0.0, 1)
    assert (run.data.intensity.low, run.data.intensity.high) == (-175, 250)
    assert (run.optim.lr, run.optim.weight_decay, run.optim.amsgrad, run.optim.decay_all) == (1e-4, 0.01, True, True)
    assert (run.optim.max_steps, run.optim.warmup * run.optim.max_steps) == (2_000_000, 5000)
    assert (run.optim.warmup_start, run.optim.betas) == ("zero", (0.9, 0.999))
    assert (run.method.cells, run.method.crop, run.method.crops, run.method.merging) == (3, 64, 2, "legacy")
    assert (run.optim.batch_size, run.engine.micro_batch) == (16, 2)


@pytest.mark.parametrize("size, parameters", [("L", 220_918_402), ("H", 860_913_826)])
def test_larger_published_sizes(size: str, parameters: int) -> None:
    run = pretrain_config("voco", "published", Path("d"), {"method": {"size": size}})
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in METHOD.build(run).parameters()) == parameters


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_brings_its_window_and_the_grid_its_slab(region: str) -> None:
    changes = {"method": {"region": region, "cells": 4}}
    run = pretrain_config("voco", "published", Path("d"), changes)
    assert run.data.size == (64, 256, 256)
    assert (run.data.intensity.low, run.data.intensity.high) == REGIONS[region].window
    assert (run.data.view, run.data.keep_aspect) == (("volume", False) if region == "headneck" else ("crop", True))
    own = pretrain_config("voco", "published", Path("d"), {**changes, "data": {"size": (64, 64, 64)}})
    assert own.data.size == (64, 64, 64)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"data": {"size": (96, 96, 96)}}, "A slab of 2 x 2 crops of 32 voxels has 64 x 64 x 64 voxels"),
        ({"method": {"crop": 48}}, "multiples of 32"),
        ({"method": {"depth": 32}}, "one position"),
        ({"method": {"region": "chest"}}, "region chest stands for the window -1000 to 500 HU"),
        ({"method": {"feature_size": 4}}, "divided among 3"),
    ],
)
def test_impossible_settings_get_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        network(config(**changes))


def test_a_step_gives_all_losses_and_its_randomness_comes_from_the_generator() -> None:
    outputs = []
    for seed in (5, 5, 6):
        torch.manual_seed(0)
        model = network()  # a step moves the teacher, so each starts afresh
        torch.manual_seed(len(outputs))
        outputs.append(METHOD.training_step(model, batch(), torch.Generator().manual_seed(seed)))
    first = outputs[0]
    assert first.loss.item() == outputs[1].loss.item() != outputs[2].loss.item()
    parts = [float(first.scalars[name]) for name in ("intra", "inter", "reg")]
    assert first.loss.item() == pytest.approx(sum(parts))
    assert 0 <= float(first.scalars["position_accuracy"]) <= 1
    assert min(parts) >= 0


def test_validation_changes_nothing() -> None:
    model = network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        losses = [METHOD.training_step(model, batch(), torch.Generator().manual_seed(2)).loss.item() for _ in range(2)]
    assert losses[0] == losses[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_in_parts_moves_the_teacher_once() -> None:
    run = config()
    model = network(run)
    optimizer = make_optimizer(model, run.optim)
    started = {name: value.clone() for name, value in model.state_dict().items()}
    for part in range(2):
        METHOD.training_step(model, batch(), torch.Generator().manual_seed(part)).loss.backward()
    expected = 0.9 * started["teacher.layer3.0.weight"] + 0.1 * started["student.layer3.0.weight"]
    assert torch.equal(model.teacher.layer3[0].weight, expected)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    METHOD.training_step(model, batch(), torch.Generator())
    assert not torch.equal(model.teacher.layer3[0].weight, expected)


def test_the_version_of_2024_is_a_setting() -> None:
    run = config(method={"version": "2024"})
    output = METHOD.training_step(network(run), batch(), torch.Generator())
    output.loss.backward()
    assert float(output.scalars["inter"]) == 0


def test_what_makes_learning_poorer_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = network(
        pretrain_config("voco", "tiny", Path("d"), {**TINY, "method": {**TINY["method"], "region": "chest"}})
    )
    padding = torch.ones(1, *SHAPE, dtype=torch.bool)
    padding[:, :20] = False
    poor = batch(1, padding=padding, extra={"spacing_mm": [(2.0, 0.7, 0.7)]})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            METHOD.training_step(model.eval(), poor, torch.Generator())
    sentences = [record.getMessage() for record in caplog.records]
    assert len(sentences) == 3
    assert "single volume" in sentences[0]
    assert "case 0 fills 31% of a slab of 64 x 64 x 64 voxels" in sentences[1]
    assert "voxels of (5.0, 1.25, 1.25) mm" in sentences[2]
    caplog.clear()
    METHOD.training_step(network().eval(), batch(), torch.Generator())
    assert not caplog.records


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_pictures_lie_on_the_scan(axes: str) -> None:
    model = network(config(method={"axes": axes}))
    volume = batch(1).volume
    pictures = {p.name: p for p in METHOD.preview(model, volume, {"seed": 3}, torch.Generator())}
    again = {p.name: p for p in METHOD.preview(model, volume, {"seed": 3}, torch.Generator().manual_seed(9))}
    overlaps = [f"crop {n} {what}" for n in (1, 2) for what in ("overlap", "prediction")]
    assert list(pictures) == ["original", "cells", "crops", *overlaps]
    assert np.array_equal(pictures["original"].array, volume[0, 0])
    assert all(np.array_equal(again[name].array, picture.array) for name, picture in pictures.items())
    cells, boxes = pictures["cells"], pictures["crops"].array
    assert sorted(cells.array.flatten()) == [1, 2, 3, 4]
    assert (boxes == 2).sum() == 64 * 32 * 32  # drawn over the first
    true = pictures["crop 2 overlap"]
    assert (true.array.shape, true.voxels) == ((1, 2, 2), (64, 32, 32))
    shares = [[(boxes[:, y : y + 32, x : x + 32] == 2).mean() for x in (0, 32)] for y in (0, 32)]
    np.testing.assert_allclose(true.array[0], shares, atol=1e-6)
    seen = pictures["crop 2 prediction"].array
    assert ((seen >= 0) & (seen <= 1.0001)).all()
    assert model.training


def test_the_first_cell_is_right_and_front_of_the_patient_as_published() -> None:
    cells = {p.name: p.array for p in METHOD.preview(network(), batch(1).volume, {}, torch.Generator())}["cells"]
    assert cells[0].tolist() == [[4, 2], [3, 1]]  # (y, x) growing to the back and to the left; k = 2 i + j


def test_the_encoder_shares_the_weights_and_equals_the_one_built_alone() -> None:
    run = config()
    model = network(run).eval()
    shared, alone = METHOD.encoder(model), METHOD.build_encoder(run)
    names = set(alone.state_dict())
    alone.load_state_dict({name: value for name, value in model.state_dict().items() if name in names})
    volume = batch(1).volume
    with torch.no_grad():
        assert torch.equal(shared.encode(volume).tokens, alone.eval().encode(volume).tokens)
    assert shared.encoder1 is model.encoder1


def test_a_segmentation_network_takes_the_pyramid() -> None:
    from training_backend.config.registry import task

    changes = {**TINY, "task": {"classes": ("background", "organ")}, "data": {"size": (32, 32, 64)}}
    run = finetune_config("segmentation", "tiny", Path("d"), "voco", changes)
    built = task("segmentation").build(run, METHOD.build_encoder(run)).eval()
    with torch.no_grad():
        assert built(torch.rand(1, 1, 32, 40, 64))[0].shape == (1, 2, 32, 40, 64)
