"""What configurations of several runs differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from training_backend.config import RunConfig

TOLD_ELSEWHERE = ("kind", "preset", "recipe", "data.dataset", "task.name", "method.name")
"""Settings that a table of runs has already."""
NOTHING = "–"

Difference = tuple[str, tuple[str, ...]]
"""Name of a setting, and its value in each run."""


def differences(configs: Sequence[RunConfig]) -> tuple[Difference, ...]:
    """Settings that are not the same in all configurations; those that one does not have are told as a dash there."""
    flat = [_flat(config.model_dump(mode="json")) for config in configs]
    found = []
    for name in dict.fromkeys(name for settings in flat for name in settings):
        values = [settings.get(name) for settings in flat]
        if name not in TOLD_ELSEWHERE and any(value != values[0] for value in values):
            found.append((name, tuple(distinct_ends([_text(value) for value in values]))))
    return tuple(found)


def distinct_ends(texts: Sequence[str]) -> list[str]:
    """`texts` with every absolute path cut to as much of its end as tells different ones apart."""
    paths = [PurePath(text) for text in texts if PurePath(text).is_absolute()]
    length, ends = max((len(path.parts) for path in paths), default=1), 1
    while ends < length and len({path.parts[-ends:] for path in paths}) < len(set(paths)):
        ends += 1
    return ["/".join(PurePath(text).parts[-ends:]) if PurePath(text).is_absolute() else text for text in texts]


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(_flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value})
    return found


def _text(value: Any) -> str:
    return NOTHING if value in (None, "") else value if isinstance(value, str) else json.dumps(value)
