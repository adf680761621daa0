"""Tokens under voxels, principal components as colours, and queries that keep up with the mouse."""

from __future__ import annotations

import time

import numpy as np
import pytest

from napari_med3dssl.explore_maths import TokenIndex, contrast_limits, index_map, on_scan, pca_rgb, token_at
from training_backend.data.volume import Geometry


def token_grid(scan: Geometry, patch: tuple[int, int, int], start: tuple[int, int, int] = (0, 0, 0)) -> Geometry:
    """Tokens of `patch` voxels from voxel `start` on, padded to whole tokens."""
    grid = tuple(-(-(n - s) // p) for n, s, p in zip(scan.shape, start, patch))
    padded = scan.cropped(start, tuple(g * p for g, p in zip(grid, patch)))
    return padded.resampled(tuple(s * p for s, p in zip(scan.spacing_mm, patch)), grid)


OBLIQUE = np.array([[-1.9, 0.3, 0.1, 30], [0.3, 1.8, -0.4, -20], [0.0, 0.5, 2.9, 7], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    "scan",
    [Geometry.from_spacing((11, 13, 17), (3.0, 1.0, 0.7), (5, -8, 100)), Geometry(OBLIQUE, (17, 13, 11))],
    ids=["aligned", "oblique"],
)
@pytest.mark.parametrize(
    ("patch", "start"), [((4, 4, 4), (0, 0, 0)), ((2, 5, 3), (0, 0, 0)), ((4, 3, 8), (-3, -1, -6))]
)
def test_the_token_at_a_voxel_is_the_patch_it_was_cut_into(scan, patch, start):
    tokens = token_grid(scan, patch, start)
    for voxel in [(0, 0, 0), (10, 12, 16), (5, 6, 7), (7, 3, 8)]:
        expected = tuple((v - s) // p for v, s, p in zip(voxel, start, patch))
        assert token_at(voxel, scan, tokens) == expected


def test_a_point_outside_the_tokens_has_none():
    scan = Geometry.from_spacing((8, 8, 8), (1, 1, 1))
    tokens = token_grid(scan.cropped((2, 2, 2), (4, 4, 4)), (2, 2, 2))
    assert token_at((1, 4, 4), scan, tokens) is None
    assert token_at((4, 4, 6), scan, tokens) is None
    assert token_at((2, 2, 2), scan, tokens) == (0, 0, 0)


@pytest.mark.parametrize("start", [(0, 0, 0), (-2, -1, 0), (3, 2, 1)])
def test_token_values_on_the_scan_agree_with_the_token_under_every_voxel(start):
    scan = Geometry.from_spacing((9, 7, 6), (2.5, 1.0, 1.5), (1, 2, 3))
    tokens = token_grid(scan, (4, 3, 2), start)
    values = np.arange(np.prod(tokens.shape)).reshape(tokens.shape)
    drawn = on_scan(values, tokens, scan, outside=-1)
    for voxel in np.ndindex(*scan.shape):
        token = token_at(voxel, scan, tokens)
        assert drawn[voxel] == (-1 if token is None else values[token])


def test_index_map_is_the_identity_on_one_grid():
    scan = Geometry(OBLIQUE, (17, 13, 11))
    np.testing.assert_allclose(index_map(scan, scan), np.eye(4), atol=1e-12)


def test_similarity_is_the_cosine():
    tokens = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float16)
    index = TokenIndex(tokens)
    flat = tokens.astype(np.float64)
    expected = (flat @ flat[1, 2, 3]) / np.linalg.norm(flat, axis=-1) / np.linalg.norm(flat[1, 2, 3])
    np.testing.assert_allclose(index.similarity([(1, 2, 3)]), expected, atol=1e-5)
    both = index.similarity([(1, 2, 3), (0, 0, 0)], [(0, 1, 1)])
    parts = [index.similarity([seed]) for seed in [(1, 2, 3), (0, 0, 0), (0, 1, 1)]]
    np.testing.assert_allclose(both, (parts[0] + parts[1]) / 2 - parts[2], atol=1e-5)
    assert both.dtype == np.float32


def test_similarity_survives_tokens_of_zeros():
    tokens = np.zeros((1, 1, 2, 4), np.float16)
    assert np.isfinite(TokenIndex(tokens).similarity([(0, 0, 0)])).all()


def test_a_query_on_32k_tokens_of_768_channels_takes_less_than_a_tenth_of_a_second():
    tokens = np.random.default_rng(0).standard_normal((32, 32, 32, 768), dtype=np.float32)
    index = TokenIndex(tokens)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        index.similarity([(4, 5, 6), (1, 2, 3)], [(7, 8, 9)])
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1


def test_principal_axes_are_orthonormal_and_ordered():
    tokens = np.random.default_rng(1).normal(size=(4, 5, 6, 16)) * np.linspace(5, 1, 16)
    result = pca_rgb(tokens)
    np.testing.assert_allclose(result.basis @ result.basis.T, np.eye(3), atol=1e-5)
    assert (np.diff(result.explained) <= 0).all()
    assert result.rgb.shape == (4, 5, 6, 3)
    assert result.rgb.dtype == np.uint8


def test_colours_do_not_depend_on_the_order_of_the_tokens():
    tokens = np.random.default_rng(2).normal(size=(3, 4, 5, 8)) * np.linspace(4, 1, 8)
    np.testing.assert_allclose(pca_rgb(tokens).rgb[::-1], pca_rgb(tokens[::-1]).rgb, atol=1)


def test_tokens_outside_the_mask_are_black_and_do_not_bend_the_axes():
    generator = np.random.default_rng(3)
    tokens = generator.normal(size=(4, 4, 4, 8)) * np.linspace(4, 1, 8)
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3] = True
    spoiled = tokens.copy()
    spoiled[~mask] += 1000
    result = pca_rgb(spoiled, mask)
    assert (result.rgb[~mask] == 0).all()
    np.testing.assert_allclose(result.basis, pca_rgb(tokens[1:3]).basis, atol=1e-4)


def test_a_constant_grid_and_an_empty_mask_still_give_colours():
    tokens = np.ones((2, 2, 2, 4), np.float16)
    assert np.isfinite(pca_rgb(tokens).explained).all()
    assert pca_rgb(tokens, np.zeros((2, 2, 2), bool)).rgb.shape == (2, 2, 2, 3)


def test_contrast_limits_are_never_empty():
    assert contrast_limits(np.arange(101.0)) == (2.0, 98.0)
    low, high = contrast_limits(np.ones(5))
    assert high > low
