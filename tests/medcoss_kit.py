"""Small stages of MedCoSS for tests: data sets of a few generated cases, and networks of a few thousand parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_backend.config import IngestConfig, RunConfig
from training_backend.config.plan import BufferConfig, PlanConfig, ProbeConfig
from training_backend.data.ingest import ingest
from training_backend.data.phantom_modalities import write_modality
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.evaluate.stage_end import end_stage
from training_backend.jobs.plan_stages import Start, from_run, stage_config

SMALL: dict[str, Any] = {
    "method": {
        "embed_dim": 24,
        "depth": 2,
        "heads": 2,
        "mlp_dim": 48,
        "decoder_embed_dim": 24,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "size_2d": (1, 32, 32),
        "size_3d": (8, 16, 16),
        "vocabulary": 200,
        "text": {"longest": 32},
    },
    "data": {"workers": 0},
    "optim": {"batch_size": 4, "lr": 1e-3},
    "engine": {"device": "cpu", "threads": 1, "preview_minutes": 0, "val_steps": 10**6, "checkpoint_steps": 2},
}


def dataset(root: Path, modality: str, cases: int = 10) -> Path:
    """Generated cases of a modality, ingested."""
    source = write_modality(root / "source" / modality, modality, cases, size=32, volume=(8, 16, 16))
    ingest([source], root / modality, IngestConfig(crop_body=False, workers=0), name=modality)
    return root / modality


def plan_of(data: dict[str, Path], steps: int = 4, **changes: Any) -> PlanConfig:
    """Stages of all of `data`, in order."""
    stages = [{"modality": name, "dataset": folder, "steps": steps} for name, folder in data.items()]
    own = {"preset": "tiny", "buffer": {"ratio": 0.5, "centres": 0.25}, "settings": SMALL, "stages": stages}
    return PlanConfig.parse({**own, **changes})


def trained(plan: PlanConfig, root: Path) -> list[Path]:
    """Runs of all stages of `plan`, trained in this process with what is left to do after each."""
    start, folders = Start(), []
    for number, stage in enumerate(plan.stages, 1):
        run = begun(root / f"{number:02d}-{stage.modality}", stage_config(plan, number, start))
        assert execute(run) == 0, run.error()
        end_stage(run.path, run.config(), plan.buffer, plan.probe, previous=start.folder)
        start = from_run(run.path)
        folders.append(run.path)
    return folders


def begun(folder: Path, config: RunConfig) -> RunDirectory:
    """The run directory of a stage."""
    return RunDirectory.create(folder, config)


__all__ = ["SMALL", "BufferConfig", "ProbeConfig", "begun", "dataset", "plan_of", "trained"]
