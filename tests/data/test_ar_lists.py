"""Files of the published pre-processing: crops, lists, subset and validation rule, and whatever is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training_backend.config import RunConfig
from training_backend.data.ar_lists import EVERY, check_source, lists_of, open_dataset, read_crop
from training_backend.data.loader import ViewLoader
from training_backend.data.sequence import example
from training_backend.engine.rundir import located
from training_backend.errors import ConfigError, DataError
from training_backend.nn.axes import turned

SIZE = (16, 12, 8)  # (z, y, x)


@pytest.fixture
def files(tmp_path):
    """Six spatial crops, four contrast and four semantic sequences; paths of one list are relative."""
    rng = np.random.default_rng(0)
    crops = tmp_path / "patch_random_spatial"
    crops.mkdir()
    (tmp_path / "pair4").mkdir()

    def crop(name, depth):
        np.save(crops / name, rng.random((8, 12, depth)).astype(np.float32))
        return crops / name

    names = ("TCIA", "RSNA", "VerSe", "STOIC", "amos22", "FLARE22")
    spatial = [crop(f"{name}_{n}_0_1.npy", 16) for n, name in enumerate(names)]
    spatial_list = tmp_path / "train_patch_spatial.txt"
    spatial_list.write_text("\n".join(map(str, spatial)))
    lists = [spatial_list]
    for kind in ("contrast", "semantic"):
        lines = []
        for n in range(4):
            paths = [crop(f"{kind}_{n}_{part}.npy", 4) for part in range(4)]
            lines.append(",".join(f"patch_random_spatial/{path.name}" for path in paths))
        lists.append(tmp_path / "pair4" / f"train_patch_{kind}.txt")
        lists[-1].write_text("\n".join(lines))
    return lists


@pytest.fixture
def config(files):
    def make(**sequence):
        settings = {"lists": files, "stride": 2, **sequence}
        base = {
            "method": {"name": "mae3d"},
            "data": {
                "view": "sequence",
                "size": SIZE,
                "sequence": settings,
                "augment": {"flip": (0, 0, 0)},
                "workers": 0,
            },
            "optim": {"batch_size": 13, "max_steps": 2},
            "engine": {"device": "cpu"},
        }
        return RunConfig.parse(base)

    return make


def loader(config, **options):
    return ViewLoader(open_dataset(config), config, **options)


def test_an_epoch_has_every_line_once_and_the_first_of_500_is_for_validation(config):
    made = loader(config())
    assert made.views_per_epoch == 13
    first, second = made.batches()
    assert sorted(first.kinds) == ["contrast"] * 4 + ["semantic"] * 4 + ["spatial"] * 5
    assert sorted(first.case_ids) == sorted(second.case_ids)
    assert first.case_ids != second.case_ids
    [held] = loader(config(), split="val").batches()
    assert held.case_ids == ["TCIA_0_0_1.npy"]
    assert open_dataset(config()).cases("val")
    assert EVERY == 500


@pytest.mark.parametrize("workers", [1, 2])
def test_views_do_not_depend_on_the_number_of_workers(config, workers):
    alone = loader(config()).batches()
    several = loader(config().updated({"data": {"workers": workers}})).batches()
    for one, other in zip(alone, several, strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.case_ids, one.kinds) == (other.case_ids, other.kinds)


def test_the_network_sees_the_published_array(config, files):
    made = loader(config())
    views = next(made.batches())
    folder = files[0].parent / "patch_random_spatial"
    seen = turned(made.to_batch(views, "cpu").volume, "xyz")[:, 0].numpy()
    for view, kind, names, key in zip(seen, views.kinds, views.case_ids, views.keys, strict=True):
        stored = [np.load(folder / name) for name in names.split(", ")]
        if kind == "spatial":
            start = made.sequences.draw(key).start
            stored = [stored[0][..., start + 2 * n : start + 2 * n + 4] for n in range(4)]
        assert np.array_equal(view, np.concatenate(stored, axis=2))


def test_the_authors_subset(config):
    made = loader(config(subset=True))
    names = [names for views in made.batches() for names in views.case_ids]
    assert {name for name in names if "," not in name} == {"VerSe_2_0_1.npy", "amos22_4_0_1.npy"}
    assert made.views_per_epoch == 2 + 2 + 2


def test_an_example_of_each_list(config):
    for kind in ("spatial", "contrast", "semantic"):
        shown = example(config(), kind, seed=1)
        assert shown.array.shape == (1, *SIZE)
        assert shown.kind == kind
    with pytest.raises(ConfigError, match="hold no contrast sequence"):
        example(config(lists=config().data.sequence.lists[:1]), "contrast")


def test_the_folder_of_the_lists_stands_for_a_dataset(config, files):
    given = config(lists=()).updated({"data": {"dataset": files[0].parent}})
    check_source(given)
    views, named = next(loader(given).batches()), next(loader(config()).batches())
    assert torch.equal(views.images, named.images)
    assert lists_of(given) == tuple(files)
    assert lists_of(given.updated({"data": {"view": "crop"}})) == ()
    with pytest.raises(DataError, match="is not a dataset"):
        check_source(given.updated({"data": {"dataset": files[0].parent.parent}}))


def test_missing_crops_are_counted_and_named(config, files):
    for name in ("RSNA_1_0_1.npy", "contrast_2_3.npy"):
        (files[0].parent / "patch_random_spatial" / name).unlink()
    with pytest.raises(DataError, match=r"2 of the 38 crops .* do not exist: RSNA_1_0_1.npy, contrast_2_3.npy. Put"):
        open_dataset(config())


def test_a_crop_that_cannot_be_used_is_left_out_alone(config, files):
    folder = files[0].parent / "patch_random_spatial"
    np.save(folder / "RSNA_1_0_1.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(folder / "VerSe_2_0_1.npy", np.zeros((8, 12, 11), np.float32))
    np.save(folder / "contrast_2_3.npy", np.zeros((8, 12, 5), np.float32))
    (folder / "semantic_0_0.npy").write_bytes((folder / "semantic_0_1.npy").read_bytes()[:200])
    np.save(folder / "semantic_1_0.npy", np.full((8, 12, 4), np.nan, np.float32))
    views = next(loader(config()).batches())
    assert len(views) == 13 - 5
    failures = dict(views.failures)
    assert "Python objects, which are not loaded" in failures["RSNA_1_0_1.npy"]
    assert "8 x 12 x 11 voxels (x, y, z); 8 x 12 in at least 16 slices" in failures["VerSe_2_0_1.npy"]
    assert "8 x 12 in 4 slices are expected" in failures["contrast_2_3.npy"]
    assert "semantic_0_0.npy" in failures
    assert "not numbers" in failures["semantic_1_0.npy"]


def test_lists_that_do_not_fit(config, files, tmp_path):
    with pytest.raises(DataError, match=r"train_patch_contrast.txt names 4 crops, 2 are expected.*data.sequence.slabs"):
        open_dataset(config(slabs=2))
    other = tmp_path / "crops.txt"
    other.write_text(files[0].read_text())
    with pytest.raises(ConfigError, match=r"crops.txt does not tell which sequences it holds"):
        open_dataset(config(lists=[other]))
    with pytest.raises(ConfigError, match="Two lists of spatial"):
        open_dataset(config(lists=[files[0], files[0]]))
    with pytest.raises(DataError, match=r"gone_spatial.txt cannot be read: No such file"):
        check_source(config(lists=[tmp_path / "gone_spatial.txt"]))


def test_flat_arrays_and_other_files_are_no_crops(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"flat.npy is no three-dimensional array"):
        read_crop(tmp_path / "flat.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(DataError, match=r"text.npy holds"):
        read_crop(tmp_path / "text.npy")


def test_a_run_finds_its_lists_and_lesions_from_any_folder(config, files, monkeypatch):
    monkeypatch.chdir(files[0].parent)
    given = config(lists=[files[0].name], lesions="lesions.csv")
    sequence = located(given).data.sequence
    assert sequence.lists == (files[0].resolve(),)
    assert sequence.lesions == files[0].parent.resolve() / "lesions.csv"
