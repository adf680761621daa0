"""Checks of the cases of MG-3D, by the module of the reference that made them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.parity import mg3d_networks, mg3d_text, mg3d_training
from tests.parity.cases import Case, Check

CHECKS: dict[str, Check] = {**mg3d_training.CHECKS, **mg3d_networks.CHECKS, **mg3d_text.CHECKS}
"""By a pattern of the `module` that a case names."""
DESCRIPTIONS = {"reference", "cases"}


def checks(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """A check per case, per list of full-size names, and per further file of the folder."""
    for entry in manifest["cases"]:
        yield entry["case"], partial(run, folder, entry)
    for path in sorted(folder.glob("*.json")):
        if path.stem.endswith("_keys"):
            yield path.stem, partial(mg3d_networks.check_keys, path)
        elif path.name != "manifest.json":
            yield path.stem, partial(pytest.fail, f"{path.name} is a list that the suite does not understand")
    for key in sorted(set(manifest) - DESCRIPTIONS):
        yield key, partial(pytest.fail, f"the manifest holds {key!r}, which the suite does not understand")


def run(folder: Path, entry: dict[str, Any]) -> None:
    name, module = entry["case"], str(entry.get("module", ""))
    check = next((check for pattern, check in CHECKS.items() if re.search(pattern, module)), None)
    if check is None:
        pytest.fail(f"case {name} is of a module that the suite does not understand: {module!r}")
    case = Case.load(name, folder, {**entry, "files": [entry["io"], entry["weights"]]})
    check(case)
    assert case.arrays.unseen() == [], "arrays of the case that nothing was compared with"
