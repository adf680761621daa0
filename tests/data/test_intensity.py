"""The same numbers for arrays and tensors, for one scan and for a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training_backend.config import IntensityConfig
from training_backend.data.intensity import Statistics, denormalise, normalise, profile_of
from training_backend.errors import ConfigError, DataError


def statistics(values, **changes):
    return Statistics.measure(values, float(np.min(values)), **changes)


def test_ct_is_windowed_as_tangerine_does():
    hu = np.array([-3000, -1200, -200, 800, 2000], np.int16).reshape(1, 1, 1, 1, 5)
    out = normalise(hu, [[statistics(hu, ct=True)]], IntensityConfig())
    assert out.ravel() == pytest.approx([0, 0, 0.5, 1, 1])
    assert out.dtype == np.float32


def test_other_scans_use_percentiles_of_the_body():
    values = np.linspace(0, 1000, 1001).astype(np.float32)
    body = statistics(values)
    assert body.percentile(0.5) == pytest.approx(5)
    assert body.percentile(30) == pytest.approx(300, abs=3)
    out = normalise(np.array([0, 5, 500, 995, 2000], np.float32).reshape(1, 1, 1, 5), [body], IntensityConfig())
    assert out.ravel() == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)


def test_prepared_volumes_stay_as_they_are():
    values = np.random.default_rng(0).random((1, 4, 4, 4)).astype(np.float32)
    body = statistics(values)
    assert profile_of(body, IntensityConfig()) == "identity"
    assert np.array_equal(normalise(values, [body], IntensityConfig()), values)


@pytest.mark.parametrize("profile", ["auto", "window", "percentile", "zscore", "zscore_nonzero", "identity"])
def test_tensors_and_batches_agree_with_arrays(profile):
    rng = np.random.default_rng(1)
    batch = (rng.normal(50, 400, (3, 2, 4, 5, 6))).astype(np.int16)
    stats = [
        [statistics(view, ct=n == 0, scale=2.0 if n == 2 else 1.0, whole=view) for view in case]
        for n, case in enumerate(batch)
    ]
    config = IntensityConfig(profile=profile)
    before = torch.from_numpy(batch.copy())
    tensor = normalise(before, stats, config)
    singles = np.stack([normalise(case, one, config) for case, one in zip(batch, stats, strict=True)])
    np.testing.assert_allclose(tensor.numpy(), singles, atol=1e-5)
    np.testing.assert_allclose(normalise(batch, stats, config), singles, atol=1e-5)
    assert torch.equal(before, torch.from_numpy(batch)), "the stored values are left alone"
    as_float = before.float()
    normalise(as_float, stats, config)
    assert torch.equal(as_float, torch.from_numpy(batch).float())


def test_zscore_has_zero_mean_and_unit_variance():
    values = np.random.default_rng(2).normal(120, 30, (1, 20, 20, 20)).astype(np.float32)
    out = normalise(values, [statistics(values)], IntensityConfig(profile="zscore"))
    assert (out.mean(), out.std()) == pytest.approx((0, 1), abs=1e-4)


def test_zeros_stay_and_the_rest_is_normalised_as_monai_does():
    from monai.transforms import NormalizeIntensity

    rng = np.random.default_rng(4)
    values = (rng.normal(200, 50, (1, 9, 10, 11)) * (rng.random((1, 9, 10, 11)) < 0.4)).astype(np.int16)
    one = statistics(values[0], whole=values[0])
    out = normalise(values, [one], IntensityConfig(profile="zscore_nonzero"))
    expected = NormalizeIntensity(nonzero=True, channel_wise=True)(values.astype(np.float32))
    np.testing.assert_allclose(out, np.asarray(expected), atol=1e-5)
    assert (out[values == 0] == 0).all()
    empty = np.zeros((1, 2, 2, 2), np.int16)
    assert not normalise(empty, [statistics(empty, whole=empty)], IntensityConfig(profile="zscore_nonzero")).any()
    with pytest.raises(DataError, match="were not measured"):
        normalise(values, [statistics(values)], IntensityConfig(profile="zscore_nonzero"))


def test_the_way_back_to_file_units():
    values = np.random.default_rng(3).normal(300, 40, (1, 5, 5, 5)).astype(np.float32)
    body = statistics(values)
    for profile in ("window", "percentile", "zscore", "identity"):
        config = IntensityConfig(profile=profile, low=0.0 if profile == "window" else None)
        back = denormalise(normalise(values, [body], config)[0], body, config)
        inside = (values[0] > body.percentile(0.5)) & (values[0] < body.percentile(99.5))
        np.testing.assert_allclose(back[inside], values[0][inside], rtol=1e-4)


def test_constant_images_and_wrong_windows():
    flat = np.full((1, 3, 3, 3), 7.0, np.float32)
    for profile in ("auto", "percentile", "zscore"):
        assert np.isfinite(normalise(flat, [statistics(flat)], IntensityConfig(profile=profile))).all()
    with pytest.raises(ConfigError, match="not above its start"):
        normalise(flat, [statistics(flat)], IntensityConfig(profile="window", low=50, high=10))


def test_statistics_survive_json():
    import json

    values = np.arange(100.0)
    one = statistics(values, scale=0.25, ct=True, whole=values)
    assert one.nonzero == (50.0, pytest.approx(values[1:].std()))
    assert Statistics.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_a_data_sets_own_mean_and_deviation_are_applied_between_its_bounds():
    config = IntensityConfig(profile="standard", low=-1024, high=325, mean=158.58, std=324.70)
    hu = np.array([-2000, -1024, 158.58, 325, 900], np.float32).reshape(1, 1, 1, 5)
    expected = (np.clip(hu, -1024, 325) - 158.58) / 324.70
    found = normalise(hu, [statistics(hu, ct=True)], config)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    tensor = normalise(torch.from_numpy(hu), [statistics(hu, ct=True)], config)
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(denormalise(found, statistics(hu, ct=True), config), np.clip(hu, -1024, 325), atol=1e-2)
    with pytest.raises(ConfigError, match="needs mean and std"):
        normalise(hu, [statistics(hu)], IntensityConfig(profile="standard", low=0, high=1))
