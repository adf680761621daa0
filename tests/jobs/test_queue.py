from __future__ import annotations

import itertools
import time

import pytest

from training_backend.engine.rundir import RunDirectory
from training_backend.errors import RunError
from training_backend.jobs import enqueue, launcher, new_run, queue, stop, summary
from training_backend.jobs.slurm import SlurmConfig, batch_script, submit

PLAY = """
import sys, time
from pathlib import Path
from training_backend.engine.identity import identity
from training_backend.engine.rundir import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
run.update(state="running", started=time.time(), **identity())
time.sleep(0.3)
run.update(state="finished", ended=time.time())
"""


@pytest.fixture
def player(monkeypatch):
    """Runs that last 0.3 seconds."""
    monkeypatch.setattr(
        launcher, "_spawn", lambda run: launcher.start_detached(["-c", PLAY, str(run.path)], run.log_path, run.path)
    )


def queued(config, root, monkeypatch, devices: list[str]) -> list[RunDirectory]:
    monkeypatch.setattr(queue, "supervise", lambda root: None)
    runs = []
    for number, device in enumerate(devices):
        run = new_run(config.updated({"engine": {"device": device}}), f"run {number}", root)
        enqueue(run, root)
        runs.append(run)
    return runs


def test_runs_of_one_device_follow_each_other_in_order(config, tmp_path, monkeypatch, player):
    runs = queued(config, tmp_path, monkeypatch, ["cpu", "cpu", "cpu"])
    monkeypatch.setattr(queue, "POLL_S", 0.05)
    assert queue.main([str(tmp_path)]) == 0
    deadline = time.monotonic() + 120
    while summary(runs[-1]).state != "finished" and time.monotonic() < deadline:
        time.sleep(0.05)
    times = [(run.record()["started"], run.record()["ended"]) for run in runs]
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(times))


def test_runs_of_different_devices_start_together(config, tmp_path, monkeypatch):
    runs = queued(config, tmp_path, monkeypatch, ["cpu", "cuda:0", "cuda:1", "cpu"])
    started: list[str] = []
    monkeypatch.setattr(queue, "launch", lambda run: started.append(run.path.name))
    assert queue.advance(tmp_path) == 1
    assert started == [runs[0].path.name, runs[1].path.name, runs[2].path.name]


def test_run_in_the_queue_can_be_taken_out(config, tmp_path, monkeypatch):
    first, second = queued(config, tmp_path, monkeypatch, ["cpu", "cpu"])
    stop(first)
    assert [run.path for _, run in queue.waiting(tmp_path)] == [second.path]
    assert summary(first).state == "cancelled"


def test_run_that_cannot_start_does_not_block_the_others(config, tmp_path, monkeypatch):
    first, second = queued(config, tmp_path, monkeypatch, ["cpu", "cpu"])

    def refuse(run):
        raise RunError("No.")

    monkeypatch.setattr(queue, "launch", refuse)
    queue.advance(tmp_path)
    assert summary(first).state == "failed"
    assert queue.waiting(tmp_path)[0][1].path == second.path


def test_supervisor_process_starts_the_queue_without_its_parent(config, tmp_path):
    broken = config.updated({"data": {"dataset": str(tmp_path / "absent")}})
    run = new_run(broken, "absent dataset", tmp_path)
    enqueue(run, tmp_path)
    deadline = time.monotonic() + 120
    while summary(run).state not in ("failed", "lost") and time.monotonic() < deadline:
        time.sleep(0.1)
    found = summary(run)
    assert (found.state, "dataset.json" in found.sentence) == ("failed", True)
    assert run.error()["category"] == "data"


def test_finished_run_cannot_be_queued(config, tmp_path):
    run = new_run(config, "done", tmp_path)
    run.update(state="finished")
    with pytest.raises(RunError, match="cannot be queued"):
        enqueue(run, tmp_path)


def test_batch_script_quotes_paths_and_saves_before_the_limit(config, tmp_path):
    run = new_run(config.updated({"engine": {"devices": 2, "device": "cuda"}}), "big one", tmp_path / "a b")
    text = batch_script(run, SlurmConfig(partition="gpu", hours=1.5))
    assert text.startswith("#!/bin/bash\n")
    assert "#SBATCH --time=01:30:00" in text
    assert "#SBATCH --gpus=2" in text
    assert "#SBATCH --partition=gpu" in text
    assert "--signal=B:TERM@120" in text
    assert f"'{run.path.resolve()}'" in text


def test_without_slurm_the_script_is_written_and_the_sentence_says_what_to_do(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    run = new_run(config, "cluster", tmp_path)
    with pytest.raises(RunError, match="no Slurm on this machine"):
        submit(run)
    assert (run.path / "job.sbatch").is_file()
