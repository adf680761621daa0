"""Generated material of five modalities: seeded, of two classes, and taken by ingest as real material is."""

from __future__ import annotations

import numpy as np
import pytest

from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantom_modalities import MODALITIES, radiograph, report, tissue, write_modality

CONTRASTS = {"1D_text": (), "2D_path": ("red", "green", "blue")}


@pytest.mark.parametrize("modality", MODALITIES)
def test_each_modality_becomes_a_dataset(tmp_path, modality):
    source = write_modality(tmp_path / "files", modality, 6, seed=3)
    table = source if source.is_file() else source / "cases.csv"
    ingest(table, tmp_path / "dataset", IngestConfig(workers=0))
    dataset = Dataset.open(tmp_path / "dataset")
    assert len(dataset.cases()) == 6
    assert dataset.info.contrasts == CONTRASTS.get(modality, ("image",))
    assert all(case.target is not None for case in dataset.cases())
    again = write_modality(tmp_path / "again", modality, 6, seed=3)
    names = sorted(path.name for path in (again.parent if again.is_file() else again).iterdir())
    first = source.parent if source.is_file() else source
    same = [
        (first / name).read_bytes() == (again if again.is_dir() else again.parent).joinpath(name).read_bytes()
        for name in names
    ]
    assert all(same)


def test_classes_can_be_told_from_what_is_shown():
    words = [report(seed) for seed in range(40)]
    assert {label for _, label in words} == {0, 1}
    assert all(("No pulmonary nodule" in text) == (label == 0) for text, label in words)
    stains = [tissue(seed) for seed in range(20)]
    dark = {label: np.mean([picture.mean() for picture, own in stains if own == label]) for label in (0, 1)}
    assert dark[1] < dark[0] - 10, "many large nuclei are darker"


def test_radiographs_show_a_chest_the_right_way_up():
    picture, _ = radiograph(0, 64)
    assert picture.dtype == np.uint8
    lungs = picture[16:40, 8:56].astype(float)
    assert lungs[:, 20:28].mean() > lungs[:, 4:14].mean(), "the middle is denser than the lungs"
    assert picture[48:].mean() > picture[16:32].mean(), "the liver is below the lungs"
