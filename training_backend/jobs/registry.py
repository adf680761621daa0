"""All runs of this user, live or dead, told from the disk alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from training_backend.config import RunConfig
from training_backend.engine.events import ENDED, parse_lines
from training_backend.engine.identity import is_here, process
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import RunError
from training_backend.files import write_json

STALE_S = 60.0
"""A run of another machine whose heartbeat is older than this cannot be reached."""
START_S = 60.0
"""A process that has not announced itself this long after its start is lost."""
TAIL_BYTES = 1 << 16

_TABLE: dict[str, tuple[str, tuple[str, ...]]] = {
    "queued": ("Waits for its turn.", ("start", "stop", "clone", "delete")),
    "starting": ("Starts: loads libraries, data and weights.", ("stop", "clone")),
    "running": ("Trains.", ("pause", "stop", "save", "preview", "clone")),
    "pausing": ("Saves before it pauses.", ("resume", "stop", "clone")),
    "paused": ("Paused at a saved step.", ("resume", "stop", "clone", "delete")),
    "stopping": ("Saves before it stops.", ("stop", "clone")),
    "finished": ("Finished; its model is saved.", ("clone", "delete")),
    "cancelled": ("Stopped; it goes on from its last checkpoint when resumed.", ("resume", "clone", "delete")),
    "failed": ("Failed.", ("resume", "clone", "delete")),
    "lost": (
        "Its process ended without a word; it goes on from its last checkpoint, if any.",
        ("resume", "clone", "delete"),
    ),
    "unreachable": ("Runs on another machine that has not been heard of for a while.", ("clone",)),
    "damaged": ("Its record cannot be read.", ("delete",)),
}
"""State to sentence and allowed actions; the only place where either is decided."""


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs.

    Attributes:
        state: a state of `engine.events.STATES`, or "lost", "unreachable" or "damaged", concluded here.
        sentence: the state in words, with the reason where there is one.
        actions: what may be asked of the run now: start, pause, resume, stop, save, preview, clone, delete.
        step: last step reported; `steps` is the planned total, 0 while unknown.
        score: best validation score (fine-tuning) or lowest validation loss (pre-training), or None.
        alive: whether its process runs, as far as can be told from here.
    """

    path: Path
    id: str
    name: str
    kind: str
    method: str
    task: str | None
    state: str
    sentence: str
    actions: tuple[str, ...]
    created: float
    step: int = 0
    steps: int = 0
    score: float | None = None
    loss: float | None = None
    eta_s: float | None = None
    memory_mb: float | None = None
    host: str = ""
    pid: int | None = None
    alive: bool = False
    started: float | None = None
    ended: float | None = None


def runs_root() -> Path:
    """Folder of new runs: ``MED3DSSL_RUNS`` if set, else the user's data folder; made when missing."""
    chosen = os.environ.get("MED3DSSL_RUNS")
    root = Path(chosen) if chosen else user_data_path("med3dssl", appauthor=False) / "runs"
    root.mkdir(parents=True, exist_ok=True)
    return root


def new_run(config: RunConfig, name: str = "", root: Path | None = None) -> RunDirectory:
    """New run directory under `root`, its folder named after `name` (or method and task) and never an existing one."""
    parts = [config.method.name, config.task.name if config.task else "pretrain", time.strftime("%Y%m%d-%H%M%S")]
    folder = free_folder(name or "-".join(parts), root)
    return RunDirectory.create(folder, config, name or _file_safe("-".join(parts)))


def free_folder(name: str, root: Path | None = None) -> Path:
    """Folder under `root` that does not exist yet, named after `name`."""
    stem = _file_safe(name)
    folder = (root or runs_root()) / stem
    number = 2
    while folder.exists():
        folder = folder.with_name(f"{stem}-{number}")
        number += 1
    return folder


def list_runs(root: Path | None = None) -> list[RunSummary]:
    """Every run below `root` (`runs_root` by default) and every remembered one elsewhere, newest first."""
    base = root or runs_root()
    folders = {entry.parent.resolve() for entry in base.glob("*/run.json")} | set(_known(base))
    return sorted((summary(RunDirectory(folder)) for folder in folders), key=lambda run: run.created, reverse=True)


def remember(run: RunDirectory, root: Path | None = None) -> None:
    """List a run that lies outside `root` from now on."""
    base = root or runs_root()
    folder = run.path.resolve()
    if folder.parent == base.resolve():
        return
    known = _known(base)
    if folder not in known:
        write_json(base / "known.json", [str(path) for path in (*known, folder)])


def summary(run: RunDirectory | Path) -> RunSummary:
    """What is known of a run now; never raises for a damaged one."""
    run = run if isinstance(run, RunDirectory) else RunDirectory(Path(run))
    try:
        record = run.record()
    except RunError as error:
        return _damaged(run, str(error))
    state, alive = _state(run, record)
    sentence, actions = _TABLE.get(state, _TABLE["damaged"])
    reason = str(record.get("reason") or "")
    if reason and state in (*ENDED, "paused", "pausing", "queued"):
        sentence = reason if state == "failed" else f"{sentence} {reason}".strip()
    if record.get("kind") == "plan":
        actions = tuple(action for action in actions if action != "clone")
    if alive:
        actions = tuple(action for action in actions if action != "delete")
    return RunSummary(
        path=run.path,
        id=str(record.get("id", run.path.name)),
        name=str(record.get("name", run.path.name)),
        kind=str(record.get("kind", "")),
        method=str(record.get("method", "")),
        task=record.get("task"),
        state=state,
        sentence=sentence,
        actions=actions,
        created=float(record.get("created") or 0.0),
        host=str(record.get("host", "")),
        pid=record.get("pid"),
        alive=alive,
        started=record.get("started"),
        ended=record.get("ended"),
        **_progress(run.events_path, running=alive),
    )


def clone(
    run: RunDirectory, name: str = "", changes: Mapping[str, Any] | None = None, root: Path | None = None
) -> RunDirectory:
    """New queued run with the settings of `run` and nested `changes` laid over them."""
    config = run.config().updated(dict(changes or {}))
    return new_run(config, name or f"{run.record().get('name', run.path.name)} copy", root or run.path.parent)


def delete(run: RunDirectory) -> None:
    """Remove a run with all its files; refuses one whose process lives."""
    found = summary(run)
    if "delete" not in found.actions:
        raise RunError(f"The run {found.name} cannot be deleted while it is {found.state}.", "Stop it first.")
    grave = run.path.with_name(f".deleted-{run.path.name}-{time.time_ns()}")
    run.path.rename(grave)  # gone from the list at once, even if removing its files takes long
    shutil.rmtree(grave, ignore_errors=True)


def _progress(path: Path, running: bool) -> dict[str, Any]:
    """`progress` after the last events, without what only a living run can promise."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return {}
    found = dict(_progress_at(path, facts.st_size, facts.st_mtime_ns))
    if not running:
        found.pop("eta_s", None)
    return found


@lru_cache(maxsize=1024)
def _progress_at(path: Path, size: int, modified: int) -> dict[str, Any]:
    """`progress` of a file that is read again only when its size or time has changed."""
    return progress(last_events(path))


def last_events(path: Path, size: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """Whole events within the last `size` bytes of an events file."""
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - size))
            block = stream.read()
    except FileNotFoundError:
        return []
    if end > size:
        block = block.partition(b"\n")[2]
    return parse_lines(block)[0]


def progress(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`step`, `steps`, `loss`, `score`, `eta_s` and `memory_mb` after `events`."""
    found: dict[str, Any] = {}
    for event in events:
        if event["type"] in ("metrics", "state", "checkpoint"):
            found["step"] = int(event.get("step", 0))
        if event["type"] == "metrics" and event.get("split") == "train":
            found["loss"] = event.get("values", {}).get("loss")
            found.update({key: event[key] for key in ("steps", "eta_s", "memory_mb") if key in event})
        if event.get("best_score") is not None:
            found["score"] = event["best_score"]
        if event["type"] == "done":
            found["score"] = event.get("score")
    return found


def _state(run: RunDirectory, record: Mapping[str, Any]) -> tuple[str, bool]:
    """State as a reader concludes it, and whether the process lives."""
    state = str(record.get("state", "damaged"))
    if state in ENDED or state == "queued":
        return state, state in ENDED and process(record) is not None
    if not is_here(record):
        fresh = _age(run.heartbeat) < STALE_S
        return (state if fresh or state == "paused" else "unreachable"), fresh
    if process(record) is not None:
        return _asked_for(run, state), True
    if state == "paused":
        return state, False  # a long pause gives the device back by ending the process
    if state == "starting" and not record.get("pid") and time.time() - float(record.get("launched") or 0) < START_S:
        return state, True
    return "lost", False


def _asked_for(run: RunDirectory, state: str) -> str:
    """State of a living run with what was asked of it and not yet obeyed."""
    if state not in ("starting", "running"):
        return state
    pending = run.pending()
    return "stopping" if "stop" in pending else "pausing" if "pause" in pending else state


def _damaged(run: RunDirectory, sentence: str) -> RunSummary:
    created = run.path.stat().st_mtime if run.path.exists() else 0.0
    actions = _TABLE["damaged"][1]
    return RunSummary(run.path, run.path.name, run.path.name, "", "", None, "damaged", sentence, actions, created)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _known(root: Path) -> list[Path]:
    try:
        paths = [Path(text) for text in json.loads((root / "known.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
    return [path for path in paths if (path / "run.json").is_file()]


def _file_safe(name: str) -> str:
    text = unicodedata.normalize("NFC", name).strip()
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "run"
