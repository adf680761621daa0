"""Kept strokes: whole or not at all, even when the process is killed while it writes, and the newest ones last."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from napari_med3dssl import stroke_store
from training_backend.data.volume import Geometry, Volume

SHAPE = (40, 60, 60)
WRITER = """
import numpy as np
from napari_med3dssl import stroke_store
from training_backend.data.volume import Geometry, Volume
shape = (40, 60, 60)
volume = Volume(np.zeros(shape, np.float32), Geometry.from_spacing(shape, (1.0, 1.0, 1.0)))
points = np.stack(np.unravel_index(np.arange(60_000), shape), axis=1)
for count in range(50_000, 60_000):
    stroke_store.keep(volume, stroke_store.Strokes(points[:count], np.full(count, 2, np.uint8)))
    print(count, flush=True)
"""


def test_a_process_that_is_killed_leaves_whole_strokes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.setenv("MED3DSSL_RUNS", str(tmp_path / "runs"))
    path = os.pathsep.join([str(repository), str(repository / "src")])
    environment = {**os.environ, "PYTHONPATH": path}
    volume = Volume(np.zeros(SHAPE, np.float32), Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0)))
    for wait in (0.0, 0.013, 0.031):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER], env=environment, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            said = int(writer.stdout.readline())
            time.sleep(wait)
            writer.kill()
        found = stroke_store.find(volume)
        assert found is not None
        assert said <= len(found.values) < 60_000
        assert (found.values == 2).all()
