"""The process of a run: ``python -m training_backend run RUN``; starting is resuming.

One process at a time works on a run: a second one waits for the first to end and reports what became of it. Heavy
libraries are imported only after the run has said that it starts.
"""

from __future__ import annotations

import importlib.abc
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from training_backend import __version__
from training_backend.engine.control import Control
from training_backend.engine.files import write_json
from training_backend.engine.identity import PARENT_VARIABLE, WORKER_VARIABLE, identity, process
from training_backend.engine.report import Reporter
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import Med3dError, ResourceError, RunError, said, trace

log = logging.getLogger("training_backend.run")

Body = Callable[[RunDirectory, Control, Reporter], str]
"""What a worker does, instead of training one network; answers the state in which it ends."""
EXIT_CODES = {"finished": 0, "failed": 1, "cancelled": 3, "paused": 3}
"""Exit code by the state in which a run ended; 0 only when all that was asked for was done."""
BEAT_S = 5.0
TAKEOVER_S = 30.0
"""How long the lock of a dead process may linger."""
RESERVE_BYTES = 1 << 17
"""Kept free on disk for the last words of a run that fills it."""


def main(arguments: Sequence[str]) -> int:
    """Command line of the worker: one run directory."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m training_backend run RUN\n")
        return 2
    return execute(RunDirectory.open(Path(arguments[0])))


def execute(run: RunDirectory, body: Body | None = None) -> int:
    """Train `run` from its last checkpoint to its end in this process; answers the exit code.

    With several devices this process becomes torchrun, which starts one process per device. A `body` does something
    else than training one network, in this process, and answers in which state it ends.
    """
    if run.record().get("state") == "finished":
        return EXIT_CODES["finished"]
    _bar_viewer_imports()
    devices = run.config().engine.devices if body is None else 1
    rank = int(os.environ.get("RANK", "0"))
    with _log_of(run):
        if rank > 0:
            return _work(run, main_process=False)
        if devices > 1 and "RANK" not in os.environ:
            if _other_process(run):
                return _attach(run)
            _become_torchrun(run, devices)
        with _hold(run) as mine:
            return _work(run, main_process=True, body=body) if mine else _attach(run)


def _work(run: RunDirectory, main_process: bool, body: Body | None = None) -> int:
    report, beat = Reporter(run, main_process), threading.Event()
    with Control(run) as control:
        try:
            if main_process:
                _announce(run, report)
                threading.Thread(target=_heartbeat, args=(run, beat, control), daemon=True).start()
            ending = (body or _train)(run, control, report)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run's directory tells it
            log.error("the run failed\n%s", trace(error))
            _fail(run, report, error)
            ending = "failed"
        finally:
            beat.set()
            with suppress(OSError):
                report.close()
    return EXIT_CODES[ending]


def _train(run: RunDirectory, control: Control, report: Reporter) -> str:
    from training_backend.engine import checkpoint, export
    from training_backend.engine.loop import train
    from training_backend.engine.runtime import Runtime
    from training_backend.engine.session import Session, restore
    from training_backend.engine.work import open_work
    from training_backend.tasks.base import Cancelled

    config = run.config()
    runtime = Runtime(config.engine)
    try:
        resuming = checkpoint.newest_verified(run.checkpoints)[0] is not None
        session = Session(run, open_work(config, runtime, resuming=resuming), control, report)
        if session.work.imported and runtime.is_main:
            run.update(weights_licence=session.work.imported.licence)
        resumed = restore(session)
        step = session.work.state.progress.step
        reason = f"Resumed at step {step}." if resumed else ""
        report.state("running", reason, device=str(runtime.device), precision=runtime.precision)
        ending: str = train(session)
        if ending != "paused":
            export.export_model(session)
        if ending == "finished":
            try:
                export.write_predictions(session, lambda: control.terminating)
            except Cancelled:
                ending = "paused"
        progress = session.work.state.progress
        if ending == "finished":
            report.event("done", score=progress.best_score, seconds=progress.seconds)
        report.state(ending, "" if ending == "finished" else f"Saved at step {progress.step}.")
        return ending
    finally:
        runtime.close()


def _announce(run: RunDirectory, report: Reporter) -> None:
    run.error_path.unlink(missing_ok=True)
    (run.path / ".reserve").write_bytes(bytes(RESERVE_BYTES))
    versions = {"training_backend": __version__, "python": platform.python_version(), "torch": version("torch")}
    run.beat()
    report.state("starting", started=time.time(), ended=None, versions=versions, **identity())


def _fail(run: RunDirectory, report: Reporter, error: Exception) -> None:
    """Write what went wrong where the viewer finds it; on a full disk the reserve makes room for it.

    Of several processes, the first to fail is the one to hear: the others lose their connection to it.
    """
    (run.path / ".reserve").unlink(missing_ok=True)
    facts = run.error() or {**_facts(error), "traceback": trace(error)}
    for words in (
        lambda: write_json(run.error_path, facts),
        lambda: report.state("failed", f"{facts['sentence']} {facts['hint']}".strip()),
    ):
        try:
            words()
        except (OSError, Med3dError) as silenced:
            log.error("the failure could not be recorded: %s", silenced)


def _facts(error: Exception) -> dict[str, Any]:
    from training_backend.engine.memory import is_out_of_memory

    if isinstance(error, Med3dError):
        return {"category": error.category, "sentence": error.sentence, "hint": error.hint}
    if is_out_of_memory(error):
        hint = "Use a smaller data.size or a smaller preset, or close other programs."
        return {"category": ResourceError.category, "sentence": f"The memory did not suffice: {error}.", "hint": hint}
    sentence = f"Training stopped on an unexpected error ({type(error).__name__}: {said(error)})."
    return {"category": "error", "sentence": sentence, "hint": "The traceback is in the log of the run."}


@contextmanager
def _hold(run: RunDirectory) -> Iterator[bool]:
    """Hold the run for this process; yields False when another living process has it."""
    lock = FileLock(run.path / ".run.lock")
    deadline = time.monotonic() + TAKEOVER_S
    while True:
        try:
            lock.acquire(timeout=0.1)
            break
        except Timeout:
            if _other_process(run):
                yield False
                return
            if time.monotonic() > deadline:
                raise RunError(f"The run {run.path.name} is locked by a process that cannot be found.") from None
    try:
        yield True
    finally:
        lock.release()


def _other_process(run: RunDirectory) -> bool:
    found = process(run.record())
    return found is not None and found.pid not in (os.getpid(), os.getppid())


def _attach(run: RunDirectory) -> int:
    """Wait for the process that has the run; answers what became of it."""
    log.info("the run is worked on by process %s; waiting for its end", run.record().get("pid"))
    while _other_process(run):
        time.sleep(0.2)
    return EXIT_CODES.get(str(run.record().get("state")), 1)


def _become_torchrun(run: RunDirectory, devices: int) -> None:
    """Replace this process, whose identity stays, by torchrun with one worker per device."""
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    command = [sys.executable, *arguments, "-m", "training_backend", "run", str(run.path.resolve())]
    os.execv(sys.executable, command)


def _heartbeat(run: RunDirectory, ended: threading.Event, control: Control) -> None:
    """Say that the process lives; one that was started for another process saves and ends when that is gone."""
    parent = psutil.Process().parent() if PARENT_VARIABLE in os.environ else None
    while not ended.wait(BEAT_S if parent is None else 1.0):
        with suppress(OSError):
            run.beat()
        if parent is not None and not parent.is_running():
            control.terminating = True


@contextmanager
def _log_of(run: RunDirectory) -> Iterator[None]:
    """Log to ``log.txt``: as standard error of a detached worker, or as a file beside the terminal's."""
    detached = WORKER_VARIABLE in os.environ
    handler = logging.StreamHandler() if detached else logging.FileHandler(run.log_path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


class _NoViewer(importlib.abc.MetaPathFinder):
    """Refuses to import the viewer and Qt, which a worker has no business with."""

    barred = frozenset({"napari", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6", "magicgui", "superqt", "pyqtgraph"})

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in self.barred:
            raise ImportError(f"A training process must not import {fullname}.")


def _bar_viewer_imports() -> None:
    if WORKER_VARIABLE in os.environ and not any(isinstance(finder, _NoViewer) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NoViewer())
