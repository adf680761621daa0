"""Datasets of reports without scans, for tasks that are built from the words of a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.data.phantoms import thorax_ct


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a dataset of 24 phantom reports, two of three to train on; their scans are never read."""
    folder = tmp_path_factory.mktemp("told")
    cases = []
    for index in range(24):
        phantom = thorax_ct(index, (4, 4, 4))
        split = "val" if index % 3 == 0 else "train"
        cases.append(
            CaseRecord(
                id=f"c{index:02d}",
                subject=f"c{index:02d}",
                split=split,
                report=phantom.report,
                target=(float(phantom.target),),
            )
        )
    Dataset(folder, DatasetInfo(name="told", target_names=("lung_nodule",)), cases).save()
    return folder
