from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training_backend.config import IngestConfig
from training_backend.data.ingest import ingest
from training_backend.data.manifest import ClassEntry
from training_backend.data.phantom_shapes import Phantom, centred, ellipsoid, patient_axes
from training_backend.data.phantoms import write_cohort
from training_backend.data.volume import Volume

CLASSES = (
    ClassEntry(index=1, name="organ", colour="#e69f00"),
    ClassEntry(index=2, name="core", colour="#56b4e9"),
)


def blob(seed: int, shape: tuple[int, int, int]) -> Phantom:
    """An organ with a core, of another place and shape for each seed."""
    rng = np.random.default_rng([seed, 5])
    grid = centred(shape, (1.0, 1.0, 1.0))
    z, y, x = rng.uniform(-2.5, 2.5, 3)
    a, b, c = rng.uniform(5.5, 8.5, 3)
    distance = ellipsoid(patient_axes(grid), (z, y, x), (a, b, c))
    labels = (distance < 1).astype(np.uint8) + (distance < 0.5)
    signal = np.choose(labels, (60, 200, 300)) + rng.normal(0, 8, shape)
    volume = Volume(signal.astype(np.float32), grid, "MR", f"blob {seed}", {"contrast": "T1"})
    marks = Volume(labels.astype(np.uint8), grid, name="labels", meta={"kind": "labels"})
    return Phantom((volume,), marks, CLASSES, "", 0)


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight blobs with label maps, five for training and three for validation."""
    root = tmp_path_factory.mktemp("blobs")
    write_cohort(root / "cohort", 8, seed=1, shape=(24, 24, 24), kind=blob)
    ingest([root / "cohort"], root / "dataset", IngestConfig(workers=0, splits=(0.6, 0.4, 0.0), crop_body=False))
    return root / "dataset"
