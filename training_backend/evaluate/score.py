"""Scores of fine-tuned models on a split of a dataset, and those that a run wrote of its validation cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training_backend.errors import DataError
from training_backend.evaluate.case_scores import averaged, label_dice
from training_backend.evaluate.segmentation_metrics import (
    METRICS,
    ClassScore,
    score_case,
    score_regions,
    summarise,
)
from training_backend.report import Table
from training_backend.tasks.base import Cancelled, CaseResult, Progress

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import CaseRecord, Split
    from training_backend.weights.load import LoadedModel


def score_split(
    source: str | Path,
    data: Path,
    split: Split,
    progress: Progress | None = None,
    *,
    classifier: str | Path | None = None,
) -> Table:
    """Scores of a model on every case of `split` that has the truth, on the grid of each file.

    Segmentations get a row per case and class and means with 95 % bootstrap intervals; other tasks their metrics.

    Args:
        source: run directory or model folder.
        data: dataset folder.
        split: "train", "val" or "test".
        progress: told the share done; answering False raises `Cancelled`.
        classifier: model that tells findings of texts, by which written reports are compared with the true ones too.
    """
    from training_backend.config.registry import task as find_task
    from training_backend.data.dataset import Dataset
    from training_backend.weights.load import load_model

    model, dataset = load_model(source), Dataset.open(data)
    if model.config.task is None:
        raise DataError("This model was only pre-trained and predicts nothing to score.", "Fine-tune it first.")
    task = find_task(model.config.task.name)
    if task.needs == "pairs":
        from training_backend.evaluate.score_pairs import pair_table

        return pair_table(model, dataset, split, progress)
    cases = dataset.reading(model.config.data.report_part).cases(split=split)
    cases = [case for case in cases if case.has(task.needs)]
    if not cases:
        raise DataError(f"The split {split!r} of {dataset.info.name} has no case with {task.needs}.")
    if task.needs == "labels":
        return _segmentation_table(model, dataset, cases, progress)
    results = []
    for done, case in enumerate(cases, 1):
        values = _predict(model, dataset, case)
        if task.truth is not None:
            truth = task.truth(model.module, model.config, case)
        else:
            truth = np.asarray(case.target, np.float32)
        results.append(CaseResult(case.id, values, truth, (1.0, 1.0, 1.0)))
        _tell(progress, done / len(cases))
    table = Table(("metric", "value"))
    metrics = task.evaluate(model.config, results)
    if task.name == "retrieval":
        from training_backend.evaluate.two_stage import gated_report

        metrics |= gated_report(model, dataset, cases)
    if classifier is not None:
        from training_backend.evaluate.findings import findings_report

        metrics |= findings_report(classifier, model.config, task, results)
    for name, value in metrics.items():
        table.add(name, f"{value:.4f}")
    return table


def _segmentation_table(
    model: LoadedModel, dataset: Dataset, cases: Sequence[CaseRecord], progress: Progress | None
) -> Table:
    from training_backend.data.read import read_classes

    classes: Mapping[int, str] = {entry.index: entry.name for entry in dataset.info.classes}
    regions = _regions(model)
    scores: list[ClassScore] = []
    unions: list[ClassScore] = []
    for done, case in enumerate(cases, 1):
        if case.label is None:
            continue
        truth = read_classes(dataset.source(case.label), key=case.label.key, values=case.label.values)
        labels = _predict(model, dataset, case)
        known = set(classes if case.annotated is None else case.annotated)
        named = {value: name for value, name in classes.items() if value in known}
        joint = {name: values for name, values in regions.items() if known.issuperset(values)}
        scores += score_case(labels, truth.array, truth.geometry.spacing_mm, named, case_id=case.id)
        unions += score_regions(labels, truth.array, truth.geometry.spacing_mm, joint, case_id=case.id)
        _tell(progress, done / len(cases))
    table = Table(("case", "class", *METRICS))
    for score in [*scores, *unions]:
        table.add(score.case_id, score.class_name, *(_number(getattr(score, metric)) for metric in METRICS))
    for name, means in summarise(scores).items():
        table.add("mean", name, *(means.get(metric, "-") for metric in METRICS))
    for name, means in summarise(unions).items() if unions else ():
        table.add("mean", "regions" if name == "mean" else name, *(means.get(metric, "-") for metric in METRICS))
    return table


def _regions(model: LoadedModel) -> dict[str, tuple[int, ...]]:
    """Label values of each region that a model is scored on besides its classes."""
    from training_backend.config.regions import read_regions
    from training_backend.tasks.segmentation import class_names, settings

    wanted = settings(model.config).regions
    return read_regions(wanted, class_names(model.config)) if wanted else {}


def _predict(
    model: LoadedModel, dataset: Dataset, case: CaseRecord
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Label map on the native grid (z, y, x), or values [K], of a stored case."""
    import torch

    from training_backend.config.registry import task as find_task
    from training_backend.data.prepare import stored_input

    task = find_task(model.config.task.name if model.config.task else "")
    if task.predict_texts is not None:
        values: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = (
            task.predict_texts(model.module, model.config, [case.report])[0].float().cpu().numpy()
        )
        return values
    prepared = stored_input(dataset, case, model.profile)
    with torch.inference_mode():
        output = task.predict(model.module, model.config, torch.from_numpy(prepared.array)[None], None)
    result = output.float().cpu().numpy()
    return prepared.restore_labels(result) if result.ndim == 4 else result


def case_dice(run: Path) -> dict[str, float]:
    """Mean Dice over classes by case, from the predictions that the run wrote at its end."""
    try:
        return averaged(label_dice(run))
    except DataError as error:  # none, or of a task without masks
        raise DataError(
            f"{run.name} has no scored validation cases (predictions/cases.json).",
            "Choose finished segmentation runs.",
        ) from error


def _tell(progress: Progress | None, share: float) -> None:
    if progress is not None and not progress(share):
        raise Cancelled


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
