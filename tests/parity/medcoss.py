"""Checks of the cases of MedCoSS, by name; each group of cases is in a file of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.parity.cases import Case

GROUPS = {
    r"(pretrain|distill)_.+": "medcoss_networks",
    r"engine_trace.*": "medcoss_training",
    r"ds_.+|sliding_.+|metrics": "medcoss_downstream",
    r"preprocess|report_clean": "medcoss_data",
    r"kmeans_buffer|schedules": "medcoss_plan",
}
"""File with the checks of the cases whose names are of a pattern."""
DESCRIPTIONS = {"reference", "common", "cases"}
_SIDE = ("teacher", "final")
"""Files of a case besides its weights and arrays."""


def checks(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """A check per case, per list of full-size keys, and per further file of the folder."""
    named = {file for entry in manifest["cases"] for file in entry["files"].values()}
    for entry in manifest["cases"]:
        yield entry["case"], partial(run, folder, entry)
    for path in sorted(folder.glob("*.json")):
        if path.stem.endswith("_full_keys"):
            yield path.stem, partial(run_keys, path)
        elif path.name not in (*named, "manifest.json"):
            yield path.stem, partial(run_report, path)
    for key in sorted(set(manifest) - DESCRIPTIONS):
        yield key, partial(pytest.fail, f"the manifest holds {key!r}, which the suite does not understand")


def run(folder: Path, entry: dict[str, Any]) -> None:
    name, files = str(entry["case"]), dict(entry["files"])
    group = next((file for pattern, file in GROUPS.items() if re.fullmatch(pattern, name)), None)
    if group is None:
        pytest.fail(f"case {name} is one that the suite does not understand: {entry.get('what')}")
    found = import_module(f"tests.parity.{group}").CHECKS
    check = next((check for pattern, check in found.items() if re.fullmatch(pattern, name)), None)
    if check is None:
        pytest.fail(f"tests/parity/{group}.py has no check of case {name}")
    main = [file for part, file in files.items() if part not in _SIDE]
    shaped = {"config": {}, **entry, "files": main, "parts": files, "tolerance": {"atol": float(entry["tolerance"])}}
    case = Case.load(name, folder, shaped)
    check(case)
    assert case.arrays.unseen() == [], "arrays of the case that nothing was compared with"


def run_keys(path: Path) -> None:
    """Names and shapes of the parameters of a whole network of the authors."""
    expected = json.loads(path.read_text(encoding="utf-8"))
    name = path.stem.removesuffix("_full_keys")
    if name.startswith("ds_"):
        import_module("tests.parity.medcoss_downstream").check_keys(name.removeprefix("ds_"), expected)
    else:
        import_module("tests.parity.medcoss_networks").check_keys(name, expected)


def run_report(path: Path) -> None:
    if path.stem != "full_config_report":
        pytest.fail(f"{path.name} is a file that the suite does not understand")
    import_module("tests.parity.medcoss_networks").check_report(path)
