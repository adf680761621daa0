"""Runs a training run from a terminal: start or resume it, show its progress, and stop it on Ctrl+C."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from training_backend.config import RunConfig
from training_backend.data.ar_lists import check_source
from training_backend.engine.rundir import RunDirectory, located
from training_backend.errors import ConfigError
from training_backend.jobs.launcher import launch, stop
from training_backend.jobs.monitor import Monitor
from training_backend.jobs.registry import RunSummary, delete, summary

ENDED = ("finished", "cancelled", "failed", "lost", "unreachable", "damaged")
POLL_S = 0.5


@dataclass(frozen=True)
class RunReport:
    """How a run stands; `ok` unless it failed or was lost."""

    summary: RunSummary

    @property
    def ok(self) -> bool:
        """Whether the run finished, was stopped on request, or still goes on."""
        return self.summary.state not in ("failed", "lost", "damaged")

    def __str__(self) -> str:
        """One line to read."""
        run = self.summary
        score = "" if run.score is None else f", best {run.score:.4f}"
        return f"{run.name}: {run.state} at step {run.step} of {run.steps}{score}. {run.sentence} ({run.path})"


def train(config: RunConfig, output: Path, *, detach: bool = False) -> RunReport:
    """Start a run in `output`, or resume the one that is there, and wait for its end.

    Args:
        config: what to run.
        output: run directory; an existing one must have the same settings.
        detach: return as soon as the process has started.

    Raises:
        ConfigError: `output` holds a run with other settings.
        DataError: the dataset of `config` is not there.
    """
    output = Path(output)
    check_source(config)  # a wrong folder is told before a run directory is made for it
    if (output / "run.json").exists():
        run = RunDirectory.open(output)
        if run.config() != located(config) and _has_learnt_nothing(run):
            delete(run)  # say, one that failed since its weights were misspelt
            run = RunDirectory.create(output, config)
        elif run.config() != located(config):
            raise ConfigError(
                f"{output} holds a run with other settings.", "Choose another --output, or clone that run."
            )
        if summary(run).state == "finished":
            return RunReport(summary(run))
    else:
        run = RunDirectory.create(output, config)
    return resume(run, detach=detach)


def resume(run: RunDirectory, *, detach: bool = False) -> RunReport:
    """Start or continue a run and, unless detached, follow it to its end."""
    launch(run)
    return RunReport(summary(run)) if detach else follow(run)


def follow(run: RunDirectory) -> RunReport:
    """Show progress and warnings of a live run until it ends; Ctrl+C asks it to save and stop."""
    from tqdm import tqdm

    monitor = Monitor(run)
    asked_to_stop = False
    shown = 0
    with tqdm(unit="step", file=sys.stderr, mininterval=1.0, dynamic_ncols=True) as bar:
        while True:
            try:
                now = monitor.update().summary
                bar.total = now.steps or None
                bar.n = now.step
                bar.set_description_str(_described(now), refresh=sys.stderr.isatty())
                for warning in monitor.warnings[shown:]:
                    bar.write(f"warning: {warning}", file=sys.stderr)
                shown = len(monitor.warnings)
                if now.state in ENDED and not now.alive:
                    return RunReport(now)
                time.sleep(POLL_S)
            except KeyboardInterrupt:
                if asked_to_stop:
                    raise
                asked_to_stop = True
                stop(run)
                bar.write("Stopping at the next step; press Ctrl+C again to leave it to itself.", file=sys.stderr)


def _has_learnt_nothing(run: RunDirectory) -> bool:
    """Whether a run ended before its first checkpoint."""
    return summary(run).state in ("failed", "cancelled", "lost") and not any(run.checkpoints.glob("step_*"))


def _described(run: RunSummary) -> str:
    loss = "" if run.loss is None else f" loss {run.loss:.4f}"
    return f"{run.state}{loss}"
