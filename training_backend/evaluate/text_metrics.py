"""How close written reports come to the true ones: BLEU, ROUGE-L, METEOR and CIDEr of words, with intervals.

All are computed from words as they stand: no stemming, no synonyms, nothing to download. Knows words and arrays only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.evaluate.classification_metrics import Floats, bootstrap

Words = Sequence[str]

ORDERS = (1, 2, 3, 4)
"""Lengths of the runs of words that BLEU and CIDEr count."""
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
"""CIDEr-D: width of the Gaussian that punishes other lengths, in words."""


def report_metrics(
    written: Sequence[Words], true: Sequence[Words], *, samples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Metrics of all reports with 95 % bootstrap intervals over cases, as ``NAME``, ``NAME_low``, ``NAME_high``.

    ``bleu_1`` to ``bleu_4`` are those of the corpus (Papineni et al. 2002), ``rouge_l`` (Lin 2004), ``meteor`` with
    exact matches (Banerjee & Lavie 2005) and ``cider`` (CIDEr-D, Vedantam et al. 2015, from 0 to 10) are means over
    cases; document frequencies of CIDEr are those of all true reports, in every sample. "score" is ``bleu_4``.

    Args:
        written: words of each written report.
        true: words of each true report.
        samples: bootstrap samples; 0 gives no intervals.
        seed: of the bootstrap.
    """
    counts = np.array([_matches(mine, theirs) for mine, theirs in zip(written, true, strict=True)], float)
    single = {
        "rouge_l": np.array([rouge_l(mine, theirs) for mine, theirs in zip(written, true, strict=True)]),
        "meteor": np.array([meteor(mine, theirs) for mine, theirs in zip(written, true, strict=True)]),
        "cider": cider(written, true),
    }

    def metrics(weights: Floats) -> dict[str, Floats]:
        share = weights / weights.sum(axis=1, keepdims=True)
        bleus = _bleu(weights @ counts)
        found = {f"bleu_{order}": bleus[:, order - 1] for order in ORDERS}
        return found | {name: share @ values for name, values in single.items()}

    report = bootstrap(metrics, len(counts), samples, seed)
    report["score"] = report["bleu_4"]
    return report


def bleu(written: Sequence[Words], true: Sequence[Words]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 of a corpus: geometric mean of clipped precisions, and a penalty where texts are too short."""
    total = np.sum([_matches(mine, theirs) for mine, theirs in zip(written, true, strict=True)], axis=0, dtype=float)
    one, two, three, four = _bleu(total[None])[0].tolist()
    return one, two, three, four


def rouge_l(written: Words, true: Words) -> float:
    """F measure (beta 1.2) of the longest common subsequence."""
    common = _common(written, true)
    if not common:
        return 0.0
    precision, recall = common / len(written), common / len(true)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def meteor(written: Words, true: Words) -> float:
    """Mean of precision and recall of single words (9 parts recall), less up to a half where their order differs."""
    matches, chunks = _aligned(written, true)
    if not matches:
        return 0.0
    precision, recall = matches / len(written), matches / len(true)
    mean = 10 * precision * recall / (recall + 9 * precision)
    return mean * (1 - 0.5 * (chunks / matches) ** 3)


def cider(written: Sequence[Words], true: Sequence[Words]) -> npt.NDArray[np.float64]:
    """CIDEr-D [N] of each report: cosine of TF-IDF vectors of runs of 1 to 4 words, clipped, mean, times 10."""
    references = [_runs(words) for words in true]
    frequency = Counter(run for runs in references for counts in runs for run in counts)
    log_cases = math.log(max(len(true), 1))
    scores = []
    for mine, theirs, runs in zip(written, true, references, strict=True):
        penalty = math.exp(-((len(mine) - len(theirs)) ** 2) / (2 * CIDER_SIGMA**2))
        similar = 0.0
        for own, other in zip(_runs(mine), runs, strict=True):
            a, b = (_weighted(counts, frequency, log_cases) for counts in (own, other))
            lengths = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
            if lengths:
                similar += sum(min(value, b[run]) * b[run] for run, value in a.items() if run in b) / lengths
        scores.append(10 * penalty * similar / len(ORDERS))
    return np.asarray(scores)


def _weighted(counts: Counter[Any], frequency: Counter[Any], log_cases: float) -> dict[Any, float]:
    return {run: count * (log_cases - math.log(max(1.0, frequency[run]))) for run, count in counts.items()}


def _runs(words: Words) -> list[Counter[tuple[str, ...]]]:
    """How often each run of 1, 2, 3 and 4 words is there."""
    return [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in ORDERS]


def _matches(written: Words, true: Words) -> list[int]:
    """Clipped matches of each order, runs of each order, and both lengths: ten numbers that add up over cases."""
    mine, theirs = _runs(written), _runs(true)
    clipped = [sum((own & other).values()) for own, other in zip(mine, theirs, strict=True)]
    return [*clipped, *(sum(own.values()) for own in mine), len(written), len(true)]


def _bleu(totals: Floats) -> Floats:
    """BLEU-1 to BLEU-4 [R, 4] of sums [R, 10] of `_matches`."""
    matches, runs, mine, theirs = totals[:, :4], totals[:, 4:8], totals[:, 8], totals[:, 9]
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.log(np.where(runs > 0, matches / runs, 0.0))
        penalty = np.where(mine < theirs, np.exp(1 - theirs / mine), 1.0)
    means = np.exp(np.cumsum(precisions, axis=1) / np.arange(1, 5))
    result: Floats = np.where(mine > 0, penalty, 0.0)[:, None] * means
    return result


def _common(written: Words, true: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(true) + 1)
    for word in written:
        before = 0
        for index, other in enumerate(true, 1):
            kept = row[index]
            row[index] = before + 1 if word == other else max(row[index], row[index - 1])
            before = kept
    return row[-1]


def _aligned(written: Words, true: Words) -> tuple[int, int]:
    """Words that can be matched one to one, and in how many runs: the longest common runs are matched first."""
    free_mine, free_true = [True] * len(written), [True] * len(true)
    matches = chunks = 0
    while True:
        best, at, where = 0, 0, 0
        row = [0] * (len(true) + 1)
        for i, word in enumerate(written):
            before = 0
            for j, other in enumerate(true):
                kept = row[j + 1]
                row[j + 1] = before + 1 if word == other and free_mine[i] and free_true[j] else 0
                if row[j + 1] > best:
                    best, at, where = row[j + 1], i, j
                before = kept
        if not best:
            return matches, chunks
        matches, chunks = matches + best, chunks + 1
        for back in range(best):
            free_mine[at - back] = free_true[where - back] = False
