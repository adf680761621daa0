"""Folder in which a script of pictures keeps its datasets, runs, caches and settings, away from those of the user."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def screenshot_home(chosen: Path | None) -> Iterator[Path]:
    """The folder `chosen`, else a temporary one, which the product and its processes use; code comes from this tree."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        home = (chosen or Path(temporary)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        os.environ |= {"MED3DSSL_CACHE": str(home / "cache"), "NAPARI_CONFIG": str(home / "napari.yaml")}
        os.environ["MED3DSSL_RUNS"] = str(home / "runs")
        source = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "src")]
        os.environ["PYTHONPATH"] = os.pathsep.join([*source, os.environ.get("PYTHONPATH", "")])
        sys.path[:0] = source
        yield home
