"""Phantom cohorts and datasets for the tests of the data package; small, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_backend.config import IngestConfig, RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import mr_contrasts, write_cohort

SHAPE = (32, 48, 48)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 6, seed=1, shape=SHAPE)


@pytest.fixture(scope="session")
def dataset(cohort, tmp_path_factory):
    """Six chest CTs: five for training, one for validation; not to be changed."""
    folder = tmp_path_factory.mktemp("dataset")
    ingest(cohort, folder, IngestConfig(workers=0), name="chests")
    return Dataset.open(folder)


@pytest.fixture(scope="session")
def mr_dataset(tmp_path_factory):
    """Three heads with T1 and T2."""
    source = write_cohort(tmp_path_factory.mktemp("mr"), 3, seed=2, shape=(24, 32, 28), kind=mr_contrasts)
    folder = tmp_path_factory.mktemp("mr-dataset")
    ingest(source, folder, IngestConfig(workers=0))
    return Dataset.open(folder)


@pytest.fixture
def run_config(dataset):
    """A pre-training configuration on `dataset`, changed by nested keywords."""

    def make(folder: Path | None = None, **changes):
        base = {
            "method": {"name": "mae3d"},
            "data": {"dataset": folder or dataset.folder, "size": (16, 24, 24), "workers": 0},
            "optim": {"batch_size": 4, "max_steps": 5},
            "engine": {"device": "cpu"},
        }
        return RunConfig.parse(base).updated(changes)

    return make
