"""VoCo's omni- and semi-supervised stages through the real engine: labelled stream, teacher of half time, resuming."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.recipe_kit import Cohorts, phantom
from training_backend.config import ConfigModel, RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.recipes import recipe, recipe_config
from training_backend.config.registry import method, task
from training_backend.data import loader
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.engine import loop, worker
from training_backend.engine.events import EventReader
from training_backend.engine.preview import read_preview
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.runtime import Runtime
from training_backend.engine.step import optimise
from training_backend.engine.validate import validate
from training_backend.engine.work import Work, build_network, open_work
from training_backend.errors import ConfigError, DataError, WeightsError
from training_backend.evaluate.predict import predict_volumes
from training_backend.methods import voco_stages as stages
from training_backend.methods.voco_settings import VOCOMNI
from training_backend.settings import parse_training
from training_backend.weights.export import export
from training_backend.weights.load import load_model
from training_backend.weights.transfer import init_from

SIZE = {"omni": (64, 64, 64), "semi": (32, 32, 64)}
CLASSES = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    ingest([write_cohort(root / "cohort", 5, seed=3, shape=(64, 72, 72))], root / "dataset")
    return root / "dataset"


def config(dataset: Path, stage: str, **changes: Any) -> RunConfig:
    sizes = {"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 8, "projected": 6}
    small = {
        "method": {**sizes, "stage": stage, "crops": 1, "decoder_classes": CLASSES},
        "data": {"size": SIZE[stage], "workers": 0},
        "optim": {"max_steps": 4, "batch_size": 2, "amsgrad": True},
        "engine": {"device": "cpu", "threads": 1, "val_steps": 100, "preview_minutes": 0},
    }
    return pretrain_config("voco", "tiny", dataset, small).updated(changes)


def opened(run: RunConfig, **options: Any) -> Work:
    return open_work(run, Runtime(run.engine), **options)


def steps(work: Work) -> Iterator[tuple[float, dict[str, float]]]:
    """Train, step by step, from wherever the work is."""
    for views in work.batches(work.state.progress.step):
        outcome = optimise(work, views)
        work.state.progress.step += 1
        yield outcome.loss, dict(outcome.scalars)


@pytest.fixture(scope="module")
def omni(dataset: Path) -> tuple[list[Any], list[Any], Work]:
    """A whole omni-supervised run of four steps: outcomes and checkpoints of every step, and its work."""
    work = opened(config(dataset, "omni"))
    outcomes, saved = [], [copy.deepcopy(work.state.saved({}))]
    for outcome in steps(work):
        outcomes.append(outcome)
        saved.append(copy.deepcopy(work.state.saved({})))
    return outcomes, saved, work


@pytest.mark.parametrize(("start", "workers"), [(1, 1), (3, 0)])
def test_an_omni_run_goes_on_exactly_from_either_side_of_half_time(
    dataset: Path, omni: tuple[list[Any], list[Any], Work], start: int, workers: int
) -> None:
    outcomes, saved, whole = omni
    assert ["snapshot" in each.tensors for each in saved] == [False, False, False, True, True]
    resumed = opened(config(dataset, "omni", data={"workers": workers}), resuming=True)
    resumed.state.restore(saved[start])
    assert list(steps(resumed)) == outcomes[start:]
    for mine, expected in (
        (resumed.state.network, whole.state.network),
        (resumed.state.snapshot, whole.state.snapshot),
    ):
        found = mine.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


def test_the_teacher_is_the_network_of_half_time(omni: tuple[list[Any], list[Any], Work]) -> None:
    outcomes, saved, work = omni
    half, teacher = saved[2].tensors["model"], work.state.snapshot
    held = teacher.state_dict()
    assert len(held) == 167  # encoder, decoder and last convolution
    assert all(torch.equal(value, half[name]) for name, value in held.items())
    assert not teacher.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    trained = {id(parameter) for group in work.state.optimizer.param_groups for parameter in group["params"]}
    assert not trained & {id(parameter) for parameter in teacher.parameters()}
    told = [scalars.keys() & {"pseudo_loss", "pseudo_agreement"} for _, scalars in outcomes]
    assert told == [set(), set(), {"pseudo_loss", "pseudo_agreement"}, {"pseudo_loss", "pseudo_agreement"}]
    assert outcomes[2][1]["pseudo_agreement"] == 1  # nothing has been learnt since
    assert outcomes[3][1]["pseudo_agreement"] < 1
    for loss, scalars in outcomes:
        parts = ("intra", "inter", "reg", "dice_loss", "cross_entropy", "pseudo_loss")
        assert loss == pytest.approx(sum(scalars.get(name, 0) for name in parts), rel=1e-5)


def test_a_teacher_is_gone_before_half_time(dataset: Path, omni: tuple[list[Any], list[Any], Work]) -> None:
    _, saved, _ = omni
    work = opened(config(dataset, "omni"), resuming=True)
    work.state.restore(saved[3])
    assert work.state.snapshot is not None
    work.state.restore(saved[1])  # as when a run rolls back
    assert work.state.snapshot is None


def test_validation_of_both_halves_means_the_same(omni: tuple[list[Any], list[Any], Work]) -> None:
    work = omni[2]
    values = validate(work)
    assert {"intra", "dice_loss", "cross_entropy"} <= values.keys()
    assert not values.keys() & {"pseudo_loss", "pseudo_agreement"}
    assert validate(work) == values


def test_resuming_restores_the_backbone_whole(
    dataset: Path, omni: tuple[list[Any], list[Any], Work], tmp_path: Path
) -> None:
    """The reference strips "backbone." from the file alone: heads come back on a random encoder, silently."""
    _, saved, _ = omni
    work = opened(config(dataset, "omni", seed=5), resuming=True)
    work.state.restore(saved[4])
    own, kept = work.state.network.state_dict(), saved[4].tensors["model"]
    assert own.keys() == kept.keys()
    assert sum(name.startswith("swinViT.") for name in own) > 100
    assert all(torch.equal(own[name], kept[name]) for name in own)
    lacking = {name: value for name, value in kept.items() if not name.startswith("swinViT.")}
    broken = copy.deepcopy(saved[4])
    broken.tensors["model"] = lacking
    with pytest.raises(WeightsError, match="does not fit the network"):
        work.state.restore(broken)


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_weights_of_an_omni_training_file_start_the_whole_network(
    dataset: Path, omni: tuple[list[Any], list[Any], Work], tmp_path: Path, prefix: str
) -> None:
    heads = ("student.", "teacher.")
    kept: dict[str, Tensor] = omni[1][4].tensors["model"]
    before = prefix.removesuffix("backbone.")
    state = {(before if name.startswith(heads) else prefix) + name: value for name, value in kept.items()}
    torch.save({"global_step": 4, "state_dict": state}, tmp_path / "omni.pt")
    run = config(dataset, "omni", seed=9)
    network = method("voco").build(run)
    report = init_from(network, tmp_path / "omni.pt", run)
    own = network.state_dict()
    assert report.missing == report.mismatched == ()
    assert all(torch.equal(own[name], value) for name, value in kept.items())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_semi_run_reads_no_unlabelled_view_before_its_teacher_does(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Nothing looks at them before half time, nor in validation; a run that goes on from there is the same."""
    read: dict[str | None, list[int]] = {None: [], "labels": []}
    view = loader._Reader._view

    def counted(reader: Any, stored: Any, case: Any, slot: int) -> Any:
        read[reader.loader.needs].append(slot)
        return view(reader, stored, case, slot)

    monkeypatch.setattr(loader._Reader, "_view", counted)
    work = opened(config(dataset, "semi"))
    outcomes, saved = [], []
    for outcome in steps(work):
        outcomes.append(outcome)
        saved.append(copy.deepcopy(work.state.saved({})))
    assert read == {None: [4, 5, 6, 7], "labels": [*range(8)]}
    assert ["pseudo_loss" in scalars for _, scalars in outcomes] == [False, False, True, True]
    assert validate(work)["dice_loss"] > 0
    assert read[None] == [4, 5, 6, 7]
    for start in (1, 2, 3):
        resumed = opened(config(dataset, "semi", data={"workers": workers}), resuming=True)
        resumed.state.restore(saved[start - 1])
        assert list(steps(resumed)) == outcomes[start:]


def test_a_semi_run_of_twenty_steps_equals_one_that_was_stopped_on_either_side_of_half_time(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(dataset, "semi", optim={"max_steps": 20, "batch_size": 1}, engine={"val_steps": 20})
    whole, stopped = (RunDirectory.create(tmp_path / name, run) for name in ("whole", "stopped"))
    assert worker.execute(whole) == 0
    report = loop._report

    def stopping(session: Any, outcome: Any, clock: Any) -> None:
        report(session, outcome, clock)
        if session.work.state.progress.step in (7, 14):
            stopped.request("stop")

    monkeypatch.setattr(loop, "_report", stopping)
    assert [worker.execute(stopped) for _ in range(3)] == [3, 3, 0]
    first, second = (load_model(one.path).module.state_dict() for one in (whole, stopped))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert load_model(whole.path).kind == "pretrain"
    teachers = [load_model(one.path).teacher.state_dict() for one in (whole, stopped)]
    assert all(torch.equal(teachers[1][name], value) for name, value in teachers[0].items())
    newest = load_file(sorted(whole.checkpoints.glob("step_*"))[-1] / "snapshot.safetensors")
    assert all(torch.equal(teachers[0][name], value) for name, value in newest.items())
    assert json.loads((whole.path / "card.json").read_text())["teacher"]["step"] == 10
    losses = [
        [event["values"]["loss"] for event in EventReader(one.events_path).read() if event.get("split") == "train"]
        for one in (whole, stopped)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 20


@pytest.mark.parametrize("workers", [0, 1])
def test_the_labelled_stream_never_ends(dataset: Path, workers: int) -> None:
    """The authors' loaders stop a run at the end of the shorter one."""
    labelled = {"cases": 1, "crops_per_volume": 1, "per_view": 2}
    optim = {"max_steps": 9, "batch_size": 2}
    run = config(dataset, "semi", optim=optim, data={"labelled": labelled, "workers": workers})
    work = opened(run)
    loader = work.streams[stages.LABELLED]
    assert len(loader.cases) == 1 < len(work.loader.cases)
    views = list(work.batches())
    assert [each.step for each in views] == list(range(9))
    assert all(len(each) == 2 and len(each.streams[stages.LABELLED]) == 4 for each in views)
    labels = [each.streams[stages.LABELLED].labels for each in views]
    assert not torch.equal(labels[0], labels[1])  # other crops of the same case
    later = list(opened(run.updated({"data": {"workers": 1 - workers}})).batches(5))
    for one, other in zip(views[5:], later, strict=True):
        assert one.keys == other.keys
        mine, theirs = (each.streams[stages.LABELLED] for each in (one, other))
        assert mine.keys == theirs.keys != one.keys
        assert torch.equal(mine.images, theirs.images)


def test_parts_of_a_step_and_processes_share_the_stream(dataset: Path) -> None:
    from training_backend.data.loader import ViewLoader
    from training_backend.data.streams import joined, open_streams, to_batch

    run = config(dataset, "semi", optim={"batch_size": 3}, data={"labelled": {"per_view": 2}})
    work = opened(run)
    whole = next(work.batches())
    keys = list(whole.streams[stages.LABELLED].keys)
    assert len(keys) == 6
    parts = [whole[start : start + 2].streams[stages.LABELLED].keys for start in (0, 2)]
    assert [key for part in parts for key in part] == keys
    assert [len(part) for part in parts] == [4, 2]
    found = []
    for rank in range(2):
        loader = ViewLoader(Dataset.open(dataset), run, rank=rank, world=2)
        streams = open_streams(method("voco").streams(run), loader)
        views = next(joined(loader, streams))
        assert len(views.streams[stages.LABELLED]) == 2 * len(views)
        found += views.streams[stages.LABELLED].keys
        batch = to_batch(loader, streams, views, "cpu").streams[stages.LABELLED]
        assert batch.labels.shape == batch.volume[:, 0].shape
    assert found == keys


def test_strings_are_no_switches(dataset: Path, tmp_path: Path) -> None:
    """The reference takes `--flag False` for true."""
    base = config(dataset, "omni")
    for path, value in switches(base):
        for text, meant in (("False", False), ("True", True)):
            changed: dict[str, Any] = {path[-1]: text}
            for key in reversed(path[:-1]):
                changed = {key: changed}
            assert dict(switches(base.updated(changed)))[path] is meant, (path, value)
            with pytest.raises(ConfigError, match=path[-1]):
                base.updated(yaml.safe_load(str(changed).replace(text, "perhaps")))
    with pytest.raises(WeightsError, match="False"):
        opened(base.updated({"weights": "False"}))


def switches(model: ConfigModel, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every yes-or-no setting by its path."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, bool):
            yield (*path, name), value
        elif isinstance(value, ConfigModel):
            yield from switches(value, (*path, name))


def test_flags_of_the_command_line_reach_the_stage(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training_backend import watch

    seen: list[RunConfig] = []
    monkeypatch.setattr(watch, "train", lambda run, output, detach: seen.append(run))
    words = ["--method", "voco", "--preset", "tiny", "--data", str(dataset), "--output", str(tmp_path / "run")]
    words += ["--method.stage", "semi", "--method.decoder-classes", "6", "--data.labelled.dataset", str(tmp_path)]
    words += ["--data.labelled.cases", "3", "--engine.activation-checkpointing", "False"]
    parse_training("pretrain", words)
    (run,) = seen
    assert (run.method.stage, run.method.decoder_classes) == ("semi", 6)
    assert (run.data.labelled.dataset, run.data.labelled.cases) == (tmp_path, 3)
    assert run.engine.activation_checkpointing is False
    assert run.data.size == (64, 64, 64)  # follows from the stage, as the changes of crops do
    assert run.data.augment.quarter_turn == 0.2


@pytest.mark.parametrize(
    ("stage", "changes", "error", "sentence"),
    [
        (
            "omni",
            {"method": {"decoder_classes": 3}},
            ConfigError,
            "3 classes, for label values 0 to 2, but the labelled",
        ),
        ("semi", {"method": {"decoder_classes": 1}}, ConfigError, "background and one more are needed"),
        ("omni", {"method": {"version": "2024"}}, ConfigError, "belongs to version 2"),
        ("semi", {"data": {"labelled": {"cases": 99}}}, ConfigError, "asks for 99 cases"),
        ("semi", {"data": {"labelled": {"dataset": "nowhere"}}}, DataError, "nowhere is not a dataset"),
    ],
)
def test_bad_input_gets_a_sentence_before_training(
    dataset: Path, stage: str, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        opened(config(dataset, stage, **changes))


@pytest.mark.parametrize("stage", ["omni", "semi"])
def test_without_a_labelled_case_nothing_starts(dataset: Path, tmp_path: Path, stage: str) -> None:
    unlabelled = Dataset(tmp_path, Dataset.open(dataset).info)
    unlabelled.save()
    for case in Dataset.open(dataset).cases():
        unlabelled.records[case.id] = case.model_copy(update={"label": None})
    unlabelled.save()
    with pytest.raises(DataError, match="no case with a label map in its train split"):
        opened(config(dataset, stage, data={"labelled": {"dataset": tmp_path}}))


def test_labelled_cases_that_cannot_be_read_end_the_run(dataset: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "labelled"
    shutil.copytree(dataset, copied)
    for frame in copied.rglob("*.b2nd"):
        frame.write_bytes(frame.read_bytes()[:50])
    changes = {"data": {"labelled": {"dataset": copied}}, "optim": {"max_steps": 30, "batch_size": 1}}
    run = RunDirectory.create(tmp_path / "run", config(dataset, "semi", **changes))
    assert worker.execute(run) == 1
    assert "No case could be read" in run.error()["sentence"]


def test_labels_teach_as_published(dataset: Path) -> None:
    """Dice without background plus cross-entropy, of labelled crops and of what the teacher sees in the others."""
    from monai.losses import DiceCELoss

    published = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    work = opened(config(dataset, "semi", optim={"batch_size": 2}))
    work.state.take_snapshot(work.state.network.state_dict())
    with torch.no_grad():
        for parameter in work.state.network.parameters():
            parameter.mul_(1.1)
    work.loader.read_from = 0  # the teacher is early
    batch = work.to_batch(next(work.batches()))
    output = work.loss(work.state.network, batch, torch.Generator())
    network, labelled = work.state.network, batch.streams[stages.LABELLED]
    labels = work.state.snapshot.logits(batch.volume).argmax(dim=1, keepdim=True)
    expected = published(network.logits(labelled.volume), labelled.labels[:, None])
    expected = expected + published(network.logits(batch.volume), labels)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is None for parameter in work.state.snapshot.parameters())


def test_pictures_and_weights_of_a_run(dataset: Path, tmp_path: Path) -> None:
    run = config(dataset, "omni", optim={"max_steps": 1}, engine={"preview_minutes": 0.0001})
    directory = RunDirectory.create(tmp_path / "run", run)
    assert worker.execute(directory) == 0
    _, pictures = read_preview(sorted(directory.previews.glob("step_*"))[-1])
    names = [picture.name for picture in pictures]
    assert {"cells", "crop 1 overlap", "segmentation"} <= set(names)
    model = load_model(directory.path)
    assert (model.kind, model.config.method.stage, model.report.missing) == ("pretrain", "omni", ())
    export(directory.path, tmp_path / "omni.pt")
    stored = torch.load(tmp_path / "omni.pt", weights_only=True)["state_dict"]
    assert sum(name.startswith("backbone.") for name in stored) == 167
    assert load_model(tmp_path / "omni.pt").config.method.decoder_classes == CLASSES


@pytest.mark.parametrize(("size", "epochs", "views"), [("b", 30, 16), ("l", 15, 8), ("h", 15, 4)])
def test_the_supervised_stage_is_a_recipe(size: str, epochs: int, views: int) -> None:
    found = recipe(f"vocomni-{size}")
    run = recipe_config(found.name, Path("data"), weights=f"VoCo_{size.upper()}_SSL_head.pt")
    assert found.dataset.classes == VOCOMNI
    assert (run.method.size, run.optim.epochs, run.optim.batch_size) == (size.upper(), epochs, views)
    assert run.optim.warmup * epochs == pytest.approx(5, abs=1e-3)
    assert (run.data.foreground, run.data.size, run.data.labelled) == (0.9, (96, 96, 96), None)


def test_supervised_weights_see_twenty_classes(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """From pseudo-labelled cases to weights, to an omni-supervised run that starts from them, to labels of a scan."""
    labelled = Cohorts(tmp_path_factory)("vocomni-b")
    small: dict[str, Any] = {
        "method": {"feature_size": 3, "window": 3},
        "task": {"overlap": 0.0},
        "data": {"size": (32, 32, 64), "crops_per_volume": 1, "workers": 0},
        "optim": {"max_steps": 2, "batch_size": 1},
        "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0},
    }
    run = recipe_config("vocomni-b", labelled.folder, contrasts=labelled.info.contrasts, changes=small)
    directory = RunDirectory.create(tmp_path / "supervised", run)
    assert worker.execute(directory) == 0
    model = load_model(directory.path)
    volumes, _, _ = phantom("vocomni-b", 9)
    prediction = predict_volumes(model, volumes)
    assert prediction.labels is not None
    assert prediction.labels.array.shape == volumes[0].array.shape
    assert prediction.labels.array.max() <= 20
    omni = config(labelled.folder, "omni", method={"decoder_classes": 0}, weights=str(directory.path))
    network, report = build_network(omni, method("voco"), None)
    assert report is not None
    assert len(report.matched) == 167
    assert torch.equal(network.out.conv.conv.weight, model.module.out.conv.conv.weight)


def test_an_omni_run_starts_a_segmentation_with_its_decoder(
    dataset: Path, omni: tuple[list[Any], list[Any], Work], tmp_path: Path
) -> None:
    from training_backend.engine.export import card_of
    from training_backend.weights.save import save_model

    save_model(tmp_path, omni[2].state.network, card_of(omni[2], 4))
    changes = {"method": {"feature_size": 3, "window": 3}, "task": {"decoder": "swinunetr"}}
    run = finetune_config("segmentation", "tiny", dataset, "voco", {**changes, "weights": str(tmp_path)})
    network, report = build_network(run, method("voco"), task("segmentation"))
    assert report is not None
    assert [name for name, *_ in report.mismatched] == ["out.conv.conv.weight", "out.conv.conv.bias"]  # fewer classes
    assert report.missing == ()
    own, kept = network.state_dict(), omni[2].state.network.state_dict()
    assert all(torch.equal(own[name], kept[name]) for name in own if name.startswith("decoder"))


def test_settings_that_nobody_made_are_those_of_vocomni() -> None:
    assert len(VOCOMNI) == len(set(VOCOMNI)) == 21
    assert stages.classes_of("omni", 0) == stages.classes_of("semi", 0) == 21
    assert stages.classes_of("self", 0) == 0
    assert stages.classes_of("omni", 4) == 4
