"""Token maps lie where the patches lie, windows agree with one look, and nothing depends on padding or order."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method
from training_backend.data.manifest import DatasetInfo
from training_backend.data.phantoms import thorax_ct
from training_backend.data.prepare import InputProfile, Prepared, prepare
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import ConfigError, ResourceError
from training_backend.evaluate import feature_cache, features
from training_backend.evaluate.feature_estimate import estimate_features
from training_backend.evaluate.features import (
    TokenMap,
    body_tokens,
    check_memory,
    class_attention,
    over_tiles,
    tiling,
    token_features,
)
from training_backend.evaluate.modality import modality_warning
from training_backend.tasks.base import Cancelled

SIZE = (16, 16, 16)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = pretrain_config("mae3d", "tiny", ".", {"data": {"size": SIZE}, "method": {"patch_size": (4, 4, 4)}})
    return method("mae3d").encoder(method("mae3d").build(config).eval())


@pytest.fixture(scope="module")
def scan():
    return thorax_ct(3, (18, 33, 26)).volume


def prepared_for(scan, view="crop", size=SIZE) -> tuple[Prepared, InputProfile]:
    profile = InputProfile(view=view, size=size, crop_body=False)
    return prepare([scan], profile), profile


def test_windows_cover_every_token_and_end_with_the_volume():
    tiles = tiling((18, 33, 60), (4, 4, 4), InputProfile(size=SIZE), overlap=0.5)
    assert tiles.grid == (5, 9, 15)
    assert tiles.window == (4, 4, 4)
    seen = np.zeros(tiles.grid, int)
    for start in tiles.starts:
        box = tuple(slice(first, first + n) for first, n in zip(start, tiles.window))
        seen[box] += 1
        assert all(first + n <= total for first, n, total in zip(start, tiles.window, tiles.grid))
    assert seen.min() >= 1


def test_a_volume_smaller_than_the_window_is_seen_once():
    tiles = tiling((5, 9, 16), (4, 4, 4), InputProfile(size=SIZE))
    assert (tiles.grid, tiles.starts, tiles.padded) == ((2, 3, 4), ((0, 0, 0),), (16, 16, 16))


def test_an_encoder_of_whole_volumes_looks_once():
    tiles = tiling((32, 32, 32), (4, 4, 4), InputProfile(size=(32, 32, 32), view="volume"))
    assert tiles.window == tiles.grid == (8, 8, 8)
    assert tiles.starts == ((0, 0, 0),)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_windows_of_patch_means_give_the_patch_means(encoder, scan, overlap):
    prepared, profile = prepared_for(scan)
    tiles = tiling(prepared.geometry.shape, (4, 4, 4), profile, overlap)
    pooled = over_tiles(lambda view: torch.nn.functional.avg_pool3d(view, 4)[0], prepared.array, tiles, encoder)
    z, y, x = (slice(0, n // 4 * 4) for n in prepared.geometry.shape)
    whole = prepared.array[0][z, y, x]
    d, h, w = (n // 4 for n in whole.shape)
    expected = whole.reshape(d, 4, h, 4, w, 4).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(pooled[:d, :h, :w, 0], expected, atol=1e-5)


def test_features_of_one_window_are_the_encoders_tokens(encoder, scan):
    prepared, profile = prepared_for(scan, "volume")
    found = token_features(encoder, prepared, profile, normalised=False)
    with torch.inference_mode():
        expected = encoder.encode(torch.from_numpy(prepared.array)[None]).tokens[0].reshape(4, 4, 4, -1).numpy()
    assert found.values.dtype == np.float16
    np.testing.assert_allclose(found.values, expected, rtol=2e-3, atol=2e-3)
    normed = token_features(encoder, prepared, profile, normalised=True)
    with torch.inference_mode():
        want = encoder.norm(torch.from_numpy(expected)).numpy()
    np.testing.assert_allclose(normed.values, want, rtol=5e-3, atol=5e-3)


def test_the_token_grid_covers_the_scan_and_its_padding(encoder, scan):
    prepared, profile = prepared_for(scan)
    found = token_features(encoder, prepared, profile)
    assert found.values.shape[:3] == found.geometry.shape == (5, 9, 7)
    corner = found.geometry.to_lps @ np.array([-0.5, -0.5, -0.5, 1])
    np.testing.assert_allclose(corner, prepared.geometry.to_lps @ np.array([-0.5, -0.5, -0.5, 1]), atol=1e-6)
    far = found.geometry.to_lps @ np.array([4.5, 8.5, 6.5, 1])
    np.testing.assert_allclose(far, prepared.geometry.to_lps @ np.array([19.5, 35.5, 27.5, 1]), atol=1e-6)


def test_attention_is_a_multiple_of_the_uniform_one(encoder, scan):
    prepared, profile = prepared_for(scan, "volume")
    found, heads = class_attention(encoder, prepared, profile)
    assert heads == 6
    assert found.values.shape == (4, 4, 4)
    assert found.values.mean() == pytest.approx(1, abs=1e-4)
    one, _ = class_attention(encoder, prepared, profile, block=1, head=3)
    assert not np.allclose(one.values, found.values)
    with pytest.raises(ConfigError, match="has 4 blocks"):
        class_attention(encoder, prepared, profile, block=4)
    with pytest.raises(ConfigError, match="has 6 heads"):
        class_attention(encoder, prepared, profile, head=6)


def test_body_tokens_tell_the_patient_from_air():
    volume = thorax_ct(1, (32, 64, 64)).volume
    prepared, profile = prepared_for(volume)
    body = body_tokens(prepared, tiling(prepared.geometry.shape, (4, 4, 4), profile))
    assert body.shape == (8, 16, 16)
    assert body[4, 8, 8]
    assert not body[:, 0, 0].any()
    assert not body[:, -1, -1].any()


def test_progress_can_cancel(encoder, scan):
    prepared, profile = prepared_for(scan)
    seen = []

    def progress(share):
        seen.append(share)
        return len(seen) < 3

    with pytest.raises(Cancelled):
        token_features(encoder, prepared, profile, progress=progress)
    assert len(seen) == 3
    assert seen == sorted(seen)


def test_too_large_a_result_is_refused_before_it_is_computed(encoder, scan, monkeypatch):
    with pytest.raises(ResourceError, match="GiB of memory are free"):
        check_memory(2**60)
    prepared, profile = prepared_for(scan)
    monkeypatch.setattr(features, "check_memory", lambda needed: (_ for _ in ()).throw(ResourceError(f"{needed}")))
    monkeypatch.setattr(encoder, "encode", lambda *_: pytest.fail("computed nevertheless"))
    with pytest.raises(ResourceError):
        token_features(encoder, prepared, profile)


def test_a_slab_at_a_time_is_summed_and_nothing_is_held_twice(encoder):
    """A tall stack of windows in half precision takes little more than its result."""
    shape = (2048, 16, 16)
    array = np.zeros((1, *shape), np.float32)
    tiles = tiling(shape, (4, 4, 4), InputProfile(size=SIZE), overlap=0.5)
    maps = torch.ones(256, 4, 4, 4)
    tracemalloc.start()
    found = over_tiles(lambda view: maps, array, tiles, encoder, None, np.float16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (512, 4, 4, 256)
    assert (found == 1).all()
    assert found.nbytes < peak < tiles.bytes(256) + 2**20 < 2 * found.nbytes


def test_what_features_take_is_told_from_the_grid_alone(encoder):
    scan = Geometry.from_spacing((400, 512, 512), (1.0, 0.7, 0.7))
    told = estimate_features(encoder, InputProfile(size=SIZE), scan)
    assert told.grid == (100, 128, 128)
    assert told.channels == 192
    assert told.windows == 49 * 63 * 63
    tokens = 100 * 128 * 128 * 192
    assert tokens * 6 < told.bytes < tokens * 6 + 2 * 2**30
    assert str(told).startswith("At most 100 × 128 × 128 places of 192 numbers in 194,481 looks, with ")
    coarse = estimate_features(encoder, InputProfile(size=SIZE, spacing_mm=(2.0, 2.0, 2.0)), scan)
    assert coarse.grid == (50, 45, 45)
    whole = estimate_features(encoder, InputProfile(size=(32, 32, 32), view="volume"), scan)
    assert (whole.grid, whole.windows) == ((8, 8, 8), 1)
    assert "in one look" in str(whole)


@pytest.mark.parametrize(
    ("learnt", "profile", "scan", "lowest", "said"),
    [
        ("CT", "auto", "CT", 0, ""),
        ("CT", "auto", "MR", 0, "This model learnt from CT, but knee is MR."),
        ("MR", "zscore", "CT", -1000, "This model learnt from MR, but knee is CT."),
        ("unknown", "zscore", "MR", 0, ""),
        ("unknown", "window", "MR", 0, "This model learnt from CT, but knee is MR."),
        ("CT", "auto", "unknown", 0, "This model learnt from CT, but knee holds no Hounsfield units: its darkest"),
        ("CT", "auto", "unknown", -1000, ""),
        ("MR", "zscore", "unknown", 0, ""),
    ],
)
def test_other_modalities_get_a_sentence(learnt, profile, scan, lowest, said):
    array = np.full((2, 2, 2), lowest, np.int16)
    volume = Volume(array, Geometry.from_spacing((2, 2, 2), (1.0, 1.0, 1.0)), scan, "knee")
    found = modality_warning(InputProfile(modality=learnt, intensity={"profile": profile}), [volume])
    assert found.startswith(said)
    assert bool(found) == bool(said)
    assert modality_warning(InputProfile(modality=learnt), []) == ""


def test_a_run_keeps_the_modality_of_its_dataset():
    config = pretrain_config("mae3d", "tiny", ".")
    assert InputProfile.of(config, DatasetInfo(name="knees", modality="MR")).modality == "MR"


def test_kept_features_come_back_and_damaged_ones_do_not(encoder, scan):
    prepared, profile = prepared_for(scan)
    found = token_features(encoder, prepared, profile)
    body = np.ones(found.values.shape[:3], bool)
    key = feature_cache.content_hash(scan.array, feature_cache.model_hash(encoder))
    assert feature_cache.find(key) is None
    feature_cache.keep(key, found, body)
    kept = feature_cache.find(key)
    assert kept is not None
    np.testing.assert_array_equal(kept[0].values, found.values)
    assert kept[0].geometry.same_grid(found.geometry)
    assert kept[1].all()
    path = feature_cache.cache_folder() / f"{key}.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert feature_cache.find(key) is None


def test_the_cache_forgets_what_was_used_longest_ago(scan, monkeypatch):
    small = TokenMap(np.zeros((2, 2, 2, 64), np.float16), scan.geometry)
    monkeypatch.setattr(feature_cache, "LARGEST_BYTES", 5000)
    for number in range(4):
        feature_cache.keep(f"old{number}", small, np.ones((2, 2, 2), bool))
    assert feature_cache.find("old0") is None
    assert feature_cache.find("old3") is not None


def test_hashes_tell_arrays_types_and_weights_apart(encoder):
    array = np.arange(8, dtype=np.int16)
    hashes = {
        feature_cache.content_hash(part) for part in (array, array.reshape(2, 4), array.astype(np.int32), array[::-1])
    }
    assert len(hashes) == 4
    before = feature_cache.model_hash(encoder)
    with torch.no_grad():
        encoder.cls_token += 1
    after = feature_cache.model_hash(encoder)
    with torch.no_grad():
        encoder.cls_token -= 1
    assert before != after
