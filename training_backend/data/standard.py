"""From the volumes of a case to what is stored or predicted on: one grid, the body's box, compact numbers.

Ingest and prediction call the same function, so a network never sees a scan otherwise than it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from training_backend.data.body import find_body, whole_body
from training_backend.data.intensity import Statistics
from training_backend.data.read import as_classes
from training_backend.data.store import to_stored
from training_backend.data.views import IGNORED
from training_backend.data.volume import Array, Geometry, Shape, Triple, Volume
from training_backend.errors import DataError, GeometryError

POINTS = 256
"""Voxels remembered per label value, and of the body, to centre crops on."""


@dataclass(frozen=True)
class Standard:
    """A case in its stored form.

    Attributes:
        images: int16, uint16 or float16 (z, y, x), one per contrast.
        label: uint8 (z, y, x) or None.
        geometry: of these arrays.
        native: of the first volume as its file has it.
        start: first voxel of the body's box on the resampled grid.
        statistics: one per contrast.
        points: (n, 4) int32 rows of label value (0 for the body), z, y, x.
        values: label values above 0 and their voxel counts.
        problems: sentences about what was unusual but could be used.
    """

    images: tuple[Array, ...]
    label: Array | None
    geometry: Geometry
    native: Geometry
    start: Shape
    statistics: tuple[Statistics, ...]
    points: npt.NDArray[np.int32]
    values: dict[int, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def standardise(
    volumes: Sequence[Volume], label: Volume | None, spacing_mm: Triple | None, *, crop_body: bool
) -> Standard:
    """Volumes of one case on one grid, cropped to the body, with their statistics.

    Args:
        volumes: contrasts; the first gives the grid, others are resampled onto it where theirs differs.
        label: label map on the grid of the first volume, or None.
        spacing_mm: of the grid along (z, y, x); None keeps the first volume's.
        crop_body: cut the box around the body out.

    Raises:
        DataError: voxels that are not finite, label values out of range.
        GeometryError: the label map is of another grid.
    """
    native = volumes[0].geometry
    problems = [warning for volume in volumes for warning in volume.warnings]
    for volume in volumes:
        check_finite(volume)
    if label is not None:
        given, label = label, as_classes(label)
        problems += check_label(label, volumes[0])
        problems += [warning for warning in label.warnings if warning not in given.warnings]
    grid = resampled_grid(native, spacing_mm)
    arrays = [_onto(volume.array, volume.geometry, grid, labels=False) for volume in volumes]
    marks = None if label is None else _onto(label.array.astype(np.uint8), native, grid, labels=True)
    body = whole_body(arrays[0].shape) if grid.shape[0] == 1 else find_body(arrays[0], grid.spacing_mm)
    box = body.box if crop_body else tuple(slice(0, n) for n in grid.shape)
    if marks is not None and np.count_nonzero(marks) != np.count_nonzero(marks[box]):
        problems.append("Some labelled voxels lie outside the detected body; the whole volume is kept.")
        box = tuple(slice(0, n) for n in grid.shape)
    start: Shape = (box[0].start, box[1].start, box[2].start)
    images, statistics = [], []
    for volume, array in zip(volumes, arrays, strict=True):
        ct = volume.modality == "CT"
        stored, scale = to_stored(array, ct=ct)
        inside = array[tuple(slice(None, None, step) for step in body.stride)][body.mask]
        whole = None if ct else array
        lowest, largest = float(array.min()), volume.meta.get("largest")
        statistics.append(Statistics.measure(inside, lowest, scale=scale, ct=ct, whole=whole, largest=largest))
        images.append(np.ascontiguousarray(stored[box]))
    cut = None if marks is None else np.ascontiguousarray(marks[box])
    coarse = np.argwhere(body.mask) * np.array(body.stride) - np.array(start)
    shape = images[0].shape
    points, values = sampled(cut, coarse[((coarse >= 0) & (coarse < shape)).all(axis=1)])
    return Standard(
        images=tuple(images),
        label=cut,
        geometry=grid.cropped(start, (shape[0], shape[1], shape[2])),
        native=native,
        start=start,
        statistics=tuple(statistics),
        points=points,
        values=values,
        problems=tuple(dict.fromkeys(problems)),
    )


def sampled(label: Array | None, body: Array) -> tuple[npt.NDArray[np.int32], dict[int, int]]:
    """Voxels to centre crops on, as `Standard.points`, and how many voxels each class has; unlabelled ones are of none.

    Args:
        label: (z, y, x) uint8 or None.
        body: (n, 3) voxels inside the body.
    """
    rng = np.random.default_rng(0)
    rows: list[Array] = []
    if len(body):
        chosen = body[np.sort(rng.choice(len(body), min(POINTS, len(body)), replace=False))]
        rows.append(np.column_stack([np.zeros(len(chosen), int), chosen]))
    counts = np.zeros(1, int) if label is None else np.bincount(label.ravel(), minlength=1)[:IGNORED]
    values = [int(value) for value in np.flatnonzero(counts) if value > 0]
    if label is not None:
        foreground = np.flatnonzero((label > 0) & (label != IGNORED))
        order = foreground[np.argsort(label.ravel()[foreground], kind="stable")]
        ends = np.cumsum(counts[1:])
        for value in values:
            places = order[ends[value - 1] - counts[value] : ends[value - 1]]
            flat = np.sort(rng.choice(places, min(POINTS, len(places)), replace=False))
            rows.append(np.column_stack([np.full(len(flat), value), *np.unravel_index(flat, label.shape)]))
    points = np.concatenate(rows).astype(np.int32) if rows else np.zeros((0, 4), np.int32)
    return points, {value: int(counts[value]) for value in values}


def resampled_grid(native: Geometry, spacing_mm: Triple | None) -> Geometry:
    """Grid of `spacing_mm` over the box of `native`; `native` itself for None or where nothing changes.

    A picture stays one slice as thick as it is.
    """
    if spacing_mm is not None and native.shape[0] == 1:
        spacing_mm = (native.spacing_mm[0], spacing_mm[1], spacing_mm[2])
    if spacing_mm is None or np.allclose(spacing_mm, native.spacing_mm, rtol=1e-4):
        return native
    z, y, x = (
        max(1, round(n * have / want))
        for n, have, want in zip(native.shape, native.spacing_mm, spacing_mm, strict=True)
    )
    return native.resampled(spacing_mm, (z, y, x))


def check_finite(volume: Volume) -> None:
    """Refuse NaN and infinite voxels."""
    if volume.array.dtype.kind != "f":
        return
    bad = volume.array.size - int(np.count_nonzero(np.isfinite(volume.array)))
    if bad:
        raise DataError(
            f"{volume.name} has {bad:,} of {volume.array.size:,} voxels that are not numbers (NaN or infinite).",
            "Replace them in the source, or leave the scan out.",
        )


def check_label(label: Volume, image: Volume) -> list[str]:
    """Sentences about a label map that can be used; errors for one that cannot."""
    if label.geometry.shape != image.geometry.shape:
        raise GeometryError(
            f"The label map has {label.geometry.shape} voxels (z, y, x), its image {image.geometry.shape}.",
            "Give the label map that was drawn on this image.",
        )
    low, high = int(label.array.min()), int(label.array.max())
    if low < 0 or high > 254:
        raise DataError(
            f"The label map holds values from {low} to {high}; 0 to 254 are expected.",
            "Say what each stands for with label_values.",
        )
    shift = _largest_shift(label.geometry, image.geometry)
    if shift > 0.5 * min(image.geometry.spacing_mm):
        raise GeometryError(
            f"The label map lies up to {shift:.1f} mm away from its image, though both have the same voxels.",
            "Save the label map with the affine of its image.",
        )
    if shift > 0.01:
        return [f"The label map's header is {shift:.2f} mm off its image's; the image's was used."]
    return []


def _largest_shift(one: Geometry, other: Geometry) -> float:
    corners = np.array([[z, y, x, 1] for z in (0, 1) for y in (0, 1) for x in (0, 1)], float)
    corners[:, :3] *= np.asarray(one.shape, float) - 1
    return float(np.linalg.norm((corners @ (one.to_lps - other.to_lps).T)[:, :3], axis=1).max())


def _onto(array: Array, source: Geometry, grid: Geometry, *, labels: bool) -> Array:
    if source.same_grid(grid):
        return array
    from training_backend.data.resample import resample

    return resample(array, source, grid, nearest=labels, fill=0.0 if labels else float(array.min()))
