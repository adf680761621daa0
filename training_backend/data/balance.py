"""Balanced training: cases of rare classes come as often as those of common ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from training_backend.data.manifest import CaseRecord
from training_backend.errors import ConfigError


def balanced(cases: Sequence[CaseRecord]) -> list[CaseRecord]:
    """`cases` with those of smaller classes repeated, in turn, until every class has as many as the largest.

    Raises:
        ConfigError: targets that are no class number, or a single class.
    """
    classes: dict[float, list[CaseRecord]] = defaultdict(list)
    for case in cases:
        if case.target is None or len(case.target) != 1 or case.target[0] != int(case.target[0]):
            raise ConfigError(
                f"data.balanced needs one class number per case, but {case.id} has {case.target}.",
                "Switch data.balanced off.",
            )
        classes[case.target[0]].append(case)
    if len(classes) < 2:
        raise ConfigError("data.balanced needs two classes, but all training cases have the same.", "Switch it off.")
    most = max(map(len, classes.values()))
    return [members[index % len(members)] for _, members in sorted(classes.items()) for index in range(most)]
