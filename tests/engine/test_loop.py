"""Whole runs of the real parts (phantoms, store, loader, masked autoencoder, tasks) in this process."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from training_backend.data.dataset import Dataset
from training_backend.data.read import read_labels, read_volume
from training_backend.engine import checkpoint, loop
from training_backend.engine.events import EventReader
from training_backend.engine.preview import centre_view, read_preview
from training_backend.engine.runtime import Runtime
from training_backend.engine.validate import case_result, validate
from training_backend.engine.work import open_work
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError
from training_backend.jobs import Monitor, summary


def events(run, kind: str, **wanted):
    found = [event for event in EventReader(run.events_path).read() if event["type"] == kind]
    return [event for event in found if all(event.get(key) == value for key, value in wanted.items())]


def same_model(first, second) -> bool:
    a, b = load_file(first.model_path), load_file(second.model_path)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_pretraining_run_leaves_everything_that_its_directory_promises(pretrain, start):
    run = start(pretrain(engine={"preview_minutes": 100}))
    assert execute(run) == 0
    record = run.record()
    assert record["state"] == "finished"
    assert record["versions"]["torch"]
    assert [event["state"] for event in events(run, "state")] == ["starting", "running", "finished"]
    train = events(run, "metrics", split="train")
    assert [event["step"] for event in train] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(event["values"]["loss"]) and event["steps"] == 6 for event in train)
    assert {"lr", "step_s", "processor_s", "loader_s", "memory_mb", "eta_s", "epoch"} <= set(train[0])
    validations = events(run, "metrics", split="val")
    assert [event["step"] for event in validations] == [3, 6]
    best = min(event["score"] for event in validations)
    assert validations[-1]["best_score"] == best
    assert events(run, "done")[0]["score"] == best
    card = json.loads(run.card_path.read_text(encoding="utf-8"))
    assert card["scores"]["score"] == pytest.approx(best)
    assert len(load_file(run.model_path)) > 10
    assert execute(run) == 0  # finished runs stay finished
    assert len(events(run, "state")) == 3


def test_preview_lies_where_the_case_lies(pretrain, start, dataset):
    run = start(pretrain(engine={"preview_minutes": 100}))
    execute(run)
    (event,) = events(run, "preview")
    facts, arrays = read_preview(run.path / event["folder"])
    assert {picture.name for picture in arrays} >= {"reconstruction", "mask"}
    image = next(picture for picture in arrays if picture.name == "original")
    assert image.array.shape == (16, 16, 16)
    opened = Dataset.open(dataset)
    scan = read_volume(opened.source(opened.case(event["case"]).images[0]))
    from training_backend.data.volume import Geometry

    view = Geometry.from_dict(facts["geometry"])
    assert view.spacing_mm == pytest.approx(scan.geometry.spacing_mm)
    first = np.linalg.inv(scan.geometry.to_lps) @ np.append(view.origin_lps, 1)
    z, y, x = np.rint(first[:3]).astype(int)
    window = np.clip((scan.array[z : z + 16, y : y + 16, x : x + 16].astype(np.float32) + 1200) / 2000, 0, 1)
    np.testing.assert_allclose(image.array, window, atol=1e-3)


def test_segmentation_run_writes_predictions_on_the_grid_of_each_file(finetune, start, dataset):
    run = start(finetune("segmentation", engine={"preview_minutes": 100}))
    assert execute(run) == 0
    entries = json.loads((run.predictions / "cases.json").read_text(encoding="utf-8"))
    opened = Dataset.open(dataset)
    assert [entry["case"] for entry in entries] == [case.id for case in opened.cases("val")]
    for entry in entries:
        case = opened.case(entry["case"])
        prediction, scan = read_labels(run.path / entry["prediction"]), read_volume(opened.source(case.images[0]))
        assert prediction.geometry.same_grid(scan.geometry)
        truth = read_labels(opened.source(case.label))
        names = {item.name: item.index for item in opened.info.classes}
        for name, dice in entry["dice"].items():
            mine, theirs = prediction.array == names[name], truth.array == names[name]
            assert dice == pytest.approx(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()))
    card = json.loads(run.card_path.read_text(encoding="utf-8"))
    assert card["config"]["task"]["classes"][0] == "background"
    _, arrays = read_preview(run.path / events(run, "preview")[0]["folder"])
    assert [picture.name for picture in arrays] == ["image", "prediction", "truth"]


def test_classification_run_scores_whole_cases(finetune, start):
    run = start(finetune("classification"))
    assert execute(run) == 0
    assert math.isfinite(events(run, "metrics", split="val")[-1]["score"])
    assert [path.name for path in run.predictions.iterdir()] == ["values.json"]


def test_stop_saves_and_the_resumed_run_equals_an_uninterrupted_one(pretrain, start, monkeypatch):
    whole, stopped = start(pretrain(), "whole"), start(pretrain(), "stopped")
    assert execute(whole) == 0
    stop_at(monkeypatch, stopped, 3, "stop")
    assert execute(stopped) == 3
    assert summary(stopped).state == "cancelled"
    assert stopped.pending() == set()
    assert checkpoint.newest_verified(stopped.checkpoints)[0].name == "step_00000003"
    assert execute(stopped) == 0
    assert "Resumed at step 3." in [event["reason"] for event in events(stopped, "state", state="running")]
    assert same_model(whole, stopped)
    assert Monitor(stopped).update().events
    series = Monitor(stopped)
    series.update()
    assert series.series["train/loss"].steps == [1, 2, 3, 4, 5, 6]


def test_a_run_resumes_without_the_weights_it_started_from_and_keeps_their_licence(
    pretrain, finetune, start, monkeypatch
):
    source = start(pretrain(), "source")
    assert execute(source) == 0
    card = json.loads(source.card_path.read_text(encoding="utf-8"))
    source.card_path.write_text(json.dumps({**card, "licence": "CC-BY-NC-4.0"}), encoding="utf-8")
    run = start(finetune(weights=str(source.path)), "tuned")
    stop_at(monkeypatch, run, 3, "stop")
    assert execute(run) == 3
    shutil.rmtree(source.path)
    assert execute(run) == 0
    assert json.loads(run.card_path.read_text(encoding="utf-8"))["licence"] == "CC-BY-NC-4.0"


def stop_at(monkeypatch, run, step: int, *requests: str) -> None:
    """Make `requests` after a step of `run`."""
    real = loop._report

    def report(session, outcome, clock):
        real(session, outcome, clock)
        if session.run.path == run.path and session.work.state.progress.step == step:
            for request in requests:
                run.request(request)

    monkeypatch.setattr(loop, "_report", report)


def test_pause_waits_at_a_saved_step_until_it_is_withdrawn(pretrain, start, monkeypatch):
    run = start(pretrain())
    stop_at(monkeypatch, run, 2, "pause")
    seen = []

    def viewer():
        deadline = time.monotonic() + 120
        while summary(run).state != "paused" and time.monotonic() < deadline:
            time.sleep(0.02)
        seen.append((summary(run).state, checkpoint.newest_verified(run.checkpoints)[0].name))
        run.withdraw("pause")

    thread = threading.Thread(target=viewer)
    thread.start()
    assert execute(run) == 0
    thread.join()
    assert seen == [("paused", "step_00000002")]
    assert [event["state"] for event in events(run, "state")] == [
        "starting",
        "running",
        "paused",
        "running",
        "finished",
    ]


def test_long_pause_ends_the_process_and_resumes_from_disk(pretrain, start, monkeypatch):
    run = start(pretrain())
    stop_at(monkeypatch, run, 2, "pause")
    monkeypatch.setattr(loop, "LONG_PAUSE_S", 0.1)
    assert execute(run) == 3
    assert run.record()["state"] == "paused"
    assert execute(run) == 0


def test_save_and_preview_on_request(pretrain, start, monkeypatch):
    run = start(pretrain(engine={"checkpoint_steps": None, "val_steps": 100}))
    stop_at(monkeypatch, run, 3, "save", "preview")
    assert execute(run) == 0
    assert [event["step"] for event in events(run, "checkpoint")] == [0, 3, 6]
    assert [event["step"] for event in events(run, "preview")] == [3]
    assert run.pending() == set()


def test_only_the_last_checkpoints_and_the_best_are_kept(pretrain, start):
    run = start(pretrain(engine={"checkpoint_steps": 1, "keep_last": 2, "val_steps": 1}))
    execute(run)
    steps = [checkpoint.step_of(folder) for folder in checkpoint.all_steps(run.checkpoints)]
    best = json.loads((run.checkpoints / "best.json").read_text())["folder"]
    assert steps[-2:] == [5, 6]
    assert set(steps) == {5, 6, int(best.removeprefix("step_"))}
    assert json.loads((run.checkpoints / "latest.json").read_text())["folder"] == "step_00000006"


def test_early_stop_ends_after_stale_validations(pretrain, start):
    run = start(pretrain(optim={"lr": 1e-30, "max_steps": 50}, engine={"val_steps": 2, "early_stop": 2}))
    assert execute(run) == 0
    assert events(run, "done")[0]["step"] <= 10


@pytest.mark.parametrize("changes", [{"optim": {"ema": 0.9}}, {"engine": {"activation_checkpointing": True}}])
def test_options_that_change_memory_or_evaluation_run_and_resume_exactly(pretrain, start, monkeypatch, changes):
    whole, stopped = start(pretrain(**changes), "whole"), start(pretrain(**changes), "stopped")
    execute(whole)
    stop_at(monkeypatch, stopped, 3, "stop")
    execute(stopped)
    execute(stopped)
    assert same_model(whole, stopped)


def test_recomputed_activations_change_nothing(pretrain, start):
    plain, recomputed = start(pretrain(), "a"), start(pretrain(engine={"activation_checkpointing": True}), "b")
    execute(plain)
    execute(recomputed)
    assert same_model(plain, recomputed)


def test_micro_batches_add_up_to_the_batch(finetune, start):
    runs = [start(finetune(engine={"micro_batch": micro}), f"micro{micro}") for micro in (4, 3, 1)]
    for run in runs:
        assert execute(run) == 0
    losses = [[event["values"]["loss"] for event in events(run, "metrics", split="train")] for run in runs]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    np.testing.assert_allclose(losses[2], losses[0], rtol=2e-3)


def test_bf16_trains(pretrain, start):
    run = start(pretrain(engine={"precision": "bf16"}))
    assert execute(run) == 0
    assert run.record()["precision"] == "bf16"


def test_case_that_cannot_be_read_is_reported_once_and_left_out(pretrain, start, dataset, tmp_path):
    copy = tmp_path / "dataset with a hole"
    shutil.copytree(dataset, copy)
    victim = Dataset.open(copy).cases("train")[0]
    for frame in sorted((copy / victim.store["folder"]).rglob("*.b2nd")):
        frame.write_bytes(frame.read_bytes()[:50])
    run = start(pretrain(data={"dataset": str(copy)}))
    assert execute(run) == 0
    warnings = [event for event in events(run, "warning", category="data") if event["cases"]]
    assert [event["cases"] for event in warnings] == [[victim.id]]
    assert victim.id in warnings[0]["message"]


def test_dataset_that_is_gone_is_a_sentence_in_error_json(pretrain, start, tmp_path):
    run = start(pretrain(data={"dataset": str(tmp_path / "nowhere")}))
    assert execute(run) == 1
    error = run.error()
    assert error["category"] == "data"
    assert "dataset.json" in error["sentence"]
    assert "Traceback" in error["traceback"]
    assert summary(run).state == "failed"
    assert "dataset.json" in summary(run).sentence


@pytest.mark.parametrize(("shape", "size"), [((1, 10, 10, 10), (4, 4, 4)), ((2, 3, 9, 4), (8, 4, 4))])
def test_centre_view_is_the_middle_with_its_geometry(shape, size):
    from training_backend.data.volume import Geometry

    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    geometry = Geometry.from_spacing(shape[1:], (3.0, 2.0, 1.0), (10.0, 20.0, 30.0))
    around = np.arange(1, shape[0] + 1, dtype=np.float32)
    view, place, start_voxel = centre_view(array, geometry, size, around)
    assert view.shape == (shape[0], *size)
    assert place.shape == size
    for index in np.ndindex(*size):
        source = tuple(i + s for i, s in zip(index, start_voxel, strict=True))
        inside = all(0 <= i < n for i, n in zip(source, shape[1:], strict=True))
        assert np.array_equal(view[(slice(None), *index)], array[(slice(None), *source)] if inside else around)
        here, there = place.to_lps @ np.append(index, 1), geometry.to_lps @ np.append(source, 1)
        np.testing.assert_allclose(here, there)


def test_run_folder_with_blanks_and_umlauts(pretrain, start):
    run = start(pretrain(optim={"max_steps": 1}), "Lauf mit Umlaut ä")
    assert execute(run) == 0
    assert Path(run.model_path).is_file()


@pytest.mark.parametrize("split", ["val", "train"])
def test_validation_views_are_not_augmented(pretrain, dataset, tmp_path, monkeypatch, split):
    folder = dataset
    if split == "train":  # nothing is held out, so training cases stand in
        folder = tmp_path / "copy"
        shutil.copytree(dataset, folder)
        opened = Dataset.open(folder)
        for case in opened.cases("val"):
            opened.records[case.id] = case.model_copy(update={"split": "train"})
        opened.save()
    plain, flipped = (
        open_work(pretrain(data={"dataset": str(folder), "augment": {"flip": flip}}), Runtime(pretrain().engine))
        for flip in ([0, 0, 0], [1, 1, 1])
    )
    assert validate(flipped) == validate(plain)


def test_channels_that_do_not_match_are_refused_before_training(pretrain):
    with pytest.raises(ConfigError, match="takes 2 channels, but the views have 1"):
        open_work(pretrain(method={"in_channels": 2}), Runtime(pretrain().engine))


def test_failures_do_not_quote_paths_of_files(pretrain, start, monkeypatch):
    person = "".join(["D", "oe"])  # tracebacks quote lines of code

    def unreadable(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", f"/scans/{person}_Jane/ct.nii.gz")

    monkeypatch.setattr(loop, "validate", unreadable)
    run = start(pretrain())
    assert execute(run) == 1
    error = run.error()
    assert "FileNotFoundError: No such file or directory" in error["sentence"]
    assert "unreadable" in error["traceback"]
    written = [run.error_path, run.events_path, run.log_path, run.path / "run.json"]
    assert not [path.name for path in written if person in path.read_text(encoding="utf-8")]


def test_padding_of_a_whole_volume_belongs_to_no_class():
    label, padding = np.ones((2, 2, 2), np.uint8), np.zeros((2, 2, 2), bool)
    padding[1] = True
    prepared = SimpleNamespace(label=label, padding=padding, geometry=SimpleNamespace(spacing_mm=(1.0, 1.0, 1.0)))
    result = case_result(
        SimpleNamespace(id="a", target=None, annotated=None), prepared, np.zeros((2, 2, 2, 2), np.float32)
    )
    assert (result.truth[0] == 1).all()
    assert (result.truth[1] == 255).all()
