"""Deformations on the grids of files: against SimpleITK, between grids, and with what must not change."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from training_backend.data.deform import Deformation, write_field
from training_backend.data.itk import to_image
from training_backend.data.phantom_head import oblique
from training_backend.data.volume import Geometry
from training_backend.errors import DataError

SIZE = (12, 14, 16)


def smooth(seed: int = 0, strength: float = 1.5) -> np.ndarray:
    from scipy.ndimage import zoom

    rng = np.random.default_rng(seed)
    return np.stack([zoom(rng.normal(0, strength, (3, 3, 3)), np.array(SIZE) / 3, order=1) for _ in range(3)]).astype(
        np.float32
    )


def grids() -> tuple[Geometry, Geometry]:
    fixed = Geometry.from_spacing(SIZE, (2.0, 1.5, 1.0), (-7.0, 3.0, 20.0))
    return fixed, Geometry.from_spacing(SIZE, (2.2, 1.4, 1.1), (5.0, -4.0, 11.0))


def test_nothing_moves_without_displacement() -> None:
    fixed, _ = grids()
    still = Deformation(np.zeros((3, *SIZE), np.float32), fixed, fixed)
    array = np.random.default_rng(0).integers(0, 900, SIZE).astype(np.int16)
    assert np.array_equal(still.warp(array, fixed, fixed), array)
    assert np.abs(still.field_mm(fixed)).max() < 1e-4
    assert np.allclose(still.jacobian(fixed), 1)
    lines = still.lines(fixed, 4)
    assert lines[:, 4].min() == 1
    assert lines[:, 2, 2].max() < 1


def test_scans_of_other_spacing_and_place_come_onto_the_fixed_grid() -> None:
    fixed, moving = grids()
    still = Deformation(np.zeros((3, *SIZE), np.float32), fixed, moving)
    array = np.random.default_rng(0).random(SIZE).astype(np.float32)
    assert np.allclose(still.warp(array, moving, fixed), array, atol=1e-5)
    ratio = (2.2 * 1.4 * 1.1) / (2.0 * 1.5 * 1.0)
    assert np.allclose(still.jacobian(fixed), ratio, rtol=1e-4)


def test_the_written_field_moves_a_scan_in_simpleitk_as_it_does_here(tmp_path: Path) -> None:
    fixed, moving = grids()
    deformation = Deformation(smooth(), fixed, moving)
    array = np.random.default_rng(1).random(SIZE).astype(np.float32)
    path = write_field(tmp_path / "field.nii.gz", deformation.field_mm(fixed), fixed)
    field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    theirs = sitk.Resample(to_image(array, moving), to_image(array, fixed), transform, sitk.sitkLinear, -1.0)
    ours = deformation.warp(array, moving, fixed, fill=-1.0)
    there = sitk.GetArrayFromImage(sitk.DICOMOrient(theirs, "LPS"))
    inside = (there != -1) & (ours != -1)
    assert inside.mean() > 0.3
    assert np.abs(there - ours)[inside].max() < 2e-3
    header = nib.load(path).header
    assert header.get_intent()[0] == "vector"
    with pytest.raises(DataError, match="exists already"):
        write_field(path, deformation.field_mm(fixed), fixed)


def test_fields_of_oblique_files_keep_their_axes(tmp_path: Path) -> None:
    grid = oblique(0, (10, 12, 14)).volume.geometry
    still = Deformation(np.full((3, *grid.shape), 1.0, np.float32), grid, grid)
    field = still.field_mm(grid)
    step = grid.to_lps[:3, :3].sum(axis=1)  # one voxel along each axis
    assert np.allclose(field.reshape(3, -1).T, step, atol=1e-3)
    image = nib.load(write_field(tmp_path / "field.nii.gz", field, grid))
    assert image.shape == (*grid.source_shape, 1, 3)
    assert np.allclose(image.affine, grid.affine)


def test_jacobian_matches_the_network_side() -> None:
    import torch

    from training_backend.nn.registration import jacobian_determinant

    fixed, _ = grids()
    displacement = smooth(3, 3.0)
    theirs = jacobian_determinant(torch.from_numpy(displacement)[None])[0].numpy()
    assert np.allclose(Deformation(displacement, fixed, fixed).local_jacobian(), theirs, atol=1e-4)
