"""Metrics of classification and regression over whole cases, with bootstrap intervals.

Every metric is a function of predictions, truths and weights of cases; drawing cases with replacement is counting how
often each is drawn, so all bootstrap samples are computed at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.errors import DataError

Floats = npt.NDArray[np.float64]
Metrics = Callable[[Floats], Mapping[str, Floats]]
"""Weights [R, N] of N cases in R samples to metrics [R]; NaN where a metric does not exist in a sample."""

INTERVAL = (2.5, 97.5)
"""Percentiles of the reported intervals."""


def classification_report(
    probabilities: npt.ArrayLike,
    target: npt.ArrayLike,
    kind: str,
    *,
    names: Sequence[str] = (),
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Metrics with 95 % intervals as ``NAME``, ``NAME_low``, ``NAME_high``; metrics that do not exist are left out.

    Args:
        probabilities: [N, K]; K = 1 for binary.
        target: [N, K] of 0 and 1, or class numbers [N] for multiclass.
        kind: "binary", "multilabel" or "multiclass".
        names: of the outputs; multilabel and multiclass report each one's AUC as ``auc_NAME``.
        samples: bootstrap samples; 0 gives no intervals.
        seed: of the bootstrap.

    Returns:
        AUC (macro over labels or one-versus-rest), average precision, accuracy, balanced accuracy, F1 (macro),
        sensitivity and specificity at 0.5 (binary, multilabel: macro), Brier score, and "score" for model selection:
        the AUC, or the balanced accuracy where only one class is present. Multiclass also has the F1 of each class as
        ``f1_NAME`` and ``auc_pairs``, the AUC of one class against another as a mean over all ordered pairs, where
        every class is present ("ovo" with macro average).
    """
    scores = np.asarray(probabilities, float).reshape(len(np.asarray(target)), -1)
    truth = _indicators(np.asarray(target, float), scores.shape[1], kind)
    names = names or [str(index) for index in range(scores.shape[1])]
    function = _multiclass(scores, truth, names) if kind == "multiclass" else _labels(scores, truth, names)
    report = bootstrap(function, len(scores), samples, seed)
    report["score"] = report.get("auc", report.get("balanced_accuracy", report["accuracy"]))
    return report


def regression_report(
    predicted: npt.ArrayLike, target: npt.ArrayLike, *, samples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Errors of values [N, K] with 95 % intervals: MAE, MSE, R2, Pearson r, means over K; "score" is minus the MAE."""
    x = np.asarray(predicted, float).reshape(len(np.asarray(target)), -1)
    y = np.asarray(target, float).reshape(x.shape)

    def metrics(weights: Floats) -> dict[str, Floats]:
        share = weights / weights.sum(axis=1, keepdims=True)
        mean_x, mean_y = share @ x, share @ y
        var_x, var_y = share @ x**2 - mean_x**2, share @ y**2 - mean_y**2
        squared = share @ (x - y) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            pearson = (share @ (x * y) - mean_x * mean_y) / np.sqrt(var_x * var_y)
            r2 = np.where(var_y > 1e-12, 1 - squared / var_y, np.nan)
            pearson = np.where((var_x > 1e-12) & (var_y > 1e-12), pearson, np.nan)
        values = {"mae": share @ np.abs(x - y), "mse": squared, "r2": r2, "pearson": pearson}
        return {name: value.mean(axis=1) for name, value in values.items()}

    report = bootstrap(metrics, len(x), samples, seed)
    report["score"] = -report["mae"]
    return report


def bootstrap(metrics: Metrics, cases: int, samples: int = 1000, seed: int = 0) -> dict[str, float]:
    """Each metric over all `cases` and its interval over `samples` draws with replacement."""
    if cases == 0:
        raise DataError("There are no cases to evaluate.", "Choose a split that has cases with a target.")
    point = metrics(np.ones((1, cases)))
    drawn: Mapping[str, Floats] = {}
    if samples and cases > 1:
        draws = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=samples)
        drawn = metrics(draws.astype(float))
    report: dict[str, float] = {}
    for name, value in point.items():
        if not np.isfinite(value[0]):
            continue
        report[name] = float(value[0])
        finite = drawn[name][np.isfinite(drawn[name])] if name in drawn else np.empty(0)
        if len(finite) > 1:
            low, high = np.percentile(finite, INTERVAL)
            report[f"{name}_low"], report[f"{name}_high"] = float(low), float(high)
    return report


def case_marks(probabilities: npt.ArrayLike, target: npt.ArrayLike, kind: str) -> dict[str, Floats]:
    """Of each case [N]: `correct`, whether its answer is right (of several labels: the share), and its `brier` score.

    Args:
        probabilities: [N, K]; K = 1 for binary.
        target: as in `classification_report`.
        kind: "binary", "multilabel" or "multiclass".
    """
    scores = np.asarray(probabilities, float).reshape(len(np.asarray(target)), -1)
    truth = _indicators(np.asarray(target, float), scores.shape[1], kind)
    squared = (scores - truth) ** 2
    if kind == "multiclass":
        right = scores.argmax(axis=1) == truth.argmax(axis=1)
        return {"correct": right.astype(float), "brier": squared.sum(axis=1)}
    return {"correct": ((scores > 0.5) == (truth > 0.5)).mean(axis=1), "brier": squared.mean(axis=1)}


def best_threshold(probabilities: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Threshold of one label with the largest sensitivity + specificity (Youden); choose it on validation cases."""
    scores, truth = np.asarray(probabilities, float).ravel(), np.asarray(target, float).ravel() > 0.5
    if truth.all() or not truth.any():
        return 0.5
    candidates = np.unique(scores)
    gains = [(scores[truth] >= t).mean() - (scores[~truth] >= t).mean() for t in candidates]
    best = int(np.argmax(gains))
    below = candidates[best - 1] if best else candidates[best]
    return float((candidates[best] + below) / 2)


def at_best_thresholds(
    probabilities: npt.ArrayLike, target: npt.ArrayLike, *, samples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Accuracy, F1 and precision of labels [N, K], each at its own `best_threshold`, as means with 95 % intervals.

    Thresholds are chosen on these very cases, as the published tables of CT-RATE do, so they flatter; all samples share
    them. Labels that are everywhere or nowhere are left out. Names start with ``best_``; empty where no label is left.
    """
    scores, truth = (
        np.asarray(values, float).reshape(len(np.asarray(target)), -1) for values in (probabilities, target)
    )
    kept = [k for k in range(truth.shape[1]) if 0 < truth[:, k].mean() < 1]
    if not kept:
        return {}
    chosen = np.stack([scores[:, k] >= best_threshold(scores[:, k], truth[:, k]) for k in kept], axis=1).astype(float)
    right = truth[:, kept]

    def metrics(weights: Floats) -> dict[str, Floats]:
        share = weights / weights.sum(axis=1, keepdims=True)
        hit, called, positive = share @ (chosen * right), share @ chosen, share @ right
        with np.errstate(divide="ignore", invalid="ignore"):
            f1 = np.where(called + positive > 0, 2 * hit / (called + positive), np.nan)
            precision = np.where(called > 1e-12, hit / called, np.nan)
        return {
            "best_accuracy": (share @ (chosen == right)).mean(axis=1),
            "best_f1": _mean(f1),
            "best_precision": _mean(precision),
        }

    return bootstrap(metrics, len(scores), samples, seed)


def reference_metrics(
    logits: npt.ArrayLike, target: npt.ArrayLike, loss: str, pos_weight: float | Sequence[float] | None = None
) -> dict[str, float]:
    """The numbers of the authors' evaluation, for comparison with theirs.

    Args:
        logits: [N, K].
        target: [N], or [N, K] for several labels.
        loss: "bce" (one or several labels), "ce" or "mse".
        pos_weight: of the positive cases, for "bce".

    Returns:
        `loss`; for "mse" also `mse`; else `accuracy`, `f1` (binary, over samples for several labels, weighted for
        "ce") and `auc` (macro for several labels; of class 1 for "ce").
    """
    import torch
    import torch.nn.functional as F
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    x, y = torch.as_tensor(np.asarray(logits)).float(), torch.as_tensor(np.asarray(target))
    if loss == "mse":
        value = float(F.mse_loss(x.reshape(y.shape), y.float()))
        return {"loss": value, "mse": value}
    if loss == "ce":
        chosen, truth = x.argmax(1).numpy(), y.long().numpy()
        return {
            "loss": float(F.cross_entropy(x, y.long())),
            "accuracy": float(accuracy_score(truth, chosen)),
            "f1": float(f1_score(truth, chosen, average="weighted")),
            "auc": float(roc_auc_score(truth, x.softmax(1)[:, 1].numpy())),
        }
    x = x.reshape(y.shape)
    weight = None if pos_weight is None else torch.as_tensor(pos_weight, dtype=torch.float32)
    probability = x.sigmoid().numpy()
    chosen, truth = probability.round(), y.numpy()
    return {
        "loss": float(F.binary_cross_entropy_with_logits(x, y.float(), pos_weight=weight)),
        "accuracy": float((chosen == truth).mean()),
        "f1": float(f1_score(truth, chosen, average="samples" if truth.ndim > 1 and truth.shape[1] > 1 else "binary")),
        "auc": float(roc_auc_score(truth, probability, average="macro")),
    }


def weighted_auc(scores: Floats, positive: npt.NDArray[Any], weights: Floats) -> Floats:
    """Area under the ROC curve [R] of `scores` [N] under case weights [R, N]; ties count half; NaN with one class."""
    order = np.argsort(scores, kind="stable")
    _, tie = np.unique(scores[order], return_inverse=True)
    starts = np.flatnonzero(np.diff(tie, prepend=-1))
    is_positive = positive[order] > 0.5
    plus = np.add.reduceat(weights[:, order] * is_positive, starts, axis=1)
    minus = np.add.reduceat(weights[:, order] * ~is_positive, starts, axis=1)
    below = np.cumsum(minus, axis=1) - minus
    pairs = plus.sum(axis=1) * minus.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        area: Floats = (plus * (below + 0.5 * minus)).sum(axis=1) / pairs
    return np.where(pairs > 0, area, np.nan)


def weighted_precision(scores: Floats, positive: npt.NDArray[Any], weights: Floats) -> Floats:
    """Average precision [R] of `scores` [N] under case weights [R, N]; NaN without positive cases."""
    order = np.argsort(-scores, kind="stable")
    _, tie = np.unique(-scores[order], return_inverse=True)
    ends = np.flatnonzero(np.diff(tie, append=tie[-1] + 1))
    plus = np.cumsum(weights[:, order] * (positive[order] > 0.5), axis=1)[:, ends]
    everything = np.cumsum(weights[:, order], axis=1)[:, ends]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(everything > 0, plus / everything, 0.0)
        area: Floats = (np.diff(plus, axis=1, prepend=0) * precision).sum(axis=1) / plus[:, -1]
    return np.where(plus[:, -1] > 0, area, np.nan)


def _labels(scores: Floats, truth: Floats, names: Sequence[str]) -> Metrics:
    """Metrics of independent labels [N, K], means over the labels."""
    chosen = (scores > 0.5).astype(float)

    def metrics(weights: Floats) -> dict[str, Floats]:
        share = weights / weights.sum(axis=1, keepdims=True)
        hit, rejected = share @ (chosen * truth), share @ ((1 - chosen) * (1 - truth))
        positive, called = share @ truth, share @ chosen
        with np.errstate(divide="ignore", invalid="ignore"):
            sensitivity, specificity = hit / positive, rejected / (1 - positive)
            f1 = np.where(positive + called > 0, 2 * hit / (positive + called), np.nan)
        sensitivity = np.where(positive > 1e-12, sensitivity, np.nan)
        specificity = np.where(positive < 1 - 1e-12, specificity, np.nan)
        return {
            **_areas(scores, truth, weights, names),
            "accuracy": (hit + rejected).mean(axis=1),
            "balanced_accuracy": _mean((sensitivity + specificity) / 2),
            "sensitivity": _mean(sensitivity),
            "specificity": _mean(specificity),
            "f1": _mean(f1),
            "brier": (share @ (scores - truth) ** 2).mean(axis=1),
        }

    return metrics


def _multiclass(scores: Floats, truth: Floats, names: Sequence[str]) -> Metrics:
    """Metrics of exclusive classes; truth as indicators [N, K]."""
    chosen = np.eye(scores.shape[1])[scores.argmax(axis=1)]

    def metrics(weights: Floats) -> dict[str, Floats]:
        share = weights / weights.sum(axis=1, keepdims=True)
        hit, present, called = share @ (chosen * truth), share @ truth, share @ chosen
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = np.where(present > 1e-12, hit / present, np.nan)
            f1 = np.where(present + called > 1e-12, 2 * hit / (present + called), np.nan)
        return {
            **_areas(scores, truth, weights, names),
            "auc_pairs": _pairs(scores, truth, weights),
            "accuracy": hit.sum(axis=1),
            "balanced_accuracy": _mean(recall),
            "f1": _mean(f1),
            **{f"f1_{name}": column for name, column in zip(names, f1.T, strict=True)},
            "brier": (share @ ((scores - truth) ** 2).sum(axis=1, keepdims=True))[:, 0],
        }

    return metrics


def _pairs(scores: Floats, truth: Floats, weights: Floats) -> Floats:
    """AUC [R] of each class against each other one, among the cases of these two, as a mean; NaN if one is missing."""
    areas = []
    for one, other in itertools.permutations(range(scores.shape[1]), 2):
        among = (truth[:, one] > 0.5) | (truth[:, other] > 0.5)
        areas.append(weighted_auc(scores[among, one], truth[among, one], weights[:, among]))
    mean: Floats = np.stack(areas, axis=1).mean(axis=1)
    return mean


def _areas(scores: Floats, truth: Floats, weights: Floats, names: Sequence[str]) -> dict[str, Floats]:
    columns = list(zip(scores.T, truth.T, strict=True))
    areas = [weighted_auc(score, label, weights) for score, label in columns]
    precisions = [weighted_precision(score, label, weights) for score, label in columns]
    result = {"auc": _mean(np.stack(areas, 1)), "average_precision": _mean(np.stack(precisions, 1))}
    if len(columns) > 1:
        result |= {f"auc_{name}": area for name, area in zip(names, areas, strict=True)}
    return result


def _mean(values: Floats) -> Floats:
    """Mean over the columns [R, K] that exist, NaN where none does."""
    exists = np.isfinite(values)
    count = exists.sum(axis=1)
    total = np.where(exists, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _indicators(target: Floats, outputs: int, kind: str) -> Floats:
    if kind == "multiclass" and target.size == len(target):
        numbers = target.ravel().astype(int)
        if numbers.min() < 0 or numbers.max() >= outputs:
            raise DataError(f"There are {outputs} classes, but a case has class number {numbers.max()}.")
        indicators: Floats = np.eye(outputs)[numbers]
        return indicators
    return target.reshape(len(target), -1)
