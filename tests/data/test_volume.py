from __future__ import annotations

import itertools

import numpy as np
import pytest

from training_backend.data.volume import Geometry, Volume
from training_backend.errors import GeometryError

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
SPACING = (0.7, 1.1, 2.3)
SHAPE = (4, 5, 6)


def oriented_affine(order, signs, tilt_deg=0.0) -> np.ndarray:
    """File axes (i, j, k) along the patient axes `order`, reversed where a sign is -1, tilted about x then z."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * SPACING[axis]
    c, s = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine[:3, :3] = about_z @ about_x @ affine[:3, :3]
    affine[:3, 3] = (-31.5, 12.25, 70.0)
    return affine


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0.0, 17.0])
def test_every_orientation_becomes_canonical_and_returns(order, signs, tilt) -> None:
    geometry = Geometry(oriented_affine(order, signs, tilt), SHAPE)
    source = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    canonical = geometry.to_canonical(source)
    assert canonical.flags.c_contiguous
    assert np.array_equal(geometry.to_source(canonical), source)
    steps = geometry.to_lps[:3, :3]
    assert (steps[[2, 1, 0], [0, 1, 2]] > 0).all(), "indices grow towards Superior, Posterior, Left"
    assert np.allclose(np.linalg.norm(steps, axis=0), geometry.spacing_mm)
    for index in [(0, 0, 0), (1, 2, 3), tuple(n - 1 for n in geometry.shape)]:
        where = np.argwhere(source == canonical[index])[0]
        ras = geometry.affine @ [*where, 1]
        assert np.allclose(geometry.to_lps @ [*index, 1], [-ras[0], -ras[1], ras[2], 1])
    assert (geometry.oblique_deg == 0) == (tilt == 0)


def test_the_angle_of_an_oblique_scan_is_told() -> None:
    affine = np.eye(4)
    c, s = np.cos(np.radians(12)), np.sin(np.radians(12))
    affine[1:3, 1:3] = [[c, -s], [s, c]]
    assert Geometry(affine, SHAPE).oblique_deg == pytest.approx(12)


def test_from_spacing_is_what_it_says() -> None:
    geometry = Geometry.from_spacing((3, 4, 5), (2.0, 1.5, 0.5), (10.0, 20.0, 30.0))
    assert geometry.shape == (3, 4, 5)
    assert geometry.spacing_mm == pytest.approx((2.0, 1.5, 0.5))
    assert geometry.to_lps @ [1, 1, 1, 1] == pytest.approx([10.5, 21.5, 32.0, 1])


def test_a_crop_keeps_every_voxel_where_it_was() -> None:
    geometry = Geometry(oriented_affine((2, 0, 1), (-1, 1, -1), 9.0), SHAPE)
    crop = geometry.cropped((1, 2, 0), (2, 2, 3))
    assert np.allclose(crop.to_lps @ [0, 1, 2, 1], geometry.to_lps @ [1, 3, 2, 1])


def test_resampling_keeps_the_outer_corner() -> None:
    geometry = Geometry(oriented_affine((1, 2, 0), (1, -1, 1), 9.0), SHAPE)
    fine = geometry.resampled((0.5, 0.5, 0.5), (10, 10, 10))
    assert np.allclose(fine.to_lps @ [-0.5, -0.5, -0.5, 1], geometry.to_lps @ [-0.5, -0.5, -0.5, 1])
    assert fine.spacing_mm == pytest.approx((0.5, 0.5, 0.5))


def test_geometry_survives_json() -> None:
    geometry = Geometry(oriented_affine((1, 2, 0), (1, -1, 1), 9.0), SHAPE)
    again = Geometry.from_dict(geometry.to_dict())
    assert np.array_equal(again.affine, geometry.affine)
    assert again.shape == geometry.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.__setitem__((slice(None), 1), 0), "zero size"),
        (lambda a: a.__setitem__((slice(None), 1), a[:, 0]), "one plane"),
        (lambda a: a.__setitem__((0, 0), np.nan), "not a finite"),
    ],
)
def test_affines_that_describe_no_volume_are_refused(change, words) -> None:
    affine = np.eye(4)
    change(affine)
    with pytest.raises(GeometryError, match=words):
        Geometry(affine, SHAPE)


def test_an_array_of_another_shape_is_refused() -> None:
    geometry = Geometry(np.eye(4), SHAPE)
    with pytest.raises(GeometryError, match="voxels"):
        Volume(np.zeros(SHAPE), geometry)
    with pytest.raises(GeometryError, match="file grid"):
        geometry.to_canonical(np.zeros((1, 2, 3)))
