"""Scans that a viewer sends again and again cross to the model process once, and are hashed there once.

The viewer reads all voxels of an array for a checksum, which takes a small part of the time that writing or hashing
them does, so that a scan that was changed in place is sent anew. A file that is sent never changes; its name stands
for its contents.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.jobs.protocol import write_array

LARGE = 1 << 20
"""Bytes from which on an array is kept."""
_CHUNK = 1 << 17
"""Words of eight bytes that are added up at once, so that they are read from memory once."""
_ROW = 512

Key = tuple[str, tuple[int, ...], bytes]


class KeptArrays:
    """Files of the scans of the last request that had one, in the folder that viewer and model process share."""

    def __init__(self) -> None:
        self._files: dict[Key, str] = {}
        self._used: set[Key] = set()

    def write(self, array: npt.NDArray[Any], folder: Path) -> str:
        """Name of the file of `array` in `folder`, written unless the same voxels lie there already."""
        if array.nbytes < LARGE or array.dtype.hasobject:
            return write_array(array, folder)
        key = (array.dtype.str, array.shape, checksum(array))
        self._used.add(key)
        if key not in self._files or not (folder / self._files[key]).exists():
            self._files[key] = write_array(array, folder)
        return self._files[key]

    def release(self, folder: Path) -> None:
        """Remove what the request that ends now did not send, where it sent a large array."""
        if not self._used:
            return
        for key in self._files.keys() - self._used:
            with contextlib.suppress(PermissionError):  # Windows keeps mapped files until the folder is removed
                (folder / self._files.pop(key)).unlink(missing_ok=True)
        self._used = set()

    def keeps(self, path: Path) -> bool:
        """Whether a file is to stay after its request."""
        return path.name in self._files.values()


class Digests:
    """What was computed from the contents of files that never change, by their name."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[int, ...]], str] = {}

    def of(self, array: npt.NDArray[Any]) -> str:
        """Hash of an array; remembered where it is the whole of a mapped file."""
        from training_backend.evaluate.feature_cache import content_hash

        name = _file(array)
        if not name:
            return content_hash(array)
        key = (name, array.shape)
        if key not in self._known:
            self._known = dict([*self._known.items()][-16:])
            self._known[key] = content_hash(array)
        return self._known[key]


def checksum(array: npt.NDArray[Any]) -> bytes:
    """Sums over all voxels, along rows and across them, which tell a changed array from what it was before."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(flat) // 8 * 8
    words = flat[:whole].view(np.uint64)
    across, along = np.zeros(_ROW, np.uint64), []
    for start in range(0, len(words), _CHUNK):
        chunk = words[start : start + _CHUNK]
        rows = chunk[: len(chunk) // _ROW * _ROW].reshape(-1, _ROW)
        across += rows.sum(0, dtype=np.uint64)
        along.append(rows.sum(1, dtype=np.uint64).tobytes())
        along.append(chunk[rows.size :].tobytes())
    return _short(b"".join([across.tobytes(), *along, flat[whole:].tobytes()]))


def _short(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


def _file(array: npt.NDArray[Any]) -> str:
    """Name of the file that an unwritten memory map, or an array made of it, shows from the first to the last voxel."""
    base: Any = array
    while base is not None and not getattr(base, "filename", None):
        base = getattr(base, "base", None)
    if base is None or not isinstance(base, np.memmap) or base.shape != array.shape or base.dtype != array.dtype:
        return ""
    same = base.__array_interface__["data"][0] == array.__array_interface__["data"][0]
    return str(base.filename) if same and base.strides == array.strides else ""
