"""Augmentation does what it says, moves labels with the image, and depends on nothing but a view's key."""

from __future__ import annotations

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
