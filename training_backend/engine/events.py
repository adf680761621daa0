"""Typed events of a run, one JSON object per line of ``events.jsonl``; read by tailing, from any process.

Every event has `type`, `time` (seconds since 1970) and `step`. The other keys by type:

==============  ====================================================================================================
``state``       `state` (one of `STATES`), `reason`
``metrics``     `split` ("train" or "val"), `epoch`, `values` {name: number}; for train also `lr`, `step_s`,
                `loader_s`, `memory_mb`, and `steps` (total planned), `eta_s`
``preview``     `folder` (relative to the run), `case`
``checkpoint``  `folder`, `best` (bool)
``warning``     `message` (sentence), `category`, `cases` (list of ids)
``done``        `score`, `seconds`
==============  ====================================================================================================

No event holds report text, a patient's name, or an absolute path of a scan.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATES = ("queued", "starting", "running", "pausing", "paused", "stopping", "finished", "cancelled", "failed")
"""States written by a run; `lost` (process gone, no end written) and `unreachable` are concluded by readers."""

ENDED = ("finished", "cancelled", "failed")


class EventWriter:
    """Appends events; each line is written and flushed at once, so a reader sees whole lines except the last."""

    def __init__(self, path: Path) -> None:
        self._stream = Path(path).open("ab", buffering=0)
        if self._stream.tell() and not _ends_with_newline(Path(path)):
            self._stream.write(b"\n")  # a killed predecessor left half a line; readers skip it

    def write(self, type: str, step: int, **values: Any) -> None:
        """Append one event."""
        event = {"type": type, "time": time.time(), "step": step, **values}
        self._stream.write(json.dumps(event, ensure_ascii=False, default=float).encode("utf-8") + b"\n")

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self._stream.fileno())
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
        events = []
        for line in block[:end].splitlines():
            event = _parse(line)
            if event is None:
                self.damaged += 1
            else:
                events.append(event)
        return events


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
