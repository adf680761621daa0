"""Metrics of written text: hand-computed values, an independent implementation, and what they must never do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torchmetrics.functional.text import bleu_score

from training_backend.evaluate.text_metrics import bleu, cider, meteor, report_metrics, rouge_l

TRUE = ["the", "cat", "is", "on", "the", "mat", "."]
MINE = ["the", "cat", "the", "cat", "on", "the", "mat", "."]


def texts(seed, number):
    rng = np.random.default_rng(seed)
    return [[f"w{word}" for word in rng.integers(0, 12, rng.integers(5, 20))] for _ in range(number)]


@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_that_of_torchmetrics(seed):
    mine, true = texts(seed, 8), texts(seed + 50, 8)
    mine[0], mine[1] = true[0], true[1][:6]
    expected = [
        float(bleu_score([" ".join(w) for w in mine], [[" ".join(w)] for w in true], n_gram=n)) for n in (1, 2, 3, 4)
    ]
    np.testing.assert_allclose(bleu(mine, true), expected, atol=1e-6)


def test_bleu_clips_repeats_and_punishes_brevity():
    one, two, _, _ = bleu([["the"] * 7], [TRUE])
    assert one == pytest.approx(2 / 7)
    assert two == 0
    assert bleu([TRUE[:4]], [TRUE])[0] == pytest.approx(math.exp(1 - 7 / 4))
    assert bleu([[]], [TRUE]) == (0, 0, 0, 0)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    common = 6  # the cat on the mat .
    precision, recall = common / len(MINE), common / len(TRUE)
    assert rouge_l(MINE, TRUE) == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    assert rouge_l(TRUE, TRUE) == 1
    assert rouge_l([], TRUE) == rouge_l(["dog"], TRUE) == 0


def test_meteor_counts_matches_and_runs():
    assert meteor(TRUE, TRUE) == pytest.approx(1 - 0.5 / 7**3)
    assert meteor(["mat", "the"], ["the", "mat"]) == pytest.approx(0.5)  # two words in two runs
    # "on the mat ." and "the cat" match: six words in two runs
    mean = 10 * (6 / 8) * (6 / 7) / (6 / 7 + 9 * 6 / 8)
    assert meteor(MINE, TRUE) == pytest.approx(mean * (1 - 0.5 * (2 / 6) ** 3))
    assert meteor(["dog"], TRUE) == 0


def test_cider_by_hand():
    true = [["a", "b"], ["a", "c"]]
    same = cider(true, true)
    # "a" is everywhere and weighs nothing; one run of one word and one of two are left, the other two orders are empty
    np.testing.assert_allclose(same, [5.0, 5.0])
    np.testing.assert_allclose(cider([["a", "c"], ["a", "b"]], true), [0, 0], atol=1e-12)
    longer = cider([["a", "b", "d"], ["a", "c"]], true)[0]
    # one word: "d" beside "b" makes the vector sqrt(2) long; two words: "b d" beside "a b"; one word too many
    assert longer == pytest.approx(10 / 4 * math.exp(-1 / 72) * (1 / math.sqrt(2) + 1 / math.sqrt(2)))


def test_all_metrics_with_intervals_and_a_score():
    true = texts(1, 30)
    mine = [words if index % 2 else texts(index, 1)[0] for index, words in enumerate(true)]
    report = report_metrics(mine, true, samples=200)
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider"):
        assert report[f"{name}_low"] < report[name] < report[f"{name}_high"]
    assert report["score"] == report["bleu_4"] == pytest.approx(bleu(mine, true)[3])
    perfect = report_metrics(true, true, samples=0)
    assert (perfect["bleu_4"], perfect["rouge_l"]) == (pytest.approx(1), pytest.approx(1))
    assert perfect["cider"] == pytest.approx(10)
