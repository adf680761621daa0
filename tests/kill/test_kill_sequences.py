"""A run on sequences of two kinds whose process is killed ends with the bits of one that nobody disturbed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import pretrain_config
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import mr_contrasts, write_cohort
from training_backend.engine import checkpoint
from training_backend.engine.events import EventReader
from training_backend.engine.rundir import RunDirectory
from training_backend.jobs import summary

STEPS = 20
KINDS = ("spatial", "contrast")


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Spatial and contrast sequences of six phantom heads, for a small next-patch network."""
    root = tmp_path_factory.mktemp("heads")
    source = write_cohort(root / "cohort", 6, seed=1, shape=(20, 28, 24), kind=mr_contrasts)
    ingest([source], root / "dataset", IngestConfig(workers=0, crop_body=False))
    changes = {
        "method": {"embed_dim": 24, "heads": 2, "depth": 2, "patch_size": (4, 8, 8)},
        "data": {
            "size": (16, 16, 16),
            "workers": 1,
            "sequence": {"slabs": 2, "stride": 4, **dict.fromkeys(KINDS, 1.0)},
        },
        "optim": {"max_steps": STEPS, "batch_size": 4, "lr": 1e-3, "ema": 0.9},
        "engine": {
            "device": "cpu",
            "threads": 1,
            "preview_minutes": 0,
            "checkpoint_steps": 5,
            "val_steps": 5,
            "micro_batch": 2,
        },
    }
    return pretrain_config("ar", "tiny", root / "dataset", changes)


def curve(run: RunDirectory) -> dict[tuple[str, int], dict[str, float]]:
    """Losses by split and step; of a step that was made twice, the later ones."""
    events = [event for event in EventReader(run.events_path).read() if event["type"] == "metrics"]
    return {
        (event["split"], event["step"]): {name: value for name, value in event["values"].items() if "loss" in name}
        for event in events
    }


def test_a_killed_run_on_sequences_ends_with_the_same_bits(sequences, workers, tmp_path: Path, wait_for) -> None:
    undisturbed = RunDirectory.create(tmp_path / "undisturbed", sequences)
    assert workers.finish(undisturbed) == "finished", undisturbed.log_path.read_text()
    killed = RunDirectory.create(tmp_path / "killed", sequences)
    process = workers.start(killed)
    wait_for(lambda: summary(killed).step >= STEPS // 2 or not process.is_running())
    with suppress(psutil.NoSuchProcess):
        process.kill()  # SIGKILL, like a power cut
    workers.wait()
    assert summary(killed).state == "lost"
    assert workers.finish(killed) == "finished", killed.log_path.read_text()
    first, second = (load_file(run.model_path) for run in (undisturbed, killed))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    last = [checkpoint.read(checkpoint.folder_of(run.checkpoints, STEPS)) for run in (undisturbed, killed)]
    for part in ("model", "optimizer", "ema"):
        tensors = [saved.tensors[part] for saved in last]
        assert all(bool((tensors[0][key] == tensors[1][key]).all()) for key in tensors[0])
    curves = [curve(run) for run in (undisturbed, killed)]
    assert curves[0] == curves[1]
    seen = {name for values in curves[0].values() for name in values}
    assert {f"loss_{kind}" for kind in KINDS} <= seen
    assert {split for split, _ in curves[0]} == {"train", "val"}
