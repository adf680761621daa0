"""NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd) through SimpleITK, with the checks that ITK leaves out."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from training_backend.data.facts import ImageFacts, chosen, geometry_of, lps_to_ras, scan_name, shear_warning, suffix_of
from training_backend.data.integrity import check_claim, check_file, check_memory, inflated
from training_backend.data.volume import Array, Geometry, Shape, Volume
from training_backend.errors import DataError, GeometryError

_FORMATS = {".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage"}
_LARGEST_HEADER = 1 << 20
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "CT": "CT", "MR": "MR", "PT": "PET"}


def probe(path: Path, key: str = "") -> ImageFacts:
    """Facts from the header alone."""
    _check_payload(path, to_the_end=False)
    reader = _open(path)
    geometry, warnings = _geometry(path, reader)
    count = _contrasts(path, reader)
    contrasts = tuple(str(index) for index in chosen(path, key, count)) if count > 1 else ()
    dtype = str(_dtype(path, reader))
    return ImageFacts(
        geometry.shape, geometry.spacing_mm, geometry, dtype, _modality(reader), contrasts, tuple(warnings)
    )


def read(path: Path, key: str = "") -> list[Volume]:
    """All contrasts of the file (fourth axis or vector components), or the one whose index `key` gives."""
    _check_payload(path, to_the_end=True)
    reader = _open(path)
    geometry, warnings = _geometry(path, reader)
    count = _contrasts(path, reader)
    dtype = _dtype(path, reader)
    check_memory(path, 2 * math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * dtype.itemsize)
    stored = sitk.GetArrayFromImage(_guarded(path, reader.Execute))
    if reader.GetDimension() == 4:
        stored = np.moveaxis(stored, 0, -1)  # (t, z, y, x) to (z, y, x, t)
    stored = stored.reshape((*stored.shape[:3], count))
    meta: dict[str, Any] = {"format": _FORMATS[suffix_of(path)], "file": path.name, "warnings": warnings}
    if names := _class_names(reader):
        meta |= {"class_names": names, "kind": "labels"}
    volumes = []
    for index in chosen(path, key, count):
        array = geometry.to_canonical(stored[..., index].transpose(2, 1, 0))
        name, extra = scan_name(path), {}
        if count > 1:
            name, extra = f"{name} {index}", {"contrast": str(index)}
        volumes.append(Volume(array, geometry, _modality(reader), name, {**meta, **extra}))
    return volumes


def to_image(array: Array, geometry: Geometry) -> sitk.Image:
    """SimpleITK image of a canonical (z, y, x) array, with the axes in the order of the file it came from."""
    source = geometry.to_source(array)
    image = sitk.GetImageFromArray(np.ascontiguousarray(source.transpose(2, 1, 0)))
    lps = lps_to_ras(geometry.affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def _open(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if _FORMATS[suffix_of(path)] == "NRRD" else "MetaImageIO")
    reader.SetFileName(str(path))
    _guarded(path, reader.ReadImageInformation)
    return reader


def _guarded(path: Path, action: Any) -> Any:
    """Run an ITK call; its exceptions become sentences."""
    try:
        return action()
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "spacing" in text.lower():
            message = f"{path.name}: a voxel has zero or negative size along at least one axis."
            raise GeometryError(message, "Set the spacing and re-export.") from error
        if "determinant" in text.lower():
            message = f"{path.name}: the axes of this scan lie in one plane (singular direction)."
            raise GeometryError(message, "Re-export the scan.") from error
        raise DataError(f"{path.name} cannot be read: {text[-200:]}.", "Export the scan again.") from error


def _geometry(path: Path, reader: sitk.ImageFileReader) -> tuple[Geometry, list[str]]:
    axes = reader.GetDimension()
    size = reader.GetSize()
    if axes not in (3, 4):
        raise DataError(
            f"{path.name} has {axes} axes; three, or four with contrasts last, are expected.", "Convert it."
        )
    direction = np.array(reader.GetDirection()).reshape(axes, axes)[:3, :3]
    lps = np.eye(4)
    lps[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    lps[:3, 3] = reader.GetOrigin()[:3]
    affine = lps_to_ras(lps)
    shape: Shape = (size[0], size[1], size[2])
    return geometry_of(path, affine, shape), shear_warning(affine)


def _contrasts(path: Path, reader: sitk.ImageFileReader) -> int:
    components = int(reader.GetNumberOfComponents())
    frames = int(reader.GetSize()[3]) if reader.GetDimension() == 4 else 1
    if components > 1 and (frames > 1 or (components in (3, 4) and _dtype(path, reader) == np.uint8)):
        raise DataError(
            f"{path.name} has {components} numbers per voxel (a colour image or a field); one is expected.",
            "Export grey values, one volume per file.",
        )
    return components * frames


def _dtype(path: Path, reader: sitk.ImageFileReader) -> np.dtype[Any]:
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    words = re.search(r"(8|16|32|64)-bit (signed integer|unsigned integer|float)", name)
    if words is None or "complex" in name:
        raise DataError(
            f"{path.name} stores {name} voxels; real numbers are expected.", "Convert it, for example to float."
        )
    kind = {"signed integer": "int", "unsigned integer": "uint", "float": "float"}[words[2]]
    return np.dtype(f"{kind}{words[1]}")


def _modality(reader: sitk.ImageFileReader) -> str:
    found = reader.GetMetaData("Modality") if reader.HasMetaDataKey("Modality") else ""
    return _MODALITIES.get(found, "unknown")


def _class_names(reader: sitk.ImageFileReader) -> dict[str, str]:
    """Names of label values as 3D Slicer stores them in .seg.nrrd files."""
    names = {}
    for key in reader.GetMetaDataKeys():
        if match := re.fullmatch(r"(Segment\d+)_LabelValue", key):
            names[reader.GetMetaData(key)] = reader.GetMetaData(f"{match[1]}_Name")
    return names


@dataclass(frozen=True)
class _Payload:
    """Where the voxels lie: file, first byte, kind of compression, and the size that the header claims."""

    file: Path
    start: int
    compressed: bool
    sizes: tuple[int, ...]
    itemsize: int


def _check_payload(path: Path, *, to_the_end: bool) -> None:
    """Compare the claimed size with file and memory; read compressed voxels to the end, for ITK ignores their CRC."""
    check_file(path)
    payload = (_nrrd_payload if _FORMATS[suffix_of(path)] == "NRRD" else _meta_payload)(path)
    if payload is None:  # text, several files, or another rare form: left to ITK
        return
    check_file(payload.file)
    held = payload.file.stat().st_size - payload.start
    check_claim(path, payload.sizes, payload.itemsize, held=held, compressed=payload.compressed)
    if to_the_end and payload.compressed:
        for _ in inflated(payload.file, payload.start):
            pass


_NRRD_SIZES = {"char": 1, "int8": 1, "short": 2, "int16": 2, "int": 4, "int32": 4, "float": 4, "double": 8, "int64": 8}


def _nrrd_payload(path: Path) -> _Payload | None:
    with path.open("rb") as stream:
        head = stream.read(_LARGEST_HEADER)
    if not head.startswith(b"NRRD"):
        raise DataError(f"{path.name} is not an NRRD file: it does not begin with NRRD.", "Check what it is.")
    end = re.search(rb"\r?\n\r?\n", head)
    text = head[: end.start()] if end else head
    fields = dict(re.findall(r"^([\w ]+?): *(.*?)\r?$", text.decode("utf-8", "replace"), re.MULTILINE))
    encoding = fields.get("encoding", "")
    data_file = fields.get("data file") or fields.get("datafile")
    skips = {fields.get("line skip", "0"), fields.get("byte skip") or fields.get("byteskip", "0")} - {"0"}
    sizes = tuple(int(word) for word in fields.get("sizes", "").split() if word.isdecimal())
    kind = fields.get("type", "").replace("unsigned ", "").replace("signed ", "").removesuffix("_t").lstrip("u")
    if encoding not in ("raw", "gzip", "gz") or skips or not sizes or kind not in _NRRD_SIZES:
        return None
    if data_file and (data_file.startswith("LIST") or "%" in data_file):
        return None
    if not data_file and end is None:
        raise DataError(f"{path.name} ends within its header.", "Copy or download the file again.")
    file, start = (path.parent / data_file, 0) if data_file else (path, end.end() if end else 0)
    return _Payload(file, start, encoding != "raw", sizes, _NRRD_SIZES[kind])


_META_SIZES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_META_TYPE = re.compile(r"MET_U?(CHAR|SHORT|INT|LONG_LONG|LONG|FLOAT|DOUBLE)")


def _meta_payload(path: Path) -> _Payload | None:
    with path.open("rb") as stream:
        head = stream.read(_LARGEST_HEADER)
    end = re.search(rb"^ElementDataFile[ \t]*=[ \t]*(.*?)[ \t]*(?:\r?\n|\Z)", head, re.MULTILINE)
    if end is None:
        raise DataError(f"{path.name} is not a MetaImage: its header names no ElementDataFile.", "Check what it is.")
    text = head[: end.start()].decode("utf-8", "replace")
    fields = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    sizes = tuple(int(word) for word in fields.get("DimSize", "").split() if word.isdecimal())
    kind = _META_TYPE.fullmatch(fields.get("ElementType", ""))
    local = end[1].decode("utf-8", "replace")
    skips = fields.get("HeaderSize", "0") != "0" or fields.get("BinaryData", "True").lower() != "true"
    if skips or not sizes or kind is None or local.startswith("LIST") or "%" in local:
        return None
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    file, start = (path, end.end()) if local.upper() == "LOCAL" else (path.parent / local, 0)
    compressed = fields.get("CompressedData", "False").lower() == "true"
    return _Payload(file, start, compressed, (*sizes, channels), _META_SIZES[kind[1]])
