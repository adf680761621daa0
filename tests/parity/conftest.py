"""`--parity-root DIR`: a folder that holds a ``manifest.json``, or folders that do."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    default = Path(__file__).parents[1] / "fixtures" / "parity"
    parser.addoption("--parity-root", type=Path, default=default, help="folder of parity manifests")
