"""Changes of colours, and of views of one slice, which stay in their plane."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from training_backend.config import AugmentConfig
from training_backend.data.augment import apply, change_intensity, draw
from training_backend.data.colours import ColourChange, recoloured
from training_backend.data.views import Batch

KEYS = [(0, 0, case, 0) for case in range(200)]


def picture(channels: int = 3) -> torch.Tensor:
    return torch.rand(channels, 1, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("turn", [0.0, 0.1, -0.1, 0.5])
def test_hues_turn_as_in_the_standard_library(turn: float) -> None:
    view = picture()
    view[:, 0, 0, 0] = 0.3  # grey has no hue
    found = recoloured(view, ColourChange(hue=turn))
    for pixel, changed in zip(view.reshape(3, -1).T.tolist(), found.reshape(3, -1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        assert changed == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=1e-5)


def test_brightness_contrast_and_saturation_blend_with_black_mean_grey_and_grey() -> None:
    view = 0.25 + 0.5 * picture()
    grey = (0.299 * view[0] + 0.587 * view[1] + 0.114 * view[2])[None]
    torch.testing.assert_close(recoloured(view, ColourChange(brightness=1.2)), (view * 1.2).clamp(0, 1))
    torch.testing.assert_close(recoloured(view, ColourChange(contrast=0.6)), 0.6 * view + 0.4 * grey.mean())
    torch.testing.assert_close(recoloured(view, ColourChange(saturation=0.7)), 0.7 * view + 0.3 * grey)
    torch.testing.assert_close(recoloured(view, ColourChange(grey=True)), grey.expand(3, -1, -1, -1))
    both = ColourChange(brightness=0.5, contrast=0.5, order=(1, 0, 2, 3))
    torch.testing.assert_close(recoloured(view, both), 0.5 * (0.5 * view + 0.5 * grey.mean()))


def test_grey_pictures_have_no_colours_to_change() -> None:
    view = picture(1)
    assert torch.equal(recoloured(view, ColourChange(saturation=0.5, hue=0.1, grey=True)), view)


def test_colours_change_as_often_and_as_much_as_asked_and_disturb_nothing_else() -> None:
    plain = AugmentConfig(flip=(0, 0.5, 0.5), noise=0.5, smooth=0.5, low_resolution=0.5)
    config = plain.updated({"colours": 0.8, "grey": 0.2, "jitter": (0.4, 0.4, 0.4, 0.1)})
    drawn = [draw(config, key) for key in KEYS]
    changed = [one.colours for one in drawn if one.colours is not None]
    assert np.mean([one.colours is not None and one.colours.brightness != 1 for one in drawn]) == pytest.approx(
        0.8, abs=0.1
    )
    assert np.mean([one.grey for one in changed]) == pytest.approx(0.2, abs=0.1)
    assert all(0.6 <= getattr(one, part) <= 1.4 for one in changed for part in ("brightness", "contrast", "saturation"))
    assert all(-0.1 <= one.hue <= 0.1 for one in changed)
    assert {one.order for one in changed} > {(0, 1, 2, 3), (3, 2, 1, 0)}
    for one, key in zip(drawn, KEYS, strict=True):
        other = draw(plain, key)
        assert (one.flip, one.noise, one.sigma, one.zoom) == (other.flip, other.noise, other.sigma, other.zoom)


def test_ranges_of_noise_and_smoothing_are_settings() -> None:
    config = AugmentConfig(noise=1, noise_std=0.05, smooth=1, smooth_sigma=(0.1, 2.0))
    drawn = [draw(config, key) for key in KEYS]
    assert 0.04 < max(one.noise for one in drawn) <= 0.05
    widths = [width for one in drawn for width in one.sigma or ()]
    assert 0.1 <= min(widths) < 0.4
    assert 1.6 < max(widths) <= 2


def test_an_inverted_gamma_changes_the_negative() -> None:
    view = picture()
    one = draw(AugmentConfig(contrast=1, gamma_range=(2.0, 2.0), gamma_inverts=True), KEYS[0])
    expected, plain = -view.clone(), draw(AugmentConfig(contrast=1, gamma_range=(2.0, 2.0)), KEYS[0])
    change_intensity(expected, plain)
    found = view.clone()
    change_intensity(found, one)
    torch.testing.assert_close(found, -expected)
    assert not torch.allclose(found, view)


def test_pictures_turn_zoom_and_deform_within_their_plane() -> None:
    config = AugmentConfig(flip=(0, 0, 0), rotate=1, scale=1, elastic=1, elastic_voxels=1.0)
    y, x = np.mgrid[:32, :32]
    disc = ((y - 15.5) ** 2 + (x - 15.5) ** 2 < 64).astype(np.float32)
    volume = torch.from_numpy(disc)[None, None, None].repeat(8, 1, 1, 1, 1)
    batch = Batch(volume.clone(), ["a"] * 8, labels=(volume[:, 0] > 0.5).long())
    apply(batch, [draw(config, key) for key in KEYS[:8]], [(1.0, 1.0, 1.0)] * 8)
    assert batch.labels is not None
    for before, after, labels in zip(volume[:, 0], batch.volume[:, 0], batch.labels, strict=True):
        inside = labels == 1
        assert 0.5 < inside.sum() / before.sum() < 2  # turned out of its plane, almost all would be lost
        assert ((after > 0.5) == inside).float().mean() > 0.95
        assert not torch.equal(before, after)
