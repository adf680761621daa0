"""Checks of the cases of AR-SSL4M, by the module of the reference that made them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.parity import ar_data, ar_downstream, ar_networks
from tests.parity.cases import Case, Check

CHECKS: dict[str, Check] = {**ar_networks.CHECKS, **ar_data.CHECKS, **ar_downstream.CHECKS}
"""By a pattern of the `module` that a case names."""
LISTS: dict[str, Callable[[Path, Any], None]] = {**ar_networks.LISTS, **ar_data.LISTS, **ar_downstream.LISTS}
"""By a pattern of the key of the manifest that holds expected values outside of cases (``lr_pretrain`` ...)."""
DESCRIPTIONS = {"reference", "environment", "parameters", "cases"}


def checks(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """A check per case, per list of full-size keys, and per further entry of the manifest."""
    for name, entry in manifest["cases"].items():
        yield name, partial(run, name, folder, entry)
    for path in sorted(folder.glob("*_keys.json")):
        yield path.stem, partial(ar_networks.check_keys, path)
    for key in sorted(set(manifest) - DESCRIPTIONS):
        yield key, partial(run_list, key, folder, manifest[key])


def run(name: str, folder: Path, entry: dict[str, Any]) -> None:
    module = str(entry.get("module", ""))
    check = next((check for pattern, check in CHECKS.items() if re.search(pattern, module)), None)
    if check is None:
        pytest.fail(f"case {name} is of a module that the suite does not understand: {module!r}")
    case = Case.load(name, folder, entry)
    check(case)
    assert case.arrays.unseen() == [], "arrays of the case that nothing was compared with"


def run_list(key: str, folder: Path, value: Any) -> None:
    check = next((check for pattern, check in LISTS.items() if re.fullmatch(pattern, key)), None)
    if check is None:
        pytest.fail(f"the manifest holds {key!r}, which the suite does not understand")
    check(folder, value)
