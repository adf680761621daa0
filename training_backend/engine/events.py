"""Typed events of a run, one JSON object per line of ``events.jsonl``; read by tailing, from any process.

Every event has `type`, `time` (seconds since 1970) and `step`. The other keys by type:

==============  ====================================================================================================
``state``       `state` (one of `STATES`), `reason`
``metrics``     `split` ("train" or "val"), `epoch`, `values` {name: number}; for train also `lr`, `step_s`,
                `processor_s`, `loader_s`, `memory_mb`, and `steps` (total planned), `eta_s`, `best_score`; for val
                `score`, `best_score`, `best_step` (the task's score, higher is better, or the loss of pre-training)
``preview``     `folder` (relative to the run), `case`
``checkpoint``  `folder`, `best` (bool)
``warning``     `message` (sentence), `category`, `cases` (list of ids)
``done``        `score`, `seconds`
``stage``       of a plan: `stage` (number from 1), `modality`, `run` (folder below the plan), `phase` ("training",
                "measuring", "finished")
``forgetting``  of a plan: `stage`, `modality`, `rows` (as in ``forgetting.json``)
==============  ====================================================================================================

After a resume or a roll-back the steps behind the last checkpoint are reported again; the later event counts.

No event holds report text, a patient's name, or an absolute path of a scan.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training_backend.files import disk_error

STATES = ("queued", "starting", "running", "pausing", "paused", "stopping", "finished", "cancelled", "failed")
"""States written by a run; `lost` (process gone, no end written) and `unreachable` are concluded by readers."""

ENDED = ("finished", "cancelled", "failed")


class EventWriter:
    """Appends events; each line is written and flushed at once, so a reader sees whole lines except the last."""

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._stream = self._path.open("ab", buffering=0)
        if self._stream.tell() and not _ends_with_newline(self._path):
            self._stream.write(b"\n")  # a killed predecessor left half a line; readers skip it

    def write(self, type: str, step: int, **values: Any) -> None:
        """Append one event."""
        event = {"type": type, "time": time.time(), "step": step, **values}
        line = json.dumps(event, ensure_ascii=False, default=float).encode("utf-8") + b"\n"
        try:
            written = self._stream.write(line)
        except OSError as error:
            raise disk_error(error, self._path) from error
        if written != len(line):  # the disk took a part; readers skip the damaged line
            raise disk_error(OSError(errno.ENOSPC, "short write"), self._path)

    def close(self) -> None:
        """Flush to disk and close."""
        try:
            os.fsync(self._stream.fileno())
        finally:
            self._stream.close()


class EventReader:
    """Reads only what was appended since the last call; damaged lines are skipped and counted in `damaged`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.damaged = 0
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """New events in order; a half-written last line waits for its end."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                block = stream.read()
        except FileNotFoundError:
            return []
        end = block.rfind(b"\n") + 1
        self._offset += end
        events, damaged = parse_lines(block[:end])
        self.damaged += damaged
        return events


def parse_lines(block: bytes) -> tuple[list[dict[str, Any]], int]:
    """Events of the whole lines of `block`, and how many lines were damaged."""
    events, damaged = [], 0
    for line in block[: block.rfind(b"\n") + 1].split(b"\n"):
        event = _parse(line)
        if event is not None:
            events.append(event)
        elif line:
            damaged += 1
    return events, damaged


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return dict(event) if isinstance(event, Mapping) and "type" in event else None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
