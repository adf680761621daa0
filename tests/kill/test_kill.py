"""Runs whose process is killed at random moments, inside a save too, end as if nothing had happened."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from training_backend.engine import checkpoint
from training_backend.engine.events import EventReader
from training_backend.engine.rundir import RunDirectory
from training_backend.jobs import Monitor, summary

STEPS = 40
KILLS = 14
"""For each of three worker counts: 42 in all."""


@pytest.fixture(scope="module")
def settings():
    return {
        "optim": {"max_steps": STEPS},
        "engine": {"checkpoint_steps": 2, "val_steps": 8, "keep_last": 2},
    }


@pytest.fixture(scope="module")
def uninterrupted(config, settings, workers, tmp_path_factory) -> tuple[RunDirectory, float]:
    """A run that nobody disturbed, and the seconds it trained."""
    run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "undisturbed", config(**settings))
    assert workers.finish(run) == "finished", run.log_path.read_text()
    running = next(e for e in EventReader(run.events_path).read() if e["type"] == "state" and e["state"] == "running")
    return run, run.record()["ended"] - running["time"]


@pytest.mark.parametrize("loaders", [0, 1, 2])
def test_kills_at_random_moments_change_nothing(config, settings, workers, uninterrupted, tmp_path, wait_for, loaders):
    undisturbed, seconds = uninterrupted
    generator = random.Random(loaders)
    changed = config(**settings).updated({"data": {"workers": loaders}})
    kills, runs, inside_save = 0, 0, 0
    while kills < KILLS or not inside_save:
        run = RunDirectory.create(tmp_path / f"killed {runs}", changed)
        runs += 1
        while (kills < KILLS or not inside_save) and _one_sitting(workers, run, generator, seconds, wait_for):
            kills += 1
            inside_save += any(run.checkpoints.glob(".step_*"))
            _check_after_kill(run)
        if run.record()["state"] != "finished":
            assert workers.finish(run) == "finished", run.log_path.read_text()
        _same_result(undisturbed, run)
    assert kills >= KILLS


def _one_sitting(workers, run: RunDirectory, generator: random.Random, seconds: float, wait_for) -> bool:
    """Start or resume `run` and kill it at a random moment; False when it finished before that."""
    before = run.record().get("started")
    process = workers.start(run)
    moment = generator.random()
    if moment > 0.2:  # the others die while they start
        wait_for(lambda: run.record()["state"] != "starting" and run.record().get("started") != before)
    time.sleep(generator.random() * 2 * seconds / KILLS)
    if moment > 0.6:  # and these inside a save
        wait_for(lambda: any(run.checkpoints.glob(".step_*.tmp")) or not process.is_running(), pause=0.0)
    finished = run.record()["state"] == "finished"
    with suppress(psutil.NoSuchProcess):
        process.kill()  # SIGKILL, like a power cut
    workers.wait()
    return not finished and run.record()["state"] != "finished"


def _check_after_kill(run: RunDirectory) -> None:
    """What any reader may count on the moment after: a lost run, and whole checkpoints if there ever was one."""
    assert summary(run).state in ("lost", "queued")
    folder, complaints = checkpoint.newest_verified(run.checkpoints)
    assert complaints == []
    announced = [event for event in EventReader(run.events_path).read() if event["type"] == "checkpoint"]
    if announced:
        assert folder is not None
        assert checkpoint.step_of(folder) >= announced[-1]["step"]


def _same_result(undisturbed: RunDirectory, run: RunDirectory) -> None:
    first, second = load_file(undisturbed.model_path), load_file(run.model_path)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    last = [checkpoint.read(checkpoint.folder_of(each.checkpoints, STEPS)) for each in (undisturbed, run)]
    for part in ("model", "optimizer", "ema"):
        tensors = [saved.tensors[part] for saved in last]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(bool((tensors[0][key] == tensors[1][key]).all()) for key in tensors[0])
    same = [{key: value for key, value in saved.state.items() if key != "seconds"} for saved in last]
    assert same[0] == same[1]
    curves = []
    for each in (undisturbed, run):
        monitor = Monitor(each)
        monitor.update()
        curves.append({name: (s.steps, s.values) for name, s in monitor.series.items()})
    assert curves[0] == curves[1]
    assert curves[0]["train/loss"][0] == list(range(1, STEPS + 1))


def test_killed_run_leaves_no_process_behind(config, workers, tmp_path, wait_for):
    run = RunDirectory.create(tmp_path / "run", config(data={"workers": 2}, optim={"max_steps": 10_000}))
    process = workers.start(run)
    wait_for(lambda: summary(run).step > 2)
    family = [process, *process.children(recursive=True)]
    assert len(family) == 3
    process.kill()  # SIGKILL, like a power cut
    workers.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    assert summary(run).state == "lost"


def test_half_written_event_line_is_skipped_by_readers_and_ended_by_the_next_writer(
    config, workers, tmp_path, wait_for
):
    run = RunDirectory.create(tmp_path / "run", config(optim={"max_steps": 30}, engine={"checkpoint_steps": 1}))
    process = workers.start(run)
    wait_for(lambda: summary(run).step >= 3)
    process.kill()  # SIGKILL, like a power cut
    workers.wait()
    with run.events_path.open("ab") as stream:
        stream.write(b'{"type": "metrics", "step": 4, "val')
    monitor = Monitor(run)
    monitor.update()
    assert workers.finish(run) == "finished"
    found = monitor.update()
    assert found.summary.state == "finished"
    assert monitor.series["train/loss"].steps == list(range(1, 31))
    assert Path(run.path / found.events[-1].get("folder", "")).exists()
