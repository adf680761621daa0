"""What a finished run says of each of its validation cases: read from its folder, or measured on what it wrote there.

Segmentation and registration leave label volumes and their Dice (``predictions/cases.json``); distances between
surfaces are measured on these volumes. Tasks of one answer per case leave it beside the truth
(``predictions/values.json``). Reports and retrieval have no number of a single case.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training_backend.config import RunConfig
from training_backend.data.dataset import MANIFEST, Dataset
from training_backend.data.manifest import CaseRecord
from training_backend.data.volume import Volume
from training_backend.errors import DataError
from training_backend.evaluate.segmentation_metrics import ClassScore, score_case
from training_backend.tasks.base import Cancelled, Progress

Scores = dict[str, dict[str, float]]
"""Value of each structure, by case; NaN where the case says nothing about the structure."""

LABELS, VALUES = "cases.json", "values.json"
"""Files below ``predictions/``, for tasks of label volumes and of one answer per case."""
WHOLE = "case"
"""The one structure of tasks that answer for the whole case."""


@dataclass(frozen=True)
class Metric:
    """A number that every case has.

    Attributes:
        name: as the command line calls it.
        title: as tables call it, with its unit.
        higher: whether more is better.
        slow: whether it is measured on label volumes in place of read.
    """

    name: str
    title: str
    higher: bool = True
    slow: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice"),
        Metric("hd95_mm", "HD95 mm", higher=False, slow=True),
        Metric("nsd", "NSD (2 mm)", slow=True),
        Metric("correct", "Share correct"),
        Metric("brier", "Brier score", higher=False),
        Metric("absolute_error", "Absolute error", higher=False),
    )
}
REMEMBERED = 64
"""Runs whose measured scores are kept in memory."""
_measured: dict[tuple[tuple[str, int], ...], dict[str, Scores]] = {}
_OF_LABELS = ("dice", "hd95_mm", "nsd")
_NONE = "Its task has no number of a single case"


def metrics_of(run: Path, config: RunConfig) -> tuple[tuple[str, ...], str]:
    """Names of the metrics that each scored case of a run has, or none and a sentence that says why."""
    task = config.task
    if task is None:
        return (), "It was pre-trained only and predicts nothing that can be scored per case."
    if (run / "predictions" / LABELS).is_file():
        return _OF_LABELS, ""
    kind = _kind(config)
    if not kind and task.name not in ("segmentation", "registration"):
        return (), f"{_NONE} ({task.name.replace('_', ' ')})."
    if (run / "predictions" / VALUES).is_file():
        return ("absolute_error",) if kind == "regression" else ("correct", "brier"), ""
    return (), "It has no scored validation cases; they are written when a run finishes."


def read_scores(run: Path, config: RunConfig, metric: str, progress: Progress | None = None) -> Scores:
    """The values of one of `metrics_of`, by case and structure.

    Args:
        run: run directory.
        config: its configuration.
        metric: name of the metric; those that are slow measure all of theirs in one go.
        progress: told the share done; answering False raises `Cancelled`.

    Raises:
        DataError: a file that the run wrote, or the truth, cannot be read.
    """
    if METRICS[metric].slow:
        return measured(run, config, progress)[metric]
    if metric != "dice":
        return _answer_scores(run, config, metric)
    return label_dice(run)


def label_dice(run: Path) -> Scores:
    """Dice of each class by case, as the run wrote it; a `DataError` where it wrote none or it cannot be read."""
    try:
        return {
            str(entry["case"]): {str(name): float(value) for name, value in entry["dice"].items()}
            for entry in label_entries(run)
            if entry.get("dice")
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(LABELS) from error


def measured(run: Path, config: RunConfig, progress: Progress | None = None) -> dict[str, Scores]:
    """Scores by metric of the label volumes that a run wrote, against the truth in its dataset; remembered."""
    dataset = Dataset.open(config.data.dataset)
    entries = label_entries(run)
    files = (run / "predictions" / LABELS, dataset.folder / MANIFEST)
    key = tuple((str(path.resolve()), path.stat().st_mtime_ns) for path in files)
    if key in _measured:
        return _measured[key]
    found: dict[str, Scores] = {name: {} for name in _OF_LABELS}
    for done, entry in enumerate(entries):
        if progress is not None and not progress(done / len(entries)):
            raise Cancelled
        for score in _measure(run, dataset, entry):
            for name in _OF_LABELS:
                found[name].setdefault(score.case_id, {})[score.class_name] = float(getattr(score, name))
    while len(_measured) >= REMEMBERED:
        del _measured[next(iter(_measured))]
    _measured[key] = found
    return found


def averaged(scores: Scores, structure: str = "") -> dict[str, float]:
    """One value per case: of a structure, or the mean over those that are known; cases without any are left out."""
    found = {}
    for case, values in scores.items():
        known = [value for name, value in values.items() if structure in ("", name) and math.isfinite(value)]
        if known:
            found[case] = sum(known) / len(known)
    return found


def label_entries(run: Path) -> list[dict[str, Any]]:
    """Entries of ``predictions/cases.json``: `case`, `prediction`, `image`, `label` and `dice` of each case."""
    return _entries(run, LABELS)


def read_pair(run: Path, dataset: Dataset, entry: Mapping[str, Any]) -> tuple[Volume, Volume | None]:
    """Prediction and truth of an entry of `label_entries`, on one grid; no truth where the case has no label map."""
    from training_backend.data.read import read_classes

    path = run / str(entry["prediction"])
    if not path.is_file():
        raise DataError(f"The prediction of {entry['case']} is gone from the run {run.name}.", "Train it again.")
    prediction, record = read_classes(path), labelled_as(dataset, entry)
    if record is None or record.label is None:
        return prediction, None
    truth = read_classes(dataset.source(record.label), key=record.label.key, values=record.label.values)
    if truth.array.shape != prediction.array.shape:
        raise DataError(
            f"The label map of {entry['case']} has changed since the run {run.name} was scored.", "Train it again."
        )
    return prediction, truth


def labelled_as(dataset: Dataset, entry: Mapping[str, Any]) -> CaseRecord | None:
    """The case whose label map is the truth of an entry; of a pair that is the fixed one."""
    own = dataset.records.get(str(entry["case"]))
    if own is not None:
        return own
    path = entry.get("label")
    return next((case for case in dataset.records.values() if case.label and case.label.path == path), None)


def _measure(run: Path, dataset: Dataset, entry: Mapping[str, Any]) -> list[ClassScore]:
    prediction, truth = read_pair(run, dataset, entry)
    if truth is None:
        return []
    record = labelled_as(dataset, entry)
    annotated = record.annotated if record is not None else None
    names = {
        row.index: row.name
        for row in dataset.info.classes
        if row.index and (annotated is None or row.index in annotated)
    }
    spacing = truth.geometry.spacing_mm
    return score_case(prediction.array, truth.array, spacing, names, case_id=str(entry["case"]))


def _answer_scores(run: Path, config: RunConfig, metric: str) -> Scores:
    from training_backend.evaluate.classification_metrics import case_marks

    entries, kind = _entries(run, VALUES), _kind(config)
    if not entries:
        return {}
    try:
        values = np.array([entry["values"] for entry in entries], float).reshape(len(entries), -1)
        truth = np.array([entry["truth"] for entry in entries], float).reshape(len(entries), -1)
        if kind == "regression":
            numbers = np.abs(values - truth).mean(axis=1)
        else:
            numbers = case_marks(values, truth, kind)[metric]
        return {str(entry["case"]): {WHOLE: float(n)} for entry, n in zip(entries, numbers, strict=True)}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damaged(VALUES) from error


def _kind(config: RunConfig) -> str:
    """What the answers of a run are: "binary", "multilabel", "multiclass", "regression", or "" for other tasks."""
    if config.task is None:
        return ""
    return "regression" if config.task.name == "regression" else str(getattr(config.task, "kind", ""))


def _entries(run: Path, name: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads((run / "predictions" / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(name) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "case" in entry for entry in entries):
        raise _damaged(name)
    return entries


def _damaged(name: str) -> DataError:
    return DataError(f"Its list of scored cases (predictions/{name}) cannot be read.", "Train it again.")
