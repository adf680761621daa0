from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_auroc

from training_backend.errors import DataError
from training_backend.evaluate.classification_metrics import (
    best_threshold,
    bootstrap,
    classification_report,
    reference_metrics,
    regression_report,
    weighted_auc,
)

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, 60)
SCORES = np.round(np.clip(TRUTH * 0.2 + RNG.random(60) * 0.8, 0, 1), 1)  # rounded, so that there are ties


def test_binary_metrics_equal_those_of_scikit_learn_and_torchmetrics() -> None:
    report = classification_report(SCORES, TRUTH, "binary", samples=0)
    chosen = SCORES > 0.5
    assert report["auc"] == pytest.approx(sk.roc_auc_score(TRUTH, SCORES))
    assert report["auc"] == pytest.approx(float(binary_auroc(torch.tensor(SCORES), torch.tensor(TRUTH))), abs=1e-6)
    assert report["average_precision"] == pytest.approx(sk.average_precision_score(TRUTH, SCORES))
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(TRUTH, chosen))
    assert report["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(TRUTH, chosen))
    assert report["f1"] == pytest.approx(sk.f1_score(TRUTH, chosen))
    assert report["sensitivity"] == pytest.approx(sk.recall_score(TRUTH, chosen))
    assert report["specificity"] == pytest.approx(sk.recall_score(1 - TRUTH, ~chosen))
    assert report["brier"] == pytest.approx(sk.brier_score_loss(TRUTH, SCORES))
    assert report["score"] == report["auc"]


def test_multiclass_metrics_equal_those_of_scikit_learn() -> None:
    truth = RNG.integers(0, 3, 80)
    scores = RNG.dirichlet(np.ones(3), 80) + np.eye(3)[truth] * 0.3
    scores /= scores.sum(1, keepdims=True)
    report = classification_report(scores, truth, "multiclass", names=("a", "b", "c"), samples=0)
    chosen = scores.argmax(1)
    assert report["auc"] == pytest.approx(sk.roc_auc_score(truth, scores, multi_class="ovr"))
    assert report["auc_b"] == pytest.approx(sk.roc_auc_score(truth == 1, scores[:, 1]))
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(truth, chosen))
    assert report["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, chosen))
    assert report["f1"] == pytest.approx(sk.f1_score(truth, chosen, average="macro"))


def test_pairs_of_classes_and_the_f1_of_each_equal_those_of_scikit_learn() -> None:
    truth = RNG.integers(0, 4, 90)
    scores = np.round(RNG.dirichlet(np.ones(4), 90) + 0.3 * np.eye(4)[truth], 1)
    scores /= scores.sum(axis=1, keepdims=True)
    report = classification_report(scores, truth, "multiclass", names=tuple("abcd"), samples=20)
    assert report["auc_pairs"] == pytest.approx(sk.roc_auc_score(truth, scores, multi_class="ovo", average="macro"))
    assert report["auc_pairs_low"] < report["auc_pairs"] < report["auc_pairs_high"]
    each = sk.f1_score(truth, scores.argmax(1), average=None)
    assert [report[f"f1_{name}"] for name in "abcd"] == pytest.approx(list(each))
    lacking = classification_report(scores[truth < 3], truth[truth < 3], "multiclass", samples=0)
    assert "auc_pairs" not in lacking


def test_multilabel_metrics_are_means_over_the_labels() -> None:
    truth = RNG.integers(0, 2, (50, 4))
    scores = np.clip(truth * 0.2 + RNG.random((50, 4)) * 0.8, 0, 1)
    report = classification_report(scores, truth, "multilabel", samples=0)
    assert report["auc"] == pytest.approx(sk.roc_auc_score(truth, scores, average="macro"))
    assert report["f1"] == pytest.approx(sk.f1_score(truth, scores > 0.5, average="macro"))
    assert report["accuracy"] == pytest.approx(((scores > 0.5) == truth).mean())


def test_bootstrap_samples_are_weights_and_intervals_cover_the_metric() -> None:
    draws = RNG.integers(0, 60, (5, 60))
    weights = np.stack([np.bincount(draw, minlength=60) for draw in draws]).astype(float)
    expected = [sk.roc_auc_score(TRUTH[draw], SCORES[draw]) for draw in draws]
    np.testing.assert_allclose(weighted_auc(SCORES, TRUTH, weights), expected)
    report = classification_report(SCORES, TRUTH, "binary", samples=500, seed=1)
    assert report["auc_low"] < report["auc"] < report["auc_high"]
    assert report == classification_report(SCORES, TRUTH, "binary", samples=500, seed=1)


def test_metrics_that_do_not_exist_are_left_out() -> None:
    report = classification_report([0.2, 0.7, 0.9], [1, 1, 1], "binary", samples=50)
    assert "auc" not in report
    assert "specificity" not in report
    assert all(np.isfinite(value) for value in report.values())
    assert report["score"] == pytest.approx(2 / 3)


def test_no_cases_and_impossible_classes_get_a_sentence() -> None:
    with pytest.raises(DataError, match="no cases"):
        bootstrap(lambda weights: {}, 0)
    with pytest.raises(DataError, match="2 classes"):
        classification_report(np.eye(2), [0, 2], "multiclass")


def test_regression_metrics_equal_those_of_scikit_learn() -> None:
    truth = RNG.normal(size=(40, 1))
    predicted = truth + RNG.normal(size=(40, 1)) * 0.5
    report = regression_report(predicted, truth, samples=200)
    assert report["mae"] == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert report["r2"] == pytest.approx(sk.r2_score(truth, predicted))
    assert report["pearson"] == pytest.approx(np.corrcoef(truth[:, 0], predicted[:, 0])[0, 1])
    assert report["score"] == -report["mae"]


def test_best_threshold_separates_what_can_be_separated() -> None:
    assert 0.3 < best_threshold([0.1, 0.3, 0.6, 0.9], [0, 0, 1, 1]) <= 0.6
    assert best_threshold([0.1, 0.9], [1, 1]) == 0.5


def test_reference_metrics_of_a_hand_made_case() -> None:
    report = reference_metrics([[2.0], [-1.0], [0.5], [-3.0]], [[1], [0], [0], [1]], "bce", 2.0)
    softplus = np.logaddexp(0, [-2.0, -1.0, 0.5, 3.0]) * [2, 1, 1, 2]
    assert report == pytest.approx({"loss": softplus.mean(), "accuracy": 0.5, "f1": 0.5, "auc": 0.5})
