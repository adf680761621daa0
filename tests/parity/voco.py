"""Checks of the cases of VoCo and Large-Scale-Medical, by the module of the reference that made them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.parity import voco_networks, voco_training, voco_units
from tests.parity.cases import Case, Check

CHECKS: dict[str, Check] = {**voco_training.CHECKS, **voco_units.CHECKS, **voco_networks.CHECKS}
"""By a pattern of the `module` that a case names."""
DESCRIPTIONS = {"reference", "generated_with", "notes", "cases"}
LISTS: dict[str, Callable[[Path], None]] = {"load_map": voco_networks.check_load_map}
"""By the name of a file that belongs to no case."""


def checks(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """A check per case, per list of full-size keys, and per further file of the folder."""
    for name, entry in manifest["cases"].items():
        yield name, partial(run, name, folder, entry)
    for path in sorted(folder.glob("*.json")):
        if path.stem.endswith("_keys"):
            yield path.stem, partial(voco_networks.check_keys, path)
        elif path.name != "manifest.json":
            yield path.stem, partial(run_list, path)
    for key in sorted(set(manifest) - DESCRIPTIONS):
        yield key, partial(pytest.fail, f"the manifest holds {key!r}, which the suite does not understand")


def run(name: str, folder: Path, entry: dict[str, Any]) -> None:
    module = str(entry.get("module", ""))
    check = next((check for pattern, check in CHECKS.items() if re.search(pattern, module)), None)
    if check is None:
        pytest.fail(f"case {name} is of a module that the suite does not understand: {module!r}")
    files = [path.name for path in (folder / f"{name}_io.npz", folder / f"{name}.safetensors") if path.is_file()]
    case = Case.load(name, folder, {"config": {}, **entry, "files": files, "tolerance": tolerance(entry)})
    check(case)
    assert case.arrays.unseen() == [], "arrays of the case that nothing was compared with"


def run_list(path: Path) -> None:
    if path.stem not in LISTS:
        pytest.fail(f"{path.name} is a list that the suite does not understand")
    LISTS[path.stem](path)


def tolerance(entry: dict[str, Any]) -> dict[str, float]:
    """ "rtol 2e-4 atol 2e-5 (loss 1e-4)" as numbers; "exact" is none, a single number is absolute."""
    text = str(entry.get("tolerance") or entry.get("config", {}).get("tolerance", ""))
    found = {key: float(value) for key, value in re.findall(r"(rtol|atol|loss) ([\d.e+-]+)", text)}
    if found or text == "exact":
        return found
    if re.fullmatch(r"[\d.]+e-?\d+", text):
        return {"atol": float(text)}
    pytest.fail(f"the tolerance {text!r} is not understood")
