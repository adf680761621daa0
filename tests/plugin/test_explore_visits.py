"""Which case is the next visit of a patient, and sentences where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_med3dssl.explore_visits import visit_beside, visit_layers
from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import thorax_ct
from training_backend.data.write import write_volume
from training_backend.errors import DataError


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a patient with three visits, the numbers of which sort otherwise as texts, and one with one."""
    root = tmp_path_factory.mktemp("bids")
    (root / "dataset_description.json").write_text('{"Name": "visits", "BIDSVersion": "1.8.0"}')
    for seed, (subject, session) in enumerate([("01", "2"), ("01", "10"), ("01", "9"), ("02", "1")]):
        folder = root / f"sub-{subject}" / f"ses-{session}" / "ct"
        folder.mkdir(parents=True)
        path = folder / f"sub-{subject}_ses-{session}_ct.nii.gz"
        write_volume(thorax_ct(seed, (16, 24, 24)).volume, path)
    folder = root.parent / f"{root.name}-dataset"
    ingest(root, folder, IngestConfig(workers=0, splits=(1.0, 0.0, 0.0)), name="visits")
    return folder


def test_sessions_are_counted_through(visits: Path) -> None:
    ids = sorted(Dataset.open(visits).records)
    assert ids == ["sub-01_ses-10", "sub-01_ses-2", "sub-01_ses-9", "sub-02_ses-1"]
    assert visit_beside(visits, ["sub-01_ses-2"], 1).id == "sub-01_ses-9"
    assert visit_beside(visits, ["sub-01_ses-9"], 1).id == "sub-01_ses-10"
    assert visit_beside(visits, ["sub-01_ses-10"], -1).id == "sub-01_ses-9"


def test_the_file_of_a_case_tells_it_too(visits: Path) -> None:
    dataset = Dataset.open(visits)
    image = dataset.case("sub-01_ses-9").images[0]
    path = (dataset.folder / dataset.info.root / image.path).resolve()
    assert visit_beside(visits, ["any name", str(path)], 1).id == "sub-01_ses-10"
    [layer] = visit_layers(visits, dataset.case("sub-01_ses-10"))
    assert layer[1]["name"] == "sub-01_ses-10"


@pytest.mark.parametrize(
    ("case", "step", "sentence"),
    [
        ("sub-01_ses-10", 1, "sub-01_ses-10 is the last visit of sub-01 in the dataset, so there is no later one."),
        ("sub-01_ses-2", -1, "is the first visit of sub-01 in the dataset, so there is no earlier one."),
        ("sub-02_ses-1", 1, "is the only visit of sub-02 in the dataset, so there is no later one."),
        ("stranger", 1, "stranger is no case of the dataset visits, so its other visits are not known."),
    ],
)
def test_a_sentence_where_there_is_none(visits: Path, case: str, step: int, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        visit_beside(visits, [case], step)
