"""How long steps take, and how long they wait for their views."""

from __future__ import annotations

import time
from collections import deque


class Clock:
    """Measures steps; what happens between them (validation, saving) is left out.

    Attributes:
        step_s: seconds of the last step, the wait for its views included.
        processor_s: seconds that the processor worked in this process for that step, on all its threads.
        loader_s: seconds of that wait.
        unreadable: steps in a row without a single readable view.
    """

    def __init__(self) -> None:
        self.unreadable = 0
        self.step_s = self.processor_s = self.loader_s = 0.0
        self._recent: deque[float] = deque(maxlen=50)
        self._began = self._ready = time.perf_counter()
        self._worked = time.process_time()

    def boundary_done(self) -> None:
        """The wait for the next views begins."""
        self._began, self._worked = time.perf_counter(), time.process_time()

    def views_ready(self) -> None:
        """The views are there."""
        self._ready = time.perf_counter()
        self.loader_s = self._ready - self._began

    def step_done(self) -> float:
        """The step is done; answers its seconds."""
        self.step_s = time.perf_counter() - self._began
        self.processor_s = time.process_time() - self._worked
        self._recent.append(self.step_s)
        return self.step_s

    def mean(self) -> float:
        """Mean seconds of the last steps."""
        return sum(self._recent) / len(self._recent)
