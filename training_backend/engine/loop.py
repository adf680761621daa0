"""The training loop, the same for every method and task.

Between two optimiser steps the run is at a *boundary*: there it validates, saves, shows pictures and obeys requests.
All it does at a boundary is a function of the step and of what others ask for, so a run that was resumed from a
checkpoint does what the run before it would have done.
"""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Literal

from training_backend.data.streams import unread
from training_backend.engine.clock import Clock
from training_backend.engine.preview import write_preview
from training_backend.engine.report import log
from training_backend.engine.session import Session, roll_back, save
from training_backend.engine.step import Outcome, optimise
from training_backend.engine.validate import improves, validate
from training_backend.errors import DataError, Med3dError, said
from training_backend.tasks.base import Cancelled

if TYPE_CHECKING:
    from training_backend.data.loader import StepViews

Ending = Literal["finished", "cancelled", "paused"]

LONG_PAUSE_S = 600.0
"""A pause longer than this ends the process, which gives the device's memory back; resuming starts it anew."""
UNREADABLE_STEPS = 10
"""Steps in a row without a single readable view after which the run gives up."""


def train(session: Session) -> Ending:
    """Train until the planned end or until asked to stop or pause; every ending is at a saved step."""
    work = session.work
    clock = Clock()
    for sentence in work.loader.left_out:
        session.report.warning(sentence, "data")
    while True:
        batches = work.batches(work.state.progress.step)
        for views in itertools.chain([None], batches):  # a boundary comes first, before any view is read
            if views is not None and not _step(session, views, clock):
                break  # rolled back: the views of another step are next
            ending = _boundary(session)
            if ending is not None:
                return ending
            clock.boundary_done()


def _boundary(session: Session) -> Ending | None:
    """Validate, save, show and obey what is due after the last step; answers how the run ends, if it does."""
    work, progress = session.work, session.work.state.progress
    asked = _asked(session)
    done = _is_done(session)
    due = done or (progress.step > 0 and progress.step % work.validation_steps == 0)
    if due and progress.validated != progress.step and "terminate" not in asked:
        try:
            _validate(session)
        except Cancelled:
            asked |= {"terminate"}
        done = _is_done(session)
    if _save_is_due(session, asked, done):
        save(session, reason=", ".join(sorted(asked - {"preview", "time"})))
        _obeyed(session, "save")
    if "preview" in asked:
        _preview(session)
    if "terminate" in asked:
        return "paused"
    if done or "stop" in asked:
        _obeyed(session, "stop")
        return "finished" if done else "cancelled"
    return _pause(session) if "pause" in asked else None


def _asked(session: Session) -> set[str]:
    """Requests that stand, "time" for a save and "preview" for pictures that are due by the clock; agreed by all."""
    engine = session.work.config.engine
    asked = session.control.pending()
    now = time.monotonic()
    if now - session.saved_at >= 60 * engine.checkpoint_minutes:
        asked |= {"time"}
    if engine.preview_minutes and now - session.previewed_at >= 60 * engine.preview_minutes:
        asked |= {"preview"}
    return set(session.work.runtime.from_main(asked))


def _is_done(session: Session) -> bool:
    work, progress = session.work, session.work.state.progress
    patience = work.config.engine.early_stop
    stalled = patience is not None and progress.stale >= patience
    return progress.step >= work.total_steps or stalled


def _save_is_due(session: Session, asked: set[str], done: bool) -> bool:
    progress, every = session.work.state.progress, session.work.config.engine.checkpoint_steps
    if session.saved_step == progress.step:
        return False
    if session.saved_step is None or done or asked & {"stop", "pause", "save", "terminate", "time"}:
        return True
    return progress.best_step == progress.step or (every is not None and progress.step % every == 0)


def _validate(session: Session) -> None:
    work, progress = session.work, session.work.state.progress
    values = validate(work, lambda: session.control.terminating)
    progress.validated = progress.step
    session.saved_step = None if session.saved_step == progress.step else session.saved_step
    score = values.pop("score", None)
    if score is None:
        if work.task is not None and progress.step == work.validation_steps:
            session.report.warning("No validation case has what the task needs, so no score is measured.", "data")
        return
    if improves(work, score):
        progress.best_score, progress.best_step, progress.best_values = score, progress.step, values
        progress.stale = 0
    else:
        progress.stale += 1
    best = {"best_score": progress.best_score, "best_step": progress.best_step}
    session.report.event("metrics", split="val", epoch=_epoch(session), values=values, score=score, **best)
    log.info("step %d: validation score %.5g, best %.5g", progress.step, score, progress.best_score or math.nan)


def _step(session: Session, views: StepViews, clock: Clock) -> bool:
    """One optimiser step; False when the run went back to an earlier checkpoint instead."""
    work, progress = session.work, session.work.state.progress
    clock.views_ready()
    _quarantine(session, views)
    try:
        outcome = optimise(work, views, lambda: session.control.terminating)
    except Cancelled:
        return True
    if outcome.shrunk:
        micro = progress.micro_batch
        message = f"Memory ran out; forward passes now take {micro} views at a time, the batch stays as it is."
        session.report.warning(message, "resource")
    if not outcome.finite and not _skip(session, outcome):
        return False
    clock.unreadable = 0 if outcome.views and not unread(views) else clock.unreadable + 1
    if clock.unreadable >= UNREADABLE_STEPS:
        raise DataError(
            f"No case could be read in {UNREADABLE_STEPS} steps in a row.", "Is the dataset still in its place?"
        )
    progress.step += 1
    progress.seconds += clock.step_done()
    progress.guard.good(progress.step)
    session.report.step = progress.step
    if outcome.finite and outcome.views and progress.step % work.config.engine.log_steps == 0:
        _report(session, outcome, clock)
    return True


def _skip(session: Session, outcome: Outcome) -> bool:
    """Deal with a step whose loss or gradient is not finite; False after a roll-back."""
    progress, cases = session.work.state.progress, sorted(set(outcome.suspects))
    verdict = progress.guard.bad(progress.step, cases)
    what = "the step was skipped" if verdict == "skip" else "the run returns to an earlier checkpoint, at half the rate"
    sentence = f"Loss or gradient of step {progress.step + 1} is not a finite number; {what}."
    session.report.warning(sentence, "diverged", cases)
    if verdict == "skip":
        return True
    roll_back(session)
    return False


def _quarantine(session: Session, views: StepViews) -> None:
    for case, sentence in session.work.runtime.gather(views.failures):
        if case not in session.quarantined:
            session.quarantined.add(case)
            session.report.warning(f"{case} cannot be read and is left out: {sentence}", "data", [case])


def _report(session: Session, outcome: Outcome, clock: Clock) -> None:
    work, progress = session.work, session.work.state.progress
    session.report.event(
        "metrics",
        split="train",
        epoch=_epoch(session),
        values={"loss": outcome.loss, "grad_norm": outcome.grad_norm, **outcome.scalars},
        lr=outcome.lr,
        step_s=clock.step_s,
        processor_s=clock.processor_s,
        loader_s=clock.loader_s,
        memory_mb=work.runtime.memory_mb(),
        steps=work.total_steps,
        best_score=progress.best_score,
        eta_s=clock.mean() * (work.total_steps - progress.step),
    )
    log.info("step %d/%d: loss %.5g, %.3f s", progress.step, work.total_steps, outcome.loss, clock.step_s)


def _epoch(session: Session) -> float:
    return session.work.state.progress.step / session.work.steps_per_epoch


def _preview(session: Session) -> None:
    work = session.work
    if work.runtime.is_main:
        try:
            written = write_preview(work, session.run.previews)
        except (Med3dError, OSError, RuntimeError) as error:  # pictures are no reason to lose a run
            session.report.warning(f"No pictures were written: {said(error)}", "preview")
            written = None
        if written is not None:
            folder, case = written
            session.report.event("preview", folder=folder.relative_to(session.run.path).as_posix(), case=case)
    session.previewed_at = time.monotonic()
    _obeyed(session, "preview")


def _pause(session: Session) -> Ending | None:
    """Wait while the request stands; answers "paused" when it stands so long that the process should end."""
    session.report.state("paused", f"Paused at step {session.work.state.progress.step}.")
    session.work.runtime.free_memory()
    deadline = time.monotonic() + LONG_PAUSE_S
    while True:
        asked = set(session.work.runtime.from_main(session.control.pending()))
        late = session.work.runtime.any(time.monotonic() > deadline)
        if "terminate" in asked or (late and "pause" in asked):
            _obeyed(session, "pause")
            return "paused"
        if "stop" in asked:
            _obeyed(session, "stop", "pause")
            return "cancelled"
        if "pause" not in asked:
            session.report.state("running")
            return None
        time.sleep(0.2)


def _obeyed(session: Session, *requests: str) -> None:
    if session.work.runtime.is_main:
        for request in requests:
            session.control.obeyed(request)
