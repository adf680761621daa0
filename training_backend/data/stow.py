"""One case from its files into the store: read, checked, standardised, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.config.data import IngestConfig
from training_backend.data.contrasts import matched
from training_backend.data.dataset import Quarantined
from training_backend.data.manifest import CaseRecord, ImageRecord
from training_backend.data.read import probe, read_labels, read_volumes, renumbered, rescaled
from training_backend.data.standard import Standard, standardise
from training_backend.data.store import write_array
from training_backend.data.volume import Array, Volume
from training_backend.errors import DataError, GeometryError, Med3dError, ResourceError
from training_backend.files import atomic, sync_folder, write_text

VERSION = 1
_RECORD = "case.json"


@dataclass(frozen=True)
class Stowed:
    """Outcome for one case: its record, or the reason why there is none."""

    case: CaseRecord | None
    refused: Quarantined | None = None
    resumed: bool = False


def stow(folder: Path, root: Path, case: CaseRecord, config: IngestConfig) -> Stowed:
    """Store `case` in the dataset `folder`; its files are relative to `root`.

    A case that an earlier, interrupted ingest finished is kept if its sources and the settings are still the same.

    Raises:
        ResourceError: the disk is full; nothing that was stored before is lost.
    """
    if not case.images and case.label is None:
        return Stowed(case)  # a report; it is in the manifest, and nothing else is kept of it
    try:
        hashes = {(r.path, r.key): content_hash(root / r.path, r.key) for r in _records(case)}
        done = finished(folder, case, config)
        if done is not None and all(hashes[r.path, r.key] == r.sha256 for r in _records(done)):
            return Stowed(_with_facts(case, done), resumed=True)
        volumes = [_read(root, record, config) for record in case.images]
        label = None if case.label is None else _read_label(root, case.label, config)
        images = tuple(_described(record, volume, hashes) for record, volume in zip(case.images, volumes, strict=True))
        marked = None
        if case.label is not None and label is not None:
            marked = _described(case.label, label, hashes).model_copy(update={"values": dict(config.label_values)})
        volumes, notes = matched(volumes, align=config.align)
        found = {"images": images, "label": marked, "problems": (*case.problems, *notes)}
        return Stowed(store_volumes(folder, case.model_copy(update=found), volumes, label, config))
    except ResourceError as error:
        if "disk" in error.sentence:
            raise
        return Stowed(None, _refusal(case, "too big", error))
    except GeometryError as error:
        return Stowed(None, _refusal(case, "geometry", error))
    except DataError as error:
        return Stowed(None, _refusal(case, _category(error), error))
    except MemoryError:
        shortage = ResourceError("The memory does not suffice to read this scan.", "Close other programs, or crop it.")
        return Stowed(None, _refusal(case, "too big", shortage))
    except OSError as error:
        return Stowed(None, _refusal(case, "unreadable", DataError(f"It cannot be read: {error.strerror or error}.")))


def store_volumes(
    folder: Path, case: CaseRecord, volumes: Sequence[Volume], label: Volume | None, config: IngestConfig
) -> CaseRecord:
    """Write the standardised volumes of `case` and return its record with `store` filled."""
    standard = standardise(volumes, label, config.spacing_mm, crop_body=config.crop_body)
    place = folder / "store" / case.id
    scratch = folder / "store" / f".{case.id}.{os.getpid()}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        store = _write(scratch, standard)
        store |= {"folder": f"store/{case.id}", "recipe": recipe(config)}
        problems = tuple(dict.fromkeys((*case.problems, *standard.problems)))
        record = case.model_copy(update={"store": store, "problems": problems})
        write_text(scratch / _RECORD, record.model_dump_json())
        if place.exists():
            shutil.rmtree(place)
        scratch.rename(place)
        sync_folder(place.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return record


def write_label(path: Path, label: Array, values: dict[int, int]) -> dict[str, Any]:
    """Write a label map of a case and return its entry in the record; `values` are the voxels of each class."""
    size = write_array(path, label)
    return {"file": path.name, "bytes": size, "values": {str(value): count for value, count in values.items()}}


def write_points(path: Path, points: npt.NDArray[np.int32]) -> int:
    """Write the voxels that crops are centred on and return their checksum."""
    content = BytesIO()
    np.save(content, points)
    with atomic(path) as stream:
        stream.write(content.getvalue())
    return zlib.crc32(content.getvalue())


def finished(folder: Path, case: CaseRecord, config: IngestConfig) -> CaseRecord | None:
    """Record that an earlier ingest left for the same files and settings, or None."""
    try:
        text = (folder / "store" / case.id / _RECORD).read_text(encoding="utf-8")
        done = CaseRecord.model_validate_json(text)
    except (OSError, ValueError):
        return None
    same = [(r.path, r.key, r.rescale) for r in _records(done)] == [(r.path, r.key, r.rescale) for r in _records(case)]
    return done if same and done.store.get("recipe") == recipe(config) else None


def stored_bytes(case: CaseRecord) -> int:
    """Bytes that the stored arrays of a case take; a report takes none."""
    if not case.store:
        return 0
    label = case.store.get("label")
    return int(sum(image["bytes"] for image in case.store["images"]) + (label["bytes"] if label else 0))


def recipe(config: IngestConfig) -> dict[str, Any]:
    """The settings that decide what is stored."""
    spacing = None if config.spacing_mm is None else list(config.spacing_mm)
    aligned = {"align": True} if config.align else {}
    numbers = [[value, config.label_values[value]] for value in sorted(config.label_values)]
    relabelled = {"label_values": numbers} if numbers else {}
    return {"version": VERSION, "spacing_mm": spacing, "crop_body": config.crop_body, **aligned, **relabelled}


def content_hash(path: Path, key: str = "") -> str:
    """SHA-256 of a file, or of the files of a DICOM series in a folder, whatever their names."""
    if not path.exists():
        raise DataError(f"{path.name} does not exist.", "Put the file back, or take it off the list.")
    if path.is_file() and path.suffix == ".arrow":
        from training_backend.data.arrow import row_hash

        return row_hash(path, key)
    if path.is_file():
        return _file_hash(path)
    from training_backend.data.dicom import list_series

    files = [file for series in list_series(path) if not key or series.id == key for file in series.files]
    return hashlib.sha256("".join(sorted(map(_file_hash, files))).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(folder: Path, standard: Standard) -> dict[str, Any]:
    images = []
    for number, (array, statistics) in enumerate(zip(standard.images, standard.statistics, strict=True)):
        size = write_array(folder / f"{number}.b2nd", array)
        images.append(
            {"file": f"{number}.b2nd", "bytes": size, "dtype": str(array.dtype), "statistics": statistics.to_dict()}
        )
    store: dict[str, Any] = {
        "geometry": standard.geometry.to_dict(),
        "native": standard.native.to_dict(),
        "start": list(standard.start),
        "images": images,
    }
    if standard.label is not None:
        store["label"] = write_label(folder / "label.b2nd", standard.label, standard.values)
    store["points_crc32"] = write_points(folder / "points.npy", standard.points)
    return store


def _read(root: Path, record: ImageRecord, config: IngestConfig) -> Volume:
    path = root / record.path
    voxels = int(np.prod(probe(path, key=record.key).shape))
    if voxels > config.max_voxels:
        raise ResourceError(
            f"{path.name} claims {voxels:,} voxels; at most {config.max_voxels:,} are read.",
            "If that is right, raise max_voxels.",
        )
    volumes = read_volumes(path, key=record.key)
    if len(volumes) > 1:
        raise DataError(f"{path.name} holds {len(volumes)} volumes.", "Name the one to use by its key.")
    return rescaled(volumes[0], record.rescale)


def _read_label(root: Path, record: ImageRecord, config: IngestConfig) -> Volume:
    return renumbered(read_labels(root / record.path, key=record.key), config.label_values)


def _described(record: ImageRecord, volume: Volume, hashes: dict[tuple[str, str], str]) -> ImageRecord:
    """`record` with what reading told."""
    return record.model_copy(
        update={
            "sha256": hashes[record.path, record.key],
            "modality": volume.modality if record.modality == "unknown" else record.modality,
            "shape": volume.geometry.shape,
            "spacing_mm": volume.geometry.spacing_mm,
        }
    )


def _with_facts(case: CaseRecord, done: CaseRecord) -> CaseRecord:
    """What is stored of `done`, with split, target, report and exclusion as `case` says now."""
    problems = tuple(dict.fromkeys((*case.problems, *done.problems)))
    return case.model_copy(
        update={"images": done.images, "label": done.label, "store": done.store, "problems": problems}
    )


def _records(case: CaseRecord) -> list[ImageRecord]:
    return [*case.images, *([case.label] if case.label else [])]


def _category(error: DataError) -> str:
    text = error.sentence
    for words, category in (
        (("NaN", "not numbers"), "not finite"),
        (("label map", "class"), "labels"),
        (("damaged", "too early", "cut off", "checksum"), "damaged"),
        (("does not exist",), "missing"),
    ):
        if any(word in text for word in words):
            return category
    return "unreadable"


def _refusal(case: CaseRecord, category: str, error: Med3dError) -> Quarantined:
    path = case.images[0].path if case.images else ""
    return Quarantined(case.id, path, category, str(error))
