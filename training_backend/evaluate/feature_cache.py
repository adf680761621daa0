"""Features of scans kept on disk under a hash of scan and model, so that looking again costs nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_path

from training_backend.data.volume import Geometry
from training_backend.evaluate.features import TokenMap
from training_backend.files import atomic

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

LARGEST_BYTES = 8 * 2**30
"""The files used longest ago are removed when all together exceed this."""

Kept = tuple[TokenMap, npt.NDArray[np.bool_]]
"""Features, and which tokens lie inside the body."""


def cache_folder() -> Path:
    """Where features are kept: below ``MED3DSSL_CACHE``, else in the system's cache folder for this user."""
    root = os.environ.get("MED3DSSL_CACHE")
    return (Path(root) if root else user_cache_path("med3dssl", appauthor=False)) / "features"


def find(key: str) -> Kept | None:
    """What was kept under `key`, or None; a damaged file is as good as none."""
    path = cache_folder() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            geometry = Geometry.from_dict(json.loads(str(stored["geometry"])))
            found = TokenMap(stored["tokens"], geometry), stored["body"]
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("The kept features %s are damaged and will be made again: %s", path.name, error)
        return None
    return found


def keep(key: str, features: TokenMap, body: npt.NDArray[np.bool_]) -> None:
    """Keep features under `key`; a disk that cannot hold them is no error."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / f"{key}.npz") as stream:
            np.savez(stream, tokens=features.values, body=body, geometry=json.dumps(features.geometry.to_dict()))
        _prune(folder)
    except Exception as error:  # noqa: BLE001  whatever the disk says, the features themselves are at hand
        log.warning("The features could not be kept and will be computed again next time: %s", error)


def content_hash(*parts: npt.NDArray[Any] | str) -> str:
    """Name for what is computed from these parts; 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(part.encode())
    return digest.hexdigest()


def model_hash(network: nn.Module) -> str:
    """Hash of all weights of a network, with their names."""
    import torch

    parts: list[npt.NDArray[Any] | str] = []
    for name, tensor in sorted(network.state_dict().items()):
        parts += [name, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()]
    return content_hash(*parts)


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > LARGEST_BYTES:
            with contextlib.suppress(OSError):
                path.unlink()
