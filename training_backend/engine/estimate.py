"""How long a run would take and what memory it would need, measured on a few real steps of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from training_backend.config import RunConfig
from training_backend.engine.runtime import Runtime
from training_backend.engine.step import optimise
from training_backend.engine.work import Work, open_work

if TYPE_CHECKING:
    from training_backend.data.views import StepViews


@dataclass(frozen=True)
class Estimate:
    """What a few steps of a run foretell; `loader_s` is the part of `step_s` spent waiting for views.

    Attributes:
        step_s: of a step; where the run has a teacher later, before it has one.
        total_s: of all `total_steps`, without validation and saving.
        memory_mb: peak of the device memory, or of this process on a CPU; with the teacher, for runs that get one.
        micro_batch: views per forward pass that fit.
    """

    step_s: float
    loader_s: float
    total_s: float
    total_steps: int
    memory_mb: float
    micro_batch: int
    parameters: int
    device: str
    precision: str
    teacher_step: int | None = None
    """Step from which on a snapshot of the network labels for it, where the run has one."""
    teacher_step_s: float | None = None
    """Seconds of a step from then on."""

    def __str__(self) -> str:
        """One sentence, and another one on the teacher."""
        said = (
            f"About {_duration(self.total_s)} for {self.total_steps} steps of {self.step_s:.2g} s on {self.device} "
            f"({self.precision}), {self.memory_mb / 1024:.1f} GB of memory, {self.parameters / 1e6:.1f} M parameters, "
            f"{self.micro_batch} views at a time."
        )
        if self.teacher_step_s is None:
            return said
        return (
            f"{said} From step {self.teacher_step} on a copy of the network labels for it, and steps take "
            f"{self.teacher_step_s:.2g} s; time and memory count that."
        )


def estimate(config: RunConfig, steps: int = 3) -> Estimate:
    """Build everything that a run of `config` would build and train `steps` steps after one to warm up.

    Raises:
        ResourceError: not even a single view fits into the memory.
    """
    runtime = Runtime(config.engine)
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    work = open_work(config.updated({"data": {"workers": 0}}), runtime)
    due, work.snapshot_step = work.snapshot_step, None  # measured by itself below
    step_s, loader_s = _timed(work, work.batches(), steps)
    total_s, teacher_step_s = step_s * work.total_steps, None
    if due is not None and due < work.total_steps:
        work.state.take_snapshot(work.state.network.state_dict())
        work.state.progress.step = due  # schedules, and the views, are those of that step
        teacher_step_s, _ = _timed(work, work.batches(due), min(steps, work.total_steps - due - 1))
        total_s = step_s * due + teacher_step_s * (work.total_steps - due)
    return Estimate(
        step_s=step_s,
        loader_s=loader_s,
        total_s=total_s,
        total_steps=work.total_steps,
        memory_mb=runtime.memory_mb(),
        micro_batch=work.state.progress.micro_batch,
        parameters=sum(parameter.numel() for parameter in work.state.network.parameters()),
        device=str(runtime.device),
        precision=runtime.precision,
        teacher_step=None if teacher_step_s is None else due,
        teacher_step_s=teacher_step_s,
    )


def _timed(work: Work, batches: Iterator[StepViews], steps: int) -> tuple[float, float]:
    """Median seconds of a step, and of its waiting for views, over `steps` steps after one to warm up."""
    waits, totals = [], []
    for _ in range(min(steps + 1, work.total_steps)):
        began = time.perf_counter()
        views = next(batches)
        waits.append(time.perf_counter() - began)
        optimise(work, views)
        work.state.progress.step += 1
        totals.append(time.perf_counter() - began)
    measured = slice(1, None) if len(totals) > 1 else slice(None)
    return statistics.median(totals[measured]), statistics.median(waits[measured])


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
