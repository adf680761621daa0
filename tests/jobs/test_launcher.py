from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from training_backend.engine.identity import identity, process
from training_backend.errors import RunError
from training_backend.jobs import cancel, launch, launcher, pause, resume, stop, summary


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def stand_in(monkeypatch):
    """Lets `launch` start a small program in place of the training process."""
    pids = []

    def use(code: str) -> None:
        def spawn(run):
            child = launcher.start_detached(["-c", code, str(run.path)], run.log_path, run.path)
            pids.append(child)
            return child

        monkeypatch.setattr(launcher, "_spawn", spawn)

    yield use
    for child in pids:
        child.kill()
        child.wait()


SLEEP = "import time; print('here', flush=True); time.sleep(300)"


def test_child_is_detached_logs_and_is_identified_by_pid_and_creation_time(run, stand_in):
    stand_in(SLEEP)
    started = launch(run)
    assert not started.attached
    record = run.record()
    assert record["pid"] == started.pid
    assert record["pid_created"] == pytest.approx(psutil.Process(started.pid).create_time())
    assert summary(run).state == "starting"
    wait_for(lambda: "here" in run.log_path.read_text())
    import os

    assert os.getsid(started.pid) == started.pid != os.getsid(0)  # closing the viewer's session cannot end it


def test_second_launch_attaches(run, stand_in):
    stand_in(SLEEP)
    first, second = launch(run), launch(run)
    assert (first.attached, second.attached) == (False, True)
    assert first.pid == second.pid


def test_worker_environment_marks_the_process_and_finds_the_package(run, stand_in):
    stand_in("import os, training_backend, json; print(json.dumps(os.environ['MED3DSSL_WORKER']), flush=True)")
    launch(run)
    wait_for(lambda: run.log_path.read_text().strip() != "")
    assert json.loads(run.log_path.read_text()) == "1"


def test_child_that_dies_at_once_leaves_a_lost_run_with_its_log(run, stand_in):
    stand_in("raise SystemExit('no such library')")
    launch(run)
    wait_for(lambda: summary(run).state == "lost")
    assert "no such library" in run.log_path.read_text()
    assert "resume" in summary(run).actions


def test_stale_requests_do_not_stop_a_new_start(run, stand_in):
    stand_in(SLEEP)
    run.update(state="cancelled")
    run.request("stop")
    launch(run)
    assert run.pending() == set()


def test_finished_run_is_not_started_again(run):
    run.update(state="finished")
    with pytest.raises(RunError, match="Clone it"):
        launch(run)


def test_cancel_kills_the_whole_tree_of_a_process_that_does_not_listen(run, stand_in):
    deaf = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    deaf += "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); print(c.pid, flush=True);"
    stand_in(deaf + "time.sleep(300)")
    launch(run)
    wait_for(lambda: run.log_path.read_text().strip().isdigit())
    grandchild = int(run.log_path.read_text())
    found = cancel(run, patience_s=0.3)
    assert found.state == "cancelled"
    assert "killed" in found.sentence
    assert "resume" in found.actions
    wait_for(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")


def test_stop_asks_a_live_run_and_cancels_a_waiting_one(run, sleeper):
    assert stop(run).state == "cancelled"
    sleeper(run)
    assert stop(run).state == "stopping"
    assert run.pending() == {"stop"}


def test_pause_is_refused_when_nothing_runs(run):
    with pytest.raises(RunError, match="cannot be asked to pause"):
        pause(run)


def test_resume_of_a_paused_live_process_only_withdraws_the_request(run, sleeper):
    child = sleeper(run)
    pause(run)
    assert summary(run).state == "pausing"
    resume(run)
    assert run.pending() == set()
    assert process(run.record()).pid == child.pid


def test_identity_is_never_taken_for_that_of_a_later_process():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    record = identity(child.pid)
    assert process(record).pid == child.pid
    child.kill()
    child.wait()
    assert process(record) is None
    assert process({**identity(), "pid_created": record["pid_created"] - 100}) is None
