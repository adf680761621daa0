"""Validation, pictures and results of runs that look at pairs of scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from training_backend.data.deform import Deformation
from training_backend.data.manifest import CaseRecord, ImageRecord
from training_backend.data.pairs import PairInput, choose_pairs, settings, stored_pair
from training_backend.data.prepare import InputProfile
from training_backend.data.volume import Volume
from training_backend.data.write import write_volume
from training_backend.errors import DataError
from training_backend.methods.base import PreviewArray
from training_backend.tasks.base import CaseResult
from training_backend.tasks.registration import label_names, measures
from training_backend.tasks.registration import settings as registration_settings

if TYPE_CHECKING:
    from pathlib import Path

    from training_backend.engine.work import Work


def validation_pairs(work: Work) -> list[tuple[CaseRecord, CaseRecord]]:
    """Moving and fixed case of each pair that is scored; none where nothing is held out."""
    if not any(case.id != settings(work.config).atlas for case in work.dataset.cases(split="val")):
        return []
    return choose_pairs(work.dataset, work.config, "val").listed()


def pair_result(work: Work, pair: PairInput, name: str, stop: Callable[[], bool]) -> CaseResult:
    """What the registration of a pair is judged by, in place of a prediction."""
    displacement = displacement_of(work, pair, stop)
    names, window = label_names(work.config), registration_settings(work.config).window
    labels = pair.labels if settings(work.config).use_labels else None
    numbers = measures(displacement, pair.array, labels, len(names), window)
    return CaseResult(name, numbers, np.zeros(0), pair.fixed.geometry.spacing_mm)


def displacement_of(work: Work, pair: PairInput, stop: Callable[[], bool]) -> npt.NDArray[np.float32]:
    """Displacement [3, D, H, W] in voxels of a pair."""
    assert work.task is not None  # pairs are a task's
    volume = torch.from_numpy(pair.array)[None].to(work.runtime.device)
    with torch.no_grad(), work.runtime.autocast():
        found = work.task.predict(work.state.evaluated, work.config, volume, lambda share: not stop())
    result: npt.NDArray[np.float32] = found.float().cpu().numpy()
    return result


def read_pair(work: Work, moving: CaseRecord, fixed: CaseRecord) -> PairInput:
    """Two cases as this run's network sees them."""
    profile = InputProfile.of(work.config, work.dataset.info)
    return stored_pair(work.dataset, moving, fixed, profile, settings(work.config).align)


def pictures(work: Work, pair: PairInput) -> list[PreviewArray]:
    """Fixed scan, moving scan before and after, the bent grid and the Jacobian, on the grid of the fixed view."""
    displacement = displacement_of(work, pair, lambda: False)
    grid = pair.fixed.geometry
    deformation = Deformation(displacement, grid, pair.moving.geometry)
    warped = deformation.warp(pair.moving.array[0], pair.moving.geometry, grid, fill=float(pair.moving.array.min()))
    return [
        PreviewArray("fixed", pair.fixed.array[0], "image"),
        PreviewArray("moving", pair.moving.array[0], "image"),
        PreviewArray("warped", warped, "image"),
        PreviewArray("deformation grid", deformation.lines(grid), "mask", limits=(0.0, 1.0)),
        PreviewArray("Jacobian", deformation.local_jacobian(), "heatmap", limits=(0.0, 2.0)),
    ]


def write_pair_predictions(work: Work, folder: Path, stop: Callable[[], bool]) -> list[dict[str, Any]]:
    """Label maps of the moving cases, warped onto the grid of each fixed file, with Dice per class."""
    entries = []
    for moving, fixed in validation_pairs(work):
        if moving.label is None or fixed.label is None:
            continue
        pair = read_pair(work, moving, fixed)
        deformation = Deformation(displacement_of(work, pair, stop), pair.fixed.geometry, pair.moving.geometry)
        try:
            marks = _classes(work, moving.label)
            truth = _classes(work, fixed.label)
        except DataError as error:  # the sources were moved away; scores on the views are in the events
            raise DataError(f"The label maps cannot be read to write predictions: {error}") from error
        warped = deformation.warp(marks.array, marks.geometry, truth.geometry, nearest=True)
        path = folder / f"{moving.id}_to_{fixed.id}.nii.gz"
        name = f"{moving.id} warped onto {fixed.id}"
        write_volume(Volume(warped, truth.geometry, name=name, meta={"kind": "labels"}), path, overwrite=True)
        entries.append(
            {
                "case": f"{moving.id} to {fixed.id}",
                "prediction": f"{folder.name}/{path.name}",
                "image": fixed.images[0].path,
                "label": fixed.label.path,
                "dice": _dice(work, warped, truth.array),
            }
        )
    return entries


def _classes(work: Work, record: ImageRecord) -> Volume:
    from training_backend.data.read import read_classes

    return read_classes(work.dataset.source(record), key=record.key, values=record.values)


def _dice(work: Work, warped: npt.NDArray[Any], truth: npt.NDArray[Any]) -> dict[str, float]:
    from training_backend.evaluate.segmentation_metrics import dice_per_class

    names = {entry.index: entry.name for entry in work.dataset.info.classes if entry.index}
    found = dice_per_class(warped, truth, names)
    return {names[index]: value for index, value in found.items() if not np.isnan(value)}
