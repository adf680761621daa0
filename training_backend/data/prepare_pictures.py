"""Datasets of small pictures of one size: tissue of the TCGA, and what other recipes resize in the same way."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from training_backend.data.assemble import Recipient, assemble
from training_backend.data.dataset import check_splits, relative_root
from training_backend.data.drafts import stem, unique_ids
from training_backend.data.facts import is_picture
from training_backend.data.ingest import IngestReport, Progress, without_doubles
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord, Split
from training_backend.data.pictures import COLOURS
from training_backend.data.read import read_volumes
from training_backend.data.resized import resize
from training_backend.data.splits import assign_splits
from training_backend.data.stow import content_hash
from training_backend.data.volume import Shape, Volume
from training_backend.data.whole import view_grid
from training_backend.errors import DataError

SIZE = 224
PER_PATIENT = 100
"""Pictures of a patient at most, as published."""

_BARCODE = re.compile(r"TCGA-\w{2}-\w{4}", re.IGNORECASE)


@dataclass(frozen=True)
class Tile:
    """A picture to be stored; its split is drawn by subject where none is given."""

    file: Path
    id: str
    subject: str
    split: Split | None = None


def prepare_tcga(
    folder: Path,
    output: Path,
    *,
    size: int = SIZE,
    per_patient: int = PER_PATIENT,
    seed: int = 0,
    progress: Progress | None = None,
) -> IngestReport:
    """Dataset of tissue in `output`: contrasts red, green and blue, `size` pixels along each side.

    Args:
        folder: with a folder of pictures per patient, at any depth; its name, or the barcode in it, is the subject.
        output: folder of the dataset.
        size: of the stored pictures.
        per_patient: pictures drawn of each patient with more of them.
        seed: of that draw, and of the split.
        progress: told the share done.

    Raises:
        DataError: no picture is there.
    """
    folder = Path(folder)
    patients: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if file.is_file() and is_picture(file) and file.parent != folder:
            patients[_patient(folder, file)].append(file)
    if not patients:
        raise DataError(f"{folder} holds no folders of pictures.", "Give a folder with one of pictures per patient.")
    chosen = [
        (file, patient)
        for patient, files in sorted(patients.items())
        for file in _drawn(files, patient, per_patient, seed)
    ]
    names = unique_ids([f"{patient}_{stem(file)}" for file, patient in chosen])
    tiles = [Tile(file, id, patient) for id, (file, patient) in zip(names, chosen, strict=True)]
    info = DatasetInfo(name="tcga", layout="tcga", contrasts=COLOURS)
    return store_tiles(folder, tiles, output, info, size=size, seed=seed, progress=progress)


def store_tiles(
    folder: Path,
    tiles: Sequence[Tile],
    output: Path,
    info: DatasetInfo,
    *,
    size: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> IngestReport:
    """Dataset of `tiles` below `folder`; ``info.contrasts`` say whether their colours are kept or made grey."""
    given = {tile.id for tile in tiles if tile.split is not None}
    cases = assign_splits([_case(folder, tile, info) for tile in tiles], (0.8, 0.2, 0.0), seed, given)
    cases, doubles = without_doubles(cases, given)
    check_splits(cases)
    files = {tile.id: tile.file for tile in tiles}

    def recipients() -> Iterator[Recipient]:
        for case in cases:
            yield Recipient(case, partial(_resized, files[case.id], info, size))

    info = info.model_copy(update={"root": relative_root(folder.absolute(), output)})
    return assemble(output, info, recipients(), len(cases), doubles, progress)


def _case(folder: Path, tile: Tile, info: DatasetInfo) -> CaseRecord:
    digest = content_hash(tile.file)
    colour = len(info.contrasts) > 1
    images = tuple(
        ImageRecord(
            path=tile.file.relative_to(folder).as_posix(),
            contrast=contrast,
            key=contrast if colour else "",
            modality=info.modality,
            sha256=digest,
        )
        for contrast in info.contrasts
    )
    return CaseRecord(id=tile.id, subject=tile.subject, split=tile.split or "train", images=images)


def _resized(file: Path, info: DatasetInfo, size: int) -> list[Volume]:
    """The picture on `size` x `size` pixels, in as many contrasts as the dataset has."""
    volumes = read_volumes(file)
    if len(info.contrasts) == 1 and len(volumes) > 1:
        volumes = [_grey(volumes)]
    volumes = volumes * len(info.contrasts) if len(volumes) == 1 else volumes
    shape: Shape = (1, size, size)
    return [_on(volume, shape, info.modality) for volume in volumes]


def _on(volume: Volume, shape: Shape, modality: str) -> Volume:
    eight = volume.array.dtype == np.uint8
    array = resize(volume.array, shape, eight_bits=eight)
    if not eight and volume.array.dtype.kind in "iu":
        limits = np.iinfo(volume.array.dtype)
        array = np.clip(np.rint(array), limits.min, limits.max).astype(volume.array.dtype)
    grid = view_grid(volume.geometry, shape, keep_aspect=False)
    return Volume(array, grid, modality, volume.name, dict(volume.meta))


def _grey(volumes: Sequence[Volume]) -> Volume:
    colours = Image.fromarray(np.stack([volume.array[0] for volume in volumes], axis=-1))
    return volumes[0].with_array(np.array(colours.convert("L"))[None])


def _patient(folder: Path, file: Path) -> str:
    told = _BARCODE.search(file.relative_to(folder).as_posix())
    return told.group().upper() if told else file.parent.name


def _drawn(files: Sequence[Path], patient: str, most: int, seed: int) -> list[Path]:
    """At most so many pictures of a patient, drawn from the seed and the patient's name alone."""
    if len(files) <= most:
        return list(files)
    rng = np.random.default_rng((seed, zlib.crc32(patient.encode())))
    return [files[index] for index in sorted(rng.choice(len(files), most, replace=False))]
