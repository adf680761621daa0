from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from training_backend.engine.events import STATES, EventWriter
from training_backend.engine.identity import identity
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import RunError
from training_backend.jobs import clone, delete, list_runs, new_run, runs_root, summary
from training_backend.jobs.registry import _TABLE, remember


def test_every_state_has_a_sentence_and_actions():
    assert set(_TABLE) == {*STATES, "lost", "unreachable", "damaged"}
    assert all(sentence.endswith(".") and actions for sentence, actions in _TABLE.values())


def test_new_runs_are_queued_and_never_share_a_folder(config, tmp_path):
    names = ["Müller 3 / left*", "Müller 3 / left*", ""]
    runs = [new_run(config, name, tmp_path) for name in names]
    assert [summary(run).state for run in runs] == ["queued"] * 3
    assert len({run.path for run in runs}) == 3
    assert runs[0].path.name == "Müller-3-left"
    assert summary(runs[0]).name == names[0]
    assert runs[0].config() == config


def test_killed_process_makes_a_lost_run(run, sleeper):
    child = sleeper(run)
    assert (summary(run).state, summary(run).alive) == ("running", True)
    child.kill()
    child.wait()
    found = summary(run)
    assert (found.state, found.alive) == ("lost", False)
    assert {"resume", "delete"} <= set(found.actions)


def test_zombie_counts_as_gone(run, sleeper):
    child = sleeper(run, code="pass")
    deadline = time.monotonic() + 60
    while summary(run).alive and time.monotonic() < deadline:
        time.sleep(0.02)  # never waited for: the child stays a zombie
    assert summary(run).state == "lost"
    assert child.returncode is None


def test_pid_of_another_program_is_not_the_run(run):
    run.update(state="running", **{**identity(), "pid_created": 12345.0})
    assert summary(run).state == "lost"


@pytest.mark.parametrize(("age_s", "state"), [(1, "running"), (3600, "unreachable")])
def test_run_of_another_machine_is_judged_by_its_heartbeat(run, age_s, state):
    run.update(state="running", pid=1, pid_created=1.0, host="elsewhere")
    run.beat()
    then = time.time() - age_s
    os.utime(run.heartbeat, (then, then))
    assert summary(run).state == state


def test_requests_that_wait_show_as_states(run, sleeper):
    sleeper(run)
    run.request("pause")
    assert summary(run).state == "pausing"
    run.request("stop")
    assert summary(run).state == "stopping"
    assert "resume" not in summary(run).actions


def test_paused_run_without_process_can_be_resumed_and_deleted(run):
    run.update(state="paused", reason="Saved at step 7.", **{**identity(), "pid_created": 1.0})
    found = summary(run)
    assert found.sentence == "Paused at a saved step. Saved at step 7."
    assert {"resume", "delete"} <= set(found.actions)


def test_progress_comes_from_the_last_events(run):
    events = EventWriter(run.events_path)
    for step in range(1, 3000):
        values = {"loss": 1 / step, "grad_norm": 1.0}
        events.write("metrics", step, split="train", values=values, steps=4000, eta_s=4000.0 - step, memory_mb=12.0)
    events.write("metrics", 2999, split="val", values={"loss": 0.5}, score=0.5, best_score=0.25, best_step=10)
    events.close()
    with run.events_path.open("ab") as stream:
        stream.write(b'{"type": "metrics", "step": 99')
    found = summary(run)
    assert (found.step, found.steps, found.score, found.memory_mb) == (2999, 4000, 0.25, 12.0)
    assert found.loss == pytest.approx(1 / 2999)
    assert found.eta_s is None  # nothing runs


def test_list_has_runs_of_the_root_and_remembered_ones_newest_first(config, tmp_path):
    root = runs_root()
    inside, outside = new_run(config, "inside"), RunDirectory.create(tmp_path / "outside", config)
    inside.update(created=time.time() - 100)
    remember(outside)
    remember(outside)
    found = [run.path for run in list_runs()]
    assert found.index(outside.path.resolve()) < found.index(inside.path.resolve())
    assert len(found) == len(set(found))
    delete(outside)
    assert outside.path not in [run.path for run in list_runs(root)]


def test_damaged_record_is_listed_and_can_be_deleted(run):
    run.record_path.write_text("{", encoding="utf-8")
    found = list_runs(run.path.parent)
    assert [entry.state for entry in found] == ["damaged"]
    delete(run)
    assert list_runs(run.path.parent) == []


def test_live_run_cannot_be_deleted(run, sleeper):
    sleeper(run)
    with pytest.raises(RunError, match="Stop it first"):
        delete(run)
    assert run.record_path.exists()


def test_clone_has_the_settings_with_changes_and_no_history(run):
    run.update(state="finished")
    copy = clone(run, changes={"optim": {"lr": 0.5}, "seed": 7})
    assert copy.path != run.path
    assert (copy.config().optim.lr, copy.config().seed) == (0.5, 7)
    assert copy.config().updated({"optim": {"lr": run.config().optim.lr}, "seed": run.config().seed}) == run.config()
    assert summary(copy).state == "queued"
    assert not copy.events_path.exists()


def test_two_processes_that_update_different_keys_lose_neither(run):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: run.update(**{f"key{index}": index}), range(16)))
    assert [run.record()[f"key{index}"] for index in range(16)] == list(range(16))


def test_summary_of_a_missing_folder_is_damaged_not_an_error(tmp_path: Path):
    assert summary(tmp_path / "gone").state == "damaged"
