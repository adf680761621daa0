"""Reading many scans or weights in a process of its own: describe a folder, ingest it, make phantoms or a plan. No Qt.

The parent starts ``python -m napari_med3dssl._prepare``, writes one request as a line of JSON, and reads lines
``{"progress": 0.4}``, then ``{"result": ...}`` or ``{"error": "sentence"}``. Closing the child's input cancels it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from training_backend.errors import DataError, Med3dError

if TYPE_CHECKING:
    from training_backend.data.importers import Described

Report = Callable[[float], bool]


def call(op: str, progress: Callable[[float, str], object], text: str = "", **request: Any) -> Any:
    """Have `op` done in a child process and answer its result; for a worker thread.

    Args:
        op: key of `OPERATIONS`.
        progress: told share and `text`; what it raises (`Cancelled`) ends the child.
        text: what is being done, for `progress`.
        request: arguments of the operation, plain JSON types.
    """
    source = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.Popen(
        [sys.executable, "-m", "napari_med3dssl._prepare"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": source},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps({"op": op, **request}).encode() + b"\n")
        child.stdin.flush()
        for line in child.stdout:
            answer = json.loads(line)
            if "progress" in answer:
                progress(float(answer["progress"]), text)
            elif "error" in answer:
                raise DataError(answer["error"])
            else:
                return answer["result"]
    finally:
        with contextlib.suppress(OSError):
            child.stdin.close()  # tells the child to end
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
    raise DataError(
        "The reading process ended without a word.", "If memory ran out, close other programs and try again."
    )


def describe_folder(path: str, progress: Report) -> dict[str, Any]:
    """What a folder or list file holds, from headers alone."""
    from training_backend.data.importers import describe

    return to_plain(describe(Path(path)))


def ingest_described(
    described: dict[str, Any], output: str, config: dict[str, Any], name: str, progress: Report
) -> dict[str, Any]:
    """Make a dataset of what `describe_folder` found, perhaps with cases excluded or mended."""
    from training_backend.config import IngestConfig
    from training_backend.data.ingest import ingest

    report = ingest(from_plain(described), Path(output), IngestConfig.parse(config), name=name, progress=progress)
    values: dict[str, Any] = json.loads(json.dumps(asdict(report), default=str))
    return {**values, "text": str(report)}


def make_cohort(folder: str, n: int, seed: int, shape: list[int], progress: Report) -> str:
    """Write phantom patients of `shape` voxels along (z, y, x)."""
    from training_backend.data.phantoms import write_cohort

    progress(0.0)
    z, y, x = shape
    return str(write_cohort(Path(folder), n, seed, (z, y, x)))


def make_plan(folder: str, plan: dict[str, Any], progress: Report) -> str:
    """Make the directory of a plan, after a look at its data and the weights that it starts from."""
    from training_backend.config.plan import PlanConfig
    from training_backend.jobs.plan import create

    progress(0.0)
    return str(create(Path(folder), PlanConfig.parse(plan)).path)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "describe": describe_folder,
    "ingest": ingest_described,
    "cohort": make_cohort,
    "plan": make_plan,
}


def to_plain(described: Described) -> dict[str, Any]:
    """A `Described` as JSON types."""
    return {
        "info": described.info.model_dump(mode="json"),
        "cases": [case.model_dump(mode="json") for case in described.cases],
        "root": str(described.root),
        "problems": [asdict(problem) for problem in described.problems],
        "given_splits": sorted(described.given_splits),
    }


def from_plain(value: dict[str, Any]) -> Described:
    """Inverse of `to_plain`."""
    from training_backend.data.dataset import Quarantined
    from training_backend.data.importers import Described
    from training_backend.data.manifest import CaseRecord, DatasetInfo

    return Described(
        info=DatasetInfo.parse(value["info"]),
        cases=[CaseRecord.parse(case) for case in value["cases"]],
        root=Path(value["root"]),
        problems=[Quarantined(**problem) for problem in value["problems"]],
        given_splits=frozenset(value["given_splits"]),
    )


def main() -> int:
    """Answer the one request on standard input."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print must not mix with the answer
    request = json.loads(sys.stdin.readline())
    stopped = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stopped,), daemon=True).start()

    answers = _Answers(replies)
    threading.Thread(target=answers.repeat, daemon=True).start()

    def progress(share: float) -> bool:
        answers.say(progress=share)
        return not stopped.is_set()

    say = answers.say
    try:
        say(result=OPERATIONS[request.pop("op")](**request, progress=progress))
    except Med3dError as error:
        say(error=str(error))
    except Exception as error:  # noqa: BLE001  every failure must reach the viewer as a sentence
        say(error=f"Reading failed unexpectedly ({type(error).__name__}: {error}).")
    return 0


class _Answers:
    """Lines to the parent; the last progress is repeated, so that the parent can end work that reports none."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock, self._last = stream, threading.Lock(), 0.0

    def say(self, **answer: Any) -> None:
        self._last = answer.get("progress", self._last)
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(json.dumps(answer) + "\n")
            self._stream.flush()

    def repeat(self) -> None:
        while True:
            time.sleep(0.3)
            self.say(progress=self._last)


def _wait_for_end(stopped: threading.Event) -> None:
    """Set `stopped` when the parent closes its end, be it on purpose or by dying."""
    sys.stdin.read()
    stopped.set()


if __name__ == "__main__":
    sys.exit(main())
