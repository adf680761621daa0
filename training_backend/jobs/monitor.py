"""Follows a run by reading only what was appended since the last look; cheap enough for a timer of a user interface."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training_backend.engine.events import EventReader
from training_backend.engine.rundir import RunDirectory
from training_backend.jobs.registry import RunSummary, summary

LOG_BLOCK = 1 << 16
"""Largest piece of the log returned by one look; the first look begins this far from its end."""


@dataclass
class Series:
    """One curve: `values[i]` at `steps[i]`, steps strictly increasing."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        """Append a point; points at or behind `step` were undone by a resume or roll-back and go."""
        if self.steps and self.steps[-1] >= step:
            keep = bisect_left(self.steps, step)
            del self.steps[keep:], self.values[keep:]
        self.steps.append(step)
        self.values.append(value)


@dataclass(frozen=True)
class Update:
    """What is new since the last look."""

    summary: RunSummary
    events: list[dict[str, Any]]
    log: str


class Monitor:
    """Follows one run.

    Attributes:
        series: curves by "split/name", e.g. "train/loss", "val/score", "train/lr".
        preview: folder of the newest pictures, or None.
        warnings: sentences of all warnings so far.
    """

    def __init__(self, run: RunDirectory | Path) -> None:
        self.run = run if isinstance(run, RunDirectory) else RunDirectory(Path(run))
        self.series: dict[str, Series] = {}
        self.preview: Path | None = None
        self.warnings: list[str] = []
        self._reader = EventReader(self.run.events_path)
        self._log_offset: int | None = None

    @property
    def damaged(self) -> int:
        """Lines of the events that could not be read so far."""
        return self._reader.damaged

    def update(self) -> Update:
        """Read what was appended and fold it into the attributes."""
        events = self._reader.read()
        for event in events:
            self._fold(event)
        return Update(summary(self.run), events, self._read_log())

    def _fold(self, event: dict[str, Any]) -> None:
        kind, step = event["type"], int(event.get("step", 0))
        if kind == "metrics":
            split = event.get("split", "train")
            numbers = {**event.get("values", {}), **{key: event[key] for key in ("lr", "score") if key in event}}
            for name, value in numbers.items():
                if isinstance(value, int | float):
                    self.series.setdefault(f"{split}/{name}", Series()).add(step, float(value))
        elif kind == "preview":
            self.preview = self.run.path / str(event.get("folder", ""))
        elif kind == "warning":
            self.warnings.append(str(event.get("message", "")))

    def _read_log(self) -> str:
        try:
            with self.run.log_path.open("rb") as stream:
                end = stream.seek(0, 2)
                if self._log_offset is None or self._log_offset > end:
                    self._log_offset = max(0, end - LOG_BLOCK)
                stream.seek(self._log_offset)
                block: bytes = stream.read(LOG_BLOCK)
        except FileNotFoundError:
            return ""
        self._log_offset += len(block)
        return block.decode("utf-8", errors="replace")
