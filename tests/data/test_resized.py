"""Views of pictures: which part, resized how, and the same for any number of workers and after every resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.loader_kit import same, steps
from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.loader import ViewLoader
from training_backend.data.phantom_modalities import write_modality
from training_backend.data.prepare import InputProfile, prepare, stored_input
from training_backend.data.read import read_volumes
from training_backend.data.resized import RATIO, Part, random_part, resize
from training_backend.errors import ConfigError

CHANGES = {"flip": (0, 0.5, 0.5), "rotate": 0.5, "noise": 0.5}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Nine pictures of stained tissue, six of them for training."""
    folder = tmp_path_factory.mktemp("slides")
    write_modality(folder / "files", "2D_path", 9, size=48)
    ingest(folder / "files" / "cases.csv", folder / "dataset", IngestConfig(workers=0, splits=(0.7, 0.3, 0)))
    return Dataset.open(folder / "dataset")


@pytest.fixture
def config(slides, run_config):
    def make(**changes):
        data = {"view": "resized", "size": (1, 32, 24), "contrasts": ("blue", "green", "red"), "augment": CHANGES}
        return run_config(slides.folder, data={**data, **changes.pop("data", {})}, **changes)

    return make


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers_or_on_where_one_starts(slides, config, workers):
    alone = steps(ViewLoader(slides, config(), needs="target"))
    for one, other in zip(
        alone, steps(ViewLoader(slides, config(data={"workers": workers}), needs="target")), strict=True
    ):
        same(one, other)
    for one, other in zip(alone[3:], steps(ViewLoader(slides, config(), needs="target"), 3), strict=True):
        same(one, other)
    assert alone[0].volume.shape == (4, 3, 1, 32, 24)
    assert alone[0].volume.min() >= -0.5
    assert alone[0].target.shape == (4,)


def test_held_out_pictures_are_seen_whole_and_in_the_order_of_colours_asked_for(slides, config):
    loader = ViewLoader(slides, config(), split="val")
    views = next(loader.batches())
    batch = loader.to_batch(views, "cpu")
    for index, id in enumerate(batch.case_ids):
        case = slides.case(id)
        whole = Image.open(slides.source(case.images[0])).resize((24, 32), Image.Resampling.BICUBIC)
        bgr = np.asarray(whole).transpose(2, 0, 1)[::-1] / np.float32(255)
        assert np.allclose(batch.volume[index, :, 0].numpy(), bgr, atol=1e-6)


def test_training_parts_are_cut_from_the_picture(slides, config):
    loader = ViewLoader(slides, config(data={"augment": {"flip": (0, 0, 0)}}))
    views = next(loader.batches())
    for key, id, image in zip(views.keys, views.case_ids, views.images, strict=True):
        part = random_part(48, 48, (0.2, 1.0), key)
        picture = Image.open(slides.source(slides.case(id).images[0])).split()[2]
        box = (part.x, part.y, part.x + part.width, part.y + part.height)
        expected = picture.crop(box).resize((24, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(image[0, 0].numpy(), np.asarray(expected))
    spacing = views.spacing_mm[0]
    part = random_part(48, 48, (0.2, 1.0), views.keys[0])
    assert spacing == pytest.approx((1, part.height / 32, part.width / 24))


def test_parts_have_the_sizes_and_shapes_of_the_publication():
    parts = [random_part(100, 160, (0.2, 1.0), (0, 0, index, 0)) for index in range(2000)]
    shares = np.array([part.height * part.width / 16000 for part in parts])
    ratios = np.array([part.width / part.height for part in parts])
    assert shares.min() > 0.19
    assert shares.max() <= 1
    assert ratios.min() > RATIO[0] - 0.02
    assert ratios.max() < RATIO[1] + 0.02
    small = [random_part(200, 200, (0.2, 0.5), (0, 0, index, 0)) for index in range(2000)]
    logs = np.log([part.width / part.height for part in small])
    assert abs(logs.mean()) < 0.02
    assert logs.std() == pytest.approx(np.log(RATIO[1]) / np.sqrt(3), rel=0.05)
    assert all(p.y >= 0 and p.y + p.height <= 100 and p.x >= 0 and p.x + p.width <= 160 for p in parts)
    assert random_part(100, 160, (0.2, 1.0), (0, 0, 7, 0)) == parts[7]
    middle = random_part(10, 1000, (0.9, 1.0), (0, 0, 0, 0))
    assert middle == Part(0, (1000 - 13) // 2, 10, 13), "where no draw fits, the middle"


def test_mirrored_pictures_would_be_noticed(tmp_path, run_config):
    picture = np.zeros((20, 30), np.uint8)
    picture[:10, :15], picture[:10, 15:], picture[10:, :15] = 250, 160, 70
    (tmp_path / "films").mkdir()
    for name in "abc":
        Image.fromarray(picture + ord(name) - 97).save(tmp_path / "films" / f"{name}.png")
    ingest(tmp_path / "films", tmp_path / "dataset", IngestConfig(workers=0, splits=(1, 0, 0)))
    dataset = Dataset.open(tmp_path / "dataset")
    settings = {"view": "resized", "size": (1, 8, 8), "area": (1.0, 1.0), "augment": {"flip": (0, 0, 0)}}
    for view in (settings, {**settings, "view": "crop", "size": (1, 20, 30)}):
        loader = ViewLoader(dataset, run_config(dataset.folder, data=view))
        seen = loader.to_batch(next(loader.batches()), "cpu").volume[0, 0, 0] * 255
        h, w = seen.shape
        corners = [seen[1, 1], seen[1, w - 2], seen[h - 2, 1], seen[h - 2, w - 2]]
        assert np.allclose(corners, [250, 160, 70, 0], atol=12)


def test_a_network_predicts_on_what_it_was_trained_on(slides, config):
    profile = InputProfile.of(config(), slides.info)
    assert profile.view == "resized"
    case = slides.cases("val")[0]
    from_store = stored_input(slides, case, profile)
    volumes = read_volumes(slides.source(case.images[0]))
    from_file = prepare(volumes, profile)
    assert np.array_equal(from_store.array, from_file.array)
    loader = ViewLoader(slides, config(), split="val")
    batch = loader.to_batch(next(loader.batches()), "cpu")
    assert np.allclose(batch.volume[list(batch.case_ids).index(case.id)].numpy(), from_file.array, atol=1e-6)
    marks = np.zeros((1, 32, 24), np.uint8)
    marks[0, :16, 12:] = 1
    back = from_file.restore_labels(marks)
    assert back.shape == (1, 48, 48)
    assert back[0, :24, 24:].all()
    assert back.sum() == 24 * 24


def test_scans_of_many_slices_and_impossible_shares_are_refused(dataset, slides, run_config, config):
    wrong = run_config(dataset.folder, data={"view": "resized", "size": (1, 16, 16)})
    views = next(ViewLoader(dataset, wrong).batches())
    assert "resized views of 1 are asked for; only rows and columns are resized" in views.failures[0][1]
    with pytest.raises(ConfigError, match=r"data\.area is 0\.5 to 0\.2"):
        ViewLoader(slides, config(data={"area": (0.5, 0.2)}))


def test_sixteen_bit_pictures_reach_the_batch_unharmed(tmp_path, run_config):
    deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    (tmp_path / "films").mkdir()
    Image.fromarray(deep).save(tmp_path / "films" / "a.png")
    ingest(tmp_path / "films", tmp_path / "dataset", IngestConfig(workers=0, splits=(1, 0, 0)))
    dataset = Dataset.open(tmp_path / "dataset")
    for view in ("crop", "resized"):
        data = {"view": view, "size": (1, 64, 64), "area": (1.0, 1.0), "augment": {"flip": (0, 0, 0)}}
        loader = ViewLoader(dataset, run_config(dataset.folder, data=data))
        batch = loader.to_batch(next(loader.batches()), "cpu")
        assert torch.allclose(batch.volume[0, 0, 0], torch.from_numpy(deep / np.float32(65535)), atol=1e-6)


def test_resizing_does_not_leave_eight_bits():
    edges = np.kron(np.array([[0, 255]], np.int16), np.ones((16, 8), np.int16))[None]
    small = resize(edges, (1, 5, 7), eight_bits=True)
    assert small.dtype == np.int16
    assert (small.min(), small.max()) == (0, 255)


def test_a_share_of_one_is_all_of_a_picture_whatever_its_shape(tmp_path, run_config):
    Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(40, 0)).save(tmp_path / "wide.png")
    ingest(tmp_path / "wide.png", tmp_path / "dataset", IngestConfig(workers=0, splits=(1, 0, 0)))
    dataset = Dataset.open(tmp_path / "dataset")
    data = {"view": "resized", "size": (1, 32, 32), "area": (1.0, 1.0), "augment": {"flip": (0, 0, 0)}}
    loader = ViewLoader(dataset, run_config(dataset.folder, data=data))
    row = loader.to_batch(next(loader.batches()), "cpu").volume[0, 0, 0, 0]
    assert row[0] < 0.05
    assert row[-1] > 0.95


def test_masks_go_with_their_pictures(tmp_path, run_config):
    """Cut, resized and flipped, a mask stays over what it marks."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "files" / folder).mkdir(parents=True)
    for number in range(4):
        marks = np.kron(rng.integers(0, 2, (6, 5)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(40 + 160 * marks).save(tmp_path / "files" / "images" / f"{number}.png")
        Image.fromarray(255 * marks).save(tmp_path / "files" / "masks" / f"{number}.png")
    ingest(tmp_path / "files", tmp_path / "dataset", IngestConfig(workers=0, splits=(0.75, 0.25, 0)))
    dataset = Dataset.open(tmp_path / "dataset")
    data = {"view": "resized", "size": (1, 64, 64), "augment": {"flip": (0, 0.5, 0.5)}}
    for split in ("train", "val"):
        for batch in steps(ViewLoader(dataset, run_config(dataset.folder, data=data), needs="labels", split=split)):
            bright = batch.volume[:, 0] * 255 > 120
            assert batch.labels.shape == bright.shape
            assert (bright == (batch.labels == 1)).float().mean() > 0.97
            assert 0.1 < bright.float().mean() < 0.9
