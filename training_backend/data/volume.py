"""A volume: its voxels in one canonical frame, and the exact way back to its file.

Canonical frame: the array is ordered (z, y, x) with indices growing towards Superior, Posterior and Left, the closest
permutation and flip of the file's own axes (never a resampling). The file's affine is kept untouched, so whatever is
drawn or predicted on the canonical grid can be written back voxel for voxel, for oblique scans too.

Coordinates called ``lps`` are millimetres growing towards Left, Posterior, Superior (the DICOM and ITK convention);
``affine`` is the NIfTI convention: file index (i, j, k) to millimetres growing towards Right, Anterior, Superior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.errors import GeometryError

Array = npt.NDArray[Any]
Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a canonical array lie, and how they were stored in the file.

    Attributes:
        affine: 4 x 4, file index (i, j, k) to RAS millimetres, exactly as in the file.
        source_shape: shape of the file's array along (i, j, k).
    """

    affine: npt.NDArray[np.float64]
    source_shape: Shape
    _order: Shape = field(init=False, repr=False)
    _flip: tuple[bool, bool, bool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        check_affine(affine)
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "source_shape", tuple(int(n) for n in self.source_shape))
        order, flip = closest_axes(affine)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_flip", flip)

    @classmethod
    def from_spacing(cls, shape: Shape, spacing_mm: Triple, origin_lps: Triple = (0.0, 0.0, 0.0)) -> Geometry:
        """Geometry of an axis-aligned canonical array.

        Args:
            shape: voxels along (z, y, x).
            spacing_mm: millimetres along (z, y, x).
            origin_lps: (x, y, z) in LPS millimetres of the centre of voxel (0, 0, 0).
        """
        dz, dy, dx = spacing_mm
        ox, oy, oz = origin_lps
        lps = np.array([[dx, 0, 0, ox], [0, dy, 0, oy], [0, 0, dz, oz], [0, 0, 0, 1]], dtype=np.float64)
        return cls(_RAS_TO_LPS @ lps, (shape[2], shape[1], shape[0]))

    @property
    def shape(self) -> Shape:
        """Voxels of the canonical array along (z, y, x)."""
        i, j, k = self._order
        return (self.source_shape[i], self.source_shape[j], self.source_shape[k])

    @property
    def spacing_mm(self) -> Triple:
        """Millimetres between voxel centres along canonical (z, y, x)."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        i, j, k = self._order
        return (float(lengths[i]), float(lengths[j]), float(lengths[k]))

    @property
    def to_lps(self) -> npt.NDArray[np.float64]:
        """4 x 4, canonical index (z, y, x) to (x, y, z) in LPS millimetres, obliquity included."""
        canonical_to_file = np.zeros((4, 4))
        canonical_to_file[3, 3] = 1.0
        for canonical_axis, file_axis in enumerate(self._order):
            flipped = self._flip[canonical_axis]
            canonical_to_file[file_axis, canonical_axis] = -1.0 if flipped else 1.0
            if flipped:
                canonical_to_file[file_axis, 3] = self.source_shape[file_axis] - 1
        result: npt.NDArray[np.float64] = _RAS_TO_LPS @ self.affine @ canonical_to_file
        return result

    @property
    def origin_lps(self) -> Triple:
        """(x, y, z) in LPS millimetres of the centre of canonical voxel (0, 0, 0)."""
        x, y, z = self.to_lps[:3, 3]
        return (float(x), float(y), float(z))

    @property
    def oblique_deg(self) -> float:
        """Largest angle in degrees between a canonical axis and the patient axis it stands for; 0 when aligned."""
        to_lps = self.to_lps[:3, :3]
        unit = to_lps / np.linalg.norm(to_lps, axis=0)
        cosines = np.clip(unit[[2, 1, 0], [0, 1, 2]], -1.0, 1.0)
        angle = float(np.degrees(np.arccos(cosines.min())))
        return 0.0 if angle < 1e-3 else angle

    def to_canonical(self, source: Array) -> Array:
        """Canonical (z, y, x) array, C-contiguous, of a file-ordered (i, j, k) array."""
        self._check(source, self.source_shape, "file")
        canonical = np.transpose(source, self._order)
        return np.ascontiguousarray(canonical[self._flips()])

    def to_source(self, canonical: Array) -> Array:
        """File-ordered (i, j, k) array of a canonical (z, y, x) one; exact inverse of `to_canonical`."""
        self._check(canonical, self.shape, "canonical")
        return np.ascontiguousarray(np.transpose(canonical[self._flips()], np.argsort(self._order)))

    def _flips(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1) if flip else slice(None) for flip in self._flip)

    def _check(self, array: Array, expected: Shape, frame: str) -> None:
        if tuple(array.shape) != expected:
            raise GeometryError(
                f"The {frame} grid of this scan has {expected} voxels, but the array has {tuple(array.shape)}.",
                "Give an array made for this scan.",
            )

    def cropped(self, start: Shape | Triple, shape: Shape) -> Geometry:
        """Canonical geometry of the sub-box that begins at voxel `start` (z, y, x) and has `shape` voxels."""
        return self._canonical_with(np.asarray(start, float), self.spacing_mm, shape)

    def resampled(self, spacing_mm: Triple, shape: Shape) -> Geometry:
        """Canonical geometry covering the same box with other voxels: outer corners of the first voxels coincide."""
        ratio = np.asarray(spacing_mm, float) / np.asarray(self.spacing_mm, float)
        return self._canonical_with((ratio - 1) / 2, spacing_mm, shape)

    def _canonical_with(self, first: npt.NDArray[np.float64], spacing_mm: Triple, shape: Shape) -> Geometry:
        lps = self.to_lps.copy()
        lps[:3, 3] += lps[:3, :3] @ first
        lps[:3, :3] *= np.asarray(spacing_mm, float) / np.asarray(self.spacing_mm, float)
        return Geometry(_RAS_TO_LPS @ lps[:, [2, 1, 0, 3]], (shape[2], shape[1], shape[0]))

    def same_grid(self, other: Geometry, tolerance_mm: float = 1e-2) -> bool:
        """Whether both describe the same canonical voxels to within `tolerance_mm` at every corner."""
        if self.shape != other.shape:
            return False
        corners = np.array([[z, y, x, 1] for z in (0, 1) for y in (0, 1) for x in (0, 1)], float)
        corners[:, :3] *= np.asarray(self.shape, float) - 1
        return bool(np.abs((self.to_lps - other.to_lps) @ corners.T).max() <= tolerance_mm)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return {"affine": self.affine.tolist(), "source_shape": list(self.source_shape)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Geometry:
        """Geometry written by `to_dict`."""
        i, j, k = value["source_shape"]
        return cls(np.array(value["affine"], float), (i, j, k))


@dataclass(frozen=True)
class Volume:
    """One scan, or one contrast of a scan.

    Attributes:
        array: voxels along canonical (z, y, x), in the units of the file (HU for CT).
        geometry: canonical grid and the way back to the file.
        modality: "CT", "MR", "PET", "XR" or "unknown".
        name: what a list or a layer shows; never a patient's name.
        meta: provenance as plain JSON types: format, file name, key or contrast, warnings (sentences), window.
    """

    array: Array
    geometry: Geometry
    modality: str = "unknown"
    name: str = "volume"
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.geometry.shape:
            raise GeometryError(
                f"The geometry describes {self.geometry.shape} voxels, the array has {self.array.shape}."
            )
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what was unusual in the file."""
        return tuple(self.meta.get("warnings", ()))

    def with_array(self, array: Array, **changes: Any) -> Volume:
        """The same scan with other voxels (same grid), for predictions, masks and maps."""
        return replace(self, array=array, **changes)


def check_affine(affine: Array) -> None:
    """Refuse affines that describe no volume: wrong shape, not finite, zero spacing, or singular."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise GeometryError("The affine of this scan is not a finite 4 x 4 matrix.", "Re-export the scan.")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths < 1e-6).any():
        raise GeometryError(
            "A voxel of this scan has zero size along at least one axis.", "Set the spacing and re-export."
        )
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise GeometryError("The axes of this scan lie in one plane (singular affine).", "Re-export the scan.")


def closest_axes(affine: Array) -> tuple[Shape, tuple[bool, bool, bool]]:
    """File axis standing for each canonical axis (z, y, x), and whether it runs against S, P, L.

    The permutation maximises the summed absolute direction cosines, so it is a true permutation at any obliquity.
    """
    directions = (_RAS_TO_LPS @ affine)[:3, :3]
    cosines = directions / np.linalg.norm(directions, axis=0)
    orders: tuple[Shape, ...] = ((2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2), (0, 1, 2))
    patient = (2, 1, 0)  # rows of `cosines` for Superior, Posterior, Left
    order = max(orders, key=lambda axes: sum(abs(cosines[row, axis]) for row, axis in zip(patient, axes, strict=True)))
    flips = [bool(cosines[row, axis] < 0) for row, axis in zip(patient, order, strict=True)]
    return order, (flips[0], flips[1], flips[2])
