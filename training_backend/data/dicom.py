"""DICOM series as volumes: slices found, ordered by position, and read without keeping anything about the patient."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from training_backend.data.dicom_pixels import pixels
from training_backend.data.facts import ImageFacts, geometry_of, lps_to_ras, shear_warning
from training_backend.data.integrity import check_memory
from training_backend.data.slices import Stack, depths, stack
from training_backend.data.volume import Array, Geometry, Volume
from training_backend.errors import DataError

MODALITIES = {"CT": "CT", "MR": "MR", "PT": "PET", "CR": "XR", "DX": "XR", "MG": "XR", "RF": "XR", "XA": "XR"}

_TAGS = (
    "Modality SeriesInstanceUID SeriesNumber SeriesDescription SOPInstanceUID InstanceNumber Rows Columns "
    "SamplesPerPixel NumberOfFrames BitsAllocated ImagePositionPatient ImageOrientationPatient PixelSpacing "
    "SliceThickness SpacingBetweenSlices WindowCenter WindowWidth RescaleSlope RescaleIntercept "
    "EchoTime TemporalPositionIdentifier DiffusionBValue ImageType TriggerTime AcquisitionNumber "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
).split()
_CONTRAST_TAGS = (
    "EchoTime",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "ImageType",
    "TriggerTime",
    "AcquisitionNumber",
)
_SAME_PLACE_MM = 0.01


@dataclass(frozen=True)
class Frame:
    """One slice: a file, or one frame of a multi-frame file."""

    path: Path
    index: int | None
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    pixel_mm: tuple[float, float]
    thickness: float | None
    number: int
    identity: str
    contrast: tuple[str, ...]
    rescale: tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Slices that belong together.

    Attributes:
        id: eight characters that choose this series; derived from, but not revealing, its UID.
        number: series number of the scanner, or empty.
        modality: "CT", "MR", "PET", "XR" or "unknown".
        description: free text of the scanner, to choose by; never stored, as it may name people.
        shape: rows and columns of a slice.
        frames: the slices, in no particular order.
        window: display limits from the file, or None.
        uid: series UID, to choose by; never stored.
        notes: sentences about files that could not be used.
    """

    id: str
    number: str
    modality: str
    description: str
    shape: tuple[int, int]
    frames: tuple[Frame, ...]
    window: tuple[float, float] | None = None
    uid: str = ""
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the series."""
        return tuple(sorted({frame.path for frame in self.frames}))

    def __str__(self) -> str:
        """One line to choose by."""
        rows, columns = self.shape
        text = f" {self.description!r}" if self.description else ""
        return f"{self.id}: {self.modality}{text}, {len(self.frames)} slices of {rows} x {columns}"


def list_series(path: Path | str) -> list[Series]:
    """The image series below a folder, or the one that a file belongs to; largest first."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.rglob("*") if path.is_dir() else folder.iterdir())
    groups: dict[tuple[Any, ...], list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    for file in files:
        if file.is_file() and (header := _header(file)) is not None:
            groups[_group(header)].append((file, header))
    if path.is_file():
        groups = {key: items for key, items in groups.items() if any(file == path for file, _ in items)}
    series = [_series(key, items) for key, items in groups.items()]
    if not series:
        raise DataError(f"{path} holds no DICOM images with positions.", "Give a folder with the slices of one scan.")
    return sorted(series, key=lambda entry: (-len(entry.frames), entry.number, entry.id))


def probe(path: Path | str, series: str = "") -> ImageFacts:
    """Facts from the headers of the series, without pixels."""
    one = _choose(Path(path), series)
    contrasts, warnings = _contrasts(one)
    geometry, _, more = _placed(one, contrasts[0][1], Path(path))
    names = tuple(name for name, _ in contrasts) if len(contrasts) > 1 else ()
    kind = "int16" if all(float(v).is_integer() for frame in one.frames for v in frame.rescale) else "float32"
    return ImageFacts(
        geometry.shape, geometry.spacing_mm, geometry, kind, one.modality, names, (*one.notes, *warnings, *more)
    )


def read(path: Path | str, series: str = "") -> list[Volume]:
    """Voxels of one series in rescaled units (HU for CT); several volumes when positions repeat (echoes, times)."""
    one = _choose(Path(path), series)
    contrasts, warnings = _contrasts(one)
    check_memory(Path(path), 4 * len(one.frames) * one.shape[0] * one.shape[1])
    volumes = []
    for contrast, frames in contrasts:
        geometry, place, more = _placed(one, frames, Path(path))
        meta: dict[str, Any] = {"format": "DICOM", "series": one.id, "slices": len(frames)}
        meta["warnings"] = [*one.notes, *warnings, *more]
        if place.missing:
            meta["missing_slices"] = len(place.missing)
        if one.window:
            meta["window"] = list(one.window)
        if len(contrasts) > 1:
            meta["contrast"] = contrast
        array = geometry.to_canonical(_stacked(frames, place).transpose(2, 1, 0))
        title = " ".join(part for part in (one.modality, f"series {one.number or one.id}", contrast) if part)
        volumes.append(Volume(array, geometry, one.modality, title, meta))
    return volumes


def _stacked(frames: Iterable[Frame], place: Stack) -> Array:
    """Array along (slice, row, column)."""
    images = pixels([(frame.path, frame.index, frame.rescale) for frame in frames])
    kind = np.result_type(*images)
    blank = min(image.min() for image in images) if place.missing else 0
    array: Array = np.full((place.length, *images[0].shape), blank, kind)
    for image, slot in zip(images, place.slots, strict=True):
        array[slot] = image
    return array


def _placed(series: Series, frames: list[Frame], path: Path) -> tuple[Geometry, Stack, list[str]]:
    first = frames[0]
    place = stack(np.array([f.position for f in frames]), first.orientation, first.pixel_mm, first.thickness)
    affine = lps_to_ras(place.affine_lps)
    rows, columns = series.shape
    geometry = geometry_of(path, affine, (columns, rows, place.length))
    tilted = any("tilt" in warning for warning in place.warnings)
    return geometry, place, [*place.warnings, *([] if tilted else shear_warning(affine))]


def _choose(path: Path, wanted: str) -> Series:
    found = list_series(path)
    matches = [entry for entry in found if wanted in (entry.id, entry.uid, entry.number)] if wanted else found
    if len(matches) == 1:
        return matches[0]
    listing = "; ".join(str(entry) for entry in found)
    problem = f"no series {wanted!r}" if not matches else f"{len(matches)} series"
    raise DataError(f"{path.name} holds {problem}. Found: {listing}.", "Choose one by the name before its colon.")


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
    if counts.min() == counts.max():
        for index, tag in enumerate(_CONTRAST_TAGS):
            groups: dict[str, list[int]] = defaultdict(list)
            for where, frame in enumerate(frames):
                groups[frame.contrast[index]].append(where)
            if len(groups) == counts[0] and all(len(set(place[w])) == len(counts) for w in groups.values()):
                names = sorted(groups, key=_numeric)
                return [(f"{tag} {name}", [frames[w] for w in groups[name]]) for name in names], warnings
    kept = [frames[i] for i in np.flatnonzero(fresh)]
    warnings.append(f"{len(frames) - len(kept)} slices lie where another one lies; the first of each was kept.")
    return [("", kept)], warnings


def _unique(frames: Iterable[Frame]) -> tuple[list[Frame], list[str]]:
    """Frames by instance number, copies of the same instance left out."""
    seen: set[tuple[str, int | None]] = set()
    kept, copies = [], 0
    for frame in sorted(frames, key=lambda f: (f.number, f.index or 0, f.path)):
        identity = (frame.identity, frame.index)
        if frame.identity and identity in seen:
            copies += 1
            continue
        seen.add(identity)
        kept.append(frame)
    return kept, [f"{copies} files are copies of another one and were left out."] if copies else []


def _numeric(text: str) -> tuple[float, str]:
    try:
        return (float(text), text)
    except ValueError:
        return (0.0, text)


def _header(path: Path) -> pydicom.Dataset | None:
    """Header of a DICOM image, or None for any other file."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, NotImplementedError):
        return None
    return header if "Rows" in header and "Columns" in header else None


def _group(header: pydicom.Dataset) -> tuple[Any, ...]:
    """What slices of one stack share: series, slice size and direction (a localiser has several directions)."""
    orientation = _orientation(header)
    rounded = tuple(round(value, 2) + 0.0 for value in orientation) if orientation else ()
    modality = str(header.get("Modality", ""))
    return (str(header.get("SeriesInstanceUID", "")), modality, int(header.Rows), int(header.Columns), rounded)


def _orientation(header: pydicom.Dataset) -> tuple[float, ...]:
    values = header.get("ImageOrientationPatient")
    if not values:
        frame = _functional(header, 0)
        values = frame.get("ImageOrientationPatient")
    return tuple(float(v) for v in values) if values else ()


def _series(key: tuple[Any, ...], items: list[tuple[Path, pydicom.Dataset]]) -> Series:
    uid, modality, rows, columns, _ = key
    frames: list[Frame] = []
    notes = []
    for path, header in items:
        count = int(header.get("NumberOfFrames") or 1)
        if count > 1:
            notes.append(
                f"One file of the series holds {count} slices (multi-frame); each is placed by its own position."
            )
        frames += _frames(path, header, count)
    first = items[0][1]
    return Series(
        id=hashlib.sha256(repr(key).encode()).hexdigest()[:8],
        number=str(first.get("SeriesNumber") if first.get("SeriesNumber") is not None else ""),
        modality=MODALITIES.get(modality, "unknown"),
        description=str(first.get("SeriesDescription") or ""),
        shape=(rows, columns),
        frames=tuple(frames),
        window=_window(first),
        uid=uid,
        notes=tuple(notes[:1]),
    )


def _frames(path: Path, header: pydicom.Dataset, count: int) -> list[Frame]:
    """The slices of one file, with sentences for what cannot be placed in space."""
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise DataError(
            f"{path.name} is a colour image; one number per voxel is expected.", "Leave it out of the folder."
        )
    frames = []
    for index in range(count):
        values = _functional(header, index) if count > 1 or "PerFrameFunctionalGroupsSequence" in header else {}
        merged = {name: values[name] if name in values else header.get(name) for name in _TAGS}
        position, orientation, spacing = (
            merged[name] for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
        if not position or not orientation or not spacing or (count > 1 and "ImagePositionPatient" not in values):
            kind = "is a multi-frame file whose frames" if count > 1 else "is a slice that"
            raise DataError(
                f"{path.name} {kind} have no position, direction or spacing in space."
                if count > 1
                else f"{path.name} {kind} has no position, direction or spacing in space.",
                "Leave it out of the folder, or export it as NIfTI with its spacing.",
            )
        x, y, z = (float(v) for v in position)
        thickness = merged["SpacingBetweenSlices"] or merged["SliceThickness"]
        slope, intercept = merged["RescaleSlope"], merged["RescaleIntercept"]
        frames.append(
            Frame(
                path=path,
                index=index if count > 1 else None,
                position=(x, y, z),
                orientation=tuple(float(v) for v in orientation),
                pixel_mm=(float(spacing[0]), float(spacing[1])),
                thickness=float(thickness) if thickness else None,
                number=int(header.get("InstanceNumber") or 0),
                identity=str(header.get("SOPInstanceUID") or ""),
                contrast=tuple(str(merged[tag]) for tag in _CONTRAST_TAGS),
                rescale=(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
            )
        )
    return frames


def _functional(header: pydicom.Dataset, index: int) -> dict[str, Any]:
    """Values of one frame of an enhanced multi-frame file: its own groups laid over the shared ones."""
    values: dict[str, Any] = {}
    for name, which in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
        for group in islice(header.get(name) or (), which, which + 1):
            for element in group:
                if element.VR == "SQ" and element.value:
                    values |= {inner.keyword: inner.value for inner in element.value[0]}
    return values


def _window(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Lower and upper display limit: the first window of the file."""
    centre, width = (header.get(name) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or centre == "" or width == "":
        return None
    middle, extent = (
        float(v if not isinstance(v, list | pydicom.multival.MultiValue) else v[0]) for v in (centre, width)
    )
    return (middle - extent / 2, middle + extent / 2) if extent > 0 else None
