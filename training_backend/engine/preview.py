"""Pictures of one fixed view while a run trains, for the viewer to update in place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training_backend.data.pairs import choose_pairs
from training_backend.data.prepare import stored_input
from training_backend.engine import seeds
from training_backend.engine.files import write_json
from training_backend.engine.pairs import pictures, read_pair, validation_pairs
from training_backend.engine.validate import profile_of, validation_cases
from training_backend.methods.base import PreviewArray

if TYPE_CHECKING:
    import numpy.typing as npt

    from training_backend.data.volume import Geometry
    from training_backend.engine.work import Work

KEPT = 10
"""Newest preview folders kept."""


def write_preview(work: Work, previews: Path) -> tuple[Path, str] | None:
    """Write pictures of the first validation case; answers their folder and the case, or None if there are none.

    ``preview.json`` holds `step`, `case`, `geometry` and `spacing_mm` of the view's grid, and `arrays`, a list of
    `name`, `file`, `role`, `voxels`, `limits`, `classes` as in `PreviewArray`.
    """
    if work.needs == "pairs":
        return _pair_preview(work, previews)
    cases = validation_cases(work) or validation_cases(work, "train")
    cases = [case for case in cases if case.store]  # published lists have no scans to look at
    if not cases or (work.task is not None and work.task.needs != "labels"):
        return None
    case = cases[0]
    prepared = stored_input(work.dataset, case, profile_of(work))
    size, darkest = work.config.data.size, prepared.array.min(axis=(1, 2, 3))  # around small scans, as in training
    volume, geometry, start = centre_view(prepared.array, prepared.geometry, size, darkest)
    label = prepared.label
    truth = None if label is None else centre_view(label[None], prepared.geometry, size)[0][0]
    arrays = _pictures(work, volume, truth, case.report if work.needs == "text" else "")
    if not arrays:
        return None
    return _write(previews, {**_facts(work, case.id, geometry), "start": list(start)}, arrays), case.id


def _facts(work: Work, case: str, geometry: Geometry) -> dict[str, Any]:
    place = {"geometry": geometry.to_dict(), "spacing_mm": list(geometry.spacing_mm)}
    return {"step": work.state.progress.step, "case": case, "start": [0, 0, 0], **place}


def _pair_preview(work: Work, previews: Path) -> tuple[Path, str] | None:
    """The same of the first pair."""
    listed = validation_pairs(work) or choose_pairs(work.dataset, work.config, "train").listed()
    moving, fixed = listed[0]
    pair = read_pair(work, moving, fixed)
    work.state.evaluated.eval()
    facts = _facts(work, f"{moving.id} to {fixed.id}", pair.fixed.geometry)
    return _write(previews, facts, pictures(work, pair)), facts["case"]


def read_preview(folder: Path) -> tuple[dict[str, Any], list[PreviewArray]]:
    """Facts and pictures written by `write_preview`; needs no torch."""
    facts = json.loads((folder / "preview.json").read_text(encoding="utf-8"))
    arrays = [
        PreviewArray(
            entry["name"],
            np.load(folder / entry["file"], allow_pickle=False),
            entry["role"],
            tuple(entry["voxels"]),
            tuple(entry["limits"]) if entry["limits"] else None,
            {int(key): name for key, name in entry["classes"].items()},
        )
        for entry in facts["arrays"]
    ]
    return facts, arrays


def centre_view(
    array: np.ndarray[Any, Any], geometry: Geometry, size: tuple[int, int, int], outside: npt.ArrayLike = 0
) -> tuple[np.ndarray[Any, Any], Geometry, tuple[int, int, int]]:
    """The box of `size` voxels in the middle of `array` [C, D, H, W], with its geometry and start.

    Outside of `array` it holds `outside`, one value or one per channel.
    """
    z, y, x = ((have - want) // 2 for have, want in zip(array.shape[1:], size, strict=True))
    start = (z, y, x)
    view = np.empty((array.shape[0], *size), array.dtype)
    view[:] = np.reshape(outside, (-1, 1, 1, 1))
    source = tuple(slice(max(0, s), min(n, s + w)) for s, n, w in zip(start, array.shape[1:], size, strict=True))
    target = tuple(slice(part.start - s, part.stop - s) for part, s in zip(source, start, strict=True))
    view[(slice(None), *target)] = array[(slice(None), *source)]
    return view, geometry.cropped(start, size), start


def _pictures(
    work: Work, volume: np.ndarray[Any, Any], truth: np.ndarray[Any, Any] | None, report: str
) -> list[PreviewArray]:
    network = work.state.evaluated
    network.eval()
    tensor = torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None].to(work.runtime.device)
    with torch.no_grad(), work.runtime.autocast():
        if work.task is None:
            generator = seeds.generator(work.config.seed, seeds.PREVIEW)
            return work.method.preview(network, tensor, {"report": report} if report else {}, generator)
        probabilities = work.task.predict(network, work.config, tensor, None)
    names = {entry.index: entry.name for entry in work.dataset.info.classes}
    labels = probabilities.float().cpu().numpy().argmax(0).astype(np.uint8)
    pictures = [PreviewArray("image", volume[0], "image"), PreviewArray("prediction", labels, "labels", classes=names)]
    if truth is not None:
        pictures.append(PreviewArray("truth", truth.astype(np.uint8), "labels", classes=names))
    return pictures


def _write(previews: Path, facts: dict[str, Any], arrays: list[PreviewArray]) -> Path:
    previews.mkdir(parents=True, exist_ok=True)
    folder = previews / f"step_{facts['step']:08d}"
    temporary = previews / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    entries = []
    for picture in arrays:
        name = f"{picture.name.replace(' ', '_')}.npy"
        np.save(temporary / name, picture.array, allow_pickle=False)
        entry = {"name": picture.name, "file": name, "role": picture.role, "voxels": list(picture.voxels)}
        limits = [float(limit) for limit in picture.limits] if picture.limits else None
        entries.append(
            {**entry, "limits": limits, "classes": {str(key): text for key, text in picture.classes.items()}}
        )
    write_json(temporary / "preview.json", {**facts, "arrays": entries})
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    for old in sorted(previews.glob("step_*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
