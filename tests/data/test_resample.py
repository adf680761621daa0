from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from training_backend.data.align import align
from training_backend.data.itk import to_image
from training_backend.data.read import read_volume
from training_backend.data.resample import resample, resample_like, to_spacing
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import GeometryError


def tilted(degrees, spacing, shape, origin=(0.0, 0.0, 0.0)) -> Geometry:
    """A grid rotated about two axes, stored sagittally."""
    a, b = np.radians(degrees)
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    rotation = rotation @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = (rotation * spacing)[:, [1, 2, 0]]
    affine[:3, 3] = np.array(origin) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Geometry(affine, shape)


def positions(geometry: Geometry) -> np.ndarray:
    """(x, y, z) LPS millimetres of every voxel, last axis."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij"), -1)
    return index @ geometry.to_lps[:3, :3].T + geometry.to_lps[:3, 3]


def ramp(geometry: Geometry) -> np.ndarray:
    """A field that linear interpolation reproduces exactly."""
    return (positions(geometry) @ [0.5, -0.25, 2.0] + 7).astype(np.float64)


A = tilted((10, -20), (1.0, 1.5, 2.0), (20, 24, 16))
B = tilted((-35, 8), (0.8, 0.9, 1.1), (9, 8, 10), (2.0, -1.0, 1.5))


def test_a_linear_field_keeps_its_values_in_space() -> None:
    result = resample(ramp(A), A, B, fill=np.nan)
    assert result.shape == B.shape
    assert np.isfinite(result).all(), "the small grid lies within the large one"
    assert np.allclose(result, ramp(B), atol=1e-9)


def test_a_sheared_grid_is_no_obstacle() -> None:
    affine = A.affine.copy()
    affine[:3, 2] += 0.4 * affine[:3, 0]
    sheared = Geometry(affine, A.source_shape)
    result = resample(ramp(sheared), sheared, B, fill=np.nan)
    inside = np.isfinite(result)
    assert inside.mean() > 0.9
    assert np.allclose(result[inside], ramp(B)[inside], atol=1e-9)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float16", "float32", "float64", "bool"])
def test_its_own_grid_changes_nothing(dtype) -> None:
    array = np.random.default_rng(0).integers(0, 2, A.shape).astype(dtype)
    for target in (A, Geometry(A.affine, A.source_shape), A.cropped((0, 0, 0), A.shape)):
        result = resample(array, A, target)
        assert result.dtype == dtype
        assert np.array_equal(result, array)
        assert result is not array
    shifted = Geometry(A.affine + np.eye(4)[:, [3]] * 0 + 1e-5 * np.eye(4)[:, [0]] * np.eye(4)[3], A.source_shape)
    assert np.array_equal(resample(array, A, shifted, nearest=True), array)


def test_simpleitk_in_physical_space_gives_the_same() -> None:
    array = np.random.default_rng(0).normal(size=A.shape).astype(np.float32)
    grid = to_image(np.zeros(B.shape, np.float32), B)
    peer = sitk.Resample(to_image(array, A), grid, sitk.Transform(), sitk.sitkLinear, -9.0)
    expected = B.to_canonical(sitk.GetArrayFromImage(peer).transpose(2, 1, 0))
    assert np.allclose(resample(array, A, B, fill=-9.0), expected, atol=1e-4)


def test_nearest_keeps_labels_and_linear_rounds_whole_numbers() -> None:
    labels = np.random.default_rng(0).choice([0, 3, 200], A.shape).astype(np.uint8)
    assert set(np.unique(resample(labels, A, B, nearest=True))) <= {0, 3, 200}
    field = np.rint(ramp(A)).astype(np.int16)
    result = resample(field, A, B)
    assert result.dtype == np.int16
    assert np.abs(result - ramp(B)).max() <= 1.0
    assert np.abs((result - ramp(B)).mean()) < 0.05, "rounded, not cut"


def test_outside_is_filled() -> None:
    far = tilted((0, 0), (1, 1, 1), (4, 4, 4), (500, 0, 0))
    assert (resample(ramp(A), A, far, fill=-1024) == -1024).all()
    ct = Volume(ramp(A), A, "CT")
    assert (resample_like(ct, Volume(np.zeros(far.shape), far)).array == ramp(A).min()).all()
    labels = Volume(np.ones(A.shape, np.uint8), A, meta={"kind": "labels"})
    assert (resample_like(labels, Volume(np.zeros(far.shape), far)).array == 0).all()


def test_another_spacing_covers_the_same_box_and_returns() -> None:
    volume = Volume(ramp(A), A)
    fine = to_spacing(volume, (0.5, 0.5, 0.5))
    assert fine.geometry.spacing_mm == pytest.approx((0.5, 0.5, 0.5))
    assert fine.array.shape == tuple(round(n * s / 0.5) for n, s in zip(A.shape, A.spacing_mm, strict=True))
    inner = (slice(4, -4),) * 3
    assert np.allclose(fine.array[inner], ramp(fine.geometry)[inner])
    back = resample_like(fine, volume)
    assert back.geometry is volume.geometry
    assert np.allclose(back.array[2:-2, 2:-2, 2:-2], volume.array[2:-2, 2:-2, 2:-2])


def test_an_array_of_another_shape_is_refused() -> None:
    with pytest.raises(GeometryError, match="source grid"):
        resample(np.zeros((2, 2, 2)), A, B)


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    joint, _, _ = np.histogram2d(a.ravel(), b.ravel(), 32)
    p = joint / joint.sum()
    outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    return float((p[p > 0] * np.log(p[p > 0] / outer[p > 0])).sum())


def two_contrasts(real_data) -> tuple[Volume, Volume]:
    """Two contrasts of one head on grids of different obliquity: real ones where there are any, else synthetic."""
    if real_data is not None:
        return read_volume(real_data / "brain/chris_t1.nii.gz"), read_volume(real_data / "brain/chris_PD.nii.gz")
    grids = tilted((0, 0), (1.2, 1.2, 1.2), (60, 70, 60)), tilted((4, -9), (1.0, 1.0, 2.4), (70, 80, 32))
    heads = []
    for grid in grids:
        x, y, z = np.moveaxis(positions(grid), -1, 0)
        tissue = np.sin(x / 5) * np.cos(y / 6) * np.sin(z / 4) * ((x / 30) ** 2 + (y / 34) ** 2 + (z / 30) ** 2 < 1)
        heads.append(Volume(tissue.astype(np.float32), grid))
    return heads[0], Volume(np.abs(1 - heads[1].array), grids[1])


def test_two_contrasts_of_one_patient_overlay_truly(real_data) -> None:
    t1, pd = two_contrasts(real_data)
    assert t1.geometry.oblique_deg != pytest.approx(pd.geometry.oblique_deg, abs=1)
    overlaid = resample_like(t1, pd)
    assert overlaid.geometry.same_grid(pd.geometry)
    grid = to_image(pd.array.astype(np.float32), pd.geometry)
    peer = sitk.Resample(
        to_image(t1.array.astype(np.float32), t1.geometry),
        grid,
        sitk.Transform(),
        sitk.sitkLinear,
        float(t1.array.min()),
    )
    expected = pd.geometry.to_canonical(sitk.GetArrayFromImage(peer).transpose(2, 1, 0))
    assert np.abs(overlaid.array - expected).max() <= 0.51, "rounded to the type of the scan"


def turned(volume: Volume, degrees: float, shift) -> Volume:
    """The scan with a header that is wrong by a rotation about z and a shift (in RAS millimetres)."""
    a = np.radians(degrees)
    wrong = np.eye(4)
    wrong[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    wrong[:3, 3] = shift
    return Volume(volume.array, Geometry(wrong @ volume.geometry.affine, volume.geometry.source_shape))


def test_contrasts_whose_headers_disagree_are_aligned(real_data) -> None:
    t1, pd = two_contrasts(real_data)
    if real_data is None:  # the real pair disagrees by 9 degrees and 10 mm on its own
        t1 = turned(t1, 6, (2, -3, 4))
    aligned = align(t1, pd)
    facts = aligned.meta["alignment"]
    assert facts["angle_deg"] == pytest.approx(6 if real_data is None else 9, abs=0.7)
    assert facts["after"] > 1.3 * facts["before"]
    by_header, by_search = (mutual_information(resample_like(v, pd).array, pd.array) for v in (t1, aligned))
    assert by_search > 1.15 * by_header
    assert sorted(aligned.array.shape) == sorted(t1.array.shape)
    assert aligned.array.sum() == t1.array.sum(), "voxels are untouched"


def test_a_known_displacement_is_found() -> None:
    t1, pd = two_contrasts(None)
    aligned = align(turned(t1, -5, (3, 2, -2)), pd)
    error = positions(aligned.geometry) - positions(t1.geometry)
    centre = np.linalg.norm(positions(t1.geometry), axis=-1) < 25
    assert np.linalg.norm(error[centre], axis=-1).mean() < 0.7, "millimetres within the head"
