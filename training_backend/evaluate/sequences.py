"""Example sequences as pictures, before any training: what a view is glued from, and where its slabs meet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from training_backend.config import RunConfig
from training_backend.data.ar_lists import lists_of
from training_backend.data.manifest import DatasetInfo
from training_backend.data.prepare import InputProfile, prepare
from training_backend.data.sequence import KINDS, Example, Kind, example
from training_backend.data.sequence_check import check_settings
from training_backend.data.sequence_crops import crop_box, glued, last_start, prepared
from training_backend.data.volume import Geometry, Shape, Triple, Volume
from training_backend.errors import ConfigError, Med3dError
from training_backend.evaluate.view import Picture
from training_backend.methods.base import PreviewArray

GAP = 8
"""Voxels between two examples."""


def example_sequences(config: RunConfig, volumes: Sequence[Volume], seed: int = 0) -> tuple[list[Picture], str]:
    """One example of each kind that a run would draw, side by side, and a sentence on each.

    They lie beside the first of `volumes` and are drawn as high as it is, since slabs of several scans or places have
    neither place nor size of their own in a patient.

    Args:
        config: of the run. Where its dataset does not exist, a spatial sequence is made from the first volume.
        volumes: the scan on the screen, if there is one.
        seed: chooses the examples.

    Raises:
        ConfigError: settings that contradict each other, or neither a dataset nor a scan.
        Med3dError: no kind can be made; the sentence of the first.
    """
    listed = bool(lists_of(config))
    found, problems = [], []
    if listed or (config.data.dataset / "dataset.json").is_file():
        kinds = [kind for kind in KINDS if listed or getattr(config.data.sequence, kind) > 0]
        for kind in kinds:
            try:
                found.append(example(config, kind, seed))
            except Med3dError as error:
                problems.append((kind, error))
        if not found and problems:
            raise problems[0][1]
    elif volumes:
        found.append(spatial_example(config, volumes[0], seed))
    if not found:
        raise ConfigError("There is nothing to make a sequence of.", "Choose a dataset, or open a scan.")
    (x, y, z), voxel = _beside(volumes[0].geometry if volumes else None, config.data.size)
    pictures = []
    for number, one in enumerate(found):
        step = number * (config.data.size[2] + GAP) * voxel
        pictures += _pictures(one, Geometry.from_spacing(config.data.size, (voxel,) * 3, (x + step, y, z)))
    told = [f"{one.kind.capitalize()}: {one.note}" for one in found]
    told += [f"No {kind} sequence: {error}" for kind, error in problems]
    return pictures, " ".join([*told, "Slabs lie along z: look at a coronal or sagittal slice."])


def spatial_example(config: RunConfig, volume: Volume, seed: int = 0) -> Example:
    """A spatial sequence of a scan that is in no dataset."""
    check_settings(config)
    settings, size = config.data.sequence, config.data.size
    profile = InputProfile.of(config, DatasetInfo(name="preview"))
    array = prepare([volume], profile.updated({"contrasts": (), "intensity": {"profile": "identity"}})).array[0]
    rng = np.random.default_rng(seed)

    def randint(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    box = crop_box((array.shape[0], array.shape[1], array.shape[2]), size, randint)
    inside = tuple(slice(start, start + n) for start, n in zip(box.start, box.size, strict=True))
    crop = prepared(array[inside], size)
    depth, slabs, stride = size[0], settings.slabs, settings.stride
    start = randint(0, last_start(depth, depth, slabs, stride))
    image = glued(crop, start, slabs, stride)
    numbers = np.repeat(np.arange(slabs, dtype=np.uint8), depth // slabs)
    kind: Kind = "spatial"
    note = f"{slabs} slabs of {depth // slabs} slices, {stride} apart, from slice {start} of one crop of the open scan."
    return Example(np.asarray(image, np.float32)[None], numbers, kind, note)


def _pictures(one: Example, geometry: Geometry) -> list[Picture]:
    """The view, and its slabs as labels."""
    slabs = np.ascontiguousarray(np.broadcast_to(one.slabs[:, None, None] + 1, one.array.shape[1:]))
    names = {int(number): f"slab {number}" for number in np.unique(slabs)}
    return [
        Picture(PreviewArray(one.kind, one.array[0], "image", limits=(0.0, 1.0)), geometry),
        Picture(PreviewArray(f"{one.kind} slabs", slabs, "labels", classes=names), geometry),
    ]


def _beside(scan: Geometry | None, size: Shape) -> tuple[Triple, float]:
    """(x, y, z) LPS of the first voxel of an example of `size` to the left of a scan, and the mm of its voxels."""
    if scan is None:
        return (0.0, 0.0, 0.0), 1.0
    ends = [(0, n - 1) for n in scan.shape]
    corners = np.array([scan.to_lps @ (*corner, 1.0) for corner in itertools.product(*ends)])[:, :3]
    middle, voxel = corners.mean(axis=0), scan.shape[0] * scan.spacing_mm[0] / size[0]
    x = corners[:, 0].max() + GAP * voxel
    y, z = (middle[axis] - voxel * (n - 1) / 2 for axis, n in ((1, size[1]), (2, size[0])))
    return (float(x), float(y), float(z)), float(voxel)
