"""How AR-SSL4M prepares nodules and COVID scans for classification, exactly as published.

Two steps lose something and are kept for comparison only: nodules are cut to whole grey levels after interpolation, and
COVID scans are windowed in stored values, which are not Hounsfield units where the DICOM files carry an offset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from training_backend.data.sequence_crops import resized
from training_backend.data.tangerine import resample_published
from training_backend.data.volume import Array, Shape
from training_backend.errors import DataError

if TYPE_CHECKING:
    import SimpleITK as sitk

COVID_WINDOW = (0.0, 1400.0)
"""Stored values that become 0 and 1."""


def nodules_resized(volumes: Array, size: int) -> npt.NDArray[np.uint8]:
    """Volumes [N, D, H, W] of grey levels 0 to 255 on `size` voxels along each axis; fractions are cut off."""
    if volumes.ndim != 4 or volumes.dtype != np.uint8:
        raise DataError(
            f"Nodules are expected as uint8 [cases, z, y, x], found {volumes.dtype} with {volumes.ndim} axes.",
            "Give the images of nodulemnist3d.npz.",
        )
    cube = (size, size, size)
    result = np.empty((len(volumes), *cube), np.uint8)
    for index, volume in enumerate(volumes):
        result[index] = resized(volume, cube).astype(np.uint8)
    return result


def covid_resized(image: sitk.Image, size: Shape) -> sitk.Image:
    """`image` on `size` voxels along (z, y, x) over the same extent, linear, of the same pixel type."""
    return resample_published(image, (size[2], size[1], size[0]), linear=True)


def covid_window(array: Array) -> npt.NDArray[np.float64]:
    """Values clipped to `COVID_WINDOW` and scaled to [0, 1]; any shape."""
    low, high = COVID_WINDOW
    return np.asarray((np.clip(array, low, high) - low) / (high - low), np.float64)
