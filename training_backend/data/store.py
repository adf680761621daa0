"""The store of a dataset: compressed arrays from which a crop is read without unpacking the rest.

One folder per case, ``store/CASE/``: one Blosc2 frame per contrast (LZ4HC, int16, uint16 or float16), ``label.b2nd``,
and ``points.npy`` with sampled voxels of every label value and of the body. Every chunk carries a CRC-32 that is
compared the first time a process uses the chunk, so a damaged disk gives a sentence, never a wrong voxel.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training_backend.data.intensity import Statistics
from training_backend.data.manifest import CaseRecord
from training_backend.data.volume import Array, Geometry, Shape
from training_backend.errors import DataError
from training_backend.files import atomic

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset

CHUNK = (64, 64, 64)
FLAT_CHUNK = (1, 512, 512)  # of pictures
BLOCK = (8, 16, 64)  # long rows copy fastest; small blocks waste little around a crop
_TRUSTED: dict[tuple[str, int, int], npt.NDArray[np.bool_]] = {}  # chunks of each file that this process has checked
_AGAIN = "Ingest this case again: delete its folder and repeat the command."


@dataclass(frozen=True)
class StoredCase:
    """An open case; reads crops.

    Attributes:
        id: of the case.
        contrasts: names of the channels.
        geometry: of the stored grid.
        native: of the file's own grid.
        statistics: one per contrast.
    """

    id: str
    contrasts: tuple[str, ...]
    geometry: Geometry
    native: Geometry
    statistics: tuple[Statistics, ...]
    _images: tuple[StoredArray, ...] = field(repr=False)
    _label: StoredArray | None = field(repr=False)
    _points: tuple[Path, int] = field(repr=False)

    @property
    def shape(self) -> Shape:
        """Stored voxels along (z, y, x)."""
        return self.geometry.shape

    @property
    def channels(self) -> int:
        """Number of contrasts."""
        return len(self._images)

    @property
    def labelled(self) -> bool:
        """Whether there is a label map."""
        return self._label is not None

    def read_image(
        self, start: Shape = (0, 0, 0), size: Shape | None = None, channels: Sequence[int] | None = None
    ) -> Array:
        """Stored values [C, d, h, w] of the box of `size` voxels at `start` (z, y, x); the whole by default.

        int16, uint16 or float16; float32 where contrasts of several kinds are asked for together.
        """
        chosen = range(self.channels) if channels is None else channels
        boxes = [self._images[channel].read(start, size or self.shape) for channel in chosen]
        if len({box.dtype for box in boxes}) > 1:
            boxes = [box.astype(np.float32) for box in boxes]
        return boxes[0][None] if len(boxes) == 1 else np.stack(boxes)

    def read_label(self, start: Shape = (0, 0, 0), size: Shape | None = None) -> Array:
        """Label values [d, h, w], uint8."""
        if self._label is None:
            raise DataError(f"Case {self.id} has no label map.", "Use cases with labels for this task.")
        return self._label.read(start, size or self.shape)

    def channels_of(self, contrasts: Sequence[str]) -> tuple[int, ...]:
        """Channel numbers of the named contrasts; the first channel when none is named."""
        missing = [name for name in contrasts if name not in self.contrasts]
        if missing:
            raise DataError(
                f"Case {self.id} has no contrast {missing[0]!r}; it has {', '.join(self.contrasts)}.",
                "Choose other contrasts or exclude the case.",
            )
        return tuple(self.contrasts.index(name) for name in contrasts) or (0,)

    @cached_property
    def points(self) -> Mapping[int, npt.NDArray[np.int32]]:
        """Sampled voxels (n, 3) as (z, y, x) of each label value above 0, and of the body under key 0."""
        path, checksum = self._points
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _missing(path, error) from error
        if zlib.crc32(data) != checksum:
            raise _damaged(path)
        rows = np.load(path, allow_pickle=False)
        return {int(value): rows[rows[:, 0] == value, 1:] for value in np.unique(rows[:, 0])}


class StoredArray:
    """One array of the store, opened for reading crops."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        import blosc2

        self.path = path
        try:
            state = path.stat()
        except OSError as error:
            raise _missing(path, error) from error
        if state.st_size != size_bytes:
            raise DataError(f"{_place(path)} has {state.st_size:,} bytes instead of {size_bytes:,}.", _AGAIN)
        try:
            self._array: Any = blosc2.open(str(path), mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
            self._checksums = np.frombuffer(self._array.schunk.vlmeta["crc32"], "<u4")
            self.shape: Shape = tuple(self._array.shape)
        except (RuntimeError, ValueError, KeyError, OSError, TypeError, AttributeError) as error:
            raise _damaged(path) from error
        grid = [-(-n // chunk) for n, chunk in zip(self.shape, self._array.chunks, strict=True)]
        self._numbers = np.arange(len(self._checksums)).reshape(grid)
        version = (str(path.absolute()), state.st_size, state.st_mtime_ns)
        self._trusted = _TRUSTED.setdefault(version, np.zeros(grid, bool))

    def read(self, start: Shape, size: Shape) -> Array:
        """The box of `size` voxels at `start`, which must lie inside."""
        if any(first < 0 or first + n > whole for first, n, whole in zip(start, size, self.shape, strict=True)):
            raise DataError(f"A crop of {size} voxels at {start} reaches outside the stored {self.shape}.")
        chunks = self._array.chunks
        touched = tuple(
            slice(first // step, -(-(first + n) // step)) for first, n, step in zip(start, size, chunks, strict=True)
        )
        if not self._trusted[touched].all():
            self._check(touched)
        box = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
        try:
            return np.asarray(self._array[box])
        except (RuntimeError, ValueError) as error:
            raise _damaged(self.path) from error

    def _check(self, touched: tuple[slice, ...]) -> None:
        for number in self._numbers[touched][~self._trusted[touched]]:
            try:
                sound = zlib.crc32(self._array.schunk.get_chunk(int(number))) == self._checksums[number]
            except (RuntimeError, ValueError, IndexError):
                sound = False
            if not sound:
                raise _damaged(self.path)
        self._trusted[touched] = True


def open_case(dataset: Dataset, case: CaseRecord) -> StoredCase:
    """The stored arrays of `case`.

    Raises:
        DataError: the case was not ingested, or its files are missing or damaged.
    """
    record = case.store
    if not record:
        raise DataError(f"Case {case.id} was not ingested.", "Run: med3dssl data ingest.")
    folder = dataset.folder / record["folder"]
    label = record.get("label")
    return StoredCase(
        id=case.id,
        contrasts=tuple(image.contrast for image in case.images),
        geometry=Geometry.from_dict(record["geometry"]),
        native=Geometry.from_dict(record["native"]),
        statistics=tuple(Statistics.from_dict(image["statistics"]) for image in record["images"]),
        _images=tuple(StoredArray(folder / image["file"], image["bytes"]) for image in record["images"]),
        _label=StoredArray(folder / label["file"], label["bytes"]) if label else None,
        _points=(folder / record.get("points", "points.npy"), record["points_crc32"]),
    )


def verify_case(dataset: Dataset, case: CaseRecord) -> None:
    """Read everything that is stored of `case` and compare checksums; a `DataError` names what is damaged."""
    stored = open_case(dataset, case)
    for array in (*stored._images, *([stored._label] if stored._label else [])):
        array._trusted[:] = False
        array._check((slice(None), slice(None), slice(None)))
    _ = stored.points


def write_array(path: Path, array: Array) -> int:
    """Write `array` (z, y, x) compressed, with checksums, whole or not at all; returns its bytes on disk."""
    import blosc2

    compression = blosc2.CParams(
        codec=blosc2.Codec.LZ4HC, clevel=5, filters=[blosc2.Filter.SHUFFLE], filters_meta=[0], nthreads=1
    )
    largest = FLAT_CHUNK if array.shape[0] == 1 else CHUNK
    chunks = tuple(min(n, chunk) for n, chunk in zip(array.shape, largest, strict=True))
    blocks = tuple(min(n, block) for n, block in zip(array.shape, BLOCK, strict=True))
    packed = blosc2.asarray(
        np.ascontiguousarray(array), chunks=chunks, blocks=blocks, cparams=compression, contiguous=True
    )
    checksums = [zlib.crc32(packed.schunk.get_chunk(n)) for n in range(packed.schunk.nchunks)]
    packed.schunk.vlmeta["crc32"] = np.array(checksums, "<u4").tobytes()
    frame = packed.to_cframe()
    with atomic(path) as stream:
        stream.write(frame)
    return len(frame)


def to_stored(array: Array, *, ct: bool) -> tuple[Array, float]:
    """`array` as int16 (CT, and whole numbers that fit), uint16 (16-bit pictures) or float16, and units per stored one.

    CT is rounded to whole Hounsfield units. Values that float16 cannot hold are divided by a power of two.
    """
    limits = np.iinfo(np.int16)
    low, high = float(array.min()), float(array.max())
    fits = limits.min <= low and high <= limits.max
    if array.dtype == np.uint16 and not fits:
        return array, 1.0
    whole = array.dtype.kind in "iub" or (fits and bool(np.array_equal(array, np.rint(array))))
    if fits and (ct or whole):
        return np.rint(array).astype(np.int16) if array.dtype.kind == "f" else array.astype(np.int16), 1.0
    largest = max(abs(low), abs(high))
    scale = 1.0 if 1.0 <= largest <= 32768 else float(2.0 ** np.ceil(np.log2(max(largest, 1e-30) / 1024)))
    return (np.asarray(array, np.float32) / np.float32(scale)).astype(np.float16), scale


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _missing(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{_place(path)} is missing from the store ({error.strerror or error}).",
        "Copy the dataset with its store folder, or ingest this case again.",
    )


def _damaged(path: Path) -> DataError:
    return DataError(f"{_place(path)} is damaged: its stored voxels fail the checksum.", _AGAIN)
