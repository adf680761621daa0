"""Reconstructions lie on the scan in millimetres and in its own units."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method
from training_backend.data.phantoms import mr_contrasts, oblique, thorax_ct
from training_backend.data.prepare import InputProfile, prepare
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.reconstruct import mean_hidden_error, reconstruct
from training_backend.evaluate.view import view_box

MAE = method("mae3d")


def network(size=(16, 16, 16), **changes):
    torch.manual_seed(0)
    config = pretrain_config(
        "mae3d", "tiny", ".", {"data": {"size": size}, "method": {"patch_size": (4, 4, 4), **changes}}
    )
    return MAE.build(config).eval()


def pictures(volume, profile, **options):
    centre = options.pop("centre", None)
    prepared = prepare([volume], profile)
    found = reconstruct(MAE, network(profile.size), prepared, profile, options=options, centre=centre)
    return {one.picture.name: one for one in found}, prepared


@pytest.mark.parametrize("make", [thorax_ct, oblique], ids=["aligned", "oblique"])
def test_the_original_is_the_scan_itself_around_the_chosen_voxel(make):
    volume = make(2, (40, 44, 48)).volume
    profile = InputProfile(size=(16, 16, 16), crop_body=False)
    centre = (20, 10, 30)
    found, prepared = pictures(volume, profile, mask_ratio=0.75, seed=1, centre=centre)
    original = found["original"]
    low, high = prepared.in_units(np.array([0.0, 1.0]))
    start = np.rint((np.linalg.inv(volume.geometry.to_lps) @ original.geometry.to_lps)[:3, 3]).astype(int)
    box = tuple(slice(s, s + 16) for s in start)
    np.testing.assert_allclose(original.picture.array, np.clip(volume.array[box], low, high), atol=0.6)
    assert all(s <= c < s + 16 for s, c in zip(start, centre))
    for name in ("masked", "reconstruction", "error"):
        assert found[name].geometry.same_grid(original.geometry)


def test_hidden_patches_are_dark_in_the_masked_view_and_filled_in_the_reconstruction():
    volume = thorax_ct(2, (40, 44, 48)).volume
    profile = InputProfile(size=(16, 16, 16), crop_body=False)
    found, prepared = pictures(volume, profile, mask_ratio=0.5, seed=1)
    mask = found["mask"].picture.array.astype(bool)
    assert mask.sum() == 32
    assert found["mask"].geometry.shape == (4, 4, 4)
    hidden = mask.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    original, masked = found["original"].picture.array, found["masked"].picture.array
    reconstruction, error = found["reconstruction"].picture.array, found["error"].picture.array
    np.testing.assert_allclose(masked[~hidden], original[~hidden])
    np.testing.assert_allclose(masked[hidden], prepared.in_units(np.zeros(1)).item())
    np.testing.assert_allclose(reconstruction[~hidden], original[~hidden])
    np.testing.assert_allclose(error, np.abs(reconstruction - original), atol=0.01)
    assert error[hidden].mean() > 10  # HU: this network never learnt anything
    assert mean_hidden_error(list(found.values())) == pytest.approx(error[hidden].mean(), rel=1e-5)
    full, _ = pictures(volume, profile, mask_ratio=0.5, seed=1, full=True)
    assert not np.allclose(full["reconstruction"].picture.array[~hidden], original[~hidden])


def test_the_seed_alone_decides_the_mask():
    volume = thorax_ct(2, (24, 32, 32)).volume
    profile = InputProfile(size=(16, 16, 16))
    masks = [pictures(volume, profile, seed=seed)[0]["mask"].picture.array for seed in (4, 4, 5)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def test_a_whole_volume_model_sees_all_of_the_scan():
    volume = thorax_ct(2, (24, 32, 40)).volume
    profile = InputProfile(size=(16, 16, 16), view="volume", keep_aspect=False, crop_body=False)
    found, _ = pictures(volume, profile)
    geometry = found["original"].geometry
    extent = np.array(geometry.shape) * geometry.spacing_mm
    np.testing.assert_allclose(extent, np.array(volume.geometry.shape) * volume.geometry.spacing_mm, rtol=1e-6)


def test_a_scan_smaller_than_the_crop_is_centred_and_padded():
    volume = thorax_ct(2, (8, 12, 32)).volume
    profile = InputProfile(size=(16, 16, 16), crop_body=False)
    prepared = prepare([volume], profile)
    start, size = view_box(prepared, profile, (4, 4, 4), (4, 6, 31))
    assert (start, size) == ((-4, -2, 16), (16, 16, 16))
    found, _ = pictures(volume, profile, centre=(4, 6, 31))
    assert found["original"].picture.array.shape == (16, 16, 16)


def test_a_wrong_ratio_and_missing_contrasts_are_sentences():
    volume = mr_contrasts(1, (16, 16, 16)).volume
    profile = InputProfile(size=(16, 16, 16))
    with pytest.raises(ConfigError, match=r"from 0 to below 1, found 1\.5"):
        pictures(volume, profile, mask_ratio=1.5)
    prepared = prepare([volume], profile)
    with pytest.raises(DataError, match=r"2 contrast\(s\) at once, but the scan has 1"):
        reconstruct(MAE, network(in_channels=2), prepared, profile, options={})
