"""Sequences are drawn by counters alone, hold what they say, and never mix what must stay apart."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from training_backend.config import IngestConfig, RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.lesions import place_lesions, read_table
from training_backend.data.loader import ViewLoader
from training_backend.data.phantoms import mr_contrasts, write_cohort
from training_backend.data.prepare import InputProfile
from training_backend.data.sequence import build, example
from training_backend.data.sequence_crops import box_around, prepared
from training_backend.data.store import open_case

CONTRASTS = ("PD", "T1", "T2")
EVERYTHING = {"spatial": 2.0, "contrast": 1.0, "semantic": 1.0}


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Heads in three contrasts, half of them with a lesion on either side, all for training but two."""

    def three(seed, shape):
        return mr_contrasts(seed, shape, contrasts=("T1", "T2", "PD"))

    source = write_cohort(tmp_path_factory.mktemp("heads"), 18, seed=5, shape=(20, 28, 24), kind=three)
    folder = tmp_path_factory.mktemp("heads-dataset")
    ingest(source, folder, IngestConfig(workers=0, crop_body=False, splits=(0.9, 0.1, 0.0)))
    return Dataset.open(folder), source / "lesions.csv"


@pytest.fixture
def config(heads):
    dataset, table = heads

    def make(**changes):
        settings = {"slabs": 3, "stride": 2, "contrasts": CONTRASTS, "lesions": table, **EVERYTHING}
        base = {
            "method": {"name": "mae3d"},
            "data": {
                "dataset": dataset.folder,
                "view": "sequence",
                "size": (12, 16, 16),
                "workers": 0,
                "sequence": settings,
                "augment": {"flip": (0, 0, 0)},
            },
            "optim": {"batch_size": 4, "max_steps": 6},
            "engine": {"device": "cpu"},
        }
        return RunConfig.parse(base).updated(changes)

    return make


def only(kind):
    return {name: float(name == kind) for name in EVERYTHING}


def same(one, other):
    assert torch.equal(one.images, other.images)
    for name in ("case_ids", "kinds", "keys", "spacing_mm", "failures"):
        assert list(getattr(one, name)) == list(getattr(other, name))


@pytest.mark.parametrize("workers", [1, 2])
def test_views_do_not_depend_on_the_number_of_workers(heads, config, workers):
    alone = ViewLoader(heads[0], config()).batches()
    several = ViewLoader(heads[0], config(data={"workers": workers})).batches()
    for one, other in zip(alone, several, strict=True):
        same(one, other)


def test_any_step_can_be_computed_without_the_ones_before(heads, config):
    everything = list(ViewLoader(heads[0], config()).batches())
    for one, other in zip(everything[4:], ViewLoader(heads[0], config()).batches(4), strict=True):
        same(one, other)


def test_batches_are_network_input_and_tell_their_kinds(heads, config):
    loader = ViewLoader(heads[0], config(data={"intensity": {"profile": "zscore"}}))
    views = next(loader.batches())
    batch = loader.to_batch(views, "cpu")
    assert batch.volume.shape == (4, 1, 12, 16, 16)
    assert torch.equal(batch.volume, views.images), "each slab has its percentiles already"
    assert batch.extra["kinds"] == list(views.kinds)
    parts = [loader.to_batch(views[start : start + 1], "cpu").extra["kinds"] for start in range(4)]
    assert [kind for part in parts for kind in part] == list(views.kinds)
    assert float(batch.volume.min()) == 0
    assert float(batch.volume.max()) == 1


def test_weights_are_kept(heads, config):
    sequences = ViewLoader(heads[0], config()).sequences
    count = 2000
    drawn = Counter(sequences.draw((0, n, n % sequences.visits, 0)).kind for n in range(count))
    for kind, share in (("spatial", 0.5), ("contrast", 0.25), ("semantic", 0.25)):
        assert abs(drawn[kind] - count * share) < 4 * np.sqrt(count * share * (1 - share)), drawn


def test_a_visit_of_an_epoch_is_of_its_case(heads, config):
    loader = ViewLoader(heads[0], config(data={"sequence": only("spatial"), "crops_per_volume": 1}))
    assert loader.views_per_epoch == len(loader.cases)
    ids = [id for views in loader.batches() for id in views.case_ids]
    assert len(set(ids[: len(loader.cases)])) == len(loader.cases)


def test_spatial_slabs_are_slices_of_one_crop(heads, config):
    settings = config(data={"sequence": only("spatial")})
    sequences = ViewLoader(heads[0], settings).sequences
    starts = set()
    for n in range(40):
        recipe = sequences.draw((0, n, n % sequences.visits, 0))
        stored = open_case(heads[0], heads[0].case(recipe.parts[0].name))
        crop = prepared(stored.read_image(recipe.parts[0].box.start, recipe.parts[0].box.size)[0], (12, 16, 16))
        view = build(sequences, recipe, settings, lambda case: open_case(heads[0], case)).image
        for slab in range(3):
            first = recipe.start + 2 * slab
            assert np.array_equal(view[4 * slab : 4 * slab + 4], crop[first : first + 4])
        starts.add(recipe.start)
    assert starts == set(range(5)), "12 slices less the stack of 2 * 2 + 4"


def test_contrasts_show_one_box_in_the_order_asked_for(heads, config):
    settings = config(data={"sequence": only("contrast")})
    sequences = ViewLoader(heads[0], settings).sequences
    for n in range(10):
        recipe = sequences.draw((0, n, n % sequences.visits, 0))
        assert [part.contrast for part in recipe.parts] == list(CONTRASTS)
        assert len({(part.name, part.box) for part in recipe.parts}) == 1
        view = build(sequences, recipe, settings, lambda case: open_case(heads[0], case)).image
        stored = open_case(heads[0], heads[0].case(recipe.parts[0].name))
        box = recipe.parts[0].box
        assert box.size == (4, 16, 16)
        for slab, contrast in enumerate(CONTRASTS):
            crop = stored.read_image(box.start, box.size, stored.channels_of([contrast]))[0]
            assert np.array_equal(view[4 * slab : 4 * slab + 4], prepared(crop, (4, 16, 16)))


def test_lesions_are_of_one_type_in_different_patients_of_the_split(heads, config):
    dataset, table = heads
    settings = config(data={"sequence": only("semantic")})
    sequences = ViewLoader(dataset, settings).sequences
    rows, _ = read_table(table)
    lesions, refused = place_lesions(rows, table.name, dataset.cases())
    assert not refused
    train = {case.id for case in dataset.cases("train")}
    types = set()
    for n in range(60):
        recipe = sequences.draw((0, n, n % sequences.visits, 0))
        names = [part.name for part in recipe.parts]
        assert len(set(names)) == 3
        assert set(names) <= train
        fitting = [
            {one.type for one in lesions if one.case == part.name and around(dataset, one) == part.box}
            for part in recipe.parts
        ]
        common = set.intersection(*fitting)
        assert common
        types |= common
    assert types == {"left lesion", "right lesion"}


def around(dataset, lesion):
    return box_around(lesion.centre, open_case(dataset, dataset.case(lesion.case)).shape, (4, 16, 16))


def test_only_cases_that_have_all_contrasts_are_drawn_for_them(heads, config, caplog):
    dataset = Dataset.open(heads[0].folder)
    poor = [case.id for case in dataset.cases("train")[::2]]
    for id in poor:
        case = dataset.case(id)
        store = {**case.store, "images": case.store["images"][:1]}
        dataset.put(case.model_copy(update={"images": case.images[:1], "store": store}))
    loader = ViewLoader(dataset, config(data={"sequence": EVERYTHING}, optim={"batch_size": 40, "max_steps": 1}))
    assert "8 of 16 training cases have all of PD, T1, T2" in caplog.text
    [views] = loader.batches()
    assert not views.failures
    by_kind = {kind: set() for kind in EVERYTHING}
    for kind, ids in zip(views.kinds, views.case_ids, strict=True):
        by_kind[kind] |= set(ids.split(", "))
    assert not by_kind["contrast"] & set(poor)
    assert by_kind["spatial"] & set(poor)


def test_a_damaged_case_is_blamed_and_not_replaced(heads, config, tmp_path):
    shutil.copytree(heads[0].folder, tmp_path / "copy")
    broken = Dataset.open(tmp_path / "copy")
    victim = broken.cases("train")[3]
    path = broken.folder / victim.store["folder"] / "0.b2nd"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    changes = {"optim": {"batch_size": 30, "max_steps": 1}}
    [whole] = ViewLoader(heads[0], config(**changes)).batches()
    for workers in (0, 1):
        [views] = ViewLoader(broken, config(data={"workers": workers}, **changes)).batches()
        assert [case for case, _ in views.failures] == [victim.id]
        assert "damaged" in views.failures[0][1]
        kept = [index for index, names in enumerate(whole.case_ids) if whole.keys[index] in views.keys]
        assert 0 < len(kept) == len(views) < 30
        assert torch.equal(views.images, whole.images[kept])


def test_validation_draws_its_own_cases_and_always_the_same_views(heads, config):
    first, again = (list(ViewLoader(heads[0], config(), split="val").batches()) for _ in range(2))
    assert first[0].case_ids
    held = {case.id for case in heads[0].cases("val")}
    for one, other in zip(first, again, strict=True):
        same(one, other)
        assert {name for ids in one.case_ids for name in ids.split(", ")} <= held
    assert "semantic" not in {kind for views in first for kind in views.kinds}, "two patients give no three lesions"


def test_held_out_cases_that_can_give_nothing_asked_for_give_spatial_sequences(heads, config):
    settings = config(data={"sequence": {**only("semantic"), "stride": 50}})
    views = next(ViewLoader(heads[0], settings, split="val").batches())
    assert set(views.kinds) == {"spatial"}
    assert views.images.shape[1:] == (1, 12, 16, 16)


@pytest.mark.parametrize("kind", ["spatial", "contrast", "semantic"])
def test_an_example_of_each_kind_names_nobody(heads, config, kind):
    shown = example(config(), kind, seed=4)
    again = example(config(), kind, seed=4)
    other = example(config(), kind, seed=5)
    assert shown.array.shape == (1, 12, 16, 16)
    assert shown.slabs.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert shown.kind == kind
    assert np.array_equal(shown.array, again.array)
    assert not np.array_equal(shown.array, other.array)
    assert "case_" not in shown.note
    assert shown.note.endswith(".")


def test_prediction_looks_at_crops(heads, config):
    assert InputProfile.of(config(), heads[0].info).view == "crop"
