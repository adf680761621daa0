"""Rigid alignment of two scans of one patient whose headers do not agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk

from training_backend.data.facts import lps_to_ras
from training_backend.data.itk import to_image
from training_backend.data.volume import Geometry, Volume

_GRID_MM = 3.0  # both scans are compared at this spacing; finer ones cost time
_SAMPLE = 0.2  # share of the voxels compared in each step


def align(volume: Volume, reference: Volume) -> Volume:
    """`volume` with its geometry turned and shifted to where it fits `reference` best; its voxels stay as they are.

    Contrasts may differ: the six parameters maximise Mattes' mutual information, from coarse to fine, starting where
    the files say. Use `resample_like` on the result to overlay both. ``meta["alignment"]`` tells the correction:
    ``angle_deg``, ``shift_mm`` (of the centre of `reference`), and mutual information ``before`` and ``after``; when
    the search finds nothing better, the geometry stays and a warning says so.
    """
    fixed, moving = (_coarse(each) for each in (reference, volume))
    centre = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    rigid = sitk.Euler3DTransform(centre)
    search = _search()
    search.SetInitialTransform(rigid, inPlace=True)
    before = -search.MetricEvaluate(fixed, moving)
    search.Execute(fixed, moving)
    search.SetInitialTransform(rigid, inPlace=True)
    after = -search.MetricEvaluate(fixed, moving)
    if not after > before:
        warnings = [*volume.warnings, f"No better alignment with {reference.name} was found; the file's is kept."]
        return replace(volume, meta={**volume.meta, "warnings": warnings})
    map_lps = np.eye(4)  # points of the reference to points of the volume
    map_lps[:3, :3] = np.array(rigid.GetMatrix()).reshape(3, 3)
    map_lps[:3, 3] = np.array(rigid.TransformPoint((0.0, 0.0, 0.0)))
    source = volume.geometry.to_source(volume.array)
    moved = lps_to_ras(np.linalg.inv(map_lps) @ lps_to_ras(volume.geometry.affine))
    geometry = Geometry(moved, volume.geometry.source_shape)
    angle = np.degrees(np.arccos(np.clip((np.trace(map_lps[:3, :3]) - 1) / 2, -1, 1)))
    shift = np.linalg.norm(np.array(rigid.TransformPoint(centre)) - centre)
    facts = {"angle_deg": float(angle), "shift_mm": float(shift), "before": float(before), "after": float(after)}
    meta = {**volume.meta, "alignment": facts}
    return replace(volume, array=geometry.to_canonical(source), geometry=geometry, meta=meta)


def _coarse(volume: Volume) -> sitk.Image:
    """Image of about 3 mm voxels, each the mean of finer ones, without outliers, which would blur the grey levels."""
    array = np.nan_to_num(volume.array.astype(np.float32))
    image = to_image(np.clip(array, *np.percentile(array[::2, ::2, ::2], (0.5, 99.5))), volume.geometry)
    return sitk.BinShrink(image, [max(1, round(_GRID_MM / spacing)) for spacing in image.GetSpacing()])


def _search() -> sitk.ImageRegistrationMethod:
    search = sitk.ImageRegistrationMethod()
    search.SetMetricAsMattesMutualInformation(32)
    search.SetMetricSamplingStrategy(search.RANDOM)
    search.SetMetricSamplingPercentage(_SAMPLE, seed=1)
    search.SetInterpolator(sitk.sitkLinear)
    search.SetOptimizerAsRegularStepGradientDescent(learningRate=2.0, minStep=0.01, numberOfIterations=60)
    search.SetOptimizerScalesFromPhysicalShift()
    search.SetShrinkFactorsPerLevel([2, 1])
    search.SetSmoothingSigmasPerLevel([3, 0])
    search.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    return search
