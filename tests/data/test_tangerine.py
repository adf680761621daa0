from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from training_backend.data.tangerine import prepare, read_list, resample_keeping_aspect, resample_published, window_hu


def test_window_maps_the_published_range_to_zero_and_one() -> None:
    assert window_hu(np.array([-3000, -1200, -200, 800, 3000])).tolist() == [0, 0, 0.5, 1, 1]


def test_published_resampling_keeps_origin_and_pixel_type() -> None:
    image = sitk.GetImageFromArray(np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8))
    image.SetSpacing((0.5, 1.0, 2.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    result = resample_published(image, (4, 3, 2))
    assert result.GetSize() == (4, 3, 2)
    assert result.GetSpacing() == (1.0, 2.0, 4.0)
    assert result.GetOrigin() == image.GetOrigin()
    assert result.GetPixelID() == image.GetPixelID()
    assert sitk.GetArrayFromImage(result)[0, 0, 0] == 0  # the first centre stays where it was


def test_keeping_the_aspect_pads_with_air() -> None:
    cube = resample_keeping_aspect(np.full((4, 8, 8), 40, np.int16), (1.0, 1.0, 1.0), 16)
    assert cube.shape == (16, 16, 16)
    assert (cube[4:12] == 40).all()
    assert (cube[:4] == -1200).all()
    assert (cube[12:] == -1200).all()


def test_prepare_writes_volumes_and_a_list_and_names_what_it_refuses(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.full((5, 6, 7), -200, np.int16))
    good, bad = tmp_path / "größe eins.nii.gz", tmp_path / "bad.nii.gz"
    sitk.WriteImage(image, str(good))
    bad.write_bytes(good.read_bytes()[:60])
    report = prepare([good, bad], tmp_path / "out", size=8)
    kept, other = read_list(report.list_file)
    assert kept == report.written == [tmp_path / "out" / "größe eins.npz"]
    assert other == []
    assert list(report.refused) == [str(bad)]
    volume = np.load(kept[0])["volume"]
    assert volume.shape == (8, 8, 8)
    assert volume.dtype == np.float32
    assert volume[2, 2, 2] == pytest.approx(0.5, abs=1e-3)  # B-splines round to whole HU


def test_lines_that_are_no_npz_are_returned_not_lost(tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("a.npz\nb.nii.gz\n\n c.npz \n")
    kept, other = read_list(listing)
    assert [path.name for path in kept] == ["a.npz", "c.npz"]
    assert other == ["b.nii.gz"]


def test_scans_of_the_same_name_do_not_replace_each_other(tmp_path: Path) -> None:
    scans = [tmp_path / person / "ct.nii.gz" for person in ("a", "b")]
    for value, path in enumerate(scans):
        path.parent.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 4, 4), 800 * value, np.int16)), str(path))
    report = prepare(scans, tmp_path / "out", size=4)
    assert [path.name for path in report.written] == ["ct.npz", "ct_2.npz"]
    assert [float(np.load(path)["volume"].mean()) for path in report.written] == pytest.approx([0.6, 1.0], abs=1e-3)
    again = prepare(scans, tmp_path / "out", size=4)
    assert again.written == report.written
