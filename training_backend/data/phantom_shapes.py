"""Analytic shapes and textures from which phantoms are drawn, at the patient coordinates of any grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.data.manifest import ClassEntry
from training_backend.data.volume import Geometry, Volume

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Phantom:
    """A generated patient.

    Attributes:
        volumes: co-registered contrasts on one grid.
        labels: uint8 label map on the same grid.
        classes: names and colours of its values, background left out.
        report: sentences that describe what is in the volume, and nothing that is not.
        target: 1 where there is a nodule or lesion, else 0.
    """

    volumes: tuple[Volume, ...]
    labels: Volume
    classes: tuple[ClassEntry, ...]
    report: str
    target: int

    @property
    def volume(self) -> Volume:
        """The first contrast."""
        return self.volumes[0]


def patient_axes(geometry: Geometry) -> tuple[Field, Field, Field]:
    """LPS millimetres of each voxel as (superior, posterior, left), broadcastable to (z, y, x) when axis-aligned."""
    to_lps = geometry.to_lps
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in geometry.shape), indexing="ij", sparse=True)
    rows = [to_lps[row, 0] * z + to_lps[row, 1] * y + to_lps[row, 2] * x + to_lps[row, 3] for row in (2, 1, 0)]
    return (rows[0].astype(np.float32), rows[1].astype(np.float32), rows[2].astype(np.float32))


def centred(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Geometry:
    """Axis-aligned geometry whose middle is the origin of patient space."""
    first = [-(n - 1) / 2 * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    return Geometry.from_spacing(shape, spacing_mm, (first[2], first[1], first[0]))


def ellipsoid(
    axes: tuple[Field, Field, Field],
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    power: float = 2.0,
) -> Field:
    """Normalised distance to `centre` (z, y, x): below 1 inside the (super-)ellipsoid with `radii`."""
    total = sum(np.abs((axis - c) / r) ** power for axis, c, r in zip(axes, centre, radii, strict=True))
    return np.asarray(total, np.float32) ** np.float32(1 / power)


def waves(axes: tuple[Field, Field, Field], rng: np.random.Generator, wavelength_mm: float, count: int = 8) -> Field:
    """Smooth random texture of about unit variance: a sum of plane waves, the same in patient space on any grid."""
    total: Any = 0.0
    for _ in range(count):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / (wavelength_mm * rng.uniform(0.7, 1.5) * np.linalg.norm(direction))
        phase = sum(np.float32(d) * axis for d, axis in zip(direction, axes, strict=True))
        total = total + np.sin(phase + np.float32(rng.uniform(0, 2 * np.pi)))
    return np.asarray(total, np.float32) * np.float32(np.sqrt(2 / count))


def letter_l(axes: tuple[Field, Field, Field], corner: tuple[float, float, float], height: float) -> Mask:
    """A lead letter L, upright when seen from the front; its foot points to the patient's left.

    Args:
        axes: patient coordinates from `patient_axes`.
        corner: (superior, posterior, left) of the lower right-hand corner of the letter, in mm.
        height: of the upright in mm; the foot is two thirds as long.
    """
    z, y, x = (axis - c for axis, c in zip(axes, corner, strict=True))
    stroke = height / 5
    upright = (z > 0) & (z < height) & (x > 0) & (x < stroke)
    foot = (z > 0) & (z < stroke) & (x > 0) & (x < 2 / 3 * height)
    return np.asarray((upright | foot) & (np.abs(y) < stroke), bool)
