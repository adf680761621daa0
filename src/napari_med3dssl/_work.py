"""Work off the Qt thread, whose end reaches a widget only while that widget lives.

For reading, scanning and waiting for other processes; never for torch. Errors arrive as one sentence.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QObject, QThread, Signal

from training_backend.errors import Med3dError
from training_backend.jobs.client import Cancelled

log = logging.getLogger(__name__)

NOTHING: tuple[str, tuple[Any, ...]] = ("cancelled", ())
"""Outcome of work that was cancelled, or not done: the signal that tells it and its values."""


def sentence(error: BaseException) -> str:
    """What a user reads of an error: its own sentence, or a plain one that keeps the traceback in the log."""
    if isinstance(error, Med3dError):
        return str(error)
    log.error("unexpected error", exc_info=error)
    if isinstance(error, MemoryError):
        return "The memory did not suffice. Close other programs or use a smaller scan."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or 'a file'}."
    return f"Something went wrong that should not: {type(error).__name__}, {error}. The log has the details."


class Job(QObject):
    """One piece of work in a thread of its own.

    Signals arrive on the thread that made the job: `progressed` while it runs, then in one go `ended` and one of
    `done`, `failed` and `cancelled`. Whoever sees the outcome therefore sees no sign of work any more. `stop` asks the
    work to end: it then gets `Cancelled` from its next report of progress.
    """

    done = Signal(object)
    failed = Signal(str)
    cancelled = Signal()
    progressed = Signal(float, str)
    ended = Signal()

    def __init__(self, function: Callable[..., Any], *arguments: Any, reports: bool = False, **options: Any) -> None:
        super().__init__()
        self._stop = threading.Event()
        if reports:
            options["progress"] = self._report
        self._thread = _Thread(function, arguments, options)
        self._thread.finished.connect(self._finish)

    def start(self) -> Job:
        """Begin; the job keeps itself until it has ended."""
        _running.add(self)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ask the work to end at its next report of progress."""
        self._stop.set()

    @property
    def running(self) -> bool:
        """Whether the work goes on."""
        return self in _running

    def _finish(self) -> None:
        _running.discard(self)
        self.ended.emit()
        self._thread.wait()  # it only leaves; a thread that still does must not be deleted
        outcome, values = self._thread.outcome
        self._thread.outcome = NOTHING  # widgets keep their last job, which must not keep what it brought
        getattr(self, outcome).emit(*values)

    def _report(self, share: float, text: str = "") -> bool:
        if self._stop.is_set():
            raise Cancelled
        self.progressed.emit(float(share), str(text))
        return True


_running: set[Job] = set()


class _Thread(QThread):
    def __init__(self, function: Callable[..., Any], arguments: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self.setObjectName(f"med3dssl {getattr(function, '__name__', 'work')}")
        self._call = (function, arguments, options)
        self.outcome = NOTHING

    def run(self) -> None:
        function, arguments, options = self._call
        try:
            self.outcome = ("done", (function(*arguments, **options),))
        except Cancelled:
            self.outcome = NOTHING
        except Exception as error:  # noqa: BLE001  every failure must reach the user as a sentence
            self.outcome = ("failed", (sentence(error),))


class Latest(QObject):
    """Brings values from a thread to a slot on the thread that made this, while `owner` lives.

    Of values that come faster than the slot takes them, only the newest is used.
    """

    _arrived = Signal()

    def __init__(self, owner: QObject, slot: Callable[[Any], object]) -> None:
        super().__init__()
        self._slot = _while_alive(owner, slot)
        self._lock = threading.Lock()
        self._values: list[Any] = []
        self._arrived.connect(self._take)

    def put(self, value: Any) -> None:
        """Hand over a value; from any thread."""
        with self._lock:
            waiting = bool(self._values)
            self._values = [value]
        if not waiting:
            self._arrived.emit()

    def _take(self) -> None:
        with self._lock:
            values, self._values = self._values, []
        for value in values:
            self._slot(value)


def start(
    owner: QObject,
    function: Callable[..., Any],
    *arguments: Any,
    done: Callable[[Any], object] | None = None,
    failed: Callable[[str], object] | None = None,
    cancelled: Callable[[], object] | None = None,
    progressed: Callable[[float, str], object] | None = None,
    ended: Callable[[], object] | None = None,
    **options: Any,
) -> Job:
    """Run `function(*arguments, **options)` in a thread and tell `owner` of its end, as long as `owner` exists.

    With `progressed`, the function gets a `progress(share, text)` argument.
    """
    job = Job(function, *arguments, reports=progressed is not None, **options)
    slots = {"done": done, "failed": failed, "cancelled": cancelled, "progressed": progressed, "ended": ended}
    for name, slot in slots.items():
        if slot is not None:
            getattr(job, name).connect(_while_alive(owner, slot))
    return job.start()


def wait_all(milliseconds: int = 5000) -> None:
    """Wait for all work to end; for tests and for the end of the application."""
    for job in tuple(_running):
        job.stop()
        job._thread.wait(milliseconds)


def _while_alive(owner: QObject, slot: Callable[..., object]) -> Callable[..., None]:
    def call(*values: Any) -> None:
        if isalive(owner):
            slot(*values)

    return call
