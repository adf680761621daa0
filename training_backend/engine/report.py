"""What a run says about itself: its record, its events and its log. Only the main process speaks."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from training_backend.engine.events import ENDED, EventWriter
from training_backend.engine.rundir import RunDirectory

log = logging.getLogger("training_backend.run")


class Reporter:
    """Writes events and state of a run; silent in all processes but the main one.

    Attributes:
        step: step that events are stamped with; the loop moves it.
    """

    def __init__(self, run: RunDirectory, main: bool = True) -> None:
        self._run = run
        self._events = EventWriter(run.events_path) if main else None
        self.step = 0

    def state(self, state: str, reason: str = "", **record: Any) -> None:
        """Change the run's state, on the record and as an event; `record` holds further keys of ``run.json``."""
        if self._events is None:
            return
        if state in ENDED:
            record["ended"] = time.time()
        self._run.update(state=state, reason=reason, **record)
        self.event("state", state=state, reason=reason)
        log.info("%s%s", state, f": {reason}" if reason else "")

    def event(self, type: str, **values: Any) -> None:
        """Append an event of the present step."""
        if self._events is not None:
            self._events.write(type, self.step, **values)

    def warning(self, message: str, category: str, cases: Sequence[str] = ()) -> None:
        """Say something that the user should know and that does not stop the run."""
        self.event("warning", message=message, category=category, cases=list(cases))
        if self._events is not None:
            log.warning("%s", message)

    def close(self) -> None:
        """Flush the events."""
        if self._events is not None:
            self._events.close()
