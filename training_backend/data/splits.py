"""Which subject belongs to which split."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from training_backend.data.manifest import CaseRecord, Split
from training_backend.errors import ConfigError


def assign_splits(
    cases: Sequence[CaseRecord], shares: tuple[float, float, float], seed: int, given: Collection[str] = ()
) -> list[CaseRecord]:
    """Cases with a split each, drawn by subject.

    Args:
        cases: to be split; other sessions of a subject follow the first.
        shares: of train, val and test among the subjects to be drawn; they are scaled to sum to one.
        seed: of the draw, which depends on the subjects' names alone and not on the order of cases.
        given: ids of cases whose split stays as it is.
    """
    if min(shares) < 0 or sum(shares) <= 0:
        raise ConfigError(
            f"The shares of train, val and test are {shares}; none may be negative, one must be positive."
        )
    known = {case.subject: case.split for case in cases if case.id in given}
    free = sorted({case.subject for case in cases if case.id not in given and case.subject not in known})
    order = np.random.default_rng([seed, 31]).permutation(len(free))
    drawn = {free[index]: split for index, split in zip(order, _splits(len(free), shares), strict=True)}
    result = []
    for case in cases:
        split = case.split
        if case.id not in given:
            split = drawn[case.subject] if case.subject in drawn else known[case.subject]
            split = "train" if split == "unlabelled" else split
        result.append(case.model_copy(update={"split": split}))
    return result


def fold_splits(cases: Sequence[CaseRecord], folds: int, fold: int, seed: int) -> list[CaseRecord]:
    """Cases with the subjects of one fold in val and those of the others in train; test and unlabelled ones stay.

    Args:
        cases: of a dataset, in any order; other sessions of a subject share its fold.
        folds: number of folds; the subjects of train and val are dealt to them evenly.
        fold: number of the fold for val, from 0.
        seed: of the deal, which depends on the subjects' names alone.

    Raises:
        ConfigError: a fold that does not exist, or fewer subjects than folds.
    """
    if not 0 <= fold < folds or folds < 2:
        raise ConfigError(f"There is no fold {fold} of {folds}.", "Give at least 2 folds, and a fold from 0.")
    kept = {case.subject for case in cases if case.split in ("test", "unlabelled")}
    free = sorted({case.subject for case in cases} - kept)
    if len(free) < folds:
        raise ConfigError(f"{len(free)} subjects cannot be dealt to {folds} folds.", "Ask for fewer folds.")
    order = np.random.default_rng([seed, 37]).permutation(len(free))
    held_out = {free[index] for index in order[fold::folds]}
    return [
        case
        if case.subject in kept
        else case.model_copy(update={"split": "val" if case.subject in held_out else "train"})
        for case in cases
    ]


def _splits(count: int, shares: tuple[float, float, float]) -> list[Split]:
    """`count` splits in the shares asked for; val and test get at least one each, where train keeps one."""
    total = sum(shares)
    val, test = (max(round(count * share / total), 1) if share else 0 for share in shares[1:])
    if shares[0]:
        test = max(0, min(test, count - 1))
        val = max(0, min(val, count - 1 - test))
    else:
        test = min(test, count)
        val = count - test if shares[1] else 0
    names: tuple[Split, Split, Split] = ("val", "test", "train" if shares[0] else "test")
    counts = (val, test, count - val - test)
    return [name for name, times in zip(names, counts, strict=True) for _ in range(times)]
