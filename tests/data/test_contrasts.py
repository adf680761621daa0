"""Contrasts of a case come onto one grid, with a word about it; those that cannot are kept out with the reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training_backend.config import IngestConfig, RunConfig
from training_backend.data.contrasts import coverage, matched
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.inspect import inspect
from training_backend.data.loader import ViewLoader
from training_backend.data.phantoms import mr_contrasts, oblique
from training_backend.data.read import read_volume
from training_backend.data.sequence_crops import prepared
from training_backend.data.store import open_case
from training_backend.data.volume import Geometry
from training_backend.data.write import write_volume
from training_backend.errors import GeometryError


def moved(volume, shift_mm):
    """`volume` with a header that says it lies `shift_mm` (R, A, S) further."""
    affine = volume.geometry.affine.copy()
    affine[:3, 3] += shift_mm
    return replace(volume, geometry=Geometry(affine, volume.geometry.source_shape))


def bids(folder, cases):
    """Volumes of several subjects as BIDS, T1w first."""
    for subject, volumes in cases.items():
        for contrast, volume in volumes.items():
            place = folder / f"sub-{subject}" / "anat"
            place.mkdir(parents=True, exist_ok=True)
            write_volume(volume, place / f"sub-{subject}_{contrast}.nii.gz", overwrite=True)
    return folder


def heads(seed=3):
    upright = mr_contrasts(seed, (40, 48, 44), contrasts=("T1", "T2"))
    return upright.volumes[0], upright.volumes[1], oblique(seed, (36, 56, 52)).volumes[0]


def likeness(one, other):
    return float(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1])


def test_a_contrast_of_another_grid_lies_voxel_on_voxel(tmp_path):
    t1, t2, tilted = heads()
    source = bids(tmp_path / "bids", {"a": {"T1w": t1, "T2w": tilted}})
    report = ingest(source, tmp_path / "data", IngestConfig(workers=0, crop_body=False, splits=(1, 0, 0)))
    dataset = Dataset.open(tmp_path / "data")
    (case,) = dataset.cases()
    assert not report.quarantined
    assert any("was put on the grid of sub-a_T1w, of which it covers" in problem for problem in case.problems)
    stored = open_case(dataset, case).read_image()
    assert stored.shape[1:] == t1.array.shape
    assert likeness(stored[1], t2.array) > 0.95
    view = {
        "view": "sequence",
        "size": (16, 24, 24),
        "sequence": {"slabs": 2, "spatial": 0, "contrast": 1},
        "augment": {"flip": (0, 0, 0)},
    }
    base = {"method": {"name": "mae3d"}, "data": {"dataset": dataset.folder, **view}}
    loader = ViewLoader(dataset, RunConfig.parse(base).updated({"data": {"workers": 0}}))
    views = next(loader.batches())
    assert set(views.kinds) == {"contrast"}
    likenesses = []
    for image, key in zip(views.images[:, 0].numpy(), views.keys, strict=True):
        box = loader.sequences.draw(key).parts[0].box
        place = tuple(slice(first, first + n) for first, n in zip(box.start, box.size, strict=True))
        assert np.array_equal(image[:8], prepared(t1.array[place], (8, 24, 24)))
        likenesses.append(likeness(image[8:], prepared(t2.array[place], (8, 24, 24))))
    assert np.median(likenesses) > 0.85, "of the same place; border boxes reach beyond the tilted scan"


def test_contrasts_of_one_grid_need_no_word():
    t1, t2, _ = heads()
    volumes, notes = matched([t1, t2])
    assert volumes == [t1, t2]
    assert notes == []


def test_a_contrast_of_another_place_is_quarantined(tmp_path):
    t1, t2, _ = heads()
    source = bids(tmp_path / "bids", {"a": {"T1w": t1, "T2w": moved(t2, (500, 0, 0))}, "b": {"T1w": heads(4)[0]}})
    report = ingest(source, tmp_path / "data", IngestConfig(workers=0, splits=(1, 0, 0)))
    assert report.ok == ("sub-b",)
    (refused,) = report.quarantined
    assert (refused.case, refused.category) == ("sub-a", "geometry")
    assert "sub-a_T2w does not overlap with sub-a_T1w" in refused.reason


def test_headers_that_do_not_agree_are_put_right_on_wish(tmp_path):
    t1, t2, _ = heads()
    source = bids(tmp_path / "bids", {"a": {"T1w": t1, "T2w": moved(t2, (6.0, -9.0, 5.0))}})
    found = {}
    for align in (False, True):
        config = IngestConfig(workers=0, crop_body=False, splits=(1, 0, 0), align=align)
        report = ingest(source, tmp_path / "data", config)
        assert report.resumed == 0, "another recipe, so nothing is kept"
        dataset = Dataset.open(tmp_path / "data")
        stored = open_case(dataset, dataset.cases()[0]).read_image()
        inside = (slice(8, -8), slice(8, -8), slice(8, -8))
        found[align] = likeness(stored[1][inside], t2.array[inside])
    assert found[True] > 0.93 > 0.85 > found[False]
    note = dataset.cases()[0].problems[0]
    assert "was turned by" in note
    assert note.endswith("mm to fit sub-a_T1w.")


def test_real_contrasts_of_one_head_cover_each_other(real_data):
    if real_data is None:
        first, other, _ = heads()
        other = moved(other, (3.0, 4.0, 5.0))
    else:
        first, other = (read_volume(real_data / "brain" / f"chris_{name}.nii.gz") for name in ("t1", "PD"))
    (_, plain), notes = matched([first, other])
    (_, better), more = matched([first, other], align=True)
    assert plain is other
    assert 0.5 < coverage(first.geometry, other.geometry) < 1
    assert len(notes) == 1
    assert len(more) == 2
    assert better.meta["alignment"]["after"] > 1.2 * better.meta["alignment"]["before"]


def test_the_share_of_a_grid_that_another_covers():
    t1, _, _ = heads()
    half = t1.geometry.cropped((0, 0, 0), (20, 48, 44))
    assert coverage(t1.geometry, t1.geometry) == 1
    assert coverage(half, t1.geometry) == 1
    assert coverage(t1.geometry, half) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(GeometryError, match="no contrasts of one case"):
        matched([t1, moved(t1, (0, 0, 900))])


def test_inspect_tells_the_groups(tmp_path):
    t1, t2, _ = heads()
    source = bids(tmp_path / "bids", {"a": {"T1w": t1, "T2w": t2}, "b": {"T1w": heads(4)[0]}})
    ingest(source, tmp_path / "data", IngestConfig(workers=0, splits=(1, 0, 0)))
    rows = [" | ".join(row) for row in inspect(tmp_path / "data").rows]
    assert any(row.startswith("1 case |") and "2 contrasts: T1w, T2w" in row for row in rows)
    assert any("only T1w" in row for row in rows)
