"""What importing costs, and how soon a started run says its first word."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STATEMENTS = {
    "plugin": "import napari_med3dssl",
    "backend": "import training_backend",
    "configuration": "import training_backend.config",
    "runs": "import training_backend.jobs.registry, training_backend.jobs.monitor",
    "torch (for scale)": "import torch",
}


def main(repeats: int = 5) -> dict[str, object]:
    """Import times in seconds (median of `repeats` fresh processes), and seconds from launch to the first event.

    Args:
        repeats: processes per statement.
    """
    rows = {name: _import_seconds(statement, repeats) for name, statement in STATEMENTS.items()}
    return {"import_s": rows, "first_event_s": _first_event_seconds()}


def _import_seconds(statement: str, repeats: int) -> dict[str, object]:
    code = (
        f"import time, sys; t = time.perf_counter(); {statement}; "
        "sys.stdout.write(f'{time.perf_counter() - t} {int(\"torch\" in sys.modules)}')"
    )
    results = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(repeats)
    ]
    pairs = [result.stdout.split() for result in results]
    return {"median": round(statistics.median(float(pair[0]) for pair in pairs), 4), "loads_torch": pairs[0][1] == "1"}


def _first_event_seconds() -> dict[str, float]:
    from training_backend.config import IngestConfig
    from training_backend.config.presets import pretrain_config
    from training_backend.data.ingest import ingest
    from training_backend.data.phantoms import write_cohort
    from training_backend.engine.events import EventReader
    from training_backend.engine.rundir import RunDirectory
    from training_backend.jobs.launcher import cancel, launch

    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("MED3DSSL_RUNS", folder)
        write_cohort(Path(folder) / "cohort", 3, seed=0)
        ingest([Path(folder) / "cohort"], Path(folder) / "dataset", IngestConfig())
        run = RunDirectory.create(Path(folder) / "run", pretrain_config("mae3d", "tiny", Path(folder) / "dataset"))
        reader = EventReader(run.events_path)
        seen: dict[str, float] = {}
        start = time.monotonic()
        launch(run)
        while len(seen) < 2 and time.monotonic() - start < 120:
            for event in reader.read():
                name = "first metrics" if event["type"] == "metrics" else "first event"
                seen.setdefault(name, round(time.monotonic() - start, 2))
            time.sleep(0.02)
        cancel(run)
    return seen
