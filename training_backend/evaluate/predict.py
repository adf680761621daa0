"""Predictions for scans as they come: read, prepared like in training, predicted, and put back onto the file's grid."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training_backend.config.registry import task as find_task
from training_backend.data.volume import Array, Volume
from training_backend.errors import ConfigError, ResourceError
from training_backend.files import write_text
from training_backend.tasks.base import Cancelled, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training_backend.config import RunConfig
    from training_backend.data.prepare import Prepared
    from training_backend.evaluate.sliding import Tiling
    from training_backend.weights.load import LoadedModel

log = logging.getLogger(__name__)

PROBABILITY_BYTES = 2**31
"""Largest array of class probabilities that is made without being asked for; above it classes are chosen per slab."""

WINDOWS_AT_ONCE = 4
"""Windows per forward pass on a GPU to start with; fewer when its memory is short."""


@dataclass(frozen=True)
class VolumePrediction:
    """What a model says about one case.

    Attributes:
        labels: class per voxel on the grid of the first contrast that the model looks at; None for whole-case models.
        volumes_ml: volume of each class but background, by name.
        probabilities: one volume per class on request, on the same grid.
        values: for models of whole cases: probability by class name, or value by target name.
        text: for models that write a report.
        notes: sentences about what was done differently, e.g. when memory was short.
    """

    labels: Volume | None = None
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    probabilities: tuple[Volume, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    text: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one file, and where it lies.

    Attributes:
        source: file or folder that was read; the first one of a case of several files.
        path: label volume, or the table of values.
        probability_paths: one file per class on request.
        volumes_ml: volume of each class but background, by name.
        values: probability by class name, or value by target name.
        text: the written report.
        notes: sentences about what was done differently.
    """

    source: Path
    path: Path
    probability_paths: tuple[Path, ...] = ()
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    text: str = ""
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Volumes or values, and the notes, in one line."""
        volumes = [f"{name} {value:.1f} ml" for name, value in self.volumes_ml.items()]
        values = [f"{name} {value:.4g}" for name, value in self.values.items()]
        return " ".join([", ".join(volumes + values), self.text, *self.notes]).strip()


def predict_files(
    source: str | Path,
    inputs: Sequence[Path | Sequence[Path]],
    output: Path,
    *,
    probabilities: bool = False,
    overlap: float | None = None,
    flips: bool = False,
    labels: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Prediction]:
    """Predict scans with a fine-tuned model and write the results into a folder.

    Segmentations become ``NAME_seg`` label volumes in the format of the file (NIfTI where it cannot be written),
    exactly on its grid; registrations what `register_files` says; reports become ``NAME_report.txt``; other tasks add a
    row to ``predictions.csv``. Existing files are never replaced.

    Args:
        source: run directory, model folder or file of a fine-tuned model.
        inputs: files or DICOM folders; a sequence of files for the contrasts of one case. For registration the moving
            scan and the fixed one.
        output: folder, made if need be.
        probabilities: also write one probability map per class.
        overlap: share of a window that its neighbour repeats; None takes the model's.
        flips: mean over all flips, eight times slower.
        labels: label map of the moving scan, for registration.
        device: auto, cpu, cuda or cuda:N.
        progress: told the share of all work done; answering False raises `Cancelled`.

    Raises:
        DataError: a file cannot be read or prepared.
        WeightsError: the model cannot be loaded.
        ResourceError: memory is short even on the CPU.
    """
    from training_backend.data.read import read_volumes
    from training_backend.weights.load import load_model

    loaded = load_model(source)
    if loaded.config.task is not None and loaded.config.task.name == "registration":
        from training_backend.evaluate.register import register_files

        two = [Path(path) for path in inputs if isinstance(path, str | Path)]
        return register_files(loaded, two, Path(output), labels=labels, device=device, progress=progress)
    if labels is not None:
        raise ConfigError("Only registration carries a label map along.", "Leave the label map out.")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    cases = [[Path(case)] if isinstance(case, str | Path) else [Path(path) for path in case] for case in inputs]
    results = []
    for index, paths in enumerate(cases):
        volumes = [volume for path in paths for volume in read_volumes(path)]
        found = predict_volumes(
            loaded,
            volumes,
            probabilities=probabilities,
            overlap=overlap,
            flips=flips,
            device=device,
            progress=_part(progress, index, len(cases)),
        )
        results.append(_write(found, paths[0], output))
    return results


def predict_volumes(
    loaded: LoadedModel,
    volumes: Sequence[Volume],
    *,
    probabilities: bool = False,
    overlap: float | None = None,
    flips: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> VolumePrediction:
    """Predict one case that is in memory; the arguments are those of `predict_files`.

    Args:
        loaded: a fine-tuned model; moved to the device that is used.
        volumes: its contrasts.
        probabilities: also give one probability volume per class.
        overlap: share of a window that its neighbour repeats.
        flips: mean over all flips.
        device: auto, cpu, cuda or cuda:N.
        progress: told the share done.
    """
    from training_backend.data.prepare import prepare

    if loaded.config.task is None:
        raise ConfigError("This model was only pre-trained and predicts nothing.", "Fine-tune it on a task first.")
    if loaded.config.task.name == "registration":
        raise ConfigError("This model registers two scans.", "Give it a moving scan and a fixed one.")
    config = _with_wishes(loaded.config, overlap, flips)
    prepared = prepare(list(volumes), loaded.profile)
    case = _Case(loaded, config, prepared.array, progress)
    if config.task is not None and config.task.name == "segmentation":
        return _segment(case, prepared, volumes, probabilities, chosen_device(device))
    values, notes = _on_ladder(case, chosen_device(device), _whole_case)
    task = find_task(config.task.name) if config.task else None
    if task is not None and task.told is not None:
        told = task.told(config, values.numpy())
        return VolumePrediction(values=told.values, text=told.text, notes=notes)
    names = _value_names(loaded, len(values))
    return VolumePrediction(values=dict(zip(names, values.tolist(), strict=True)), notes=notes)


def predict_whole(
    loaded: LoadedModel, array: Array, device: torch.device, progress: Progress | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """What a model says of a network input [C, D, H, W] at once, and sentences when memory was short."""
    case = _Case(loaded, loaded.config, array, progress)
    return _on_ladder(case, device, _whole_case)


@dataclass(frozen=True)
class _Case:
    loaded: LoadedModel
    config: RunConfig
    array: Array
    progress: Progress | None


@dataclass(frozen=True)
class _Rung:
    """One way to compute, and what is said when it is needed."""

    device: torch.device
    batch: int
    accumulate_on: torch.device | None = None
    sentence: str = ""


def _segment(
    case: _Case, prepared: Prepared, volumes: Sequence[Volume], probabilities: bool, device: torch.device
) -> VolumePrediction:
    from training_backend.tasks.segmentation import class_names

    names = class_names(case.config)
    voxels = max(math.prod(prepared.native.shape), math.prod(prepared.geometry.shape))
    maps = probabilities or 4 * len(names) * voxels <= PROBABILITY_BYTES
    result, notes = _on_ladder(case, device, _probabilities if maps else _labels)
    found = result.numpy()
    seen = next((v for v in volumes if v.geometry.same_grid(prepared.native)), volumes[0])
    kept = {"nifti": seen.meta["nifti"]} if "nifti" in seen.meta else {}

    def drawn(array: Array, name: str, **meta: Any) -> Volume:
        return Volume(array, prepared.native, seen.modality, name, {**kept, **meta})

    array = prepared.restore_labels(found)
    table = {str(index): name for index, name in enumerate(names)}
    labels = drawn(array, f"{seen.name} segmentation", kind="labels", class_names=table)
    voxel_ml = math.prod(prepared.native.spacing_mm) / 1000
    counts = np.bincount(array.ravel(), minlength=len(names))
    volumes_ml = {name: int(counts[index]) * voxel_ml for index, name in enumerate(names) if index}
    shares = [
        drawn(prepared.restore(found[index], fill=float(index == 0)), name, kind="probability")
        for index, name in enumerate(names if probabilities else ())
    ]
    return VolumePrediction(labels, volumes_ml, tuple(shares), notes=notes)


def _probabilities(case: _Case, rung: _Rung) -> Tensor:
    from training_backend.evaluate.sliding import predict_probabilities
    from training_backend.tasks.segmentation import cleaned, predictor

    volume, tiling = _tiled(case, rung)
    found = predict_probabilities(predictor(case.loaded.module, case.config), volume, tiling, case.progress)
    return cleaned(found, case.config)


def _labels(case: _Case, rung: _Rung) -> Tensor:
    from training_backend.evaluate.sliding import predict_labels
    from training_backend.tasks.segmentation import cleaned, predictor

    volume, tiling = _tiled(case, rung)
    found = predict_labels(predictor(case.loaded.module, case.config), volume, tiling, case.progress)
    return cleaned(found, case.config)


def _tiled(case: _Case, rung: _Rung) -> tuple[Tensor, Tiling]:
    from training_backend.tasks.segmentation import tiling

    volume = _input(case)
    return volume, replace(tiling(case.config, volume, batch=rung.batch), accumulate_on=rung.accumulate_on)


def _whole_case(case: _Case, rung: _Rung) -> Tensor:
    assert case.config.task is not None  # checked by the caller
    task = find_task(case.config.task.name)
    return task.predict(case.loaded.module, case.config, _input(case).to(rung.device), case.progress).float().cpu()


def _input(case: _Case) -> Tensor:
    import torch

    return torch.from_numpy(case.array)[None]


def _on_ladder(
    case: _Case, device: torch.device, compute: Callable[[_Case, _Rung], Tensor]
) -> tuple[Tensor, tuple[str, ...]]:
    """Result of `compute` in the first way that fits into memory, and sentences on the ways that did not."""
    import torch

    notes: list[str] = []
    for rung in _ladder(device):
        if rung.sentence:
            notes.append(rung.sentence)
            log.warning(rung.sentence)
        try:
            case.loaded.module.to(rung.device)
            with torch.inference_mode(), torch.autocast(rung.device.type, torch.bfloat16, enabled=_fast(rung.device)):
                return compute(case, rung), tuple(notes)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
    shape = case.array.shape[1:]
    raise ResourceError(
        f"The memory of this computer does not suffice to predict a volume of {shape} voxels.",
        "Close other programs, or predict a part of the scan.",
    )


def _ladder(device: torch.device) -> Iterator[_Rung]:
    """Ways to compute, from the fastest to the most modest."""
    import torch

    cpu = torch.device("cpu")
    if device.type != "cpu":
        yield _Rung(device, WINDOWS_AT_ONCE)
        yield _Rung(device, 1, None, "GPU memory was short, so windows were predicted one at a time.")
        yield _Rung(device, 1, cpu, "GPU memory was still short, so results were collected in main memory.")
        yield _Rung(cpu, 1, cpu, "The GPU could not hold one window, so the prediction was made on the CPU.")
    else:
        yield _Rung(cpu, 1)


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _fast(device: torch.device) -> bool:
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def chosen_device(name: str) -> torch.device:
    """Device called auto, cpu, cuda or cuda:N; `auto` is the GPU where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ResourceError(
            f"Device {name} was asked for, but PyTorch finds no GPU.", "Use auto, or run: med3dssl doctor."
        )
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"There is no device {name!r}.", "Use auto, cpu, cuda or cuda:N.") from error


def _with_wishes(config: RunConfig, overlap: float | None, flips: bool) -> RunConfig:
    if config.task is None or config.task.name != "segmentation":
        return config
    wishes: dict[str, Any] = {} if overlap is None else {"overlap": overlap}
    return config.updated({"task": wishes | ({"test_flips": True} if flips else {})})


def _value_names(loaded: LoadedModel, count: int) -> list[str]:
    """Names of the outputs of a model of whole cases: the configuration's, the card's, or numbers."""
    for names in (getattr(loaded.config.task, "class_names", ()), loaded.card.get("target_names", ())):
        if len(names) == count:
            return [str(name) for name in names]
    return [f"value {index}" for index in range(1, count + 1)]


def _part(progress: Progress | None, index: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda share: progress((index + share) / count)


def _write(found: VolumePrediction, source: Path, output: Path) -> Prediction:
    from training_backend.data.facts import scan_name, suffix_of
    from training_backend.data.write import WRITABLE, write_volume

    stem = source.name if source.is_dir() else scan_name(source)
    suffix = suffix_of(source) if suffix_of(source) in WRITABLE else ".nii.gz"
    common: dict[str, Any] = {"volumes_ml": found.volumes_ml, "values": found.values, "notes": found.notes}
    if found.text:
        path = free_path(output, f"{stem}_report", ".txt")
        write_text(path, f"{found.text}\n")
        return Prediction(source, path, text=found.text, **common)
    if found.labels is None:
        return Prediction(source, _add_row(output / "predictions.csv", source, found.values), **common)
    path = write_volume(found.labels, free_path(output, f"{stem}_seg", suffix))
    maps = [
        write_volume(volume, free_path(output, f"{stem}_prob_{index}_{_file_safe(volume.name)}", suffix))
        for index, volume in enumerate(found.probabilities)
    ]
    return Prediction(source, path, tuple(maps), **common)


def free_path(folder: Path, stem: str, suffix: str) -> Path:
    """A path that does not exist yet: numbered from the second one on."""
    path, number = folder / f"{stem}{suffix}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}{suffix}"
    return path


def _file_safe(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _add_row(path: Path, source: Path, values: Mapping[str, float]) -> Path:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if new:
            writer.writerow(["Path", *values])
        writer.writerow([str(source), *values.values()])
    return path


__all__ = ["Cancelled", "Prediction", "VolumePrediction", "predict_files", "predict_volumes"]
