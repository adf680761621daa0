"""Which DICOM files belong together, and where each of their slices lies; headers only."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from training_backend.data.facts import suffix_of
from training_backend.errors import DataError

CONTRAST_TAGS = (
    "EchoTime",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "ImageType",
    "TriggerTime",
    "AcquisitionNumber",
)
"""What may tell slices at the same place apart, the first that does is used."""

_MODALITIES = {"CT": "CT", "MR": "MR", "PT": "PET", "CR": "XR", "DX": "XR", "MG": "XR", "RF": "XR", "XA": "XR"}
_TAGS = [  # all that is ever read; nothing about the patient is among them
    *CONTRAST_TAGS,
    *("Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "SOPInstanceUID", "InstanceNumber"),
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "WindowCenter", "WindowWidth"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_BARE_SUFFIXES = (".dcm", ".ima")  # these may lack the mark of a DICOM file


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
        files: files of the series.
        frames: the slices, in no particular order; empty when there is a problem.
        window: display limits from the file, or None.
        uid: series UID, to choose by; never stored.
        notes: sentences about what is unusual.
        problem: sentence saying why the series is no volume, or empty.
    """

    id: str
    number: str
    modality: str
    description: str
    shape: tuple[int, int]
    files: tuple[Path, ...]
    frames: tuple[Frame, ...]
    window: tuple[float, float] | None = None
    uid: str = ""
    notes: tuple[str, ...] = ()
    problem: str = ""

    def __str__(self) -> str:
        """One line to choose by."""
        rows, columns = self.shape
        text = f" {self.description!r}" if self.description else ""
        return f"{self.id}: {self.modality}{text}, {len(self.frames)} slices of {rows} x {columns}"


def list_series(path: Path | str) -> list[Series]:
    """The image series below a folder, or the ones that a file belongs to; usable ones first, then by size.

    Raises:
        DataError: there is no DICOM image.
    """
    path = Path(path)
    files = sorted(path.rglob("*") if path.is_dir() else path.parent.iterdir())
    groups: dict[tuple[Any, ...], list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    for file in files:
        if file.is_file() and (header := _header(file)) is not None:
            groups[_group(header)].append((file, header))
    series = [
        _series(key, items) for key, items in groups.items() if path.is_dir() or any(file == path for file, _ in items)
    ]
    if not series:
        raise DataError(f"{path} holds no DICOM images.", "Give a folder with the slices of one scan.")
    return sorted(series, key=lambda entry: (bool(entry.problem), -len(entry.frames), entry.number, entry.id))


def _header(path: Path) -> pydicom.Dataset | None:
    """Header of a DICOM image, or None for any other file."""
    try:
        bare = suffix_of(path) in _BARE_SUFFIXES
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=bare)
        return header if "Rows" in header and "Columns" in header else None
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, NotImplementedError, AttributeError):
        return None


def _group(header: pydicom.Dataset) -> tuple[Any, ...]:
    """What slices of one stack share: series, size, direction (a localiser has several) and pixel spacing."""
    values = _values(header, 0)
    geometry = [*(values["ImageOrientationPatient"] or ()), *(values["PixelSpacing"] or ())]
    rounded = tuple(round(float(value), 2) + 0.0 for value in geometry)
    modality = str(header.get("Modality", ""))
    return (str(header.get("SeriesInstanceUID", "")), modality, int(header.Rows), int(header.Columns), rounded)


def _series(key: tuple[Any, ...], items: list[tuple[Path, pydicom.Dataset]]) -> Series:
    uid, modality, rows, columns, _ = key
    frames: list[Frame] = []
    notes: list[str] = []
    problem = ""
    try:
        for path, header in items:
            count = int(header.get("NumberOfFrames") or 1)
            if count > 1 and not notes:
                notes = [f"{path.name} holds {count} slices (multi-frame); each is placed by its own position."]
            frames += _frames(path, header, count)
        _check_parallel(frames)
    except DataError as error:
        frames, problem = [], str(error)
    first = items[0][1]
    number = first.get("SeriesNumber")
    return Series(
        id=hashlib.sha256(repr(key).encode()).hexdigest()[:8],
        number="" if number is None else str(number),
        modality=_MODALITIES.get(modality, "unknown"),
        description=str(first.get("SeriesDescription") or ""),
        shape=(rows, columns),
        files=tuple(path for path, _ in items),
        frames=tuple(frames),
        window=_window(first),
        uid=uid,
        notes=tuple(notes),
        problem=problem,
    )


def _frames(path: Path, header: pydicom.Dataset, count: int) -> list[Frame]:
    """The slices of one file, or a `DataError` when they have no place in space."""
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise DataError(f"{path.name} is a colour image; one number per voxel is expected.", "Leave it out.")
    if count > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        raise DataError(
            f"{path.name} is a multi-frame file that gives no position for each of its {count} frames.",
            "Export it as single slices or as NIfTI.",
        )
    return [_frame(path, header, _values(header, index), index if count > 1 else None) for index in range(count)]


def _frame(path: Path, header: pydicom.Dataset, values: Mapping[str, Any], index: int | None) -> Frame:
    position, orientation = values["ImagePositionPatient"], values["ImageOrientationPatient"]
    spacing, thickness = values["PixelSpacing"], values["SpacingBetweenSlices"] or values["SliceThickness"]
    if not position or not orientation or not spacing:
        raise DataError(
            f"{path.name} is a slice without position, direction or pixel spacing in space.",
            "Leave it out, or export the scan as NIfTI with its spacing.",
        )
    slope, intercept = values["RescaleSlope"], values["RescaleIntercept"]
    return Frame(
        path=path,
        index=index,
        position=(float(position[0]), float(position[1]), float(position[2])),
        orientation=tuple(float(value) for value in orientation),
        pixel_mm=(float(spacing[0]), float(spacing[1])),
        thickness=abs(float(thickness)) if thickness else None,
        number=int(header.get("InstanceNumber") or 0),
        identity=str(header.get("SOPInstanceUID") or ""),
        contrast=tuple(str(values[tag]) for tag in CONTRAST_TAGS),
        rescale=(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
    )


def _values(header: pydicom.Dataset, index: int) -> dict[str, Any]:
    """Values of one frame: the header's, under the shared and the frame's own groups of an enhanced file."""
    values = {tag: header.get(tag) for tag in _TAGS}
    for name, which in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
        for group in islice(header.get(name) or (), which, which + 1):
            for element in group:
                if element.VR == "SQ" and element.value:
                    values |= {inner.keyword: inner.value for inner in element.value[0]}
    if values["DiffusionBValue"] is None and values["EchoTime"] is None:
        values["EchoTime"] = values.get("EffectiveEchoTime")  # the name it has in enhanced files
    return values


def _check_parallel(frames: list[Frame]) -> None:
    directions = np.array([frame.orientation for frame in frames])
    if np.ptp(directions, axis=0).max() > 0.02:
        raise DataError(f"The frames of {frames[0].path.name} point in different directions.", "It is no volume.")


def _window(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Lower and upper display limit: the first window of the file."""
    limits = [header.get(name) for name in ("WindowCenter", "WindowWidth")]
    if any(value is None or value == "" for value in limits):
        return None
    middle, extent = (float(value[0] if isinstance(value, MultiValue) else value) for value in limits)
    return (middle - extent / 2, middle + extent / 2) if extent > 0 else None
