"""Is a file whole? Checked before its voxels are believed, and before memory is set aside for them."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from training_backend.data.volume import Array
from training_backend.errors import DataError, ResourceError

_CHUNK = 1 << 16  # compressed bytes per step: even at the densest, one step inflates to 64 MB at most
_DENSEST = 1032  # deflate packs at most this many bytes into one
_GZIP_OR_ZLIB = 47  # window bits that let zlib recognise either header and check its CRC
_COPY_AGAIN = "Copy or download the file again."


def check_file(path: Path) -> Path:
    """`path` if it is a file with something in it."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist.", "Check the name and the folder.")
    if not path.is_file():
        raise DataError(f"{path} is not a file.", "Give a scan, or a folder of DICOM files.")
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty (0 bytes).", _COPY_AGAIN)
    if not os.access(path, os.R_OK):
        raise DataError(f"{path.name} may not be read by this user.", "Ask for the right to read it.")
    return path


def is_gzip(path: Path) -> bool:
    """Whether the content is gzip-compressed, whatever the name says."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def check_gzip(path: Path) -> None:
    """Read a gzip file to its end and compare length and checksum, without keeping the data.

    Raises:
        DataError: the file is truncated or damaged.
    """
    for _ in inflated(check_file(Path(path))):
        pass


def inflated(path: Path, start: int = 0) -> Iterator[bytes]:
    """Decompressed pieces of the gzip or zlib data from byte `start`; the end is reached only if all of it is sound."""
    with path.open("rb") as stream:
        stream.seek(start)
        inflate = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
        data = stream.read(_CHUNK)
        while data or not inflate.eof:
            if not data:
                raise DataError(f"{path.name} ends too early: its compressed data are cut off.", _COPY_AGAIN)
            try:
                piece = inflate.decompress(data)
            except zlib.error as error:
                raise DataError(f"{path.name} is damaged: its compressed data fail the check.", _COPY_AGAIN) from error
            yield piece
            data = inflate.unused_data or stream.read(_CHUNK)
            if inflate.eof:  # gzip allows several members in a row, and padding after the last
                data = data.lstrip(b"\0")
                if len(data) == 1:
                    data += stream.read(_CHUNK)
                if not data.startswith(b"\x1f\x8b"):
                    return
                inflate = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)


def read_head(path: Path, count: int) -> bytes:
    """The first `count` bytes at most, decompressed when the file is gzip, without checking the rest."""
    if not is_gzip(path):
        with path.open("rb") as stream:
            return stream.read(count)
    head = b""
    for piece in inflated(path):
        head += piece
        if len(head) >= count:
            break
    return head[:count]


def read_exactly(path: Path, count: int) -> bytearray:
    """The first `count` bytes, decompressed when the file is gzip; the rest is checked, too.

    One pass serves both reading and the checksum. Raises `DataError` when fewer bytes are there.
    """
    buffer = bytearray(count)
    filled = 0
    if is_gzip(path):
        for piece in inflated(path):
            wanted = min(len(piece), count - filled)
            buffer[filled : filled + wanted] = piece[:wanted]
            filled += wanted
    else:
        with path.open("rb") as stream:
            filled = stream.readinto(buffer)
    if filled < count:
        raise DataError(
            f"{path.name} ends too early: its header announces {count:,} bytes, {filled:,} are there.", _COPY_AGAIN
        )
    return buffer


def check_claim(path: Path, shape: Sequence[int], itemsize: int, *, held: int, compressed: bool) -> int:
    """Bytes that `shape` voxels of `itemsize` bytes need, refused when they cannot be in the file or in memory.

    Args:
        path: file named in the error.
        shape: voxels that the header claims, all axes.
        itemsize: bytes per voxel.
        held: bytes of voxel data on disk, compressed or not.
        compressed: whether `held` counts compressed bytes.

    Raises:
        DataError: an axis has no voxels, or the file is too small for its claim.
        ResourceError: twice the claim (a copy is made on reading) exceeds the free memory.
    """
    size = " x ".join(f"{n:,}" for n in shape)
    if any(n < 1 for n in shape):
        raise DataError(f"{path.name} claims {size} voxels: an axis without voxels.", "Export the scan again.")
    needed = math.prod(int(n) for n in shape) * itemsize
    if needed > held * (_DENSEST if compressed else 1):
        raise DataError(
            f"{path.name} claims {size} voxels ({in_bytes(needed)}), but its {in_bytes(held)} cannot hold them.",
            "The header is wrong or the file was cut off; copy or export it again.",
        )
    check_memory(path, 2 * needed)
    return needed


def check_memory(path: Path, needed: int) -> None:
    """Refuse, before allocating, what the free memory cannot hold."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise ResourceError(
            f"Reading {path.name} needs {in_bytes(needed)} of memory, {in_bytes(free)} are free.",
            "Close other programs, or crop or resample the scan first.",
        )


def in_bytes(count: float) -> str:
    """A byte count as people read it: 512 bytes, 3.2 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def non_finite_warning(array: Array) -> list[str]:
    """A sentence when voxels are NaN or infinite."""
    if array.dtype.kind != "f":
        return []
    count = array.size - int(np.isfinite(array).sum())
    if not count:
        return []
    return [f"{count:,} of {array.size:,} voxels are not numbers (NaN or infinite)."]
