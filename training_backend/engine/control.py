"""What others want of a run: requests in its control folder, and the system's signals."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from training_backend.engine.rundir import RunDirectory

_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
"""End of a process as users, systems and Slurm ask for it."""


class Control:
    """Polled by the loop at every step; a context manager that takes the signals over and gives them back.

    Attributes:
        terminating: the system asked the process to end; it has seconds to save.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._previous: dict[int, Any] = {}
        self.terminating = False

    def __enter__(self) -> Control:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
                self._previous[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def pending(self) -> set[str]:
        """Requests that stand, with "terminate" for a signal."""
        return self._run.pending() | ({"terminate"} if self.terminating else set())

    def obeyed(self, what: str) -> None:
        """Take a request away after it was obeyed."""
        self._run.withdraw(what)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.terminating and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait for a save
        self.terminating = True
