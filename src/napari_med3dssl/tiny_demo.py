"""The tiny demo: generated patients, a dataset of them, and a pre-training run that takes minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari_med3dssl import _prepare

PATIENTS = 8
SHAPE = [48, 72, 72]


def make_demo_dataset(progress: Callable[[float, str], object], patients: int = PATIENTS) -> Path:
    """Phantom patients and a dataset of them beside the runs; made once."""
    from training_backend.jobs.registry import runs_root

    folder = runs_root().parent / "demo"
    dataset = folder / "dataset"
    if (dataset / "dataset.json").is_file():
        return dataset
    folder.mkdir(parents=True, exist_ok=True)
    _prepare.call(
        "cohort", progress, "Drawing patients", folder=str(folder / "cohort"), n=patients, seed=0, shape=SHAPE
    )
    described = _prepare.call("describe", progress, "Looking at the files", path=str(folder / "cohort"))
    _prepare.call(
        "ingest",
        progress,
        "Building the dataset",
        described=described,
        output=str(dataset),
        config={"splits": (0.75, 0.25, 0.0)},
        name="phantoms",
    )
    return dataset


def start_tiny_demo(
    progress: Callable[[float, str], object], changes: dict[str, Any] | None = None
) -> tuple[Path, Path]:
    """Launch a tiny pre-training run on the demo dataset; answers the folders of dataset and run."""
    from training_backend.config.presets import pretrain_config
    from training_backend.jobs.launcher import launch
    from training_backend.jobs.registry import new_run

    dataset = make_demo_dataset(progress)
    progress(1.0, "Starting the run")
    run = new_run(pretrain_config("mae3d", "tiny", dataset, changes), "tiny demo")
    launch(run)
    return dataset, run.path
