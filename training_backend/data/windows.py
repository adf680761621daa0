"""Display windows: named Hounsfield ranges for CT, percentiles for everything without a fixed scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training_backend.data.volume import Array, Volume

_SAMPLE_PER_AXIS = 96  # percentiles of a regular sample, so that large scans open at once


@dataclass(frozen=True)
class Window:
    """A named display range: `low` is drawn black and `high` white."""

    name: str
    low: float
    high: float


CT_PRESETS: dict[str, Window] = {
    window.name: window
    for window in (
        Window("lung", -1350, 150),
        Window("mediastinum", -125, 225),
        Window("bone", -500, 1300),
        Window("brain", 0, 80),
        Window("liver", -45, 105),
    )
}
"""Usual ranges in Hounsfield units."""

MR_PERCENTILES: dict[str, tuple[float, float]] = {"standard": (0.5, 99.5), "contrasty": (5, 95), "full": (0, 100)}
"""Ranges in per cent of the voxels that are not background."""


def windows(volume: Volume) -> list[Window]:
    """The windows to offer for `volume`, the one of its file first: presets for CT, percentiles otherwise."""
    offered = []
    if saved := volume.meta.get("window"):
        offered.append(Window("file", float(saved[0]), float(saved[1])))
    if volume.modality == "CT":
        return [*offered, *CT_PRESETS.values()]
    return [*offered, *(percentile_window(volume.array, name) for name in MR_PERCENTILES)]


def display_limits(volume: Volume) -> tuple[float, float]:
    """Limits to open `volume` with: the file's own, else mediastinum for CT, else the standard percentiles."""
    first = windows(volume)[0]
    if first.name == "lung":
        first = CT_PRESETS["mediastinum"]
    return (first.low, first.high)


def percentile_window(array: Array, name: str = "standard") -> Window:
    """Range of `MR_PERCENTILES` over the foreground: finite voxels other than the most frequent lowest value."""
    low, high = MR_PERCENTILES[name]
    steps = tuple(slice(None, None, max(1, n // _SAMPLE_PER_AXIS)) for n in array.shape)
    sample = array[steps].astype(np.float64).ravel()
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return Window(name, 0.0, 1.0)
    foreground = sample[sample > sample.min()]
    bottom, top = np.percentile(foreground if foreground.size else sample, (low, high))
    return Window(name, float(bottom), float(top) if top > bottom else float(bottom) + 1.0)
