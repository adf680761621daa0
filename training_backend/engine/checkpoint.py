"""Checkpoints that are either whole or do not exist: directories with a hashed manifest, renamed into place.

::

    checkpoints/step_00000100/  model.safetensors  optimizer.safetensors  [ema.safetensors]  state.json  manifest.json

A kill at any moment leaves the earlier checkpoints untouched and at most a hidden temporary folder, which the next
save removes. What is loaded was verified by size and SHA-256 first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from training_backend.engine import files
from training_backend.errors import WeightsError

MANIFEST = "manifest.json"
STATE = "state.json"


@dataclass(frozen=True)
class Saved:
    """Contents of a checkpoint.

    Attributes:
        tensors: part ("model", "optimizer", "ema") to its named tensors, on the CPU.
        state: everything else, as JSON types.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def folder_of(root: Path, step: int) -> Path:
    """Folder of the checkpoint of `step`."""
    return root / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """Step that a checkpoint's folder names."""
    return int(folder.name.removeprefix("step_"))


def write(root: Path, step: int, saved: Saved) -> Path:
    """Write the checkpoint of `step` below `root`, replacing one of the same step.

    Raises:
        ResourceError: the disk is full; every earlier checkpoint is as it was.
    """
    from safetensors.torch import save_file

    root.mkdir(parents=True, exist_ok=True)
    tidy(root)
    target = folder_of(root, step)
    temporary = root / f".{target.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir()
        for part, tensors in saved.tensors.items():
            save_file(dict(tensors), temporary / f"{part}.safetensors")
        files.write_json(temporary / STATE, saved.state)
        facts = {path.name: _facts(path, sync=True) for path in sorted(temporary.iterdir())}
        files.write_json(temporary / MANIFEST, {"schema": 1, "step": step, "files": facts})
        _put(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        full = _disk_error(error, target)
        if full is not None:
            raise full from error
        raise
    return target


def problem(folder: Path) -> str:
    """What is wrong with a checkpoint, as a phrase; empty when every file is what the manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            path = folder / Path(name).name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} of {expected['bytes']} bytes"
            if _facts(path)["sha256"] != expected["sha256"]:
                return f"{name} was changed after it was saved"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return ""


def read(folder: Path) -> Saved:
    """Contents of a checkpoint; refuses one that does not verify."""
    from safetensors.torch import load_file

    found = problem(folder)
    if found:
        raise WeightsError(f"The checkpoint {folder.name} is damaged: {found}.", "An earlier one is used instead.")
    names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    parts = [Path(name).stem for name in names if name.endswith(".safetensors")]
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return Saved({part: load_file(folder / f"{part}.safetensors") for part in parts}, state)


def all_steps(root: Path) -> list[Path]:
    """Folders of all checkpoints, verified or not, oldest first."""
    return sorted(path for path in root.glob("step_*") if path.name.removeprefix("step_").isdigit())


def newest_verified(root: Path, wanted: Any = lambda state: True) -> tuple[Path | None, list[str]]:
    """Newest checkpoint that verifies and whose state is `wanted`, and a sentence for each damaged one passed over."""
    complaints = []
    for folder in reversed(all_steps(root)):
        found = problem(folder)
        if found:
            complaints.append(f"The checkpoint {folder.name} is damaged ({found}); an earlier one is used.")
        elif wanted(json.loads((folder / STATE).read_text(encoding="utf-8"))):
            return folder, complaints
    return None, complaints


def prune(root: Path, keep_last: int, keep_steps: Iterable[int]) -> None:
    """Remove all but the newest `keep_last` checkpoints and those of `keep_steps`."""
    folders = all_steps(root)
    kept = set(folders[-keep_last:]) | {folder_of(root, step) for step in keep_steps}
    for folder in folders:
        if folder not in kept:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint; a kill in between leaves a hidden folder, never half a checkpoint."""
    grave = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(grave, ignore_errors=True)
    folder.replace(grave)
    shutil.rmtree(grave, ignore_errors=True)


def tidy(root: Path) -> None:
    """Undo a replacement that a kill interrupted, and remove what other interrupted saves left."""
    for replaced in root.glob(".step_*.replaced"):
        target = root / replaced.name.removeprefix(".").removesuffix(".replaced")
        if not target.exists():
            replaced.replace(target)
    for leftover in root.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _put(temporary: Path, target: Path) -> None:
    files.sync_folder(temporary)
    replaced = target.with_name(f".{target.name}.replaced")
    if target.exists():
        target.replace(replaced)
    temporary.replace(target)
    files.sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _facts(path: Path, sync: bool = False) -> dict[str, Any]:
    if sync:
        with path.open("r+b") as written:
            os.fsync(written.fileno())
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _disk_error(error: BaseException, target: Path) -> Exception | None:
    """The sentence for a full disk; safetensors reports it as text inside an error of its own."""
    import errno

    if isinstance(error, OSError):
        return files.disk_error(error, target)
    if "os error 28" in str(error).lower() or "no space left" in str(error).lower():
        return files.disk_error(OSError(errno.ENOSPC, str(error)), target)
    return None
