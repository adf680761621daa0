"""A run that is being worked on: its work, its directory, and how it saves, returns and speaks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from training_backend.engine import checkpoint
from training_backend.engine.control import Control
from training_backend.engine.files import write_json
from training_backend.engine.report import Reporter, log
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.work import Work
from training_backend.errors import ResourceError, TrainingDiverged

T = TypeVar("T")


@dataclass
class Session:
    """One process's hold on a run.

    Attributes:
        quarantined: cases that could not be read, each reported once.
        saved_step, saved_at: of the last checkpoint; the step is None before the first.
        previewed_at: when the last pictures were written.
    """

    run: RunDirectory
    work: Work
    control: Control
    report: Reporter
    quarantined: set[str] = field(default_factory=set)
    saved_step: int | None = None
    saved_at: float = field(default_factory=time.monotonic)
    previewed_at: float = float("-inf")


def restore(session: Session) -> bool:
    """Go to the newest checkpoint that verifies; says loudly when a damaged one was passed over."""
    root, runtime = session.run.checkpoints, session.work.runtime
    if runtime.is_main:
        checkpoint.tidy(root)
    folder, complaints = runtime.from_main(checkpoint.newest_verified(root) if runtime.is_main else None)
    for complaint in complaints:
        session.report.warning(complaint, "checkpoint")
    if folder is None:
        return False
    _load(session, folder)
    return True


def save(session: Session, *, reason: str = "") -> None:
    """Write a checkpoint of this step; on a full disk older ones make room first.

    Raises:
        ResourceError: the disk is full even so; every checkpoint that was kept is intact.
    """
    work, progress = session.work, session.work.state.progress
    session.saved_step, session.saved_at = progress.step, time.monotonic()
    if not work.runtime.is_main:
        return
    root, saved = session.run.checkpoints, work.state.saved(work.runtime.scaler_state())
    folder = with_room(session, lambda: checkpoint.write(root, progress.step, saved))
    best = progress.best_step == progress.step
    write_json(session.run.checkpoints / "latest.json", {"folder": folder.name})
    if best:
        write_json(session.run.checkpoints / "best.json", {"folder": folder.name, "score": progress.best_score})
    checkpoint.prune(root, work.config.engine.keep_last, _protected(session))
    session.report.event("checkpoint", folder=f"checkpoints/{folder.name}", best=best)
    log.info("saved %s%s", folder.name, f" ({reason})" if reason else "")


def with_room(session: Session, write: Callable[[], T]) -> T:
    """Result of `write`; on a full disk all checkpoints but the newest and the best make room and it is tried again.

    Raises:
        ResourceError: the disk is full even so.
    """
    try:
        return write()
    except ResourceError as error:
        checkpoint.prune(session.run.checkpoints, 1, _protected(session))
        result = write()
        session.report.warning(f"{error} Older checkpoints made room; free space before the next save.", "resource")
        return result


def roll_back(session: Session) -> None:
    """Return to the newest checkpoint from before the non-finite steps, with half the learning rate."""
    work = session.work
    guard = work.state.progress.guard
    root = session.run.checkpoints
    unspoilt = checkpoint.newest_verified(root, lambda state: not state["guard"]["skipped"])[0]
    folder = work.runtime.from_main(unspoilt)
    if folder is None:
        raise TrainingDiverged("The loss is not a finite number, and no earlier checkpoint is left to return to.")
    suspects = guard.suspects
    _load(session, folder)
    progress = work.state.progress
    progress.guard.rollbacks, progress.guard.lr_factor = guard.rollbacks, guard.lr_factor
    progress.guard.suspects = suspects
    progress.guard.rolled_back()
    if work.runtime.is_main:
        for newer in checkpoint.all_steps(root):
            if checkpoint.step_of(newer) > progress.step:
                checkpoint.remove(newer)
    save(session, reason="rolled back")


def _load(session: Session, folder: Path) -> None:
    work = session.work
    saved = checkpoint.read(folder)
    work.state.restore(saved)
    work.runtime.load_scaler_state(dict(saved.state["scaler"]))
    session.saved_step = session.report.step = work.state.progress.step


def _protected(session: Session) -> set[int]:
    """Steps whose checkpoints are never pruned: the best one, and the newest from before non-finite steps."""
    progress = session.work.state.progress
    kept = set() if progress.best_step is None else {progress.best_step}
    if progress.guard.skipped:
        before = [
            checkpoint.step_of(folder)
            for folder in checkpoint.all_steps(session.run.checkpoints)
            if checkpoint.step_of(folder) < progress.guard.skipped[0] + 1
        ]
        kept |= set(before[-1:])
    return kept
