"""Label maps as DICOM segmentations, which refer to the series that they were drawn on; needs the package highdicom.

The file holds what DICOM demands: identity of the patient and of the study are those of the series.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training_backend.data.dicom import grid_and_files
from training_backend.data.dicom_series import list_series
from training_backend.data.manifest import ClassEntry
from training_backend.data.read import whole_numbers
from training_backend.data.volume import Volume
from training_backend.errors import ConfigError, DataError, Med3dError
from training_backend.files import atomic

MANUFACTURER = "napari-med3dssl"
DEMANDED = {
    "StudyInstanceUID": "the study",
    "SeriesInstanceUID": "the series",
    "FrameOfReferenceUID": "the frame of reference",
    "SOPClassUID": "the kind of object",
    "SOPInstanceUID": "each slice",
}
"""Identities by which a segmentation refers to its series."""
_LONGEST_LABEL = 64  # of DICOM's type LO


def write_segmentation(
    labels: Volume, classes: Sequence[ClassEntry], series: Path | str, path: Path | str, *, overwrite: bool = False
) -> Path:
    """Write a label map as a DICOM segmentation, one segment per class that occurs.

    Args:
        labels: whole numbers, 0 for background, on the grid of the series.
        classes: names and colours; values without a row are called by their number.
        series: folder that holds the series; of several, the one with the grid of `labels` is taken.
        path: file to write, ending in .dcm.
        overwrite: replace an existing file.

    Returns:
        The path written.

    Raises:
        ConfigError: highdicom is not installed.
        DataError: no series has this grid, nothing is labelled, the series lacks what DICOM demands, the file exists.
    """
    path = Path(path)
    if path.suffix.lower() != ".dcm":
        raise DataError(f"{path.name} is no name for a DICOM file.", "Let it end in .dcm.")
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already and is kept.", "Choose another name, or allow overwriting.")
    highdicom = _highdicom()
    import pydicom

    array = whole_numbers(labels.array, labels.name)
    values = [int(value) for value in np.unique(array) if value]
    if not values:
        raise DataError(f"{labels.name} has no labelled voxel.", "Label something before saving it as a segmentation.")
    places, files = _slices(labels, Path(series))
    planes = labels.geometry.to_source(array).transpose(2, 1, 0)[places]  # (slice, row, column), as the series is
    numbered = np.searchsorted([0, *values], planes).astype(np.uint8 if len(values) < 256 else np.uint16)
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    _check_identities(sources, Path(series))
    try:
        made = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=numbered,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(highdicom, k, value, classes) for k, value in enumerate(values, 1)],
            series_instance_uid=highdicom.UID(),
            series_number=1000 + int(sources[0].get("SeriesNumber") or 0) % 1000,  # not that of the scan
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=_version(),
            device_serial_number="0",
            series_description=labels.name[:_LONGEST_LABEL],
            omit_empty_frames=True,
        )
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"The series in {Path(series).name} cannot carry a segmentation: {str(error).strip()[:200]}.",
            "Use the original files of the scanner.",
        ) from error
    with atomic(path) as stream:
        made.save_as(stream)
    return path


def _slices(labels: Volume, folder: Path) -> tuple[list[int], list[Path]]:
    """For each slice of the series that has the grid of `labels`: its place along the last source axis, its file."""
    said = ""
    for one in list_series(folder):
        if one.problem:
            continue
        try:
            geometry, slices = grid_and_files(folder, one.id)
        except Med3dError as error:
            said = f" {error.sentence}"
            continue
        if geometry.same_grid(labels.geometry) and geometry.source_shape == labels.geometry.source_shape:
            return [place for place, _ in slices], [file for _, file in slices]
    raise DataError(
        f"No series in {folder.name} has the grid of {labels.name}.{said}",
        "Choose the folder of the series that the label map was drawn on; save maps of other scans as NIfTI.",
    )


def _check_identities(sources: Sequence[Any], folder: Path) -> None:
    lacking = [name for tag, name in DEMANDED.items() if any(not str(one.get(tag) or "") for one in sources)]
    if lacking:
        raise DataError(
            f"The series in {folder.name} has no identity of {', '.join(lacking)}, as after some anonymisation; "
            "a DICOM segmentation must refer to it.",
            "Use the original files of the scanner, or save the label map as NIfTI.",
        )


def _segment(highdicom: Any, number: int, value: int, classes: Sequence[ClassEntry]) -> Any:
    from pydicom.sr.codedict import codes

    entry = next((entry for entry in classes if entry.index == value), None)
    made = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=(entry.name if entry else f"class {value}")[:_LONGEST_LABEL],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.AnatomicalStructure,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=MANUFACTURER, version=_version(), family=codes.DCM.ArtificialIntelligence
        ),
    )
    if entry is not None:
        red, green, blue = (int(entry.colour[i : i + 2], 16) for i in (1, 3, 5))
        colour = highdicom.color.CIELabColor.from_rgb(red, green, blue)
        made.RecommendedDisplayCIELabValue = list(colour.value)
    return made


def _version() -> str:
    from training_backend import __version__

    return str(__version__)


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise ConfigError(
            "DICOM segmentations need the package highdicom.", "pip install 'napari-med3dssl[dicom-seg]'."
        ) from error
    return highdicom
