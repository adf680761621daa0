"""Real detached processes: signals, two starts, several ranks, and closing the viewer in mid-run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from training_backend.engine import checkpoint
from training_backend.engine.events import EventReader
from training_backend.engine.rundir import RunDirectory
from training_backend.jobs import cancel, launch, pause, resume, stop, summary

LONG = {"optim": {"max_steps": 100_000}, "engine": {"checkpoint_minutes": 100}}


@pytest.fixture
def ended():
    """Runs whose processes are ended when the test is over."""
    runs: list[RunDirectory] = []
    yield runs
    for run in runs:
        cancel(run, patience_s=10)


def test_run_survives_its_starter_is_found_again_and_stopped(config, tmp_path, ended, wait_for):
    run = RunDirectory.create(tmp_path / "run", config(**LONG))
    ended.append(run)
    code = f"import sys; sys.path[:0] = {sys.path!r}\n"
    code += "from pathlib import Path; from training_backend.jobs import RunDirectory, launch\n"
    code += f"launch(RunDirectory(Path({str(run.path)!r})))"
    subprocess.run([sys.executable, "-c", code], check=True)  # the viewer starts the run and is closed
    wait_for(lambda: summary(run).step > 3)
    assert summary(run).state == "running"
    pause(run)
    wait_for(lambda: summary(run).state == "paused")
    assert resume(run).alive
    wait_for(lambda: summary(run).state == "running")
    assert stop(run).state in ("stopping", "cancelled")
    wait_for(lambda: not summary(run).alive)
    found = summary(run)
    assert found.state == "cancelled"
    assert checkpoint.step_of(checkpoint.newest_verified(run.checkpoints)[0]) == found.step


def test_sigterm_saves_at_a_step_boundary_within_thirty_seconds(config, tmp_path, ended, wait_for):
    run = RunDirectory.create(tmp_path / "run", config(**LONG))
    ended.append(run)
    process = psutil.Process(launch(run).pid)
    wait_for(lambda: summary(run).step > 3)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: not summary(run).alive, 30)
    assert time.monotonic() - began < 30
    assert run.record()["state"] == "paused"
    folder, complaints = checkpoint.newest_verified(run.checkpoints)
    last = [e for e in EventReader(run.events_path).read() if e["type"] == "metrics" and e["split"] == "train"][-1]
    assert complaints == []
    assert checkpoint.step_of(folder) == last["step"]


def test_two_starts_of_one_run_attach_instead_of_colliding(config, tmp_path, ended, wait_for):
    run = RunDirectory.create(tmp_path / "run", config(optim={"max_steps": 300}))
    ended.append(run)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "training_backend", "run", str(run.path)]
    pair = [subprocess.Popen(command, env=environment) for _ in range(2)]
    wait_for(lambda: summary(run).step > 1)
    third = launch(run)
    assert third.attached
    assert third.pid in [process.pid for process in pair]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    states = [event["state"] for event in EventReader(run.events_path).read() if event["type"] == "state"]
    assert states == ["starting", "running", "finished"]


def test_two_processes_compute_what_one_computes(config, workers, tmp_path):
    settings = {"optim": {"max_steps": 5}, "engine": {"micro_batch": 2, "val_steps": 5}}
    one = RunDirectory.create(tmp_path / "one", config(**settings))
    two = RunDirectory.create(tmp_path / "two", config(**settings).updated({"engine": {"devices": 2}}))
    assert workers.finish(one) == "finished", one.log_path.read_text()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "training_backend", "run", str(two.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr + two.log_path.read_text()
    found = []
    for run in (one, two):
        events = [e for e in EventReader(run.events_path).read() if e["type"] == "metrics"]
        found.append(([e["values"]["loss"] for e in events], load_file(run.model_path)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    for name, tensor in found[0][1].items():
        np.testing.assert_allclose(tensor, found[1][1][name], rtol=1e-3, atol=1e-4)
