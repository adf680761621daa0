"""Pixel values of DICOM slices in rescaled units, by pydicom where it has the decoder, else by GDCM in SimpleITK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.pixels.decoders.base import get_decoder

from training_backend.data.nifti import scaled
from training_backend.data.volume import Array
from training_backend.errors import DataError

Request = tuple[Path, int | None, tuple[float, float]]
"""File, frame in it (None when there is one), and (slope, intercept)."""


def pixels(requests: Sequence[Request]) -> list[Array]:
    """Images (rows, columns) of `requests`; each file is opened once when its frames follow each other."""
    images = []
    opened: tuple[Path, Array, bool] | None = None
    for path, index, rescale in requests:
        if opened is None or opened[0] != path:
            opened = (path, *_stored(path))
        _, stored, rescaled = opened
        image = stored if index is None else stored[index]
        images.append(image if rescaled else scaled(image, *rescale))
    return images


def _stored(path: Path) -> tuple[Array, bool]:
    """All frames of a file, and whether they are rescaled already."""
    try:
        dataset = pydicom.dcmread(path, force=True)
        if _decodes(dataset):
            return dataset.pixel_array, False
        return _by_gdcm(path, dataset)
    except (ValueError, AttributeError, RuntimeError, EOFError, OSError, NotImplementedError) as error:
        detail = " ".join(str(error).split())[-160:]
        raise DataError(f"The pixels of {path.name} cannot be read: {detail}.", "Copy the file again.") from error


def _decodes(dataset: pydicom.Dataset) -> bool:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:  # an old file without the mark; GDCM guesses better
        return False
    return not syntax.is_compressed or bool(get_decoder(syntax).is_available)


def _by_gdcm(path: Path, dataset: pydicom.Dataset) -> tuple[Array, bool]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    array: Array = sitk.GetArrayFromImage(reader.Execute())
    if int(dataset.get("NumberOfFrames") or 1) == 1:
        array = array.reshape(array.shape[-2:])
    return (array.astype(np.float32) if array.dtype == np.float64 else array), True
