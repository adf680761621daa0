"""Pre-training with reports, from settings to a run that is killed and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.config import RunConfig
from training_backend.config.presets import PRESETS, pretrain_config
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.engine import loop
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.runtime import Runtime
from training_backend.engine.work import open_work
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, DataError
from training_backend.methods.base import Batch
from training_backend.methods.mg3d import FASTER, METHOD, Mg3dConfig, _read_of, rate
from training_backend.weights.load import load_model

TINY: dict[str, Any] = {
    "method": {
        "feature_size": 2,
        "window": 3,
        "heads": (1, 1, 2, 2),
        "text": {"width": 32, "heads": 4, "layers": 1, "longest": 48},
    },
    "data": {"size": (64, 32, 32), "workers": 0},
    "optim": {"max_steps": 4, "batch_size": 2, "lr": 1e-3, "warmup": 0.0},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "checkpoint_steps": 2, "preview_minutes": 0},
}
TEXTS = ["There is a nodule in the left lung, 9 mm. The heart is large.", "No nodule. Small effusion on the right."]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms with reports, two of them held out."""
    root = tmp_path_factory.mktemp("phantoms")
    ingest([write_cohort(root / "cohort", 6, seed=1, shape=(24, 32, 32))], root / "dataset")
    return root / "dataset"


def config(dataset: Path, **changes: Any) -> RunConfig:
    return pretrain_config("mg3d", "tiny", dataset, TINY).updated(changes)


def network(run: RunConfig) -> Any:
    torch.manual_seed(0)
    return METHOD.build(run)


def batch(**changes: Any) -> Batch:
    """A dark and a bright volume, each with its report."""
    noise = torch.rand(2, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    shade = torch.tensor([0.0, 0.8]).reshape(2, 1, 1, 1, 1)
    return Batch(**{"volume": noise * 0.2 + shade, "case_ids": ["a", "b"], "extra": {"texts": TEXTS}, **changes})


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_flips_what_reports_call_left_and_right(preset: str) -> None:
    run = pretrain_config("mg3d", preset, Path("d"))
    assert run.data.augment.flip == (0, 0, 0)
    assert (run.data.view, run.engine.micro_batch) == ("volume", None)


@pytest.mark.parametrize("size", ["B", "L"])
def test_the_published_preset_is_the_published_recipe(size: str) -> None:
    import transformers

    run = pretrain_config("mg3d", "published", Path("d"), {"method": {"size": size}})
    config: Any = run.method
    assert (config.level, config.routing, config.mask_ratio, config.word_ratio) == ("clause", "sentences", 0.5, 0.15)
    assert (config.text.source, config.text.longest, config.all_padding) == ("StanfordAIMI/RadBERT", 250, True)
    assert (run.data.size, run.data.keep_aspect) == ((128, 96, 128), False)
    assert (run.optim.lr, run.optim.schedule, run.optim.max_steps) == (1e-5, "linear", 300_000)
    assert round(run.optim.warmup * 300_000) == 10_000
    with torch.device("meta"):
        encoder = METHOD.build_encoder(run)
    number = sum(parameter.numel() for parameter in encoder.parameters())  # type: ignore[attr-defined]
    assert number == {"B": 8_062_002, "L": 33_955_074 - 2_361_600}[size]  # L without its projection
    assert encoder.width == {"B": 768, "L": 1536}[size]
    assert transformers.BertConfig().hidden_size == 768


@pytest.mark.parametrize("encoder", ["swin", "unet", "nnunet"])
@pytest.mark.parametrize("routing", ["sentences", "words"])
def test_every_loss_reaches_the_encoder_and_the_loss_is_their_sum(dataset: Path, encoder: str, routing: str) -> None:
    method = {"encoder": encoder, "routing": routing, "features": (4, 4, 4, 4, 8, 8)}
    model = network(config(dataset, method=method)).train()
    output = METHOD.training_step(model, batch(), torch.Generator().manual_seed(0))
    parts = {name: float(value) for name, value in output.scalars.items() if name != "word_accuracy"}
    wholes = parts.pop("cross") + parts.pop("aggregated") + parts.pop("patients")
    assert output.loss.item() == pytest.approx(sum(parts.values()) + 0.1 * wholes, rel=1e-5)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.vision_encoder.parameters())
    still = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert still <= ({"local_text_cross_multihead_attention"} if routing == "sentences" else set())


def test_what_is_hidden_comes_from_the_generator_alone(dataset: Path) -> None:
    model = network(config(dataset)).eval()
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed + len(losses))
        losses.append(METHOD.training_step(model, batch(), torch.Generator().manual_seed(seed)).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_learns_two_cases_by_heart(dataset: Path) -> None:
    model = network(config(dataset)).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=4e-3)
    first: dict[str, float] = {}
    for _ in range(30):
        output = METHOD.training_step(model, batch(), torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        first = first or {name: float(value) for name, value in output.scalars.items()}
    last = {name: float(value) for name, value in output.scalars.items()}
    for name, share in {"words": 0.5, "voxels": 0.5, "cross": 0.9}.items():
        assert last[name] < share * first[name], name


def test_heads_and_projections_learn_faster(dataset: Path) -> None:
    faster = {"mlm_head.fc.0.weight", "multi_modal_vision_proj.bias", "itc_agg_head.vision_proj.weight"}
    slower = {"itc_cross_head.vision_proj.weight", "local_img_cross_multihead_attention.0.key1.weight"}
    assert {rate(name) for name in faster} == {FASTER}
    assert {rate(name) for name in slower | {"vision_encoder.patch_embed.proj.weight"}} == {1.0}
    work = open_work(config(dataset), Runtime(config(dataset).engine))
    scales = {name: group["lr_scale"] for group in work.state.optimizer.param_groups for name in group["names"]}
    trained = {name for name, parameter in work.state.network.named_parameters() if parameter.requires_grad}
    assert set(scales) == trained
    assert all(scales[name] == rate(name) for name in trained)


def test_cases_without_a_report_are_left_out_and_those_without_labels_are_not(dataset: Path, tmp_path: Path) -> None:
    opened = Dataset.open(dataset)
    cases = [case.updated({"report": ""}) if case.id.endswith("1") else case for case in opened.cases()]
    cases = [case.updated({"split": "unlabelled"}) if case.id.endswith("2") else case for case in cases]
    link = tmp_path / "dataset"
    link.mkdir()
    for name in dataset.iterdir():
        (link / name.name).symlink_to(name)
    (link / "manifest.jsonl").unlink()
    Dataset(link, opened.info, cases).save()
    run = config(link)
    work = open_work(run, Runtime(run.engine))
    used = {case.id[-1] for case in work.loader.cases}
    assert "1" not in used
    assert "2" in used
    views = next(work.batches())
    texts = work.to_batch(views).extra["texts"]
    reports = {case.id: case.report for case in cases}
    assert texts == [reports[case] for case in views.case_ids]


def test_a_run_trains_tells_no_text_and_resumes_exactly(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (RunDirectory.create(tmp_path / name, config(dataset)) for name in ("whole", "stopped"))
    assert execute(whole) == 0
    _stop_at(monkeypatch, stopped, 2)
    assert execute(stopped) == 3
    assert execute(stopped) == 0
    models = [load_model(run.path) for run in (whole, stopped)]
    first, second = (model.module.state_dict() for model in models)
    assert models[0].kind == "pretrain"
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = (whole.path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [event for event in map(json.loads, lines) if event["type"] == "metrics"]
    for split in ("train", "val"):
        (values, *_) = [event["values"] for event in metrics if event["split"] == split]
        assert {"words", "sentences", "voxels", "cross", "aggregated"} <= values.keys()
        assert ("patients" in values) == (split == "train")  # a single case is held out
    sentences = {part for case in Dataset.open(dataset).cases() for part in case.report.lower().split(". ")}
    for path in whole.path.rglob("*"):
        if path.suffix in (".jsonl", ".txt", ".yaml", ".json"):
            text = path.read_text(encoding="utf-8").lower()
            assert not [part for part in sentences if part in text], path


def _stop_at(monkeypatch: pytest.MonkeyPatch, run: RunDirectory, step: int) -> None:
    real = loop._report

    def report(session: Any, outcome: Any, clock: Any) -> None:
        real(session, outcome, clock)
        if session.run.path == run.path and session.work.state.progress.step == step:
            run.request("stop")

    monkeypatch.setattr(loop, "_report", report)


def test_the_model_needs_no_dataset_to_be_built_again(dataset: Path, tmp_path: Path) -> None:
    run = config(dataset)
    model = network(run)
    kept = METHOD.contained(model, run).updated({"data": {"dataset": tmp_path / "gone"}})
    again = network(kept)
    again.load_state_dict(model.state_dict())
    assert again.tokeniser.to_json() == model.tokeniser.to_json()


def test_pictures_of_what_is_drawn_need_the_report(dataset: Path) -> None:
    model, volume = network(config(dataset)).train(), batch().volume[:1]
    shown = {p.name: p for p in METHOD.preview(model, volume, {"seed": 3, "report": TEXTS[0]}, torch.Generator())}
    assert list(shown) == ["original", "masked", "reconstruction", "error", "mask"]
    hidden = np.kron(shown["mask"].array, np.ones(shown["mask"].voxels)).astype(bool)
    assert hidden.mean() == 0.5
    assert np.array_equal(shown["reconstruction"].array[~hidden], shown["original"].array[~hidden])
    assert (shown["masked"].array[hidden] == 0).all()
    assert model.training
    bare = METHOD.preview(model, volume, {"seed": 3}, torch.Generator())
    assert [p.name for p in bare] == ["original", "masked", "mask"]


def test_a_single_patient_a_step_is_said_once(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = network(config(dataset)).train()
    one = Batch(batch().volume[:1], ["a"], extra={"texts": TEXTS[:1]})
    for step in range(2):
        output = METHOD.training_step(model, one, torch.Generator().manual_seed(step))
        assert "patients" not in output.scalars
    assert caplog.text.count("a single patient") == 1


def test_bad_settings_and_data_get_a_sentence(dataset: Path) -> None:
    run = config(dataset)
    with pytest.raises(ConfigError, match="left from right"):
        network(config(dataset, data={"augment": {"flip": (0, 0, 0.5)}}))
    with pytest.raises(ConfigError, match="multiples of 32"):
        network(config(dataset, data={"size": (64, 40, 40)}))
    with pytest.raises(ConfigError, match=r"have 48 channels, the text model has 32"):
        network(config(dataset, method={"encoder": "unet", "feature_size": 3}))
    model = network(run)
    with pytest.raises(DataError, match="come without"):
        METHOD.training_step(model, batch(extra={}), torch.Generator())
    with pytest.raises(DataError, match="report of b has no sentence"):
        METHOD.training_step(model, batch(extra={"texts": [TEXTS[0], " . "]}), torch.Generator())
    assert METHOD.check is not None
    blank = Dataset.open(dataset).cases()[0].updated({"id": "blank", "report": "- -"})
    with pytest.raises(DataError, match="of 1 cases have no sentence: blank"):
        METHOD.check(run, [blank, *Dataset.open(dataset).cases()])


def test_of_a_line_with_several_sentences_one_is_read_and_drawn_by_the_step() -> None:
    text = "Normal heart. No effusion. Clear lungs.\n\nNodule on the left.\n"
    config = Mg3dConfig(one_piece=True)
    drawn = [_read_of(text, config, torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert {tuple(one) for one in drawn} == {
        (first, "Nodule on the left.") for first in ("Normal heart.", "No effusion.", "Clear lungs.")
    }
    assert drawn[3] == _read_of(text, config, torch.Generator().manual_seed(3))
    assert len(_read_of(text, Mg3dConfig(), torch.Generator())) == 4
