"""Saves layers as scans: voxels in the axis order and with the exact affine of the file that they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_med3dssl._layers import KEY
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import DataError


def write_image(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Save one image layer; answers the path written."""
    return [_write(Path(path), data, attributes, labels=False)]


def write_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Save one labels layer in the smallest unsigned type that holds it; answers the path written."""
    return [_write(Path(path), data, attributes, labels=True)]


def write_all(path: str, layers: list[tuple[Any, dict[str, Any], str]]) -> list[str]:
    """Save image and labels layers into a folder, one ``.nii.gz`` each, named after the layers."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    for data, attributes, kind in layers:
        target = _free_name(folder, str(attributes.get("name") or kind))
        written.append(_write(target, data, attributes, labels=kind == "labels"))
    return written


def _write(path: Path, data: Any, attributes: dict[str, Any], *, labels: bool) -> str:
    from training_backend.data.write import write_volume

    array = np.asarray(data)
    if attributes.get("rgb"):
        raise DataError(
            f"The layer {attributes.get('name')!r} holds colours, not measurements.", "Save it as a picture."
        )
    if array.ndim != 3:
        raise DataError(f"A scan has the three axes (z, y, x), found an array of shape {array.shape}.")
    facts = dict(attributes.get("metadata") or {}).get(KEY, {})
    meta = dict(facts.get("provenance", {}))
    if labels:
        meta["kind"] = "labels"
        meta["class_names"] = {str(entry["index"]): entry["name"] for entry in facts.get("classes", ())}
    volume = Volume(array, _geometry(array, attributes, facts), str(facts.get("modality", "unknown")), path.name, meta)
    return str(write_volume(volume, path, overwrite=True, labels=labels))  # napari has asked before replacing


def _geometry(array: Any, attributes: dict[str, Any], facts: dict[str, Any]) -> Geometry:
    """The exact grid kept in the metadata where it still fits, else the one that scale and translate describe."""
    if "geometry" in facts:
        geometry = Geometry.from_dict(facts["geometry"])
        if geometry.shape == array.shape:
            return geometry
    from napari_med3dssl._layers import geometry_of_scale

    return geometry_of_scale(array.shape, attributes.get("scale", (1, 1, 1)), attributes.get("translate", (0, 0, 0)))


def _free_name(folder: Path, name: str) -> Path:
    stem = "".join(letter if letter.isalnum() or letter in " -_·." else "-" for letter in name).strip() or "layer"
    path = folder / f"{stem}.nii.gz"
    number = 2
    while path.exists():
        path = folder / f"{stem}-{number}.nii.gz"
        number += 1
    return path
