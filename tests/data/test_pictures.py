"""Plain pictures become volumes of one slice, the right way round, or a sentence says why not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.facts import PICTURES
from training_backend.data.importers import describe
from training_backend.data.ingest import ingest
from training_backend.data.intensity import Statistics, normalise
from training_backend.data.pictures import ALPHA_DROPPED, ASSUMED_SPACING
from training_backend.data.prepare import InputProfile, prepare
from training_backend.data.read import can_read, probe, read_classes, read_labels, read_volume, read_volumes
from training_backend.data.standard import standardise
from training_backend.data.volume import Volume
from training_backend.errors import ConfigError, DataError, ResourceError

GREY = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7) * 3
COLOUR = np.stack([GREY, 255 - GREY, GREY[::-1] // 2], axis=-1)


def saved(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", [one for one in PICTURES if "j" not in one])
def test_rows_are_y_and_columns_are_x_in_every_format(tmp_path, ending):
    path = saved(tmp_path / f"film{ending.upper()}", GREY)
    assert can_read(path)
    [volume] = read_volumes(path)
    assert np.array_equal(volume.array, GREY[None])
    assert volume.array.dtype == np.uint8
    assert volume.geometry.shape == (1, 5, 7) == probe(path).shape
    assert volume.geometry.spacing_mm == (1, 1, 1)
    assert volume.meta["notes"] == [ASSUMED_SPACING]
    assert not volume.warnings


def test_corners_stay_where_they_are_in_the_patient_frame(tmp_path):
    """Right in a picture is the patient's left and down is posterior: indices grow as in every canonical scan."""
    [volume] = read_volumes(saved(tmp_path / "corners.png", GREY))
    y, x = (volume.geometry.to_lps @ [0, 4, 0, 1])[1], (volume.geometry.to_lps @ [0, 0, 6, 1])[0]
    assert (y, x) == (4, 6)


def test_jpeg_keeps_place_and_grey(tmp_path):
    picture = np.zeros((32, 48), np.uint8)
    picture[:16, :16] = 200
    [volume] = read_volumes(saved(tmp_path / "film.jpg", picture, quality=95))
    assert volume.array[0, 4, 4] > 190
    assert volume.array[0, 4, 40] < 10
    assert volume.array[0, 28, 4] < 10


def test_colours_are_contrasts_and_keys(tmp_path):
    path = saved(tmp_path / "slide.png", COLOUR)
    assert probe(path).contrasts == ("red", "green", "blue")
    volumes = read_volumes(path)
    assert [volume.meta["contrast"] for volume in volumes] == ["red", "green", "blue"]
    assert np.array_equal(np.concatenate([volume.array for volume in volumes]), COLOUR.transpose(2, 0, 1))
    assert np.array_equal(read_volume(path, key="blue").array[0], COLOUR[..., 2])
    assert probe(path, key="blue").contrasts == ()
    with pytest.raises(DataError, match="no colour 'violet'; it has red, green, blue"):
        read_volume(path, key="violet")
    with pytest.raises(DataError, match="no colour 'red'; it has grey values only"):
        read_volume(saved(tmp_path / "film.png", GREY), key="red")


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path, ending):
    deep = GREY.astype(np.uint16) * 600
    path = saved(tmp_path / f"film{ending}", deep)
    assert probe(path).dtype == "uint16"
    [volume] = read_volumes(path)
    assert np.array_equal(volume.array[0], deep)
    assert volume.meta["largest"] == 65535
    standard = standardise([volume], None, None, crop_body=True)
    assert np.array_equal(standard.images[0][0], deep), "nothing is cut off and nothing is rounded"
    from training_backend.config.data import IntensityConfig

    seen = normalise(standard.images[0][None], standard.statistics, IntensityConfig())
    assert np.allclose(seen[0, 0], deep / 65535, atol=1e-6)


def test_sixteen_bit_colours_are_read_as_eight_and_that_is_said(tmp_path):
    import struct
    import zlib

    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))  # 2 x 2 pixels of 3 x 16 bits

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    volumes = read_volumes(path)
    assert volumes[0].array.dtype == np.uint8
    assert "16 bits per colour were read as 8" in volumes[0].warnings[0]


def test_transparency_is_dropped_with_a_warning(tmp_path):
    grey = saved(tmp_path / "grey.png", np.stack([GREY, GREY], axis=-1))
    colour = saved(tmp_path / "colour.png", np.concatenate([COLOUR, GREY[..., None]], axis=-1))
    for path, wanted in ((grey, GREY[None]), (colour, COLOUR.transpose(2, 0, 1))):
        volumes = read_volumes(path)
        assert np.array_equal(np.concatenate([volume.array for volume in volumes]), wanted)
        assert all(volume.warnings == (ALPHA_DROPPED,) for volume in volumes)
        assert probe(path).warnings == (ALPHA_DROPPED,)


def test_palettes_are_expanded_and_grey_ones_stay_one_contrast(tmp_path):
    numbers = Image.fromarray(GREY % 4, mode="P")
    numbers.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    volumes = read_volumes(saved(tmp_path / "palette.png", numbers))
    assert len(volumes) == 3
    assert np.array_equal(volumes[0].array[0], np.array([0, 255, 0, 9], np.uint8)[GREY % 4])
    numbers.putpalette([v for level in (0, 80, 160, 240) for v in (level,) * 3])
    [volume] = read_volumes(saved(tmp_path / "grey.png", numbers))
    assert np.array_equal(volume.array[0], np.array([0, 80, 160, 240], np.uint8)[GREY % 4])


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
def test_pictures_are_turned_as_their_file_asks(tmp_path, ending, turn):
    picture = np.kron(np.array([[0, 80, 160], [240, 120, 40]], np.uint8), np.ones((16, 16), np.uint8))
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[274] = turn
    path = saved(tmp_path / f"turned{ending}", image, exif=exif)
    upright = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.T,
        6: np.rot90(picture, -1),
        7: np.rot90(picture, 2).T,
        8: np.rot90(picture),
    }[turn]
    [volume] = read_volumes(path)
    assert volume.geometry.shape == probe(path).shape == (1, *upright.shape)
    assert np.abs(volume.array[0].astype(int) - upright).mean() < 4


def test_only_a_measure_in_centimetres_is_believed(tmp_path):
    [volume] = read_volumes(saved(tmp_path / "a.tif", GREY, resolution_unit=3, x_resolution=20.0, y_resolution=40.0))
    assert volume.geometry.spacing_mm == pytest.approx((1, 0.25, 0.5))
    assert volume.meta["notes"] == []
    for path in (saved(tmp_path / "b.tif", GREY, dpi=(72, 72)), saved(tmp_path / "c.png", GREY, dpi=(72, 72))):
        assert read_volume(path).geometry.spacing_mm == (1, 1, 1)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif"])
def test_a_file_that_was_cut_off_is_named(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    path = saved(tmp_path / f"film{ending}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"film\{ending} (is damaged or cut off|is no picture)"):
        read_volumes(path)


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_said(tmp_path, content):
    path = tmp_path / "film.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"film\.png (is empty|is no picture)"):
        read_volumes(path)


def test_colours_for_printing_and_stacks_are_refused(tmp_path):
    path = saved(tmp_path / "print.jpg", Image.fromarray(COLOUR).convert("CMYK"))
    with pytest.raises(DataError, match=r"picture for printing \(CMYK\).*Save it as RGB"):
        read_volumes(path)
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    path = saved(tmp_path / "stack.tif", pages[0], save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="holds 2 pictures; one is expected"):
        probe(path)


def test_a_picture_with_too_many_pixels_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "slide.png", np.zeros((64, 64), np.uint8))
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ResourceError, match="Cut it into tiles"):
        read_volumes(path)


def test_masks_are_numbers_of_classes(tmp_path):
    yes = np.where(GREY > 50, 255, 0).astype(np.uint8)
    assert np.array_equal(read_classes(saved(tmp_path / "yes.png", yes)).array[0], (GREY > 50).astype(np.uint8))
    three = saved(tmp_path / "three.png", np.stack([yes] * 3, axis=-1))
    assert np.array_equal(read_labels(three).array[0], yes)
    numbers = Image.fromarray(GREY % 3, mode="P")
    numbers.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    assert np.array_equal(read_labels(saved(tmp_path / "palette.png", numbers)).array[0], GREY % 3)
    bits = Image.fromarray(GREY > 50)
    assert np.array_equal(read_labels(saved(tmp_path / "bits.png", bits)).array[0], GREY > 50)
    with pytest.raises(DataError, match=r"slide\.png is a colour picture, which is no label map"):
        read_labels(saved(tmp_path / "slide.png", COLOUR))


def test_intensities_are_divided_by_the_largest_number_of_the_format():
    from training_backend.config.data import IntensityConfig

    eight = Statistics.measure(GREY, 0, largest=255)
    scan = Statistics.measure(GREY, 0)
    array = GREY[None, None].astype(np.int16)
    assert np.allclose(normalise(array, [eight], IntensityConfig())[0, 0], GREY / 255)
    scaled = IntensityConfig(profile="scaled", high=50)
    assert np.allclose(normalise(array - 60, [scan], scaled)[0, 0], np.clip((GREY.astype(float) - 60) / 50, -1, 1))
    import torch

    ours = normalise(torch.from_numpy(array - 60), [scan], scaled).numpy()
    assert np.allclose(ours, normalise(array - 60, [scan], scaled))
    with pytest.raises(ConfigError, match=r"Set data\.intensity\.high, such as 1024 for CT"):
        normalise(array, [scan], IntensityConfig(profile="scaled"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_model_of_pictures_sees_the_same_in_a_file_of_another_format(tmp_path, run_config, dtype):
    pixels = np.random.default_rng(3).integers(0, np.iinfo(dtype).max // 2, (3, 24, 32)).astype(dtype)
    (tmp_path / "films").mkdir()
    for number, one in enumerate(pixels):
        saved(tmp_path / "films" / f"{number}.png", one)
    ingest([tmp_path / "films"], tmp_path / "d", IngestConfig(workers=0))
    info = Dataset.open(tmp_path / "d").info
    assert info.largest == np.iinfo(dtype).max
    profile = InputProfile.of(run_config(tmp_path / "d"), info)
    [film] = read_volumes(tmp_path / "films" / "1.png")
    scan = Volume(film.array, film.geometry, name="1")  # as NIfTI holds it: nothing says what the format's limit was
    seen = [prepare([volume], profile).array for volume in (film, scan)]
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-6)
    np.testing.assert_allclose(seen[0][0, 0], pixels[1] / np.iinfo(dtype).max, atol=1e-6)


def test_nothing_is_cut_off_a_picture(tmp_path):
    dark = np.zeros((40, 60), np.uint8)
    dark[18:22, 28:32] = 250
    standard = standardise(read_volumes(saved(tmp_path / "dark.png", dark)), None, None, crop_body=True)
    assert np.array_equal(standard.images[0][0], dark)
    assert standard.start == (0, 0, 0)


def test_a_spacing_leaves_a_picture_one_slice(tmp_path):
    [volume] = read_volumes(saved(tmp_path / "film.png", np.zeros((40, 60), np.uint8)))
    standard = standardise([volume], None, (0.5, 2.0, 2.0), crop_body=True)
    assert standard.images[0].shape == (1, 20, 30)
    assert standard.geometry.spacing_mm == (1, 2, 2)


def test_folders_of_pictures_and_masks_are_paired_by_name(tmp_path):
    for folder in ("images", "masks", "beside"):
        (tmp_path / folder).mkdir()
    for number in (1, 2):
        saved(tmp_path / "images" / f"slide_000{number}.png", COLOUR // number)
        saved(tmp_path / "masks" / f"slide_000{number}.png", GREY % 2)
        saved(tmp_path / "beside" / f"train_{number}.bmp", COLOUR // number)
        saved(tmp_path / "beside" / f"train_{number}_anno.bmp", GREY % 3)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "images").rename(tmp_path / "pairs" / "images")
    (tmp_path / "masks").rename(tmp_path / "pairs" / "masks")
    for folder, names in (("pairs", ["slide_0001", "slide_0002"]), ("beside", ["train_1", "train_2"])):
        found = describe(tmp_path / folder)
        assert [case.id for case in found.cases] == names, "numbers at the end are the picture's own, no channels"
        assert all([image.contrast for image in case.images] == ["red", "green", "blue"] for case in found.cases)
        assert all(case.label is not None and case.label.key == "" for case in found.cases)
        report = ingest(found, tmp_path / f"{folder}-dataset", IngestConfig(workers=0))
        assert not report.quarantined


def test_pictures_beside_scans_are_left_out_with_the_reason(tmp_path):
    from training_backend.data.phantoms import thorax_ct
    from training_backend.data.write import write_volume

    write_volume(thorax_ct(0, (8, 16, 16)).volume, tmp_path / "scan.nii.gz")
    saved(tmp_path / "figure.png", GREY)
    found = describe(tmp_path)
    assert [case.id for case in found.cases] == ["scan"]
    assert [problem.reason for problem in found.problems] == [
        "figure.png is a picture beside scans; give the folder of pictures alone."
    ]


def test_a_colour_mask_is_quarantined(tmp_path):
    saved(tmp_path / "train_1.png", COLOUR)
    saved(tmp_path / "train_1_mask.png", COLOUR)
    saved(tmp_path / "train_2.png", COLOUR[::-1])
    report = ingest(tmp_path, tmp_path / "out", IngestConfig(workers=0))
    assert report.ok == ("train_2",)
    [entry] = report.quarantined
    assert (entry.case, entry.category) == ("train_1", "labels")
    assert "colour picture, which is no label map" in entry.reason
