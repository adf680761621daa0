"""Pairs of scans: who is paired with whom, on which grids, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.loader import ViewLoader
from training_backend.data.pairs import choose_pairs, prepare_pair, stored_pair
from training_backend.data.phantom_deformed import deformed_head
from training_backend.data.phantoms import write_cohort
from training_backend.data.prepare import InputProfile
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import ConfigError, DataError, GeometryError


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    write_cohort(root / "cohort", 5, seed=1, shape=(20, 26, 22), kind=deformed_head, labelled=4)
    ingest([root / "cohort"], root / "dataset", IngestConfig(workers=0, splits=(0.8, 0.2, 0.0), seed=1))
    return root / "dataset"


def config(heads: Path, **changes: Any) -> RunConfig:
    small = {"data": {"size": (16, 16, 16), "workers": 0}, "optim": {"batch_size": 2}}
    return finetune_config("registration", "tiny", heads, changes=small).updated(changes)


def test_partners_depend_on_the_key_alone_and_are_never_the_case_itself(heads: Path) -> None:
    run = config(heads, task={"use_labels": False})
    pairs = choose_pairs(Dataset.open(heads), run, "train")
    again = choose_pairs(Dataset.open(heads), run, "train")
    seen = set()
    for epoch in range(8):
        for index in range(len(pairs.fixed)):
            moving, fixed = pairs.draw((0, epoch, index, 0))
            assert (moving.id, fixed.id) == tuple(case.id for case in again.draw((0, epoch, index, 0)))
            assert moving.id != fixed.id == pairs.fixed[index].id
            assert pairs.draw((0, epoch, index, 1)) == (fixed, moving)
            seen.add((moving.id, fixed.id))
    assert len(seen) > len(pairs.fixed)  # partners change from epoch to epoch


def test_an_atlas_is_moved_onto_every_other_case(heads: Path) -> None:
    dataset = Dataset.open(heads)
    atlas = dataset.cases(split="train", labelled=True)[0].id
    pairs = choose_pairs(dataset, config(heads, task={"atlas": atlas, "symmetric": False}), "train")
    assert {moving.id for moving, _ in pairs.listed()} == {atlas}
    assert atlas not in {fixed.id for fixed in pairs.fixed}


def test_views_hold_both_scans_in_both_directions_for_any_number_of_processes(heads: Path) -> None:
    run = config(heads)
    loader = ViewLoader(Dataset.open(heads), run, needs="pairs")
    views = next(iter(loader.batches()))
    assert views.images.shape == (2, 2, 16, 16, 16)
    assert views.labels is not None
    assert views.labels.shape == (2, 2, 16, 16, 16)
    assert np.array_equal(views.images[0].numpy(), views.images[1].flip(0).numpy())
    assert np.array_equal(views.labels[0].numpy(), views.labels[1].flip(0).numpy())
    batch = loader.to_batch(views, "cpu")
    assert 0 <= float(batch.volume.min()) < float(batch.volume.max()) <= 1
    parts = [ViewLoader(Dataset.open(heads), run, needs="pairs", rank=rank, world=2) for rank in range(2)]
    both = [next(iter(part.batches())).images[0].numpy() for part in parts]
    assert np.array_equal(np.stack(both), views.images.numpy())


def test_flips_turn_scans_and_label_maps_together(heads: Path) -> None:
    still = ViewLoader(Dataset.open(heads), config(heads), needs="pairs")
    flipped = ViewLoader(Dataset.open(heads), config(heads, data={"augment": {"flip": (0.0, 0.0, 1.0)}}), needs="pairs")
    one, two = (each.to_batch(next(iter(each.batches())), "cpu") for each in (still, flipped))
    assert np.array_equal(one.volume.flip(-1).numpy(), two.volume.numpy())
    assert one.labels is not None
    assert two.labels is not None
    assert np.array_equal(one.labels.flip(-1).numpy(), two.labels.numpy())


def test_world_alignment_puts_scans_where_their_files_say(heads: Path) -> None:
    dataset = Dataset.open(heads)
    profile = InputProfile.of(config(heads), dataset.info)
    moving, fixed = dataset.cases(split="train", labelled=True)[:2]
    world = stored_pair(dataset, moving, fixed, profile, "world")
    assert world.moving.geometry.same_grid(world.fixed.geometry)
    boxes = stored_pair(dataset, moving, fixed, profile, "boxes")
    assert np.array_equal(boxes.fixed.array, world.fixed.array)
    assert world.labels is not None
    assert world.labels[0].shape == (16, 16, 16)


def test_scans_of_any_size_make_a_pair_unless_they_should_share_a_space(heads: Path) -> None:
    profile = InputProfile.of(config(heads), Dataset.open(heads).info)
    one, other = deformed_head(1, (20, 26, 22)).volume, deformed_head(2, (31, 17, 40)).volume
    pair = prepare_pair(one, other, profile, "boxes")
    assert pair.array.shape == (2, 16, 16, 16)
    assert prepare_pair(one, other, profile, "world").moving.geometry.same_grid(pair.fixed.geometry)
    far = Geometry.from_spacing(one.geometry.shape, one.geometry.spacing_mm, (5000.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="covers 0 %"):
        prepare_pair(Volume(one.array, far, "MR", "far away"), other, profile, "world")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"view": "crop"}}, "looks at whole scans, but data.view is crop"),
        ({"data": {"contrasts": ("T1", "T2")}}, "one contrast of each scan, but 2"),
        ({"data": {"augment": {"rotate": 0.2}}}, "data.augment.rotate cannot be used"),
        ({"task": {"atlas": "nobody"}}, "no case 'nobody'"),
    ],
)
def test_settings_that_make_no_pairs_are_refused(heads: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        choose_pairs(Dataset.open(heads), config(heads, **changes), "train")


def test_missing_label_maps_are_told(heads: Path) -> None:
    dataset = Dataset.open(heads)
    bare = next(case for case in dataset.cases() if case.label is None)
    with pytest.raises(DataError, match=rf"The atlas {bare.id} has no label map"):
        choose_pairs(dataset, config(heads, task={"atlas": bare.id}), "train")
    for case in dataset.cases():
        dataset.put(case.model_copy(update={"label": None}))
    with pytest.raises(DataError, match=r"0 case.*with a label map.*use_labels"):
        choose_pairs(dataset, config(heads), "train")
    assert choose_pairs(dataset, config(heads, task={"use_labels": False}), "train").fixed
