"""The run directory: the only contract between a training process and everyone else.

::

    run.json      schema, id, kind, name, state, reason, pid, pid_created, host, created, started, ended, versions
    config.yaml   the RunConfig that runs
    events.jsonl  see `events`
    log.txt       standard output and error of the process
    error.json    category, sentence, hint, traceback; only after a failure
    heartbeat     touched every few seconds while the process lives
    control/      empty files as requests: stop, pause, save, preview; removed when obeyed
    checkpoints/  step_00000100/ ... each a verified directory; best.json and latest.json name one of them
    previews/     step_00000100/ preview.json + NAME.npy
    predictions/  validation predictions of the best model as label volumes, with cases.json; or values.json
    model.safetensors, card.json   the result; teacher.safetensors beside them where a run learnt from one
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from training_backend.config import RunConfig
from training_backend.errors import RunError
from training_backend.files import write_json, write_text

SCHEMA = 1
REQUESTS = ("stop", "pause", "save", "preview")


@dataclass(frozen=True)
class RunDirectory:
    """Paths and small files of one run; holds no state of its own."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: RunConfig, name: str = "") -> RunDirectory:
        """New run in state "queued"; refuses a folder that already holds one."""
        facts = {"kind": config.kind, "method": config.method.name, "task": config.task.name if config.task else None}
        return cls.begun(path, located(config).to_yaml(), facts, name)

    @classmethod
    def begun(cls, path: Path, config: str, facts: dict[str, Any], name: str = "") -> RunDirectory:
        """New run of any kind in state "queued", with the text of its ``config.yaml`` and further keys of a record."""
        run = cls(Path(path))
        if run.record_path.exists():
            raise RunError(f"{path} already holds a run.", "Choose another folder, or resume it.")
        run.control.mkdir(parents=True, exist_ok=True)
        write_text(run.config_path, config)
        own = {"schema": SCHEMA, "id": run.path.name, "name": name or run.path.name, **facts}
        origin = {"state": "queued", "reason": "", "host": socket.gethostname(), "created": time.time()}
        write_json(run.record_path, {**own, **origin})
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Existing run, or a `RunError` that says what is missing."""
        run = cls(Path(path))
        if not run.record_path.is_file():
            raise RunError(f"{path} is not a run directory: it has no run.json.")
        return run

    record_path = property(lambda self: self.path / "run.json")
    config_path = property(lambda self: self.path / "config.yaml")
    events_path = property(lambda self: self.path / "events.jsonl")
    log_path = property(lambda self: self.path / "log.txt")
    error_path = property(lambda self: self.path / "error.json")
    heartbeat = property(lambda self: self.path / "heartbeat")
    control = property(lambda self: self.path / "control")
    checkpoints = property(lambda self: self.path / "checkpoints")
    previews = property(lambda self: self.path / "previews")
    predictions = property(lambda self: self.path / "predictions")
    model_path = property(lambda self: self.path / "model.safetensors")
    card_path = property(lambda self: self.path / "card.json")

    def record(self) -> dict[str, Any]:
        """Contents of ``run.json``."""
        try:
            value: dict[str, Any] = json.loads(self.record_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"The record of run {self.path.name} cannot be read: {error}") from error
        return value

    def update(self, **values: Any) -> None:
        """Change keys of ``run.json`` atomically; two processes that change different keys do not undo each other."""
        with FileLock(self.path / ".record.lock", timeout=10):
            write_json(self.record_path, {**self.record(), **values})

    def config(self) -> RunConfig:
        """The configuration that runs; a plan has none of its own, but its stages have."""
        if (self.path / "plan.yaml").is_file():
            raise RunError(
                f"{self.path.name} is a plan of several runs, not a single one.",
                f"Choose one of its stages, in {self.path / 'stages'}.",
            )
        return RunConfig.load(self.config_path)

    def request(self, what: str) -> None:
        """Ask the run to stop, pause, save or preview; withdrawing "pause" resumes."""
        if what not in REQUESTS:
            raise RunError(f"A run can be asked to {', '.join(REQUESTS)}; {what!r} is none of these.")
        self.control.mkdir(exist_ok=True)
        (self.control / what).touch()

    def withdraw(self, what: str) -> None:
        """Take a request back; no error if it is not there."""
        (self.control / what).unlink(missing_ok=True)

    def pending(self) -> set[str]:
        """All requests that stand, found with one look at the folder."""
        try:
            return {entry.name for entry in os.scandir(self.control)} & set(REQUESTS)
        except FileNotFoundError:
            return set()

    def requested(self, what: str) -> bool:
        """Whether a request stands."""
        path: Path = self.control / what
        return path.exists()

    def beat(self) -> None:
        """Say that the process lives."""
        self.heartbeat.touch()
        os.utime(self.heartbeat)

    def error(self) -> dict[str, Any] | None:
        """Contents of ``error.json``, or None."""
        try:
            value: dict[str, Any] = json.loads(self.error_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value


def located(config: RunConfig) -> RunConfig:
    """`config` whose files are found from any working directory."""
    weights, sequence = Path(config.weights), config.data.sequence
    data: dict[str, Any] = {"dataset": Path(config.data.dataset).resolve()}
    lesions = sequence.lesions and sequence.lesions.resolve()
    data["sequence"] = {"lesions": lesions, "lists": tuple(path.resolve() for path in sequence.lists)}
    if config.data.labelled is not None and config.data.labelled.dataset is not None:
        data["labelled"] = {"dataset": config.data.labelled.dataset.resolve()}
    changes: dict[str, Any] = {"data": data, "method": config.method.located()}
    if config.task is not None:
        changes["task"] = config.task.located()
    if config.weights and weights.exists():
        changes["weights"] = str(weights.resolve())
    return config.updated(changes)
