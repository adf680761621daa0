"""Painted voxels as a list, kept on disk after every stroke so that a crash loses none."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_med3dssl._settings import settings_path
from training_backend.data.volume import Volume
from training_backend.files import atomic

log = logging.getLogger(__name__)

_EVERY = 4  # voxels between those that a scan is recognised by


@dataclass(frozen=True, eq=False)
class Strokes:
    """Painted voxels.

    Attributes:
        points: [N, 3] (z, y, x).
        values: [N] uint8, from 1 on.
    """

    points: npt.NDArray[np.int64]
    values: npt.NDArray[np.uint8]

    def __eq__(self, other: object) -> bool:
        """Whether the same voxels have the same values."""
        return (
            isinstance(other, Strokes)
            and np.array_equal(self.points, other.points)
            and np.array_equal(self.values, other.values)
        )

    __hash__ = None  # type: ignore[assignment]


EMPTY = Strokes(np.zeros((0, 3), np.int64), np.zeros(0, np.uint8))


def strokes_in(labels: npt.NDArray[Any]) -> Strokes:
    """All voxels of `labels` (z, y, x) that are not 0; slice by slice, so that a thread lets others run."""
    found = [(z, np.nonzero(plane)) for z, plane in enumerate(labels) if plane.any()]
    if not found:
        return EMPTY
    points = np.concatenate([np.stack([np.full(len(y), z), y, x], axis=1) for z, (y, x) in found])
    values = np.concatenate([labels[z][place] for z, place in found])
    return Strokes(points.astype(np.int64), np.clip(values, 0, 255).astype(np.uint8))


def find(volume: Volume) -> Strokes | None:
    """Strokes that were kept for a scan, or None; a damaged file is as good as none."""
    path = _path(volume)
    try:
        with np.load(path, allow_pickle=False) as stored:
            points, values = stored["points"].astype(np.int64), stored["values"].astype(np.uint8)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("Kept strokes are damaged and cannot be shown again: %s", error)
        return None
    fits = points.shape == (len(values), 3) and bool(((points >= 0) & (points < volume.array.shape)).all())
    return Strokes(points, values) if fits else None


def keep(volume: Volume, strokes: Strokes) -> None:
    """Keep the strokes of a scan in place of those before; none at all removes them."""
    path = _path(volume)
    if not len(strokes.values):
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = io.BytesIO()
    np.savez_compressed(made, points=strokes.points.astype(np.int32), values=strokes.values)
    with atomic(path) as stream:
        stream.write(made.getvalue())


def _path(volume: Volume) -> Path:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(volume.geometry.to_dict()).encode())
    digest.update(np.ascontiguousarray(volume.array[::_EVERY, ::_EVERY, ::_EVERY]).tobytes())
    return settings_path().parent / "strokes" / f"{digest.hexdigest()}.npz"
