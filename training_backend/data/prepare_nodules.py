"""A dataset of NoduleMNIST3D (or another MedMNIST set of volumes) from its one .npz file, official splits kept.

The volumes have 28 voxels along each axis; views of 128 are interpolated from them when they are first used, with
fractions. The authors of AR-SSL4M cut the interpolated values off to whole grey levels; `truncate` does that too.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from training_backend.data.ar_published import nodules_resized
from training_backend.data.assemble import Recipient, assemble
from training_backend.data.dataset import relative_root
from training_backend.data.ingest import IngestReport, Progress
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord, Split
from training_backend.data.stow import content_hash
from training_backend.data.volume import Array, Geometry, Volume
from training_backend.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "val", "test")
CLASSES = ("benign", "malignant")
GREY_LEVELS = 255


def prepare_nodules(
    file: Path, output: Path, *, size: int = 128, truncate: bool = False, progress: Progress | None = None
) -> IngestReport:
    """Dataset in `output` with values in [0, 1] and the class of each case as its target.

    Args:
        file: .npz with ``train_images`` [N, D, H, W] uint8, ``train_labels`` [N, 1], and the same for val and test.
        output: folder of the dataset.
        size: voxels per axis that `truncate` stores.
        truncate: store interpolated cubes of whole grey levels, as published.
        progress: told the share done.

    Raises:
        DataError: an array is missing, or is no set of volumes with a class each.
    """
    file = Path(file)
    images = {split: _volumes(file, f"{split}_images") for split in SPLITS}
    labels = {split: _labels(file, f"{split}_labels", len(images[split])) for split in SPLITS}
    classes = 1 + max(int(values.max(initial=0)) for values in labels.values())
    info = DatasetInfo(
        name=file.stem,
        layout="medmnist",
        root=relative_root(file.absolute().parent, output),
        contrasts=("image",),
        modality="CT" if file.stem.startswith("nodulemnist3d") else "unknown",
        target_names=CLASSES if classes <= len(CLASSES) else tuple(f"class {n}" for n in range(classes)),
    )
    digest, modality = content_hash(file), info.modality
    make = partial(_cube, size=size) if truncate else _native

    def recipients() -> Iterator[Recipient]:
        for split in SPLITS:
            for index, volume in enumerate(images[split]):
                name = f"{split}_{index:04d}"
                image = ImageRecord(
                    path=file.name, key=f"{split}_images/{index}", modality=modality, sha256=digest, shape=volume.shape
                )
                target = (float(labels[split][index]),)
                case = CaseRecord(id=name, subject=name, split=split, images=(image,), target=target)
                yield Recipient(case, partial(make, volume, name))

    return assemble(output, info, recipients(), sum(map(len, images.values())), progress=progress)


def _native(volume: Array, name: str) -> Volume:
    return _volume(volume.astype(np.float32) / GREY_LEVELS, name)


def _cube(volume: Array, name: str, size: int) -> Volume:
    return _volume(nodules_resized(volume[None], size)[0].astype(np.float32) / GREY_LEVELS, name)


def _volume(array: Array, name: str) -> Volume:
    depth, height, width = array.shape
    geometry = Geometry.from_spacing((depth, height, width), (1.0, 1.0, 1.0))
    return Volume(array, geometry, "unknown", name, {})


def _volumes(file: Path, key: str) -> Array:
    """Array [N, D, H, W] of grey levels."""
    array = _array(file, key)
    if array.ndim != 4 or array.dtype != np.uint8:
        raise DataError(
            f"{key} of {file.name} is {array.dtype} with {array.ndim} axes; uint8 with 4 (case, z, y, x) is expected.",
            "Give a 3D MedMNIST file such as nodulemnist3d.npz.",
        )
    return array


def _labels(file: Path, key: str, count: int) -> Array:
    """Class number of each case."""
    array = _array(file, key)
    if array.size != count:
        raise DataError(f"{key} of {file.name} has {array.size} labels for {count} cases.", "Download it again.")
    return array.reshape(count).astype(int)


def _array(file: Path, key: str) -> Array:
    """An array of the .npz; damage and pickles are refused with a sentence."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if key not in arrays:
                raise DataError(
                    f"{file.name} has no array {key}; it has {', '.join(arrays) or 'none'}.",
                    "Give a MedMNIST file with train_images, train_labels and the same for val and test.",
                )
            array: Array = arrays[key]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file.name} cannot be read as .npz: {error}.", "Download it again.") from error
    return array
