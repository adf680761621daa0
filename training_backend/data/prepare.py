"""A scan as a network was trained to see it, and the exact way back onto the grid of its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import field_validator

from training_backend.config.data import IntensityConfig, centre_of
from training_backend.config.model import ConfigModel
from training_backend.config.run import RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.intensity import Statistics, denormalise, normalise
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.data.resample import resample
from training_backend.data.resized import EIGHT_BITS, check_slices, resize, resize_labels
from training_backend.data.standard import resampled_grid, standardise
from training_backend.data.store import open_case
from training_backend.data.volume import Array, Geometry, Shape, Volume
from training_backend.data.whole import outside, view_grid
from training_backend.errors import DataError


class InputProfile(ConfigModel):
    """How scans become input; saved with the weights, so that prediction cannot differ from training."""

    spacing_mm: tuple[float, float, float] | None = None
    """Millimetres along (z, y, x) of the grid; None keeps each scan's own."""
    contrasts: tuple[str, ...] = ()
    """Contrasts stacked as channels; empty means the first image."""
    intensity: IntensityConfig = IntensityConfig()
    view: Literal["crop", "volume", "resized"] = "crop"
    """crop: any size, seen in windows of `size`. volume: resampled to `size`. resized: each slice resized to `size`."""
    size: tuple[int, int, int] = (96, 96, 96)
    """Voxels of a view along (z, y, x)."""
    keep_aspect: bool = True
    """With whole volumes: isotropic and padded, or stretched."""
    centre: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """With whole volumes: share along (z, y, x) that is seen, about the middle."""
    crop_body: bool = True
    """Look at the box around the body only."""
    modality: str = "unknown"
    """Of all scans that were learnt from, where it was the same: "CT", "MR", ..."""

    @field_validator("centre", mode="before")
    @classmethod
    def _of_slices(cls, value: Any) -> Any:
        return centre_of(value)

    @classmethod
    def of(cls, config: RunConfig, info: DatasetInfo) -> InputProfile:
        """Profile of a run on a dataset.

        On CT data "auto" becomes the window it stands for, so a scan is seen the same way even where its file does not
        say that it is a CT. On pictures of one depth it becomes a division by their largest number, so a picture is
        seen the same way in a file that has no such limit.
        """
        data = config.data
        intensity = data.intensity
        if intensity.profile == "auto" and info.modality == "CT":
            intensity = intensity.updated({"profile": "window"})
        elif intensity.profile == "auto" and info.largest is not None:
            intensity = intensity.updated({"profile": "scaled", "high": info.largest})
        return cls(
            spacing_mm=info.spacing_mm,
            contrasts=data.contrasts,
            intensity=intensity,
            view=data.view if data.view in ("volume", "resized") else "crop",
            size=data.size,
            keep_aspect=data.keep_aspect,
            centre=data.centre,
            crop_body=info.crop_body,
            modality=info.modality,
        )


@dataclass(frozen=True)
class Prepared:
    """A scan as network input.

    Attributes:
        array: [C, D, H, W] float32.
        geometry: of that grid.
        native: canonical grid of the file.
        statistics: one per channel.
        intensity: profile that was used.
        label: [D, H, W] uint8 on the same grid, when the case has one.
        padding: [D, H, W], true outside the scan, or None.
    """

    array: npt.NDArray[np.float32]
    geometry: Geometry
    native: Geometry
    statistics: tuple[Statistics, ...]
    intensity: IntensityConfig
    label: npt.NDArray[np.uint8] | None = None
    padding: npt.NDArray[np.bool_] | None = None

    def restore_labels(self, result: Array) -> Array:
        """Label map on the native grid of a label map [D, H, W] or of class probabilities [K, D, H, W].

        Probabilities are interpolated before the largest is taken, class by class, so K maps are never held at once.
        Voxels outside the prepared box are 0, background.
        """
        if result.ndim == 3:
            restored: Array = self._back(result, nearest=True)
            return restored
        labels = np.zeros(self.native.shape, np.uint8 if len(result) < 256 else np.uint16)
        best = self._back(np.asarray(result[0], np.float32), fill=1.0)
        for value in range(1, len(result)):
            share = self._back(np.asarray(result[value], np.float32))
            better = share > best
            labels[better] = value
            best[better] = share[better]
        return labels

    def restore(self, array: Array, fill: float = 0.0) -> npt.NDArray[np.float32]:
        """Continuous map [D, H, W] interpolated onto the native grid; `fill` outside the prepared box."""
        restored: npt.NDArray[np.float32] = self._back(np.asarray(array, np.float32), fill=fill)
        return restored

    def in_units(self, array: Array, *, differences: bool = False, channel: int = 0) -> npt.NDArray[np.float32]:
        """Network values of any shape in the units of the file (HU for CT); `differences` keeps zero at zero."""
        values = denormalise(array, self.statistics[channel], self.intensity)
        zero = denormalise(np.zeros(1, np.float32), self.statistics[channel], self.intensity)
        return values - zero if differences else values

    def _back(self, array: Array, *, nearest: bool = False, fill: float = 0.0) -> Any:
        if tuple(array.shape) != self.geometry.shape:
            raise DataError(f"The result has {array.shape} voxels, the prepared scan {self.geometry.shape}.")
        start = _sub_box(self.geometry, self.native)
        if start is None:
            return resample(array, self.geometry, self.native, nearest=nearest, fill=fill)
        whole = np.full(self.native.shape, fill, array.dtype)
        whole[tuple(slice(first, first + n) for first, n in zip(start, array.shape, strict=True))] = array
        return whole


def prepare(volumes: Sequence[Volume], profile: InputProfile) -> Prepared:
    """Network input of the contrasts of one case, in any order if they are named.

    Raises:
        DataError: a contrast is missing, or voxels are not finite.
        GeometryError: a grid that cannot be used.
    """
    chosen = _select(volumes, profile.contrasts)
    standard = standardise(chosen, None, profile.spacing_mm, crop_body=profile.crop_body)
    return _prepared(standard.images, None, standard.geometry, standard.native, standard.statistics, profile)


def stored_input(dataset: Dataset, case: CaseRecord, profile: InputProfile) -> Prepared:
    """The same from the store of a dataset, with `Prepared.label` where the case has one."""
    stored = open_case(dataset, case)
    channels = stored.channels_of(profile.contrasts)
    images: list[Array] = [stored.read_image(channels=[channel])[0] for channel in channels]
    label = stored.read_label() if stored.labelled else None
    grid = resampled_grid(stored.geometry, profile.spacing_mm)
    if grid is not stored.geometry:
        images = [resample(image, stored.geometry, grid, fill=float(image.min())) for image in images]
        label = None if label is None else resample(label, stored.geometry, grid, nearest=True)
    statistics = tuple(stored.statistics[channel] for channel in channels)
    return _prepared(images, label, grid, stored.native, statistics, profile)


def _prepared(
    images: Sequence[Array],
    label: Array | None,
    geometry: Geometry,
    native: Geometry,
    statistics: tuple[Statistics, ...],
    profile: InputProfile,
) -> Prepared:
    padding = None
    if profile.view == "resized":
        check_slices(geometry.shape[0], profile.size, "The scan")
        eight = [one.largest == EIGHT_BITS for one in statistics]
        images = [resize(image, profile.size, eight_bits=bits) for image, bits in zip(images, eight, strict=True)]
        label = None if label is None else resize_labels(label, profile.size)
        geometry = view_grid(geometry, profile.size, keep_aspect=False)
    if profile.view == "volume":
        grid = view_grid(geometry, profile.size, keep_aspect=profile.keep_aspect, centre=profile.centre)
        images = [
            resample(image, geometry, grid, fill=one.minimum / one.scale)
            for image, one in zip(images, statistics, strict=True)
        ]
        label = None if label is None else resample(label, geometry, grid, nearest=True)
        padding = outside(geometry, grid)
        geometry = grid
    channels = [
        normalise(image[None], [one], profile.intensity)[0] for image, one in zip(images, statistics, strict=True)
    ]
    return Prepared(np.stack(channels), geometry, native, statistics, profile.intensity, label, padding)


def _select(volumes: Sequence[Volume], contrasts: tuple[str, ...]) -> list[Volume]:
    if not volumes:
        raise DataError("No volume was given.", "Give at least one scan.")
    if not contrasts:
        return [volumes[0]]
    named = {str(volume.meta.get("contrast") or volume.name): volume for volume in volumes}
    if all(name in named for name in contrasts):
        return [named[name] for name in contrasts]
    if len(volumes) == len(contrasts):
        return list(volumes)
    raise DataError(
        f"This model looks at {len(contrasts)} contrasts ({', '.join(contrasts)}), but {len(volumes)} were given "
        f"({', '.join(named)}).",
        "Give all contrasts of the case, in this order.",
    )


def _sub_box(part: Geometry, whole: Geometry) -> Shape | None:
    """First voxel of `part` in `whole` where its voxels are some of `whole`'s own, else None."""
    between = np.linalg.inv(whole.to_lps) @ part.to_lps
    start = np.rint(between[:3, 3]).astype(int)
    expected = np.eye(4)
    expected[:3, 3] = start
    ends = start + np.asarray(part.shape)
    if np.abs(between - expected).max() > 1e-3 or (start < 0).any() or (ends > np.asarray(whole.shape)).any():
        return None
    return (int(start[0]), int(start[1]), int(start[2]))
