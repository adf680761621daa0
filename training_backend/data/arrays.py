"""Research dumps without a header: UA-MT's .h5, and .npz or .npy as TANGERINE and others use them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from training_backend.data.facts import ImageFacts, chosen, scan_name, suffix_of
from training_backend.data.integrity import check_claim, check_file
from training_backend.data.volume import Array, Geometry, Triple, Volume
from training_backend.errors import DataError

UA_MT_SPACING_MM: Triple = (0.625, 0.625, 0.625)
"""Spacing of the 2018 atrial segmentation challenge, which the .h5 files do not repeat."""

_IMAGE_KEYS = ("image", "volume", "img", "data", "arr_0")  # looked for in this order when no key is given
_LABEL_KEYS = ("label", "labels", "mask", "seg", "segmentation")
_UNKNOWN_SPACING = "The file gives no spacing and no orientation: 1 mm and (z, y, x) axes are assumed."
_DAMAGE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _Member:
    """One array of a file, not loaded yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    held: int  # bytes on disk
    compressed: bool
    load: Callable[[], Any]


@dataclass(frozen=True)
class _Choice:
    """The array to read, and what its axes mean."""

    name: str
    member: _Member
    ua_mt: bool
    geometry: Geometry
    contrasts: range | None  # None when the array is 3-D

    @property
    def modality(self) -> str:
        return "MR" if self.ua_mt else "unknown"

    @property
    def warnings(self) -> list[str]:
        return [] if self.ua_mt else [_UNKNOWN_SPACING]

    def key(self, contrast: int) -> str:
        return f"{self.name}/{contrast}" if self.name else str(contrast)


def probe(path: Path, key: str = "", *, labels: bool = False) -> ImageFacts:
    """Facts of the array that `key` names; without a key, of the image (or of the label map)."""
    with _members(path) as members:
        choice = _choose(path, members, key, labels)
    geometry = choice.geometry
    contrasts = tuple(choice.key(index) for index in choice.contrasts or ())
    dtype = str(choice.member.dtype.newbyteorder("="))
    return ImageFacts(
        geometry.shape, geometry.spacing_mm, geometry, dtype, choice.modality, contrasts, tuple(choice.warnings)
    )


def read(path: Path, key: str = "", *, labels: bool = False) -> list[Volume]:
    """The array that `key` names (``name``, or ``name/index`` in a 4-D one), or the image of the file.

    A .h5 with ``image`` is taken as UA-MT: axes (x, y, z) towards Left, Posterior, Superior, 0.625 mm. All others are
    taken as (z, y, x), 4-D ones with contrasts first, at 1 mm with a warning.
    """
    with _members(path) as members:
        choice = _choose(path, members, key, labels)
        member = choice.member
        check_claim(path, member.shape, member.dtype.itemsize, held=member.held, compressed=member.compressed)
        stored = np.asarray(member.load(), dtype=member.dtype.newbyteorder("="))
    meta: dict[str, Any] = {"format": suffix_of(path).lstrip("."), "file": path.name, "key": choice.name}
    meta |= {"spacing_assumed": True, "warnings": choice.warnings}
    if choice.name == "volume" and stored.dtype.kind == "f" and stored.min() >= 0 and stored.max() <= 1:
        meta["normalised"] = True  # TANGERINE's own files: windowed and scaled to [0, 1] already
    if choice.contrasts is None:
        return [_volume(choice, stored, scan_name(path), meta)]
    return [
        _volume(choice, stored[i], f"{scan_name(path)} {i}", {**meta, "key": choice.key(i), "contrast": str(i)})
        for i in choice.contrasts
    ]


def _volume(choice: _Choice, stored: Array, name: str, meta: dict[str, Any]) -> Volume:
    array = choice.geometry.to_canonical(stored if choice.ua_mt else stored.transpose(2, 1, 0))
    return Volume(array, choice.geometry, choice.modality, name, meta)


def _choose(path: Path, members: Mapping[str, _Member], key: str, labels: bool) -> _Choice:
    name, contrast = _select(path, members, key, labels)
    member = members[name]
    title = f"Array {name!r} of {path.name}" if name else path.name
    if member.dtype.kind == "O":
        raise DataError(
            f"{title} holds Python objects (pickle), which could run code and are never loaded.",
            "Save it again as a plain array of numbers.",
        )
    if member.dtype.kind not in "biuf" or member.dtype.itemsize > 8:
        raise DataError(f"{title} holds {member.dtype} values; real numbers are expected.", "Convert it.")
    ua_mt = suffix_of(path) in (".h5", ".hdf5") and "image" in members
    axes = len(member.shape)
    if axes not in (3, 4) or (axes == 4 and ua_mt) or 0 in member.shape:
        found = " x ".join(map(str, member.shape)) or "a single number"
        raise DataError(f"{title} is {found}; a volume of three axes is expected.", "Choose another key.")
    first, second, third = member.shape[-3:]
    if ua_mt:
        geometry = Geometry.from_spacing((third, second, first), UA_MT_SPACING_MM)
    else:
        geometry = Geometry.from_spacing((first, second, third), (1.0, 1.0, 1.0))
    contrasts = chosen(path, contrast, member.shape[0]) if axes == 4 else None
    return _Choice(name, member, ua_mt, geometry, contrasts)


def _select(path: Path, members: Mapping[str, _Member], key: str, labels: bool) -> tuple[str, str]:
    """Name of the array, and index of the contrast ("" for all)."""
    if key in members:
        return key, ""
    name, _, index = key.rpartition("/")
    if key and name in members and index.isdecimal():
        return name, index
    if not key:
        for candidate in _LABEL_KEYS if labels else _IMAGE_KEYS:
            if candidate in members:
                return candidate, ""
        if len(members) == 1:
            return next(iter(members)), ""
    found = ", ".join(f"{name} ({' x '.join(map(str, m.shape))})" for name, m in members.items()) or "nothing"
    problem = f"has no array {key!r}" if key else "holds several arrays and none has a usual name"
    raise DataError(f"{path.name} {problem}; it holds {found}.", "Give the name as key.")


@contextmanager
def _members(path: Path) -> Iterator[Mapping[str, _Member]]:
    """Arrays of the file by name, unloaded; damage becomes a sentence, on opening and on loading."""
    check_file(path)
    opener = {".npy": _npy, ".npz": _npz}.get(suffix_of(path), _h5)
    try:
        with opener(path) as members:
            yield members
    except _DAMAGE as error:
        detail = " ".join(str(error).split())[:200]
        sentence = f"{path.name} is damaged or not what its name says: {detail}."
        raise DataError(sentence, "Copy or save it again.") from error


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
            if name == entry.filename:
                continue
            with archive.open(entry) as stream:
                shape, dtype = _npy_header(stream)
            compressed = entry.compress_type != zipfile.ZIP_STORED
            members[name] = _Member(shape, dtype, entry.compress_size, compressed, partial(arrays.__getitem__, name))
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
        members = {}

        def collect(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                checked = item.compression in (None, "gzip")  # other filters may pack denser than deflate
                held = item.id.get_storage_size() if checked else item.nbytes
                members[name] = _Member(item.shape or (), item.dtype, held, item.chunks is not None, lambda: item[()])

        file.visititems(collect)
        yield members
