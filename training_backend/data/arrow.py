"""Rows of the arrow tables that MG-3D's authors train from, and volumes of the slices that some of them hold.

A table is an arrow file with a row per volume: ``image_id``, ``caption``, ``findings``, ``impression``, their
sentences, and for CTRG-Chest the slices as JPEG. It needs the extra ``parquet`` (pyarrow).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from training_backend.data.facts import ImageFacts
from training_backend.data.volume import Array, Geometry, Volume
from training_backend.errors import ConfigError, DataError

SUFFIX = ".arrow"
SLICES = "image"
"""Column of the slices, each a JPEG."""
_SPACING = "Slices of an arrow table do not tell the size of a voxel; 1 mm was assumed."


def columns(path: Path) -> list[str]:
    """Names of the columns of a table."""
    with _table(path) as table:
        return [str(name) for name in table.schema.names]


def rows(path: Path, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The `wanted` columns of all rows that a table has; no other column is read, so slices stay where they are."""
    with _table(path) as table:
        names = [name for name in wanted if name in table.schema.names]
        found: list[dict[str, Any]] = []
        for number in range(table.num_record_batches):
            batch = table.get_batch(number)
            cells = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in names]
            found += [dict(zip(names, values, strict=True)) for values in zip(*cells, strict=True)]
        return found


def probe(path: Path, key: str = "") -> ImageFacts:
    """Facts of the slices of row `key`, of which only the first is decoded."""
    jpegs = _slices(path, key)
    height, width = _plane(path, jpegs[0]).shape
    geometry = Geometry.from_spacing((len(jpegs), height, width), (1.0, 1.0, 1.0))
    return ImageFacts(geometry.shape, geometry.spacing_mm, geometry, "uint8", "unknown", (), (_SPACING,))


def read(path: Path, key: str = "") -> list[Volume]:
    """Grey levels 0 to 255 (z, y, x) of the slices of row `key`; the last slice comes first, as the authors turn them.

    Raises:
        DataError: no such row, no slices, or slices of different sizes.
        ConfigError: pyarrow is not installed.
    """
    planes = [_plane(path, jpeg) for jpeg in reversed(_slices(path, key))]
    if len({plane.shape for plane in planes}) > 1:
        raise DataError(f"The slices of row {key} of {path.name} differ in size.", "Leave this row out.")
    array = np.stack(planes)
    geometry = Geometry.from_spacing((array.shape[0], array.shape[1], array.shape[2]), (1.0, 1.0, 1.0))
    meta: dict[str, Any] = {"format": "arrow", "file": path.name, "kind": "image", "spacing_assumed": True}
    meta |= {"largest": 255, "window": [0, 255], "warnings": [_SPACING]}
    return [Volume(array, geometry, name=f"{path.stem} {key}", meta=meta)]


def row_hash(path: Path, key: str) -> str:
    """SHA-256 of the slices of a row."""
    digest = hashlib.sha256()
    for jpeg in _slices(path, key):
        digest.update(jpeg)
    return digest.hexdigest()


def _slices(path: Path, key: str) -> list[bytes]:
    if not key.isdecimal():
        raise DataError(f"{path.name} holds a scan per row; a row was not named.", "Make a dataset of the table.")
    with _table(path) as table:
        rest = int(key)
        for number in range(table.num_record_batches):
            batch = table.get_batch(number)
            if rest < batch.num_rows:
                place = batch.schema.get_field_index(SLICES)
                found = batch.column(place)[rest].as_py() if place >= 0 else None
                if not found:
                    raise DataError(f"Row {key} of {path.name} has no slices.", "Put the scan that it names there.")
                return [bytes(one) for one in found]
            rest -= batch.num_rows
    raise DataError(f"{path.name} has no row {key}.", "Make the dataset again.")


def _plane(path: Path, jpeg: bytes) -> Array:
    try:
        with Image.open(BytesIO(jpeg)) as image:
            return np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise DataError(f"A slice in {path.name} is damaged or no picture.", "Copy the table again.") from error


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    """The opened table, mapped into memory."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ConfigError(
            f"{path.name} is an arrow table, which the package pyarrow reads; it is not installed.",
            'Install it with: pip install "napari-med3dssl[parquet]".',
        ) from error
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path.name} is no arrow table of record batches: {reason}.", "Copy it again.") from error
