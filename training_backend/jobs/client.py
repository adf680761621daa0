"""The viewer's side of the `serve` child: start it when needed, ask it, cancel it, replace it once when it dies.

Free of torch and Qt. `ServeClient.request` blocks and belongs into a worker thread; `cancel` and `close` may be called
from any thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training_backend.errors import RunError, without_paths
from training_backend.jobs.kept_arrays import KeptArrays
from training_backend.jobs.protocol import ENDINGS, array_files, decode, encode, error_from, from_line, to_line
from training_backend.tasks.base import Cancelled

__all__ = ["Cancelled", "Result", "ServeClient"]

Result = dict[str, Any]
"""Values of an answered request; arrays are copy-on-write memory maps."""
Callback = Callable[[float, str], None]
"""Told the share done (0..1) and what is being done; what it raises cancels the request."""
Watcher = Callable[[Result], None]
"""Told the state of a result to come; what it raises cancels the request."""

COMMAND = (sys.executable, "-m", "training_backend", "serve")
CANCEL_GRACE_S = 10.0
"""A child that has not noticed a cancel after so many seconds is killed."""


class ServeClient:
    """One warm model process per viewer, started at the first request.

    Args:
        device: where the child computes: "auto", "cpu", "cuda" or "cuda:N".
        idle_s: seconds after which an unused child ends and frees its memory.
        command: how to start a child; its options are appended.
    """

    def __init__(self, device: str = "auto", idle_s: float = 300.0, command: Sequence[str] = COMMAND) -> None:
        self.device, self.idle_s, self._command = device, idle_s, tuple(command)
        self._child: _Child | None = None
        self._one_at_a_time = threading.Lock()
        self._state = threading.Lock()
        self._current: int | None = None
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._current is not None

    @property
    def pid(self) -> int | None:
        """Process id of the living child, or None."""
        child = self._child
        return child.process.pid if child is not None and child.alive else None

    def request(
        self, op: str, *, progress: Callback | None = None, partial: Watcher | None = None, **params: Any
    ) -> Result:
        """Have `op` done and return its values; waits for an earlier request to end.

        Args:
            op: name of the operation.
            progress: told how far it is.
            partial: told each state of the result that an operation sends on its way, in order.
            params: of the operation.

        Raises:
            Cancelled: after `cancel` or `close`.
            Med3dError: the error of the child, or a `RunError` when the child died twice.
        """
        with self._one_at_a_time:
            with self._state:
                self._count += 1
                self._current = identity = self._count
            try:
                try:
                    return self._attempt(identity, op, params, progress, partial)
                except _ChildDiedError:
                    self._replace()
                return self._attempt(identity, op, params, progress, partial)
            except _ChildDiedError as error:
                self._replace()
                raise RunError(
                    f"The model process ended twice while it did {op!r} ({error}).",
                    "If memory ran out, use a smaller model or close other programs, then try again.",
                ) from error
            finally:
                self._current = None

    def cancel(self) -> None:
        """Stop the present request, if there is one; its caller gets `Cancelled`."""
        with self._state:
            identity, child = self._current, self._child
            if identity is None:
                return
            if child is not None and child.send({"op": "cancel", "id": identity}):
                timer = threading.Timer(CANCEL_GRACE_S, self._kill_if_still, (identity, child))
                timer.daemon = True
                timer.start()

    def close(self) -> None:
        """End the child, which frees its memory; a request in flight gets `Cancelled`. A later request starts anew."""
        with self._state:
            self._current = None
            child, self._child = self._child, None
        if child is not None:
            child.close()

    def _attempt(
        self, identity: int, op: str, params: dict[str, Any], progress: Callback | None, partial: Watcher | None
    ) -> Result:
        child = self._living_child()
        encoded = encode(params, child.folder, child.kept.write)
        try:
            if not child.send({"id": identity, "op": op, "params": encoded}):
                raise _ChildDiedError(child.fate())
            return self._listen(child, identity, progress, partial)
        finally:
            for path in array_files(encoded, child.folder):
                if not child.kept.keeps(path):
                    path.unlink(missing_ok=True)
            child.kept.release(child.folder)

    def _listen(self, child: _Child, identity: int, progress: Callback | None, partial: Watcher | None) -> Result:
        stopped: Exception | None = None
        while True:
            message = child.receive()
            values = _taken(message, child.folder)
            if message.get("id") != identity:
                continue  # the rest of a request whose caller is gone
            if message["type"] in ENDINGS:
                break
            if stopped is not None:
                continue
            try:
                if message["type"] == "partial":
                    if partial is not None:
                        partial(values)
                elif progress is not None:
                    progress(float(message["share"]), str(message["text"]))
            except Exception as error:  # noqa: BLE001  the caller gets it once the child has stopped
                stopped = error
                child.send({"op": "cancel", "id": identity})
        if stopped is not None:
            raise stopped
        if message["type"] == "cancelled":
            raise Cancelled
        if message["type"] == "error":
            raise error_from(message)
        return values

    def _living_child(self) -> _Child:
        with self._state:
            if self._current is None:
                raise Cancelled
            if self._child is not None and not self._child.alive:
                self._child.close()
                self._child = None
            if self._child is None:
                self._child = _Child((*self._command, "--device", self.device, "--idle", str(self.idle_s)))
            return self._child

    def _replace(self) -> None:
        """Clear away a dead child; if its request was given up, say so instead of trying again."""
        with self._state:
            child, self._child = self._child, None
            given_up = self._current is None
        if child is not None:
            child.close()
        if given_up:
            raise Cancelled from None

    def _kill_if_still(self, identity: int, child: _Child) -> None:
        with self._state:
            if self._current != identity:
                return
            self._current = None  # its caller learns of a cancel, not of a crash
        child.process.kill()


def _taken(message: dict[str, Any], folder: Path) -> Result:
    """Values of a message, whose files are then gone from the folder."""
    values: Result = decode(message.get("values", {}), folder)
    for path in array_files(message.get("values"), folder):
        with contextlib.suppress(PermissionError):  # Windows keeps mapped files until the folder is removed
            path.unlink(missing_ok=True)
    return values


class _ChildDiedError(Exception):
    """The child ended before it answered."""


class _Child:
    """One process, its pipes and its folder; the folder goes with the object at the latest."""

    def __init__(self, command: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="med3dssl-"))  # mkdtemp makes it 0700
        self.log = self.folder / "log.txt"
        self.kept = KeptArrays()
        options = ("--folder", str(self.folder), "--parent", str(os.getpid()))
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        with self.log.open("wb") as log:
            try:
                self.process = subprocess.Popen(
                    (*command, *options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, creationflags=flags
                )
            except OSError as error:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise RunError(f"The model process cannot be started: {error.strerror}.") from error
        self._sending = threading.Lock()
        self._finalizer = weakref.finalize(self, _end, self.process, self.folder)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, message: dict[str, Any]) -> bool:
        """Write one message; false when the child no longer reads."""
        assert self.process.stdin is not None
        try:
            with self._sending:
                self.process.stdin.write(to_line(message))
                self.process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def receive(self) -> dict[str, Any]:
        """Next message; `_ChildDiedError` when there is none any more."""
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline()
        except (OSError, ValueError):
            line = b""
        if not line.endswith(b"\n"):
            raise _ChildDiedError(self.fate())
        return from_line(line)

    def fate(self) -> str:
        """How the child ended, with the last line that it logged."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        last = f", last words: {without_paths(lines[-1])[:200]}" if lines else ""
        return f"exit status {self.process.returncode}{last}"

    def close(self) -> None:
        """Ask the child to end, kill it if it does not, remove the folder."""
        self.send({"op": "shutdown"})
        self._finalizer()


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End a child that was asked to; killing it loses nothing, since it keeps no state of its own."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
