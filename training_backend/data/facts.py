"""What a file says about a scan before its voxels are read, and the words all readers share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training_backend.data.volume import Array, Geometry, Shape, Triple
from training_backend.errors import DataError, GeometryError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Endings of plain pictures, which are read as scans of one slice."""
SUFFIXES = (
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".h5", ".hdf5", ".npz", ".npy", ".dcm", ".ima"),
    ".arrow",
    *PICTURES,
)
"""Endings of readable files; DICOM files without an ending are recognised by content."""


@dataclass(frozen=True)
class ImageFacts:
    """Facts of one image.

    Attributes:
        shape: canonical voxels along (z, y, x).
        spacing_mm: millimetres along (z, y, x).
        geometry: canonical grid and the way back to the file.
        dtype: type of the stored numbers, as numpy names it.
        modality: "CT", "MR", "PET", "XR" or "unknown".
        contrasts: keys of the volumes inside the file when there are several (4-D), else empty.
        warnings: sentences about what is unusual.
    """

    shape: Shape
    spacing_mm: Triple
    geometry: Geometry
    dtype: str
    modality: str = "unknown"
    contrasts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def suffix_of(path: Path) -> str:
    """The known ending of a file name in lower case, ``.nii.gz`` as one, or an empty string."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def is_picture(path: Path) -> bool:
    """Whether a file is a plain picture by its name."""
    return suffix_of(path) in PICTURES


def scan_name(path: Path) -> str:
    """File name without its known ending."""
    return path.name[: len(path.name) - len(suffix_of(path))] or path.name


def geometry_of(path: Path, affine: Array, shape: Shape) -> Geometry:
    """Geometry of a file, with the file named in the error when the affine is unusable."""
    try:
        return Geometry(affine, shape)
    except GeometryError as error:
        raise GeometryError(f"{path.name}: {error.sentence}", error.hint) from error


def lps_to_ras(lps: Array) -> Array:
    """4 x 4 affine to RAS millimetres of one to LPS millimetres (and back)."""
    result: Array = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return result


def shear_warning(affine: Array) -> list[str]:
    """A sentence when the axes of `affine` are not perpendicular to within 0.1 degrees."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs(unit.T @ unit - np.eye(3)).max())
    angle = float(np.degrees(np.arcsin(min(cosine, 1.0))))
    if angle < 0.1:
        return []
    return [
        f"The axes of this scan are {90 - angle:.1f}° apart instead of 90° (sheared); the sheared geometry is kept."
    ]


def chosen(path: Path, key: str, count: int) -> range:
    """Indices of the contrasts to read from a file that holds `count`: all, or the one that `key` names."""
    if not key:
        return range(count)
    if not key.isdecimal() or int(key) >= count:
        raise DataError(f"{path.name} has no contrast {key!r}.", f"It holds {count}, numbered from 0.")
    return range(int(key), int(key) + 1)
