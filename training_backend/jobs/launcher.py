"""Starts runs as detached child processes and speaks to them through their control folder.

The child survives whoever started it. Starting a run that already runs attaches to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

import training_backend
from training_backend.engine.events import EventWriter
from training_backend.engine.identity import PARENT_VARIABLE, WORKER_VARIABLE, end_tree, identity, process
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import RunError
from training_backend.jobs.registry import RunSummary, remember, summary

_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Launched:
    """Process of a run; `attached` when it was running already."""

    pid: int
    attached: bool


def launch(run: RunDirectory, *, listed: bool = True, with_parent: bool = False) -> Launched:
    """Start or resume a run in a detached process; attach when one lives already.

    Args:
        run: to start.
        listed: show it in the list of runs.
        with_parent: let it save and end when this process is gone.

    Raises:
        RunError: the run is finished, or is on another machine.
    """
    with FileLock(run.path / ".launch.lock", timeout=30):
        found = summary(run)
        if found.alive and found.pid and found.state not in ("finished", "cancelled", "failed"):
            return Launched(found.pid, attached=True)
        if not {"start", "resume"} & set(found.actions):
            raise RunError(f"The run {found.name} cannot be started: {found.sentence}", "Clone it to train anew.")
        for what in ("stop", "pause"):
            run.withdraw(what)
        run.update(state="starting", reason="", pid=None, launched=time.time(), ended=None, queue=None)
        child = _spawn(run, with_parent=True) if with_parent else _spawn(run)
        try:
            run.update(**identity(child.pid))
        except psutil.NoSuchProcess:
            run.update(pid=child.pid, pid_created=0.0)  # ended already: readers conclude "lost"
    if listed:
        remember(run)
    return Launched(child.pid, attached=False)


def start_detached(
    arguments: list[str], log: Path, folder: Path, *, with_parent: bool = False
) -> subprocess.Popen[bytes]:
    """Start this Python with `arguments` in a session of its own, output appended to `log`."""
    environment = {**os.environ, WORKER_VARIABLE: "1", "PYTHONUNBUFFERED": "1"}
    environment.pop(PARENT_VARIABLE, None)
    if with_parent:
        environment[PARENT_VARIABLE] = "1"
    source = str(Path(training_backend.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH", "")]))
    with log.open("ab") as stream:
        child = subprocess.Popen(
            [sys.executable, "-P", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=os.name != "nt",
            creationflags=_windows_flags(),
        )
    _children[:] = [other for other in _children if other.poll() is None] + [child]
    return child


def stop(run: RunDirectory) -> RunSummary:
    """Ask a run to save and stop at its next step; one that waits or has no process is cancelled at once."""
    found = summary(run)
    if found.alive:
        run.request("stop")
    elif found.state in ("queued", "paused"):
        run.update(state="cancelled", reason="", ended=time.time(), queue=None)
        _note(run, found.step, "cancelled")
    return summary(run)


def cancel(run: RunDirectory, patience_s: float = 30.0) -> RunSummary:
    """Stop a run and see to it: control file, then terminate, then kill its whole process tree; blocks until then."""
    found = stop(run)
    deadline = time.monotonic() + patience_s
    while found.alive and time.monotonic() < deadline:
        time.sleep(0.1)
        found = summary(run)
    root = process(run.record())
    if root is not None:
        end_tree(root, patience_s)
        found = summary(run)
    if found.state == "lost":
        reason = "Its process had to be killed; it goes on from its last checkpoint when resumed."
        run.update(state="cancelled", reason=reason, ended=time.time())
        _note(run, found.step, "cancelled")
    run.withdraw("stop")
    return summary(run)


def pause(run: RunDirectory) -> RunSummary:
    """Ask a run to save and wait at its next step."""
    return _ask(run, "pause")


def save(run: RunDirectory) -> RunSummary:
    """Ask a run to save a checkpoint at its next step."""
    return _ask(run, "save")


def preview(run: RunDirectory) -> RunSummary:
    """Ask a run for new pictures at its next step."""
    return _ask(run, "preview")


def resume(run: RunDirectory) -> RunSummary:
    """Let a paused run go on, or start a run without a process from its last checkpoint."""
    run.withdraw("pause")
    if not summary(run).alive:
        launch(run)
    return summary(run)


def _ask(run: RunDirectory, what: str) -> RunSummary:
    found = summary(run)
    if what not in found.actions:
        raise RunError(f"The run {found.name} cannot be asked to {what} now. {found.sentence}")
    run.request(what)
    return found


def _spawn(run: RunDirectory, with_parent: bool = False) -> subprocess.Popen[bytes]:
    arguments = ["-m", "training_backend", "run", str(run.path.resolve())]
    return start_detached(arguments, run.log_path, run.path, with_parent=with_parent)


def _note(run: RunDirectory, step: int, state: str) -> None:
    events = EventWriter(run.events_path)
    events.write("state", step, state=state, reason="")
    events.close()


def _windows_flags() -> int:
    names = ("DETACHED_PROCESS", "CREATE_NEW_PROCESS_GROUP", "CREATE_NO_WINDOW")
    return sum(getattr(subprocess, name, 0) for name in names if os.name == "nt")
