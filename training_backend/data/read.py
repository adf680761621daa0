"""Read any scan into `Volume`s: NIfTI, NRRD, MetaImage, DICOM, UA-MT .h5, .npz and .npy, and plain pictures.

All formats give the same result: canonical (z, y, x) voxels and the exact way back to the file. What is unusual is told
in ``Volume.warnings``; what is unusable is a `DataError`, a `GeometryError` or a `ResourceError` with a sentence.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np

from training_backend.data.facts import PICTURES, SUFFIXES, ImageFacts, is_picture, suffix_of
from training_backend.data.integrity import check_file, non_finite_warning
from training_backend.data.volume import Array, Volume
from training_backend.errors import DataError

__all__ = ["ImageFacts", "can_read", "probe", "read_classes", "read_labels", "read_volume", "read_volumes"]

_MODULES = {
    **dict.fromkeys((".nii", ".nii.gz"), "nifti"),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd"), "itk"),
    **dict.fromkeys((".h5", ".hdf5", ".npz", ".npy"), "arrays"),
    **dict.fromkeys(PICTURES, "pictures"),
    ".arrow": "arrow",
}
YES_VALUES = (255, 65535)
"""What programs for pictures write for "yes" in a mask of yes and no; too large for the number of a class."""
_LOOK_AT = 2000  # entries of a folder looked at to find out whether it holds DICOM


def read_volumes(path: Path | str, *, key: str = "", series: str = "") -> list[Volume]:
    """All volumes of a file or a DICOM folder: one, or the contrasts of a 4-D scan or colour picture (same geometry).

    Args:
        path: a file, a folder of DICOM files, or one file of a DICOM series (the whole series is read).
        key: array inside .h5 and .npz files; index of one contrast of a 4-D scan; colour of a picture; empty reads the
            image, all contrasts.
        series: which DICOM series, as `list_series` names it; needed when there are several.

    Raises:
        DataError: missing, damaged or unsupported file, several series without a choice.
        GeometryError: no usable spacing or orientation.
        ResourceError: more voxels than the memory holds.
    """
    path = Path(path)
    if _is_dicom(path):
        from training_backend.data import dicom

        return [_finished(volume) for volume in dicom.read(path, series=series or key)]
    return [_finished(volume) for volume in _module(path).read(path, key)]


def read_volume(path: Path | str, *, key: str = "", series: str = "") -> Volume:
    """The only volume of a file, or the first contrast of a 4-D one; see `read_volumes`."""
    return read_volumes(path, key=key, series=series)[0]


def rescaled(volume: Volume, scale: tuple[float, float] | None) -> Volume:
    """`volume` with numbers times slope plus intercept, whole where all three are; as it is where `scale` is None."""
    if scale is None:
        return volume
    whole = volume.array.dtype.kind in "iu" and all(number.is_integer() for number in scale)
    array: Array = volume.array.astype(np.float64) * scale[0] + scale[1]
    array = np.rint(array).astype(np.int32) if whole else array.astype(np.float32)
    return _finished(replace(volume, array=whole_numbers(array, volume.name) if whole else array))


def read_labels(path: Path | str, *, key: str = "") -> Volume:
    """A label map: whole numbers in the smallest type that holds them, unsigned where none is negative.

    Raises:
        DataError: voxels that are not whole numbers, several volumes in the file, or an unreadable file.
    """
    path = Path(path)
    if suffix_of(path) in (".h5", ".hdf5", ".npz", ".npy"):
        from training_backend.data import arrays

        volumes = arrays.read(path, key, labels=True)
    elif is_picture(path):
        from training_backend.data import pictures

        volumes = pictures.read_mask(path)
    else:
        volumes = read_volumes(path, key=key)
    if len(volumes) != 1:
        raise DataError(f"{path.name} holds {len(volumes)} volumes; a label map is one.", "Choose one with its key.")
    [volume] = volumes
    meta = {**volume.meta, "kind": "labels"}
    return replace(volume, array=whole_numbers(volume.array, path.name), modality="unknown", meta=meta)


def read_classes(path: Path | str, *, key: str = "", values: Mapping[int, int] | None = None) -> Volume:
    """`read_labels` with the numbers that training uses; see `renumbered` and `as_classes`."""
    return as_classes(renumbered(read_labels(path, key=key), values or {}))


def renumbered(label: Volume, values: Mapping[int, int]) -> Volume:
    """A label map whose voxels of each value of `values` have the class it stands for, in the smallest type."""
    if not values:
        return label
    array = label.array.astype(np.int64)
    for value, number in values.items():
        array[label.array == value] = number
    return replace(label, array=whole_numbers(array, label.name))


def as_classes(label: Volume) -> Volume:
    """A mask of 0 and 255 (or 65535) as one of 0 and 1, with a warning that says so; other label maps as they are."""
    highest = int(label.array.max())
    if highest not in YES_VALUES or not bool(((label.array == 0) | (label.array == highest)).all()):
        return label
    sentence = f"The mask holds 0 and {highest} only; {highest} was taken as class 1."
    meta = {**label.meta, "warnings": [*label.warnings, sentence]}
    return replace(label, array=(label.array != 0).astype(np.uint8), meta=meta)


def can_read(path: Path | str) -> bool:
    """Whether `read_volumes` would try: by name, or by the first bytes for DICOM. Cheap; never raises."""
    path = Path(path)
    try:
        return (path.is_file() and suffix_of(path) in _MODULES) or _is_dicom(path)
    except OSError:
        return False


def probe(path: Path | str, *, key: str = "", series: str = "") -> ImageFacts:
    """Shape, spacing, geometry, type and modality from headers, without loading voxels."""
    path = Path(path)
    if _is_dicom(path):
        from training_backend.data import dicom

        return dicom.probe(path, series=series or key)
    facts: ImageFacts = _module(path).probe(path, key)
    return facts


def whole_numbers(array: Array, name: str) -> Array:
    """`array` as the smallest integer type that holds its values; `name` is for the error sentence."""
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        odd = (rounded != array) | (np.abs(array) > 2**53)
        if odd.any():
            value = array[odd].flat[0]
            raise DataError(
                f"{name} is not a label map: it holds {value:g}; whole numbers are expected.", "Choose the label file."
            )
        array = rounded
    elif array.dtype.kind == "b":
        return array.astype(np.uint8)
    low, high = (int(array.min()), int(array.max()))
    kinds = ("uint8", "uint16", "uint32", "uint64") if low >= 0 else ("int8", "int16", "int32", "int64")
    kind = next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return array.astype(kind)


def _module(path: Path) -> ModuleType:
    if path.is_dir():
        raise DataError(f"{path} holds no DICOM files.", "Give a scan, or build a dataset from the folder.")
    check_file(path)
    name = _MODULES.get(suffix_of(path))
    if name is None:
        raise DataError(
            f"{path.name} is no format read here.", f"Readable are {', '.join(SUFFIXES)} and DICOM folders."
        )
    return importlib.import_module(f"training_backend.data.{name}")


def _is_dicom(path: Path) -> bool:
    """A DICOM file by its mark, or a folder with one among its first files."""
    if path.is_dir():
        first = islice(path.rglob("*"), _LOOK_AT)
        return any(_has_mark(file) for file in first if file.is_file() and suffix_of(file) not in _MODULES)
    return (
        suffix_of(path) not in _MODULES and path.is_file() and (_has_mark(path) or suffix_of(path) in (".dcm", ".ima"))
    )


def _has_mark(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _finished(volume: Volume) -> Volume:
    """Add what only the voxels tell: missing numbers, and CT recognised by its Hounsfield units."""
    meta = {**volume.meta, "warnings": [*volume.warnings, *non_finite_warning(volume.array)]}
    modality = volume.modality
    if modality == "unknown" and "largest" not in meta and _looks_like_ct(volume.array):
        modality, meta["modality_guessed"] = "CT", True
    return replace(volume, modality=modality, meta=meta)


def _looks_like_ct(array: Array) -> bool:
    """At least a twentieth of the voxels is air (near -1000 HU, or padding below) and a twentieth soft tissue."""
    steps = tuple(slice(None, None, max(1, n // 48)) for n in array.shape)
    sample = array[steps].astype(np.float32)
    air = (sample > -1100) & (sample < -900)
    tissue = (sample > -150) & (sample < 200)
    within = (sample >= -4096) & (sample < 10000)
    return bool(air.mean() > 0.05 and tissue.mean() > 0.05 and within.mean() > 0.99)
