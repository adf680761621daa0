"""Findings that written reports have in common with the true ones, as a classifier of reports tells them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from training_backend.errors import ConfigError
from training_backend.evaluate.classification_metrics import Floats, bootstrap
from training_backend.tasks.base import CaseResult, Task

if TYPE_CHECKING:
    from training_backend.config import RunConfig

PRESENT = 0.5
"""Probability from which a finding counts as told."""


def findings_report(
    classifier: str | Path, run: RunConfig, task: Task, results: Sequence[CaseResult]
) -> dict[str, float]:
    """Precision, recall and F1 of the findings of written reports, see `findings_f1`.

    Args:
        classifier: run or model of the task text_classification with labels of their own.
        run: of the model that wrote.
        task: its task, which must write reports.
        results: predictions and true reports.

    Raises:
        ConfigError: a task that writes no reports, or a model that tells no findings.
    """
    from training_backend.weights.load import load_model

    if task.name != "report_generation" or task.told is None:
        raise ConfigError(
            f"Findings of written reports were asked for, but this model's task is {task.name}.",
            "Leave the classifier out, or choose a model that writes reports.",
        )
    judge = load_model(classifier)
    settings = judge.config.task
    if settings is None or settings.name != "text_classification" or getattr(settings, "kind", "") != "multilabel":
        raise ConfigError(
            f"{classifier} does not tell the findings of a report.",
            "Train one with: med3dssl finetune --task text_classification --task.kind multilabel.",
        )
    from training_backend.tasks.text_classification import predict_texts

    def labels(texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = predict_texts(judge.module, judge.config, texts).float().numpy() >= PRESENT
        return found

    written = [task.told(run, np.asarray(result.prediction)).text for result in results]
    names = tuple(getattr(settings, "class_names", ()))
    return findings_f1(labels(written), labels([str(result.truth) for result in results]), names)


def findings_f1(
    written: npt.ArrayLike, true: npt.ArrayLike, names: Sequence[str] = (), *, samples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Precision, recall and F1 over all findings (micro), the mean F1 of findings (macro) and each one's F1.

    Names are ``findings_precision``, ``findings_recall``, ``findings_f1``, ``findings_f1_macro`` and
    ``findings_f1_NAME``, with 95 % bootstrap intervals over cases. Findings that no report tells have no F1 and are
    left out of the mean.

    Args:
        written: [N, K], whether a written report tells a finding.
        true: [N, K], whether the true one does.
        names: of the findings; empty numbers them.
        samples: bootstrap samples; 0 gives no intervals.
        seed: of the bootstrap.
    """
    mine, theirs = np.asarray(written, bool), np.asarray(true, bool)
    names = names or tuple(str(index) for index in range(mine.shape[1]))
    both, only_mine, only_theirs = mine & theirs, mine & ~theirs, ~mine & theirs

    def metrics(weights: Floats) -> dict[str, Floats]:
        hits, extra, missed = (weights @ part.astype(float) for part in (both, only_mine, only_theirs))
        with np.errstate(divide="ignore", invalid="ignore"):
            single = 2 * hits / (2 * hits + extra + missed)
            known = np.isfinite(single)
            macro = np.where(known, single, 0.0).sum(1) / known.sum(1)
            all_hits, all_extra, all_missed = hits.sum(1), extra.sum(1), missed.sum(1)
            found = {
                "findings_precision": all_hits / (all_hits + all_extra),
                "findings_recall": all_hits / (all_hits + all_missed),
                "findings_f1": 2 * all_hits / (2 * all_hits + all_extra + all_missed),
                "findings_f1_macro": macro,
            }
        return found | {f"findings_f1_{name}": single[:, index] for index, name in enumerate(names)}

    return bootstrap(metrics, len(mine), samples, seed)
