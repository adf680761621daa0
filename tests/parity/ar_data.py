"""Sequences, pre-processing and lists of AR-SSL4M against the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.parity.cases import Check

CHECKS: dict[str, Check] = {}
LISTS: dict[str, Callable[[Path, Any], None]] = {}
