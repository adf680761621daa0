"""``python -m training_backend serve``: a warm model process that answers one viewer over its standard streams.

One request runs at a time, the others wait in order; `protocol` gives the messages. The process ends when asked to,
after some idle minutes (which frees the GPU), and when its parent dies. Nothing but protocol lines reaches standard
output: whatever libraries print is sent to standard error, which the client keeps in a file.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from training_backend.errors import RunError, trace
from training_backend.jobs.protocol import decode, encode, error_message, from_line, to_line
from training_backend.tasks.base import Cancelled

log = logging.getLogger(__name__)

PROGRESS_S = 0.1
"""Shortest time between two progress messages."""
PARTIAL_S = 0.1
"""Shortest time between two states of a result to come."""
GRACE_S = 5.0
"""How long running work may take to notice that the process shall end."""


def main(argv: Sequence[str] | None = None, operations: Mapping[str, Operation] | None = None) -> int:
    """Serve until shutdown, idleness or the parent's death; returns the exit status.

    Args:
        argv: options; those of the process when None.
        operations: what can be asked for; that of a `Session` on the chosen device when None.
    """
    parser = argparse.ArgumentParser("serve", description="Answer a viewer over standard input and output.")
    parser.add_argument("--folder", type=Path, required=True, help="private folder for arrays, shared with the client")
    parser.add_argument("--idle", type=float, default=300.0, help="seconds without a request after which to end")
    parser.add_argument("--parent", type=int, default=0, help="process whose end ends this one too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    replies = _reserve_stdout()
    if operations is None:
        from training_backend.jobs.serve_ops import Session

        operations = Session(arguments.device).operations()
    server = Server(arguments.folder, replies, operations)
    if arguments.parent:
        threading.Thread(target=_watch, args=(arguments.parent, server.end), daemon=True).start()
    threading.Thread(target=server.listen, args=(sys.stdin.buffer,), daemon=True).start()
    server.work(arguments.idle)
    if server.orphaned:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    return 0


class Server:
    """Takes requests from one stream, does them in order, and answers on another.

    Args:
        folder: where arrays are exchanged.
        replies: binary stream of the answers.
        operations: by name, functions of (params, progress) that return the values of the result.
    """

    def __init__(self, folder: Path, replies: IO[bytes], operations: Mapping[str, Operation]) -> None:
        self.orphaned = False
        self._folder, self._replies, self._operations = folder, replies, operations
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._cancelled: set[int] = set()
        self._ending = threading.Event()
        self._writing = threading.Lock()

    def listen(self, requests: IO[bytes]) -> None:
        """Read messages until the stream ends; cancel and shutdown act at once, the rest queues up."""
        for line in requests:
            try:
                message = from_line(line)
            except RunError:
                log.exception("Damaged request")
                continue
            if message.get("op") == "cancel":
                self._cancelled.add(int(message.get("id", -1)))
            elif message.get("op") == "shutdown":
                self.end(orphaned=False)
            else:
                self._queue.put(message)
        self.end(orphaned=not self._ending.is_set())

    def work(self, idle_s: float) -> None:
        """Answer requests until `end` is called or none came for `idle_s` seconds."""
        while not self._ending.is_set():
            try:
                message = self._queue.get(timeout=idle_s)
            except queue.Empty:
                log.info("No request for %g s: ending", idle_s)
                return
            if message is not None:
                self._answer(message)

    def end(self, orphaned: bool = True) -> None:
        """Let `work` return after the present request is cancelled; kill the process if that takes too long."""
        self.orphaned = self.orphaned or orphaned
        if not self._ending.is_set():
            self._ending.set()
            self._queue.put(None)
            threading.Thread(target=self._end_hard, daemon=True).start()

    def _answer(self, message: dict[str, Any]) -> None:
        identity, op = int(message.get("id", -1)), str(message.get("op"))
        progress = Progress(
            lambda share, text: self._report(identity, share, text),
            lambda: self._stops(identity),
            lambda values: self._send({"id": identity, "type": "partial", "values": encode(values, self._folder)}),
        )
        try:
            if op not in self._operations:
                raise RunError(f"The model process does not know {op!r}.", f"It knows {', '.join(self._operations)}.")
            progress(0.0)
            values = self._operations[op](decode(message.get("params", {}), self._folder), progress)
            reply = {"type": "result", "values": encode(values, self._folder)}
        except Cancelled:
            reply = {"type": "cancelled"}
        except Exception as error:  # noqa: BLE001  every failure is answered; `exception` would log paths
            log.error("%s failed\n%s", op, trace(error))
            reply = {"type": "error", **error_message(error, op)}
        self._send({"id": identity, **reply})
        self._cancelled.discard(identity)

    def _stops(self, identity: int) -> bool:
        return identity in self._cancelled or self._ending.is_set()

    def _report(self, identity: int, share: float, text: str) -> None:
        self._send({"id": identity, "type": "progress", "share": share, "text": text})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            with self._writing:
                self._replies.write(to_line(message))
                self._replies.flush()
        except (BrokenPipeError, ValueError):
            self.end()

    def _end_hard(self) -> None:
        time.sleep(GRACE_S)
        if self.orphaned:
            shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)


class Progress:
    """Tells the viewer how far an operation is; raises `Cancelled` at the first call after the viewer cancelled.

    Args:
        report: sends a share and a text.
        cancelled: whether the viewer cancelled.
        show: sends a state of the result; None where nobody looks.
    """

    def __init__(
        self,
        report: Callable[[float, str], None],
        cancelled: Callable[[], bool],
        show: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._report, self._cancelled, self._show = report, cancelled, show
        self._last = self._shown = 0.0
        self._text = ""

    def __call__(self, share: float, text: str = "") -> bool:
        """Report `share` (0..1) of the work, at once where `text` changed; true, as a task's progress function is."""
        if self._cancelled():
            raise Cancelled
        now = time.monotonic()
        if text != self._text or now - self._last >= PROGRESS_S:
            self._last, self._text = now, text
            self._report(float(share), text)
        return True

    def partial(self, values: Callable[[], dict[str, Any]]) -> None:
        """Send a state of the result to come, unless the last one was sent a moment ago; only then is it made."""
        if self._cancelled():
            raise Cancelled
        if self._show is not None and time.monotonic() - self._shown >= PARTIAL_S:
            self._show(values())
            self._shown = time.monotonic()


Operation = Callable[[dict[str, Any], Progress], dict[str, Any]]


def _reserve_stdout() -> IO[bytes]:
    """The real standard output as a private stream; the public one is redirected to standard error."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "wb", buffering=0)


def _watch(parent: int, end: Callable[[], None]) -> None:
    """Call `end` once the process `parent` is gone, even if some other process still holds its pipe."""
    import psutil

    try:
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(2)
    except psutil.NoSuchProcess:
        pass
    end()


if __name__ == "__main__":
    sys.exit(main())
