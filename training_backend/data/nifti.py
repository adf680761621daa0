"""NIfTI-1 and NIfTI-2 in one file (.nii, .nii.gz): nibabel reads the header, one checked pass reads the voxels."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from training_backend.data.facts import ImageFacts, chosen, geometry_of, scan_name, shear_warning
from training_backend.data.integrity import check_claim, check_file, is_gzip, read_exactly, read_head
from training_backend.data.volume import Array, Geometry, Shape, Volume
from training_backend.errors import DataError, GeometryError

_INTENT_LABEL = 1002
_LARGEST_HEADER = 1 << 24  # header extensions beyond 16 MB are a damaged offset
_KEPT_FIELDS = ("pixdim", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_LABEL = re.compile(rb'<Label\s[^>]*?Key="(\d+)"[^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))')


def probe(path: Path, key: str = "") -> ImageFacts:
    """Facts from the header alone."""
    header = _read_header(path)
    shape, count = _shape(path, header)
    geometry, warnings = _geometry(path, header, shape)
    contrasts = tuple(str(index) for index in chosen(path, key, count)) if count > 1 else ()
    dtype = str(_dtype(path, header).newbyteorder("="))
    return ImageFacts(geometry.shape, geometry.spacing_mm, geometry, dtype, "unknown", contrasts, tuple(warnings))


def read(path: Path, key: str = "") -> list[Volume]:
    """All contrasts of the file (the fourth axis), or the one whose index `key` gives."""
    header = _read_header(path)
    shape, count = _shape(path, header)
    geometry, warnings = _geometry(path, header, shape)
    dtype, offset = _dtype(path, header), _offset(header)
    held, compressed = path.stat().st_size, is_gzip(path)
    size = check_claim(path, (*shape, count), dtype.itemsize, held=held, compressed=compressed)
    buffer = read_exactly(path, offset + size)
    stored = np.frombuffer(buffer, dtype, count=size // dtype.itemsize, offset=offset)
    stored = stored.reshape((*shape, count), order="F")
    meta: dict[str, Any] = {
        "format": "NIfTI",
        "file": path.name,
        "warnings": warnings,
        "nifti": _kept(header, geometry),
    }
    if names := _class_names(header):
        meta["class_names"] = names
    if names or int(header["intent_code"]) == _INTENT_LABEL:
        meta["kind"] = "labels"
    if (low := float(header["cal_min"])) < (high := float(header["cal_max"])):
        meta["window"] = [low, high]
    volumes = []
    for index in chosen(path, key, count):
        array = scaled(geometry.to_canonical(stored[..., index]), *_scaling(header))
        name, extra = scan_name(path), {}
        if count > 1:
            name, extra, array = f"{name} {index}", {"contrast": str(index)}, array.copy()
        volumes.append(Volume(array, geometry, name=name, meta={**meta, **extra}))
    return volumes


def scaled(stored: Array, slope: float, intercept: float) -> Array:
    """`stored * slope + intercept` in native byte order.

    Numbers that stay whole stay integers (int16 where they fit, as HU do); others become float32, or float64 when
    they were stored so.
    """
    native = np.require(stored, dtype=stored.dtype.newbyteorder("="), requirements=["C", "A", "W"])
    if (slope, intercept) == (1.0, 0.0):
        return native
    if native.dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer():
        ends = [int(value) * int(slope) + int(intercept) for value in (native.min(), native.max())]
        kind = next(
            (k for k in (np.int16, np.int32) if np.iinfo(k).min <= min(ends) and max(ends) <= np.iinfo(k).max), None
        )
        if kind is not None:
            return (native.astype(np.int64) * int(slope) + int(intercept)).astype(kind)
    wide = np.float64 if native.dtype == np.float64 else np.float32
    result: Array = native.astype(np.float64) * slope + intercept
    return result.astype(wide)


def _read_header(path: Path) -> nib.Nifti1Header:
    check_file(path)
    head = read_head(path, 544)
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    kind: Any = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
    if not sizes & {348, 540} or len(head) < kind.sizeof_hdr:
        raise DataError(f"{path.name} is not a NIfTI file: it does not begin with a NIfTI header.", "Check what it is.")
    offset = int(kind(head[: kind.sizeof_hdr], check=False)["vox_offset"])
    if not kind.sizeof_hdr <= offset <= _LARGEST_HEADER:
        raise DataError(
            f"The header of {path.name} places the voxels at byte {offset}, which is not a place in a .nii file.",
            "Pairs of .hdr and .img are not read: convert to .nii.gz.",
        )
    try:
        header: nib.Nifti1Header = kind.from_fileobj(BytesIO(read_head(path, offset)), check=False)
    except (HeaderDataError, ValueError) as error:
        raise DataError(f"The header of {path.name} cannot be read: {error}.", "Export the scan again.") from error
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise DataError(f"{path.name} is not a single-file NIfTI image.", "Convert it to .nii.gz.")
    if header["pixdim"][0] == 0:  # the standard reads 0 as 1
        header["pixdim"][0] = 1
    return header


def _shape(path: Path, header: nib.Nifti1Header) -> tuple[Shape, int]:
    dimensions = [int(n) for n in header.get_data_shape()]
    while len(dimensions) > 3 and dimensions[-1] == 1:
        dimensions.pop()
    dimensions += [1] * (3 - len(dimensions))
    if len(dimensions) == 5 and dimensions[3] == 1:  # NIfTI keeps vectors on the fifth axis
        del dimensions[3]
        if dimensions[3] in (3, 4) and _dtype(path, header) == np.uint8:
            raise _colour(path)
    if len(dimensions) > 4:
        found = " x ".join(map(str, header.get_data_shape()))
        raise DataError(
            f"{path.name} has the axes {found}; three, or four with contrasts last, are expected.", "Split it."
        )
    i, j, k = dimensions[:3]
    return (i, j, k), dimensions[3] if len(dimensions) == 4 else 1


def _dtype(path: Path, header: nib.Nifti1Header) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise DataError(f"{path.name} stores numbers of an unknown type.", "Export the scan again.") from error
    if dtype.fields is not None:
        raise _colour(path)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(
            f"{path.name} stores {dtype.name} numbers; real integers or floats are expected.", "Convert it."
        )
    return dtype


def _colour(path: Path) -> DataError:
    return DataError(f"{path.name} is a colour image (RGB); one number per voxel is expected.", "Export grey values.")


def _offset(header: nib.Nifti1Header) -> int:
    return int(header["vox_offset"])


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:  # the standard: no scaling
        return 1.0, 0.0
    return slope, intercept if np.isfinite(intercept) else 0.0


def _geometry(path: Path, header: nib.Nifti1Header, shape: Shape) -> tuple[Geometry, list[str]]:
    warnings = []
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    try:
        affine = header.get_best_affine()
        other = header.get_qform() if sform > 0 and qform > 0 else affine
    except (HeaderDataError, ValueError) as error:
        if sform <= 0:
            raise GeometryError(
                f"The orientation in {path.name} is unusable: {error}.", "Re-export the scan."
            ) from error
        other = affine = header.get_sform()
    geometry = geometry_of(path, affine, shape)
    if sform <= 0 and qform <= 0:
        warnings.append("The file gives no orientation; left and right cannot be trusted.")
    if not np.allclose(affine, other, rtol=1e-3, atol=1e-2 * min(geometry.spacing_mm)):
        warnings.append("The file gives two orientations that differ (sform and qform); the sform is used.")
    unit = header.get_xyzt_units()[0]
    if unit in ("meter", "micron"):
        warnings.append(f"The file gives its lengths in {unit}s; they are taken as millimetres.")
    return geometry, warnings + shear_warning(affine)


def _kept(header: nib.Nifti1Header, geometry: Geometry) -> dict[str, Any]:
    """What a writer needs to restore both orientations bit for bit; free text, which may name people, stays behind."""
    kept = {name: np.asarray(header[name]).tolist() for name in _KEPT_FIELDS}
    codes = {name: int(header[name]) for name in ("sform_code", "qform_code", "xyzt_units")}
    version = 2 if isinstance(header, nib.Nifti2Header) else 1
    return {"version": version, "grid": geometry.to_dict(), "fields": {**codes, **kept}}


def _class_names(header: nib.Nifti1Header) -> dict[str, str]:
    """Names of label values from a Caret label table among the header extensions, as segmentation tools write it."""
    for extension in header.extensions:
        content = extension.get_content()
        if isinstance(content, bytes) and b"<LabelTable>" in content:
            rows = ((key, quoted or plain) for key, quoted, plain in _LABEL.findall(content))
            return {key.decode(): name.decode("utf-8", "replace").strip() for key, name in rows}
    return {}
