"""Write a volume so that reading it gives the same voxels, type and geometry: NIfTI, NRRD and MetaImage.

A file appears whole or not at all, and never replaces another one unasked.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tempfile
from io import IOBase
from pathlib import Path
from typing import Any, cast

import nibabel as nib

from training_backend.data.facts import shear_warning, suffix_of
from training_backend.data.read import whole_numbers
from training_backend.data.volume import Array, Volume
from training_backend.errors import DataError
from training_backend.files import atomic, disk_error, sync_folder

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of writable files."""

_NIFTI1_LONGEST = 32767
_SCANNER = 1  # NIfTI code of coordinates given by the scanner
_MILLIMETRES = 2


def write_volume(volume: Volume, path: Path | str, *, overwrite: bool = False, labels: bool | None = None) -> Path:
    """Write `volume` in the axis order and with the affine of the file it came from.

    Args:
        volume: image, or label map with its names in ``meta["class_names"]`` (value to name). For want of such types
            float16 is stored as float32 and bool as uint8.
        path: its ending chooses the format; see `WRITABLE`.
        overwrite: replace an existing file.
        labels: store whole numbers in the smallest type that holds them; by default when ``meta["kind"]`` is "labels".

    Returns:
        The path written (of the header, for .nhdr and .mhd).

    Raises:
        DataError: the file exists, the ending is not writable, the folder is missing, or labels are not whole.
        ResourceError: the disk is full.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix not in WRITABLE:
        raise DataError(f"{path.name} is no format written here.", f"Use one of {', '.join(WRITABLE)}.")
    if not path.parent.is_dir():
        raise DataError(f"The folder {path.parent} does not exist.", "Make it first.")
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already and is kept.", "Choose another name, or allow overwriting.")
    as_labels = volume.meta.get("kind") == "labels" if labels is None else labels
    array = whole_numbers(volume.array, volume.name) if as_labels else _storable(volume.array)
    if suffix.startswith(".nii"):
        _write_nifti(volume.with_array(array), path, compressed=suffix == ".nii.gz", labels=as_labels)
    else:
        _write_itk(volume.with_array(array), path, overwrite)
    return path


def _storable(array: Array) -> Array:
    if array.dtype.kind not in "biuf":
        raise DataError(f"Voxels of type {array.dtype} cannot be written.", "Convert them to numbers.")
    kind = {"float16": "float32", "bool": "uint8"}.get(array.dtype.name, array.dtype.newbyteorder("=").name)
    return array.astype(kind, copy=False)


def _write_nifti(volume: Volume, path: Path, *, compressed: bool, labels: bool) -> None:
    source = volume.geometry.to_source(volume.array)
    kept = volume.meta.get("nifti") or {}
    two = kept.get("version") == 2 or max(source.shape) > _NIFTI1_LONGEST
    header = _nifti_header(volume, kept, nib.Nifti2Header if two else nib.Nifti1Header)
    header.set_data_dtype(source.dtype)
    if labels:
        header.set_intent("label")
    elif window := volume.meta.get("window"):
        header["cal_min"], header["cal_max"] = window
    image = (nib.Nifti2Image if two else nib.Nifti1Image)(source, None, header)
    if labels and (names := volume.meta.get("class_names")):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, _label_table(names)))
    with atomic(path) as stream:
        if compressed:  # no name and no time inside: equal volumes give equal files
            with gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=4, mtime=0) as zipped:
                image.to_stream(zipped)
        else:
            image.to_stream(cast(IOBase, stream))


def _nifti_header(volume: Volume, kept: dict[str, Any], kind: type[nib.Nifti1Header]) -> nib.Nifti1Header:
    """Header with both orientations as in the file read, if they still describe this grid; else with fresh ones."""
    affine = volume.geometry.affine
    header = kind()
    header.set_data_shape(volume.geometry.source_shape)
    if kept and kept["grid"] == volume.geometry.to_dict():
        for name, value in kept["fields"].items():
            header[name] = value
        if header["sform_code"] > 0:
            header.set_sform(affine, int(header["sform_code"]))
        return header
    header.set_sform(affine, _SCANNER)
    header.set_qform(affine, 0 if shear_warning(affine) else _SCANNER, strip_shears=True)
    header["xyzt_units"] = _MILLIMETRES
    return header


def _label_table(names: dict[str, str]) -> bytes:
    plain = {key: name.replace("]]>", "") for key, name in names.items()}
    rows = "\n".join(f'<Label Key="{key}"><![CDATA[{name}]]></Label>' for key, name in plain.items())
    table = f"<LabelTable>\n{rows}\n</LabelTable>"
    return f'<CaretExtension><VolumeInformation Index="0">{table}</VolumeInformation></CaretExtension>'.encode()


def _write_itk(volume: Volume, path: Path, overwrite: bool) -> None:
    """Write into a folder beside the target, then move: the voxels first when header and voxels are two files."""
    import SimpleITK as sitk

    from training_backend.data.itk import to_image

    image = to_image(volume.array, volume.geometry)
    for key, name in (volume.meta.get("class_names") or {}).items():
        image.SetMetaData(f"Segment{key}_LabelValue", str(key))
        image.SetMetaData(f"Segment{key}_Name", " ".join(str(name).split()))
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        sitk.WriteImage(image, str(folder / path.name), useCompression=True)
        written = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
        for file in written:
            if (path.parent / file.name).exists() and not overwrite:
                raise DataError(f"{path.parent / file.name} exists already and is kept.", "Choose another name.")
        for file in written:
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
            file.replace(path.parent / file.name)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    except RuntimeError as error:
        if shutil.disk_usage(path.parent).free < volume.array.nbytes:
            raise disk_error(OSError(errno.ENOSPC, "no space"), path) from error
        raise DataError(
            f"{path.name} cannot be written: {str(error).strip()[-200:]}.", "Check folder and disk."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
