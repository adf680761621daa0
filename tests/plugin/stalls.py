"""How long the window stands still."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from qtpy.QtCore import Qt, QTimer


class Stalls:
    """Longest time between two ticks of a 10 ms timer, in milliseconds.

    Where Linux tells it, the time is not counted for which this thread stood in the queue for a processor, or waited
    for another thread of this process that did: the plugin cannot help what else runs on the machine. Its own work,
    and waiting for files and for threads that run, count. `work` is the longest stretch of the thread's own work, and
    `clock` the longest time between two ticks whatever the machine did.
    """

    def __init__(self) -> None:
        self.longest = self.work = self.clock = 0.0
        self._last = self._now()
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)
        self._timer.start(10)

    def _tick(self) -> None:
        now, last = self._now(), self._last
        queued = {thread: seconds - last[2].get(thread, 0.0) for thread, seconds in now[2].items() if thread in last[2]}
        own = queued.pop(threading.get_native_id(), 0.0)
        worked, passed = now[1] - last[1], now[0] - last[0] - own
        self.work = max(self.work, 1000 * worked)
        self.clock = max(self.clock, 1000 * (now[0] - last[0]))
        blocked = max(0.0, passed - worked)
        self.longest = max(self.longest, 1000 * (passed - min(blocked, max(queued.values(), default=0.0))))
        self._last = now

    def _now(self) -> tuple[float, float, dict[int, float]]:
        """The clock, this thread's work, and by thread the time in the queue for a processor; all in seconds."""
        queued = {}
        for path in Path("/proc/self/task").glob("*/schedstat"):
            with suppress(OSError):  # a thread that has just ended
                queued[int(path.parent.name)] = int(path.read_text().split()[1]) / 1e9
        return time.perf_counter(), time.thread_time(), queued

    def end(self) -> None:
        """Stop measuring."""
        self._timer.stop()
