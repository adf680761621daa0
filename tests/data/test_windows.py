from __future__ import annotations

import numpy as np
import pytest

from training_backend.data.volume import Geometry, Volume
from training_backend.data.windows import CT_PRESETS, display_limits, percentile_window, windows


def volume(array: np.ndarray, modality="unknown", **meta) -> Volume:
    return Volume(array, Geometry.from_spacing(array.shape, (1, 1, 1)), modality, meta=meta)


def test_ct_has_the_five_usual_windows() -> None:
    assert list(CT_PRESETS) == ["lung", "mediastinum", "bone", "brain", "liver"]
    assert (CT_PRESETS["brain"].low, CT_PRESETS["brain"].high) == (0, 80)
    assert all(window.low < window.high for window in CT_PRESETS.values())
    ct = volume(np.zeros((4, 4, 4), np.int16), "CT")
    assert windows(ct) == list(CT_PRESETS.values())
    assert display_limits(ct) == (-125, 225)


def test_the_window_of_the_file_comes_first() -> None:
    ct = volume(np.zeros((4, 4, 4), np.int16), "CT", window=[-160.0, 240.0])
    assert windows(ct)[0].name == "file"
    assert display_limits(ct) == (-160, 240)


def test_percentiles_leave_the_background_out() -> None:
    array = np.zeros((20, 20, 20), np.float32)
    array[:5] = np.random.default_rng(0).uniform(100, 200, (5, 20, 20))
    array[0, 0, 0] = 1e6
    low, high = display_limits(volume(array, "MR"))
    assert 100 <= low < 102
    assert 198 < high <= 200
    assert percentile_window(array, "full").high == pytest.approx(1e6)
    assert [window.name for window in windows(volume(array))] == ["standard", "contrasty", "full"]


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan])
def test_flat_and_empty_volumes_still_have_limits(value) -> None:
    low, high = display_limits(volume(np.full((3, 3, 3), value)))
    assert low < high


def test_large_scans_are_sampled() -> None:
    array = np.random.default_rng(0).normal(size=(200, 210, 220)).astype(np.float32)
    low, high = display_limits(volume(array))
    assert (low, high) == pytest.approx((-2.58, 2.58), abs=0.05)
