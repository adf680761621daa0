"""Masks that are being corrected, kept on disk until they are accepted, so that a crash loses none."""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from napari_med3dssl._settings import settings_path
from training_backend.files import atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Draft:
    """A mask on its way.

    Attributes:
        array: [Z, Y, X] uint8, on the grid of the scan.
        name: of its layer.
        run: that predicted it first; empty for none.
    """

    array: npt.NDArray[np.uint8]
    name: str
    run: str = ""


def keep(folder: Path, case: str, draft: Draft) -> None:
    """Keep the mask of a case of the dataset in `folder`, in place of the one before."""
    path = _path(folder, case)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = io.BytesIO()
    array = np.clip(draft.array, 0, 255).astype(np.uint8)
    np.savez_compressed(made, array=array, name=np.array(draft.name), run=np.array(draft.run))
    with atomic(path) as stream:
        stream.write(made.getvalue())


def find(folder: Path, case: str) -> Draft | None:
    """The mask that was kept for a case, or None; a damaged file is as good as none."""
    try:
        with np.load(_path(folder, case), allow_pickle=False) as stored:
            return Draft(stored["array"], str(stored["name"]), str(stored["run"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("The kept mask of %s is damaged and cannot be shown again: %s", case, error)
        return None


def drop(folder: Path, case: str) -> None:
    """Forget the mask of a case."""
    _path(folder, case).unlink(missing_ok=True)


def _path(folder: Path, case: str) -> Path:
    name = hashlib.blake2b(f"{Path(folder).resolve()}\n{case}".encode(), digest_size=16).hexdigest()
    return settings_path().parent / "masks" / f"{name}.npz"
