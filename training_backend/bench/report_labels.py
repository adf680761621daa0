"""How well findings are told by the words of reports, each scored by a model that never saw it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.splits import fold_splits
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import DataError
from training_backend.evaluate.classification_metrics import classification_report
from training_backend.weights.load import load_model

SHOWN = ("auc", "average_precision", "f1", "precision", "recall", "accuracy")


def settings(folder: Path, findings: int, steps: int) -> RunConfig:
    """A run that learns phrases of the dataset in `folder`."""
    changes = {
        "task": {"kind": "multilabel", "classes": findings, "reader": "phrases"},
        "data": {"workers": 0},
        "optim": {"max_steps": steps, "batch_size": 40, "weight_decay": 0.1},
        "engine": {"device": "cpu", "threads": 1, "val_steps": steps, "preview_minutes": 0},
    }
    return finetune_config("text_classification", "tiny", folder, "mg3d", changes)


def cross_validated(
    table: Path, folder: Path, folds: int = 5, steps: int = 300
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[str, ...]]:
    """Probabilities and labels [N, K] of all reports of `table`, and names of the findings.

    Reports with the same words are one subject, so none is scored by a model that learnt its double. No fold's
    validation cases decide anything: the model is that of the last step.

    Args:
        table: of reports with labels.
        folder: for the dataset and the runs; must be new or empty.
        folds: parts that are left out in turn.
        steps: of each run.
    """
    ingest(table, folder / "data", IngestConfig(workers=0))
    dataset = Dataset.open(folder / "data")
    number = len(dataset.info.target_names)
    first: dict[str, str] = {}
    cases = [
        case.model_copy(update={"subject": first.setdefault(" ".join(case.report.split()), case.subject)})
        for case in dataset.cases()
    ]
    found: dict[str, npt.NDArray[np.float64]] = {}
    for fold in range(folds):
        for case in fold_splits(cases, folds, fold, 0):
            dataset.put(case)
        dataset.save()
        run = RunDirectory.create(folder / f"fold-{fold}", settings(dataset.folder, number, steps))
        if execute(run) != 0:
            raise DataError(f"Fold {fold} failed: {run.error()}.", "See its log.")
        from training_backend.tasks.text_classification import predict_texts

        loaded = load_model(run.path)
        held_out = dataset.cases(split="val")
        values = predict_texts(loaded.module, loaded.config, [case.report for case in held_out]).double().numpy()
        found |= {case.id: row for case, row in zip(held_out, values, strict=True)}
    probabilities = np.stack([found[case.id] for case in cases])
    labels = np.array([case.target for case in cases], float)
    return probabilities, labels, dataset.info.target_names


def main(table: Path, folder: Path, folds: int = 5, steps: int = 300) -> str:
    """Metrics of all findings with 95 % bootstrap intervals over reports, and the AUC of each.

    Args:
        table: of reports with labels (CSV, TSV, JSON).
        folder: for the dataset and the runs; must be new or empty.
        folds: parts that are left out in turn.
        steps: of each run.
    """
    started = time.monotonic()
    probabilities, labels, names = cross_validated(table, folder, folds, steps)
    report = classification_report(probabilities, labels, "multilabel", names=names)
    lines = [f"{len(labels)} reports, {len(names)} findings, {folds} folds, {time.monotonic() - started:.0f} s"]
    for name in SHOWN:
        if name in report:
            lines.append(f"{name:18} {report[name]:.3f} ({report[f'{name}_low']:.3f} to {report[f'{name}_high']:.3f})")
    for index, name in enumerate(names):
        area = report.get(f"auc_{name}", float("nan"))
        lines.append(f"{name:36} {100 * labels[:, index].mean():4.0f} %  AUC {area:.3f}")
    return "\n".join(lines)
