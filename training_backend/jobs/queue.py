"""Several runs one after another on a device, started by a small detached supervisor that needs no viewer.

The queue is nothing but the records of the runs: state "queued" with a ``queue`` entry (device, time). The supervisor
ends when nothing waits any more.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from training_backend.engine.rundir import RunDirectory
from training_backend.errors import Med3dError, RunError
from training_backend.jobs.launcher import launch, start_detached
from training_backend.jobs.registry import RunSummary, list_runs, remember, runs_root, summary

POLL_S = 1.0


def enqueue(run: RunDirectory, root: Path | None = None) -> RunSummary:
    """Let a run start as soon as all runs that were queued before it on its device have ended."""
    found = summary(run)
    if not {"start", "resume"} & set(found.actions) or found.alive:
        raise RunError(f"The run {found.name} cannot be queued. {found.sentence}")
    base = root or runs_root()
    remember(run, base)
    device = device_of(run)
    run.update(state="queued", reason=f"Starts when {device} is free.", queue={"device": device, "time": time.time()})
    supervise(base)
    return summary(run)


def supervise(root: Path) -> None:
    """See to it that a supervisor of `root` runs; a second one ends at once."""
    code = "from training_backend.jobs.queue import main; main()"
    start_detached(["-c", code, str(root.resolve())], root / "queue.log", root)


def waiting(root: Path) -> list[tuple[str, RunDirectory]]:
    """(device, run) of all queued runs in the order in which they start."""
    entries = []
    for found in list_runs(root):
        if found.state != "queued":
            continue
        run = RunDirectory(found.path)
        place = run.record().get("queue")
        if place:
            entries.append((float(place["time"]), str(place["device"]), run))
    return [(device, run) for _, device, run in sorted(entries, key=lambda entry: entry[0])]


def advance(root: Path) -> int:
    """Start the next run of every free device; answers how many still wait."""
    queued = waiting(root)
    busy = {device_of(RunDirectory(found.path)) for found in list_runs(root) if found.alive and found.state != "queued"}
    left = 0
    for device, run in queued:
        if device in busy:
            left += 1
            continue
        busy.add(device)
        try:
            launch(run)
        except Med3dError as error:
            run.update(state="failed", reason=str(error), ended=time.time(), queue=None)
    return left


def device_of(run: RunDirectory) -> str:
    """Device a run needs for itself: "cpu", "cuda:N", or "gpu" when it takes what there is."""
    try:
        name = run.config().engine.device
    except Med3dError:
        return "unknown"
    return {"auto": "gpu", "cuda": "gpu"}.get(name, name)


def main(arguments: list[str] | None = None) -> int:
    """Body of the supervisor; its argument is the root of the runs."""
    root = Path((arguments or sys.argv[1:])[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        with FileLock(root / ".queue.lock", timeout=3 * POLL_S):
            while advance(root):
                time.sleep(POLL_S)
    except Timeout:
        logging.info("another supervisor looks after %s", root)
    return 0
