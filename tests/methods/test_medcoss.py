"""Stages of MedCoSS: what a step learns from, what stays exact over a resume, what a stage leaves behind."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.medcoss_kit import SMALL, begun, dataset, plan_of, trained
from training_backend.config import RunConfig
from training_backend.config.plan import BufferConfig
from training_backend.config.presets import pretrain_config
from training_backend.data.rehearsal import load
from training_backend.engine import checkpoint
from training_backend.engine.events import EventReader
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, WeightsError
from training_backend.evaluate.forgetting import mean_forgotten, read
from training_backend.evaluate.rehearse import make_buffer
from training_backend.jobs.plan_stages import from_run, stage_config
from training_backend.methods.medcoss import METHOD
from training_backend.weights.decoders import kept, with_decoder
from training_backend.weights.load import load_model

STEPS = 12
TAUGHT = ("1D_text", "2D_xray", "3D_CT")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {name: dataset(root, name) for name in (*TAUGHT, "3D_MR")}


@pytest.fixture(scope="module")
def stages(data, tmp_path_factory) -> list[Path]:
    """Three stages that were taught one after another."""
    return trained(plan_of({name: data[name] for name in TAUGHT}), tmp_path_factory.mktemp("stages"))


def fourth(data, stages, **changes) -> RunConfig:
    """Settings of a fourth stage that rehearses the three."""
    plan = plan_of({name: data[name] for name in (*TAUGHT, "3D_MR")}, steps=STEPS)
    return stage_config(plan, 4, from_run(stages[-1])).updated(changes)


def test_a_stage_rehearses_each_earlier_modality_in_steps_of_its_own(data, stages, tmp_path):
    run = begun(tmp_path / "run", fourth(data, stages))
    assert execute(run) == 0, run.error()
    told = [e for e in EventReader(run.events_path).read() if e["type"] == "metrics" and e["split"] == "train"]
    names = Counter(name for event in told for name in event["values"] if name not in ("loss", "grad_norm"))
    per_pass = {"reconstruction": 2, **{f"distillation {name}": 1 for name in TAUGHT}}  # 8 cases, 4 in each buffer
    assert sum(names.values()) == STEPS
    assert abs(names["reconstruction"] - STEPS * 2 / 5) <= 1
    assert set(names) == set(per_pass)
    loss = {name: event["values"]["loss"] for event in told for name in event["values"]}
    assert all(loss[f"distillation {name}"] < 1 for name in TAUGHT)


@pytest.mark.parametrize(("zero", "workers", "step"), [(False, 0, 6), (True, 0, 8), (False, 2, 4)])
def test_a_rehearsing_run_goes_on_exactly(data, stages, tmp_path, zero, workers, step):
    """From a checkpoint in the middle, with any number of loaders, the last weights have the same bits."""
    optim = {"zero_gradients": zero}
    config = fourth(data, stages, optim=optim, engine={"keep_last": 10})
    whole = begun(tmp_path / "whole", config)
    assert execute(whole) == 0, whole.error()
    other = begun(tmp_path / "other", config.updated({"data": {"workers": workers}}))
    shutil.copytree(checkpoint.folder_of(whole.checkpoints, step), checkpoint.folder_of(other.checkpoints, step))
    assert execute(other) == 0, other.error()
    started = [e for e in EventReader(other.events_path).read() if e["type"] == "state" and e["state"] == "running"]
    assert started[0]["reason"] == f"Resumed at step {step}."
    first, second = (load_file(run.path / "model.safetensors") for run in (whole, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(*(load_file(run.path / "teacher.safetensors")["cls_token"] for run in (whole, other)))


def test_gradients_of_zero_move_what_a_step_does_not_use(data, stages, tmp_path):
    """With them, the decoder goes on moving in steps of other modalities, as in the time of the paper."""
    ends = []
    for zero in (False, True):
        run = begun(tmp_path / str(zero), fourth(data, stages, optim={"zero_gradients": zero}))
        assert execute(run) == 0, run.error()
        ends.append(load_file(run.path / "model.safetensors")["decoder_pred_3D.weight"])
    assert not torch.equal(*ends)


def test_the_teacher_is_the_encoder_that_the_stage_starts_from(data, stages, tmp_path):
    run = begun(tmp_path / "run", fourth(data, stages))
    assert execute(run) == 0, run.error()
    teacher, before = load_file(run.path / "teacher.safetensors"), load_file(stages[-1] / "model.safetensors")
    assert all(torch.equal(teacher[name], before[name]) for name in teacher)
    assert not any(name.startswith("decoder") for name in teacher)


def test_a_stage_of_images_has_no_head_for_words(stages):
    assert "mlm_head.decoder.weight" in load_file(stages[0] / "model.safetensors")
    later = load_file(stages[-1] / "model.safetensors")
    assert "mlm_head.decoder.weight" not in later
    assert "token_embed.embeddings.weight" in later  # but it still reads reports


def test_every_stage_keeps_the_decoders_so_far_and_they_still_work(stages):
    decoders = kept(stages[-1])
    assert list(decoders) == list(TAUGHT)
    network = with_decoder(stages[-1], decoders["2D_xray"])
    own, decoder = load_file(stages[-1] / "model.safetensors"), load_file(stages[1] / "model.safetensors")
    state = network.state_dict()
    assert torch.equal(state["decoder_pred_2D.weight"], decoder["decoder_pred_2D.weight"])
    name = "fused_encoder.layers.0.linear1.weight"
    assert torch.equal(state[name], own[name])
    assert not torch.equal(own[name], decoder[name])
    pictures = METHOD.preview(network, torch.rand(1, 1, 1, 32, 32), {"seed": 1}, torch.Generator())
    assert [picture.name for picture in pictures] == ["original", "masked", "reconstruction", "error", "mask"]


def test_what_was_forgotten_is_measured_after_every_stage(stages):
    rows = read(stages[-1])
    assert [(row.number, row.modality) for row in rows] == [
        (number + 1, TAUGHT[k]) for number in range(3) for k in range(number + 1)
    ]
    assert all(row.loss is not None and row.cases == 2 and row.split == "val" and not row.note for row in rows)
    taught = {row.modality: row.loss for row in rows if row.stage == row.modality}
    assert [row.forgotten for row in rows] == [pytest.approx(row.loss - taught[row.modality]) for row in rows]
    last = [row.forgotten for row in rows if row.number == 3 and row.modality != "3D_CT"]
    assert mean_forgotten(rows) == pytest.approx(sum(last) / 2)
    assert (stages[-1] / "forgetting.csv").read_text().count("\n") == 7


def test_the_same_encoder_makes_the_same_buffer(stages, tmp_path):
    model = load_model(stages[1])
    place = {"data": {"dataset": load(stages[1]).dataset}}
    again = make_buffer(model.module, model.config.updated(place), tmp_path, BufferConfig(ratio=0.5, centres=0.25))
    assert again.ids == load(stages[1]).ids
    assert 3 <= len(again.ids) <= 4  # two clusters, two of each; a small one gives fewer


def test_colours_are_shown(data):
    config = pretrain_config("medcoss", "tiny", data["3D_CT"], {**SMALL, "method": {**SMALL["method"], "kind": "2d"}})
    network = METHOD.build(config.updated({"data": {"contrasts": ("red", "green", "blue")}}))
    pictures = METHOD.preview(network, torch.rand(1, 3, 1, 32, 32), {}, torch.Generator().manual_seed(0))
    assert pictures[2].role == "rgb"
    assert pictures[2].array.shape == (1, 32, 32, 3)


def test_a_buffer_of_what_the_stage_teaches_is_refused(data, stages):
    config = fourth(data, stages).updated({"method": {"modality": "3D_CT"}})
    with pytest.raises(ConfigError, match="is of 3D_CT, which is what this stage teaches"):
        METHOD.streams(config)


def test_a_buffer_that_the_network_cannot_read_is_refused(data, stages):
    config = fourth(data, stages).updated({"method": {"encodes": ("2d",)}})
    with pytest.raises(ConfigError, match="buffer of 1D_text holds text, which the network of this stage does not"):
        METHOD.streams(config)


def test_views_of_another_kind_are_refused(data):
    config = pretrain_config("medcoss", "tiny", data["3D_CT"], SMALL)
    with pytest.raises(ConfigError, match=r"kind text learns from views of kind text, but data.view is crop"):
        METHOD.build(config.updated({"method": {"kind": "text"}}))
    with pytest.raises(ConfigError, match="cannot learn from views of one slice"):
        METHOD.build(config.updated({"data": {"size": (1, 16, 16)}}))


def test_more_words_than_rows_are_told(data):
    changes = {**SMALL, "method": {**SMALL["method"], "modality": "1D_text", "vocabulary": 10}}
    with pytest.raises(ConfigError, match=r"knows \d+ tokens, but the network has rows for 10 words"):
        METHOD.build(pretrain_config("medcoss", "tiny", data["1D_text"], changes))


def test_a_later_encoder_that_lost_a_tokenizer_is_told(data, stages, tmp_path):
    config = fourth(data, stages).updated({"method": {"encodes": (), "rehearsal": {"buffers": ()}}})
    run = begun(tmp_path / "run", config)
    assert execute(run) == 0, run.error()
    with pytest.raises(WeightsError, match="cannot read 1D_text any more"):
        with_decoder(run.path, kept(stages[-1])["1D_text"])


def test_the_card_of_a_model_names_no_place_of_this_disk(data, stages, tmp_path):
    run = begun(tmp_path / "run", fourth(data, stages))
    assert execute(run) == 0, run.error()
    card = json.loads((run.path / "card.json").read_text())
    assert str(tmp_path.parents[1]) not in json.dumps(card)
