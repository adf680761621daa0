from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from training_backend.config import RunConfig
from training_backend.config.presets import pretrain_config
from training_backend.engine.identity import identity
from training_backend.engine.rundir import RunDirectory


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return pretrain_config("mae3d", "tiny", tmp_path / "dataset")


@pytest.fixture
def run(tmp_path: Path, config: RunConfig) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs" / "first", config)


@pytest.fixture
def sleeper() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts processes that do nothing, standing in for a training process."""
    started: list[subprocess.Popen[bytes]] = []

    def start(run: RunDirectory | None = None, state: str = "running", code: str = "") -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", code or "import time; time.sleep(300)"])
        started.append(child)
        if run is not None:
            run.update(state=state, **identity(child.pid))
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
