"""Research dumps without a header: UA-MT's .h5, and .npz or .npy as TANGERINE and others use them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from training_backend.data.facts import ImageFacts, chosen, scan_name, suffix_of
from training_backend.data.integrity import check_claim, check_file
from training_backend.data.volume import Array, Geometry, Shape, Triple, Volume
from training_backend.errors import DataError

UA_MT_SPACING_MM: Triple = (0.625, 0.625, 0.625)
"""Spacing of the 2018 atrial segmentation challenge, which the .h5 files do not repeat."""

_IMAGE_KEYS = ("image", "volume", "img", "data", "arr_0")  # looked for in this order when no key is given
LABEL_KEYS = ("label", "labels", "mask", "seg", "segmentation")
_UNKNOWN_SPACING = "The file gives no spacing and no orientation: 1 mm and (z, y, x) axes are assumed."


@dataclass(frozen=True)
class _Member:
    """One array of a file, not loaded yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    held: int  # bytes on disk
    compressed: bool
    load: Callable[[], Array]


def probe(path: Path, key: str = "", *, labels: bool = False) -> ImageFacts:
    """Facts of the array that `key` names; without a key, of the image (or of the label map)."""
    with _members(path) as members:
        name, contrast = _select(path, members, key, labels)
        member = members[name]
        _check_kind(path, name, member)
        geometry, count = _layout(path, name, members)
    picked = tuple(_join(name, index) for index in chosen(path, contrast, count)) if count > 1 else ()
    warnings = () if _is_ua_mt(path, name) else (_UNKNOWN_SPACING,)
    dtype = str(member.dtype.newbyteorder("="))
    modality = "MR" if _is_ua_mt(path, name) else "unknown"
    return ImageFacts(geometry.shape, geometry.spacing_mm, geometry, dtype, modality, picked, warnings)


def read(path: Path, key: str = "", *, labels: bool = False) -> list[Volume]:
    """The array that `key` names (``name`` or ``name/index`` of a 4-D one), or the image of the file.

    A .h5 with ``image`` is taken as UA-MT: axes (x, y, z) towards Left, Posterior, Superior, 0.625 mm. All others are
    taken as (z, y, x), 4-D ones with contrasts first, at 1 mm with a warning.
    """
    with _members(path) as members:
        name, contrast = _select(path, members, key, labels)
        member = members[name]
        _check_kind(path, name, member)
        geometry, count = _layout(path, name, members)
        check_claim(path, member.shape, member.dtype.itemsize, held=member.held, compressed=member.compressed)
        stored = member.load()
    stored = np.asarray(stored, dtype=stored.dtype.newbyteorder("="))
    ua_mt = _is_ua_mt(path, name)
    meta: dict[str, Any] = {
        "format": suffix_of(path).lstrip("."),
        "file": path.name,
        "key": name,
        "spacing_assumed": True,
    }
    meta["warnings"] = [] if ua_mt else [_UNKNOWN_SPACING]
    if name == "volume" and stored.dtype.kind == "f" and 0 <= float(stored.min()) and float(stored.max()) <= 1:
        meta["normalised"] = True  # TANGERINE's own files: windowed and scaled to [0, 1] already
    blocks = [stored] if stored.ndim == 3 else stored
    volumes = []
    for index in chosen(path, contrast, count):
        block = blocks[index]
        array = geometry.to_canonical(block if ua_mt else block.transpose(2, 1, 0))
        extra = {"key": _join(name, index), "contrast": str(index)} if count > 1 else {}
        title = f"{scan_name(path)} {index}" if count > 1 else scan_name(path)
        volumes.append(Volume(array, geometry, "MR" if ua_mt else "unknown", title, {**meta, **extra}))
    return volumes


def _join(name: str, index: int) -> str:
    return f"{name}/{index}" if name else str(index)


def _is_ua_mt(path: Path, name: str) -> bool:
    return suffix_of(path) in (".h5", ".hdf5") and name in ("image", "label")


def _layout(path: Path, name: str, members: Mapping[str, _Member]) -> tuple[Geometry, int]:
    shape = members[name].shape
    if len(shape) not in (3, 4) or (len(shape) == 4 and _is_ua_mt(path, name)):
        found = " x ".join(map(str, shape)) or "a single number"
        raise DataError(f"{_title(path, name)} is {found}; a volume of three axes is expected.", "Choose another key.")
    a, b, c = shape[-3:]
    if _is_ua_mt(path, name):
        zyx: Shape = (c, b, a)
        return _axes_xyz(zyx, UA_MT_SPACING_MM), 1
    return Geometry.from_spacing((a, b, c), (1.0, 1.0, 1.0)), shape[0] if len(shape) == 4 else 1


def _axes_xyz(shape: Shape, spacing_mm: Triple) -> Geometry:
    return Geometry.from_spacing(shape, spacing_mm)


def _title(path: Path, name: str) -> str:
    return f"Array {name!r} of {path.name}" if name else path.name


def _select(path: Path, members: Mapping[str, _Member], key: str, labels: bool) -> tuple[str, str]:
    """Name of the array and index of the contrast ("" for all)."""
    if key in members:
        return key, ""
    name, _, index = key.rpartition("/")
    if key and name in members and index.isdecimal():
        return name, index
    if not key:
        for candidate in LABEL_KEYS if labels else _IMAGE_KEYS:
            if candidate in members:
                return candidate, ""
        if len(members) == 1:
            return next(iter(members)), ""
    found = ", ".join(f"{name} ({' x '.join(map(str, m.shape))})" for name, m in members.items()) or "nothing"
    problem = f"has no array {key!r}" if key else "holds several arrays and none has a usual name"
    raise DataError(f"{path.name} {problem}; it holds {found}.", "Give the name as key.")


def _check_kind(path: Path, name: str, member: _Member) -> None:
    if member.dtype.kind == "O":
        raise DataError(
            f"{_title(path, name)} holds Python objects (pickle), which could run code and are never loaded.",
            "Save it again as a plain number array.",
        )
    if member.dtype.kind not in "biuf" or member.dtype.itemsize > 8:
        raise DataError(f"{_title(path, name)} holds {member.dtype} values; real numbers are expected.", "Convert it.")


@contextmanager
def _members(path: Path) -> Iterator[Mapping[str, _Member]]:
    """Arrays of the file by name, unloaded; damaged files become sentences, on opening and on loading."""
    check_file(path)
    opener = {".npy": _npy, ".npz": _npz}.get(suffix_of(path), _h5)
    try:
        with opener(path) as members:
            yield members
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        detail = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path.name} is damaged or not what its name says: {detail}.", "Copy or save it again."
        ) from error


@contextmanager
def _npy(path: Path) -> Iterator[Mapping[str, _Member]]:
    with path.open("rb") as stream:
        shape, dtype = _npy_header(stream)
        held = path.stat().st_size - stream.tell()
    yield {"": _Member(shape, dtype, held, False, lambda: np.load(path, allow_pickle=False))}


@contextmanager
def _npz(path: Path) -> Iterator[Mapping[str, _Member]]:
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
        members = {}
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if entry.filename == name or name not in arrays.files:
                continue
            with archive.open(entry) as stream:
                shape, dtype = _npy_header(stream)
            compressed = entry.compress_type != zipfile.ZIP_STORED
            members[name] = _Member(shape, dtype, entry.compress_size, compressed, lambda name=name: arrays[name])
        yield members


def _npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    return shape, dtype


@contextmanager
def _h5(path: Path) -> Iterator[Mapping[str, _Member]]:
    import h5py

    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, item: found.__setitem__(name, item) if isinstance(item, h5py.Dataset) else None)
        yield {
            name: _Member(
                item.shape or (),
                item.dtype,
                item.id.get_storage_size(),
                item.chunks is not None,
                lambda item=item: item[()],
            )
            for name, item in found.items()
        }


__all__ = ["LABEL_KEYS", "UA_MT_SPACING_MM", "BinaryIO", "probe", "read"]
