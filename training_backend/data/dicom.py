"""DICOM series as volumes: ordered by position, in rescaled units, with nothing kept about the patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from training_backend.data.dicom_pixels import pixels
from training_backend.data.dicom_series import CONTRAST_TAGS, Frame, Series, list_series
from training_backend.data.facts import ImageFacts, geometry_of, lps_to_ras
from training_backend.data.integrity import check_memory
from training_backend.data.slices import Stack, depths, stack
from training_backend.data.volume import Array, Geometry, Volume
from training_backend.errors import DataError

__all__ = ["Series", "grid_and_files", "list_series", "probe", "read"]

_SAME_PLACE_MM = 0.01


def probe(path: Path | str, series: str = "") -> ImageFacts:
    """Facts from the headers of the series, without pixels."""
    one, notes = _choose(Path(path), series)
    contrasts, warnings = _contrasts(one)
    geometry, place = _placed(one, contrasts[0][1], Path(path))
    names = tuple(name for name, _ in contrasts) if len(contrasts) > 1 else ()
    whole = all(value.is_integer() for frame in one.frames for value in frame.rescale)
    return ImageFacts(
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        geometry=geometry,
        dtype="int16" if whole else "float32",
        modality=one.modality,
        contrasts=names,
        warnings=(*notes, *warnings, *place.warnings),
    )


def read(path: Path | str, series: str = "") -> list[Volume]:
    """Voxels of one series in rescaled units (HU for CT); several volumes where positions repeat (echoes, times).

    Args:
        path: a folder, or any file of the series.
        series: id, number or UID as listed by `list_series`; needed when there are several.
    """
    one, notes = _choose(Path(path), series)
    contrasts, warnings = _contrasts(one)
    volumes = []
    for contrast, frames in contrasts:
        geometry, place = _placed(one, frames, Path(path))
        check_memory(Path(path), 8 * place.length * one.shape[0] * one.shape[1])
        meta: dict[str, Any] = {"format": "DICOM", "series": one.id, "slices": len(frames)}
        meta["warnings"] = [*notes, *warnings, *place.warnings]
        if place.missing:
            meta["missing_slices"] = len(place.missing)
        if one.window:
            meta["window"] = list(one.window)
        if contrast:
            meta["contrast"] = contrast
        array = geometry.to_canonical(_stacked(frames, place).transpose(2, 1, 0))
        title = " ".join(part for part in (one.modality, f"series {one.number or one.id}", contrast) if part)
        volumes.append(Volume(array, geometry, one.modality, title, meta))
    return volumes


def grid_and_files(path: Path | str, series: str = "") -> tuple[Geometry, list[tuple[int, Path]]]:
    """Grid that `read` puts a series on; of each slice its place along the last source axis, and its file, in order.

    Raises:
        DataError: positions repeat, or several slices are in one file.
    """
    one, _ = _choose(Path(path), series)
    contrasts, _ = _contrasts(one)
    if len(contrasts) > 1:
        raise DataError(f"Series {one.id} has {len(contrasts)} slices at each place.", "Export one contrast alone.")
    frames = contrasts[0][1]
    if any(frame.index is not None for frame in frames):
        raise DataError(f"{frames[0].path.name} holds several slices.", "One file per slice is needed.")
    geometry, place = _placed(one, frames, Path(path))
    return geometry, [(int(slot), frame.path) for slot, frame in zip(place.slots, frames, strict=True)]


def _choose(path: Path, wanted: str) -> tuple[Series, list[str]]:
    """The series to read, and sentences about it and about what was left aside."""
    found = list_series(path)
    usable = [entry for entry in found if not entry.problem]
    matches = [entry for entry in found if wanted in (entry.id, entry.uid, entry.number)] if wanted else usable
    if not usable or (len(matches) == 1 and matches[0].problem):
        raise DataError((matches or found)[0].problem)
    if len(matches) != 1:
        listing = "; ".join(str(entry) for entry in usable)
        problem = f"{len(matches)} series" if matches else f"no series {wanted!r}"
        raise DataError(f"{path.name} holds {problem}. Found: {listing}.", "Choose one by the name before its colon.")
    aside = [f"Left aside: {entry.problem}" for entry in found if entry.problem]
    return matches[0], [*matches[0].notes, *aside]


def _contrasts(series: Series) -> tuple[list[tuple[str, list[Frame]]], list[str]]:
    """Slices as one stack, or as several over the same positions (echoes, times, b-values), named by what differs."""
    frames, warnings = _unique(series.frames)
    depth = depths(np.array([frame.position for frame in frames]), frames[0].orientation)
    order = np.argsort(depth, kind="stable")
    frames, depth = [frames[i] for i in order], depth[order]
    fresh = np.concatenate([[True], np.diff(depth) > _SAME_PLACE_MM])
    place = np.cumsum(fresh) - 1
    counts = np.bincount(place)
    if counts.max() == 1:
        return [("", frames)], warnings
    for index, tag in enumerate(CONTRAST_TAGS):
        groups: dict[str, list[int]] = defaultdict(list)
        for where, frame in enumerate(frames):
            groups[frame.contrast[index]].append(where)
        if len(groups) > 1 and all(sorted(place[group]) == list(range(len(counts))) for group in groups.values()):
            names = sorted(groups, key=_numeric)
            return [(f"{tag} {name}", [frames[where] for where in groups[name]]) for name in names], warnings
    kept = [frames[i] for i in np.flatnonzero(fresh)]
    left_out = len(frames) - len(kept)
    return [("", kept)], [
        *warnings,
        f"Slices lying where another one lies: {left_out}. The first of each place was kept.",
    ]


def _unique(frames: Iterable[Frame]) -> tuple[list[Frame], list[str]]:
    """Frames by instance number, copies of the same instance left out."""
    seen: set[tuple[str, int | None]] = set()
    kept, copies = [], 0
    for frame in sorted(frames, key=lambda frame: (frame.number, frame.index or 0, frame.path)):
        identity = (frame.identity, frame.index)
        if frame.identity and identity in seen:
            copies += 1
            continue
        seen.add(identity)
        kept.append(frame)
    return kept, [f"Copies of other slices that were left out: {copies}."] if copies else []


def _numeric(text: str) -> tuple[float, str]:
    try:
        return (float(text), text)
    except ValueError:
        return (0.0, text)


def _placed(series: Series, frames: list[Frame], path: Path) -> tuple[Geometry, Stack]:
    first = frames[0]
    place = stack(np.array([f.position for f in frames]), first.orientation, first.pixel_mm, first.thickness)
    rows, columns = series.shape
    return geometry_of(path, lps_to_ras(place.affine_lps), (columns, rows, place.length)), place


def _stacked(frames: list[Frame], place: Stack) -> Array:
    """Array along (slice, row, column); places without a slice hold the lowest value."""
    images = pixels([(frame.path, frame.index, frame.rescale) for frame in frames])
    blank = min(image.min() for image in images) if place.missing else 0
    array: Array = np.full((place.length, *images[0].shape), blank, np.result_type(*images))
    for image, slot in zip(images, place.slots, strict=True):
        array[slot] = image
    return array
