"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from training_backend.errors import ResourceError

_HIDDEN = os.umask(0)  # can only be read by being set
os.umask(_HIDDEN)


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Binary file that replaces `path` only after everything was written and synced; else `path` stays as it was."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_HIDDEN)  # temporary files are private, which on shared disks helps nobody
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise disk_error(error, path) from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, path: Path) -> Exception:
    """The error to raise for a failed write: a sentence for a full disk, the original otherwise."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"The disk is full: {path.name} could not be written to {path.parent}.", "Free space there."
        )
    return error
