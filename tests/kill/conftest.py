from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from training_backend.config import RunConfig
from training_backend.config.presets import pretrain_config
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.engine.rundir import RunDirectory

SMALL: dict[str, Any] = {
    "data": {"size": (16, 16, 16), "crops_per_volume": 2, "workers": 0},
    "method": {
        "embed_dim": 24,
        "heads": 2,
        "depth": 2,
        "decoder_embed_dim": 24,
        "decoder_heads": 2,
        "decoder_depth": 1,
    },
    "optim": {"batch_size": 4, "lr": 1e-3, "ema": 0.9},
    "engine": {"device": "cpu", "threads": 1, "preview_minutes": 0},
}

SERVER = """
import os, signal, sys
import training_backend.engine.estimate, training_backend.engine.export, training_backend.engine.loop
import training_backend.methods.mae3d, training_backend.nn.mae, training_backend.weights.save
from training_backend.engine import worker

print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        log = os.open(line.strip() + "/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os._exit(worker.main([line.strip()]))
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""
"""Starts worker processes that find their libraries loaded already; everything else is a worker like any other."""


class Workers:
    """Starts real worker processes quickly, one at a time."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MED3DSSL_WORKER": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._line() == "ready"

    def start(self, run: RunDirectory) -> psutil.Process:
        """A process that works on `run`."""
        assert self._server.stdin is not None
        self._server.stdin.write(f"{run.path}\n")
        self._server.stdin.flush()
        return psutil.Process(int(self._line()))

    def wait(self) -> None:
        """Wait for the end of the process that was started."""
        assert self._line() == "ended"

    def finish(self, run: RunDirectory) -> str:
        """Work on `run` to its end; answers its state."""
        self.start(run)
        self.wait()
        return str(run.record()["state"])

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    server = Workers()
    yield server
    server.close()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantom patients, ingested."""
    root = tmp_path_factory.mktemp("phantoms")
    ingest([write_cohort(root / "cohort", 6, seed=1, shape=(24, 32, 32))], root / "dataset")
    return root / "dataset"


@pytest.fixture(scope="session")
def config(dataset: Path) -> Callable[..., RunConfig]:
    """Settings of a small pre-training run with nested changes."""

    def make(**changes: Any) -> RunConfig:
        return pretrain_config("mae3d", "tiny", dataset, SMALL).updated(changes)

    return make


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Polls a condition until it holds."""

    def wait(condition: Callable[[], bool], seconds: float = 120.0, pause: float = 0.005) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(pause)

    return wait
