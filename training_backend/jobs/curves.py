"""Curves of several runs over each other: read from their events, smoothed, named for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training_backend.engine.rundir import RunDirectory
from training_backend.jobs.monitor import Monitor, Series
from training_backend.jobs.registry import RunSummary

FIRST = ("train/loss", "val/score", "val/loss")
"""Curves offered first."""
_SPLITS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Curves:
    """What the events of a run tell.

    Attributes:
        summary: the run now.
        series: by "split/quantity".
        damaged: lines that could not be read, a last one that was never finished included.
    """

    summary: RunSummary
    series: Mapping[str, Series]
    damaged: int


def read_curves(run: RunDirectory) -> Curves:
    """All curves of a run, as far as its events can be read."""
    monitor = Monitor(run)
    summary = monitor.update().summary
    broken = 0 if summary.alive else int(_ends_broken(run))
    return Curves(summary, monitor.series, monitor.damaged + broken)


def offered(runs: Iterable[Mapping[str, Series]]) -> list[str]:
    """Names of the curves that any of the runs has, those that are asked for most often first."""
    names = {name for series in runs for name in series}
    return [name for name in FIRST if name in names] + sorted(names - set(FIRST))


def title(name: str) -> str:
    """``train/loss`` as people say it: ``loss · training``."""
    split, _, quantity = name.partition("/")
    return f"{quantity.replace('_', ' ')} · {_SPLITS.get(split, split)}"


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving mean, its beginning corrected for what came before; what is not finite stays as it is.

    Args:
        values: of one curve.
        weight: of the past, 0 (no smoothing) to below 1.
    """
    if weight <= 0:
        return list(values)
    mean, share, result = 0.0, 1.0, []
    for value in values:
        if not math.isfinite(value):
            result.append(value)
            continue
        mean = weight * mean + (1 - weight) * value
        share *= weight
        result.append(mean / (1 - share))
    return result


def _ends_broken(run: RunDirectory) -> bool:
    try:
        with run.events_path.open("rb") as stream:
            if not stream.seek(0, 2):
                return False
            stream.seek(-1, 2)
            return bool(stream.read(1) != b"\n")
    except OSError:
        return False
