"""Our numbers against those of the reference systems: one test per case of every manifest under `--parity-root`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity import ar, mae3d, medcoss, mg3d, voco
from tests.parity.cases import read_manifest

SYSTEMS = {"3D-MAE-MedImaging": mae3d, "AR-SSL4M": ar, "Large-Scale-Medical": voco, "MedCoSS": medcoss, "MG-3D": mg3d}
"""Module of each covered system, by a part of the `reference` that its manifest names. A module gives
`checks(folder, manifest)`, the named checks of a folder."""

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "check" in metafunc.fixturenames:
        root = metafunc.config.getoption("--parity-root", FIXTURES)  # unknown to a run that does not start here
        found = list(collect(root))
        metafunc.parametrize("check", [check for _, check in found], ids=[name for name, _ in found])


def collect(root: Path) -> list[tuple[str, Callable[[], None]]]:
    """Named checks of all covered systems; one that fails if there are none."""
    if not root.is_dir():
        return [_failing(str(root), f"{root} is not a folder")]
    found = []
    for path in sorted(root.rglob("manifest.json")):
        manifest, folder = read_manifest(path.parent), path.parent
        reference = str(manifest.get("reference", ""))
        system = next((module for part, module in SYSTEMS.items() if part in reference), None)
        if system is not None:
            found += [(f"{folder.name}-{name}", check) for name, check in system.checks(folder, manifest)]
        else:
            found.append(_failing(folder.name, f"the system {reference!r} is not covered"))
    return found or [_failing(root.name, f"no manifest of a covered system under {root}")]


def _failing(name: str, reason: str) -> tuple[str, Callable[[], None]]:
    def check() -> None:
        pytest.fail(reason)

    return name, check


def test_case(check: Callable[[], None]) -> None:
    check()
