"""Augmentation does what it says, moves labels with the image, and depends on nothing but a view's key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training_backend.config import AugmentConfig
from training_backend.data.augment import Change, apply, draw
from training_backend.data.views import Batch

NOTHING = {"flip": (False, False, False), "matrix": None, "noise": 0.0, "sigma": None, "gamma": None, "seed": 0}
ISOTROPIC = (1.0, 1.0, 1.0)


def change(**values):
    return Change(**{**NOTHING, **values})


def batch_of(*arrays, labels=True):
    volume = torch.stack([torch.as_tensor(array, dtype=torch.float32)[None] for array in arrays])
    marks = (volume[:, 0] > 0.5).long() if labels else None
    return Batch(volume=volume, case_ids=["a"] * len(arrays), labels=marks)


def blob(shape=(24, 24, 24), centre=(8, 12, 17), radius=4.0):
    places = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (np.sqrt((places**2).sum(0)) < radius).astype(np.float32)


def test_parameters_depend_on_the_key_alone():
    config = AugmentConfig(flip=(0.5, 0.5, 0.5), rotate=0.5, scale=0.5, noise=0.5, smooth=0.5, contrast=0.5)
    keys = [(0, epoch, case, view) for epoch in range(2) for case in range(20) for view in range(5)]
    first = [draw(config, key) for key in keys]
    again = [draw(config, key) for key in reversed(keys)][::-1]
    for one, other in zip(first, again, strict=True):
        assert repr(one) == repr(other)
    assert len({one.seed for one in first}) == len(keys)
    for share in (
        [one.flip[0] for one in first],
        [one.noise > 0 for one in first],
        [one.sigma is not None for one in first],
        [one.gamma is not None for one in first],
    ):
        assert 0.35 < np.mean(share) < 0.65
    assert np.mean([one.matrix is not None for one in first]) == pytest.approx(0.75, abs=0.12)


def test_one_setting_does_not_disturb_the_others():
    quiet, loud = AugmentConfig(smooth=1.0), AugmentConfig(smooth=1.0, noise=1.0, rotate=1.0)
    assert draw(quiet, (1, 2, 3, 4)).sigma == draw(loud, (1, 2, 3, 4)).sigma


def test_ranges_are_those_of_the_configuration():
    config = AugmentConfig(rotate=1, rotate_deg=10, scale=1, scale_range=0.1, noise=1, smooth=1, contrast=1)
    drawn = [draw(config, (0, 0, 0, view)) for view in range(200)]
    zooms = [1 / np.cbrt(np.linalg.det(one.matrix)) for one in drawn]
    assert min(zooms) >= 0.9
    assert max(zooms) <= 1.1
    assert all(0 < one.noise < 0.1 for one in drawn)
    assert all(0.5 <= width <= 1 for one in drawn for width in one.sigma)
    assert all(0.75 <= one.gamma <= 1.25 for one in drawn)


def test_flips_move_image_labels_and_padding_together():
    array = blob()
    batch = batch_of(array, array)
    batch.padding = torch.zeros(2, 24, 24, 24, dtype=torch.bool)
    batch.padding[:, :3] = True
    apply(batch, [change(), change(flip=(True, False, True))], [ISOTROPIC] * 2)
    assert torch.equal(batch.volume[0, 0], torch.from_numpy(array))
    assert torch.equal(batch.volume[1, 0], torch.from_numpy(array).flip(0, 2))
    assert torch.equal(batch.labels[1], (batch.volume[1, 0] > 0.5).long())
    assert batch.padding[0, :3].all()
    assert batch.padding[1, -3:].all()
    assert not batch.padding[1, :3].any()


def test_half_of_the_views_can_be_left_unflipped_whatever_the_axes():
    config = AugmentConfig(flip=(0.5, 0.5, 0.5), flipped=0.5)
    flips = np.array([draw(config, (0, 0, index, 0)).flip for index in range(4000)])
    np.testing.assert_allclose(flips.mean(axis=0), 0.25, atol=0.03)
    assert abs((~flips.any(axis=1)).mean() - (0.5 + 0.5 / 8)) < 0.03  # 0.42 if each axis were on its own
    always = draw(AugmentConfig(flip=(0.5, 0.5, 0.5)), (0, 0, 1, 0))
    assert replace(draw(config, (0, 0, 1, 0)), flip=always.flip) == always  # nothing else is drawn otherwise


@pytest.mark.parametrize("spacing", [ISOTROPIC, (2.0, 1.0, 1.0)])
def test_a_quarter_turn_is_rigid_in_millimetres(spacing):
    array = blob((24, 24, 24), centre=(11.5, 11.5, 17.5), radius=3)
    turn = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # about y: x takes what was on z
    batch = apply(batch_of(array), [change(matrix=turn)], [spacing])
    turned = batch.volume[0, 0].numpy()
    centre = (np.indices(turned.shape) * turned).sum((1, 2, 3)) / turned.sum()
    offset_mm = (centre - 11.5) * np.asarray(spacing)
    assert np.abs(offset_mm).max() == pytest.approx(6.0, abs=0.1), "6 mm from the middle before and after"
    assert np.abs(offset_mm).argmax() == 0
    overlap = ((batch.volume[0, 0] > 0.5) == (batch.labels[0] == 1))[batch.labels[0] < 255]
    assert overlap.float().mean() > 0.99


def test_zoom_enlarges_and_what_comes_from_outside_is_unlabelled():
    array = blob((24, 24, 24), centre=(11.5, 11.5, 11.5), radius=5)
    inside = array.sum()
    larger = apply(batch_of(array), [change(matrix=np.eye(3) / 1.2)], [ISOTROPIC])
    assert (larger.labels == 1).sum() / inside == pytest.approx(1.2**3, rel=0.1)
    assert not larger.padding.any()
    smaller = apply(batch_of(array), [change(matrix=np.eye(3) / 0.8)], [ISOTROPIC])
    assert smaller.padding[0, 0].all()
    assert (smaller.labels[smaller.padding] == 255).all()
    assert (smaller.labels[~smaller.padding] < 255).all()


def test_the_identity_matrix_changes_nothing():
    array = np.random.default_rng(0).random((8, 10, 12)).astype(np.float32)
    batch = apply(batch_of(array), [change(matrix=np.eye(3))], [ISOTROPIC])
    np.testing.assert_allclose(batch.volume[0, 0].numpy(), array, atol=1e-5)


def test_noise_has_the_deviation_asked_for_and_is_a_view_s_own():
    flat = np.full((24, 24, 24), 0.5, np.float32)
    one = apply(batch_of(flat, flat), [change(noise=0.08, seed=5), change(noise=0.08, seed=6)], [ISOTROPIC] * 2)
    alone = apply(batch_of(flat), [change(noise=0.08, seed=6)], [ISOTROPIC])
    assert float(one.volume[0].std()) == pytest.approx(0.08, rel=0.05)
    assert torch.equal(one.volume[1], alone.volume[0])
    assert not torch.equal(one.volume[0], one.volume[1])


def test_smoothing_is_gaussian():
    from scipy.ndimage import gaussian_filter

    array = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    sigma = (0.6, 0.8, 1.0)
    batch = apply(batch_of(array), [change(sigma=sigma)], [ISOTROPIC])
    expected = gaussian_filter(array, sigma, mode="nearest", truncate=4)
    np.testing.assert_allclose(batch.volume[0, 0].numpy(), expected, atol=5e-3)


def test_contrast_keeps_the_range_and_follows_the_power():
    array = np.linspace(-1, 3, 27, dtype=np.float32).reshape(3, 3, 3)
    batch = apply(batch_of(array), [change(gamma=1.2)], [ISOTROPIC])
    np.testing.assert_allclose(batch.volume[0, 0].numpy(), ((array + 1) / 4) ** 1.2 * 4 - 1, atol=1e-5)


def test_several_channels_move_together():
    array = np.stack([blob(), 2 * blob()])
    batch = Batch(volume=torch.from_numpy(array)[None].float(), case_ids=["a"])
    apply(batch, [change(flip=(False, True, False), matrix=np.eye(3) / 1.1, sigma=(0.5, 0.5, 0.5))], [ISOTROPIC])
    assert torch.allclose(batch.volume[0, 1], 2 * batch.volume[0, 0], atol=1e-5)


def test_later_settings_leave_earlier_draws_alone_and_keep_to_their_ranges():
    old = AugmentConfig(rotate=1, noise=1, smooth=1, contrast=1)
    new = old.updated({"linear_contrast": 1, "brightness": 1, "shift": 1, "quarter_turn": 1, "elastic": 1})
    new = new.updated({"low_resolution": 1, "brightness_range": 0.1, "shift_range": 0.05, "elastic_voxels": 3})
    for view in range(50):
        before, after = draw(old, (0, 1, 2, view)), draw(new, (0, 1, 2, view))
        assert (before.noise, before.sigma, before.gamma, before.seed) == (
            after.noise,
            after.sigma,
            after.gamma,
            after.seed,
        )
        assert (before.contrast, before.factor, before.offset, before.quarters, before.zoom) == (1, 1, 0, 0, 1)
        assert before.elastic is None
        assert 0.75 <= after.contrast <= 1.25
        assert 0.9 <= after.factor <= 1.1
        assert abs(after.offset) <= 0.05
        assert after.quarters in (1, 2, 3)
        assert 0 <= after.elastic[0] <= 3
        assert 0.5 <= after.zoom <= 1
    assert {draw(new, (0, 0, 0, view)).quarters for view in range(30)} == {1, 2, 3}


def test_brightness_and_contrast_do_what_they_say():
    image = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(0))
    bright = apply(batch_of(image, labels=False), [change(factor=1.1, offset=0.2)], [ISOTROPIC]).volume[0, 0]
    torch.testing.assert_close(bright, image * 1.1 + 0.2)
    flat = apply(batch_of(image, labels=False), [change(contrast=0.75)], [ISOTROPIC]).volume[0, 0]
    torch.testing.assert_close(flat, (image - image.mean()) * 0.75 + image.mean())
    sharp = apply(batch_of(image, labels=False), [change(contrast=1.25)], [ISOTROPIC]).volume[0, 0]
    assert (sharp.amin(), sharp.amax()) == (image.amin(), image.amax())
    assert sharp.std() > image.std()


def test_gamma_may_keep_mean_and_deviation():
    image = torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(0)) * 3 - 1
    plain, kept = (
        apply(batch_of(image, labels=False), [change(gamma=1.5, gamma_keeps=keeps)], [ISOTROPIC]).volume[0, 0]
        for keeps in (False, True)
    )
    assert abs(plain.mean() - image.mean()) > 0.1
    torch.testing.assert_close(kept.mean(), image.mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.std(), image.std(), atol=1e-5, rtol=0)


def test_low_resolution_loses_detail_and_keeps_places():
    image = torch.from_numpy(blob())
    coarse = apply(batch_of(image, labels=False), [change(zoom=0.5)], [ISOTROPIC]).volume[0, 0]
    assert coarse.unique().numel() > 2
    assert float((coarse - image).abs().mean()) < 0.05
    places = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij"))
    centres = [(places * each).sum(dim=(1, 2, 3)) / each.sum() for each in (image, coarse)]
    torch.testing.assert_close(centres[0], centres[1], atol=0.3, rtol=0)


def test_quarter_turns_move_image_and_labels_together_where_slices_are_square():
    image = torch.from_numpy(blob())
    turned = apply(batch_of(image), [change(quarters=1)], [ISOTROPIC])
    assert torch.equal(turned.volume[0, 0], image.rot90(1, (1, 2)))
    assert torch.equal(turned.labels[0], (image.rot90(1, (1, 2)) > 0.5).long())
    wide = torch.rand(4, 6, 8)
    assert torch.equal(apply(batch_of(wide, labels=False), [change(quarters=1)], [ISOTROPIC]).volume[0, 0], wide)


def test_deformation_moves_labels_with_the_image_smoothly_and_by_its_seed():
    image = torch.from_numpy(blob((32, 32, 32), (15, 16, 17), 7.0))
    drawn = [change(elastic=(3.0, 10.0), seed=seed) for seed in (4, 4, 5)]
    bent = [apply(batch_of(image), [one], [ISOTROPIC]) for one in drawn]
    assert torch.equal(bent[0].volume, bent[1].volume)
    assert not torch.equal(bent[0].volume, bent[2].volume)
    inside = bent[0].labels[0] != 255
    agrees = ((bent[0].volume[0, 0] > 0.5) == (bent[0].labels[0] == 1))[inside]
    assert agrees.float().mean() > 0.99
    moved = ((bent[0].volume[0, 0] > 0.5) != (image > 0.5)).float().sum() / image.sum()
    assert 0.02 < moved < 1.0
    assert torch.equal(
        apply(batch_of(image), [change(elastic=(0.0, 10.0))], [ISOTROPIC]).labels[0], (image > 0.5).long()
    )
