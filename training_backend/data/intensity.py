"""From stored values to network input: statistics of a scan's body, and the profiles that use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.config.data import IntensityConfig
from training_backend.data.volume import Array
from training_backend.errors import ConfigError, DataError

QUANTILES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 100.0)
"""Per cent at which the intensities of the body are kept; others are interpolated."""

CT_WINDOW = (-1200.0, 800.0)
"""HU; the window of TANGERINE."""


@dataclass(frozen=True)
class Statistics:
    """Intensities of one image, in the units of its file (HU for CT).

    Attributes:
        quantiles: of the body, at `QUANTILES` per cent.
        mean: of the body.
        std: of the body.
        minimum: of the whole image; what lies outside the scan is filled with it.
        scale: file units per stored unit; other than 1 only where float16 could not hold the values.
        ct: whether the numbers are Hounsfield units.
        nonzero: mean and standard deviation of all voxels that are not 0; None where they were not measured (CT).
        largest: largest number that the format of a picture holds (255, 65535); None for scans.
    """

    quantiles: tuple[float, ...]
    mean: float
    std: float
    minimum: float
    scale: float = 1.0
    ct: bool = False
    nonzero: tuple[float, float] | None = None
    largest: float | None = None

    @classmethod
    def measure(
        cls,
        body: Array,
        minimum: float,
        *,
        scale: float = 1.0,
        ct: bool = False,
        whole: Array | None = None,
        largest: float | None = None,
    ) -> Statistics:
        """Statistics of the voxels of the body, any shape, and of those of the `whole` image that are not 0."""
        values = np.asarray(body, np.float64).ravel()
        quantiles = tuple(float(q) for q in np.percentile(values, QUANTILES))
        nonzero = None if whole is None else _nonzero(whole)
        return cls(quantiles, float(values.mean()), float(values.std()), float(minimum), scale, ct, nonzero, largest)

    def percentile(self, percent: float) -> float:
        """Intensity below which `percent` of the body lies."""
        return float(np.interp(percent, QUANTILES, self.quantiles))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return {**asdict(self), "quantiles": list(self.quantiles)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Statistics:
        """Statistics written by `to_dict`."""
        nonzero = value.get("nonzero")
        found = {"quantiles": tuple(value["quantiles"]), "nonzero": None if nonzero is None else tuple(nonzero)}
        return cls(**{**value, **found})


def normalise(array: Any, statistics: Sequence[Any], config: IntensityConfig) -> Any:
    """Network input of stored values, as float32.

    Args:
        array: numpy array or torch tensor (any device) [..., D, H, W] of stored values.
        statistics: of each image along the leading axes: ``[C]`` for [C, D, H, W], ``[B][C]`` for [B, C, D, H, W].
        config: the profile; window and percentile give values in [0, 1], scaled in [-1, 1], standard what the bounds
            become.

    Returns:
        The same kind of array, never the one given.
    """
    leading = array.shape[: array.ndim - 3]
    terms = np.array([_terms(one, config) for one in _flat(statistics)], np.float32).reshape(*leading, 1, 1, 1, 3)
    bounds = _bounds(config)
    if isinstance(array, np.ndarray):
        scale, low, width = np.moveaxis(terms, -1, 0)
        result = (array.astype(np.float32) * scale - low) / width
        if config.profile == "zscore_nonzero":
            result[array == 0] = 0
        return result if bounds is None else np.clip(result, *bounds, out=result)
    import torch

    scale, low, width = torch.from_numpy(terms).to(array.device).unbind(-1)
    result = array.to(torch.float32, copy=True).mul_(scale).sub_(low).div_(width)
    if config.profile == "zscore_nonzero":
        result.masked_fill_(array == 0, 0)
    return result if bounds is None else result.clamp_(*bounds)


def denormalise(array: Array, statistics: Statistics, config: IntensityConfig) -> npt.NDArray[np.float32]:
    """File units (HU for CT) of network values, for showing reconstructions; clipping is not undone."""
    _, low, width = _terms(statistics, config)
    return np.asarray(array, np.float32) * np.float32(width) + np.float32(low)


def profile_of(statistics: Statistics, config: IntensityConfig) -> str:
    """The profile that is used.

    "auto" scales pictures by the largest number of their format, keeps what is within [0, 1], windows CT, and else
    takes percentiles.
    """
    if config.profile != "auto":
        return config.profile
    if statistics.largest is not None:
        return "scaled"
    if statistics.ct:
        return "window"
    prepared = statistics.minimum >= 0 and statistics.quantiles[-1] <= 1
    return "identity" if prepared else "percentile"


def _nonzero(whole: Array) -> tuple[float, float]:
    values = np.asarray(whole[whole != 0], np.float64)
    return (float(values.mean()), float(values.std())) if values.size else (0.0, 1.0)


def _flat(statistics: Sequence[Any]) -> list[Statistics]:
    if statistics and not isinstance(statistics[0], Statistics):
        return [one for group in statistics for one in group]
    return list(statistics)


def _largest(statistics: Statistics, config: IntensityConfig) -> float:
    """What the profile "scaled" divides by."""
    chosen = config.high if config.profile == "scaled" else None
    largest = statistics.largest if chosen is None else chosen
    if largest is None:
        raise ConfigError(
            "The intensity profile scaled divides by a number, and only pictures tell one of their own.",
            "Set data.intensity.high, such as 1024 for CT.",
        )
    if not largest > 0:
        raise ConfigError(f"The intensity profile scaled cannot divide by {largest:g}.", "Set high above 0.")
    return largest


def _bounds(config: IntensityConfig) -> tuple[float, float] | None:
    """Smallest and largest network value of a profile; None where nothing is cut off."""
    if config.profile == "standard":
        low, high, mean, std = _standard(config)
        return (low - mean) / std, (high - mean) / std
    lowest = -1.0 if config.profile == "scaled" else 0.0
    return (lowest, 1.0) if config.profile in ("auto", "window", "percentile", "scaled") else None


def _standard(config: IntensityConfig) -> tuple[float, float, float, float]:
    """Bounds, mean and standard deviation of the profile "standard"."""
    low, high, mean, std = config.low, config.high, config.mean, config.std
    if low is None or high is None or mean is None or std is None or not low < high:
        raise ConfigError(
            "The intensity profile standard cuts values at low and high, and needs mean and std of the data set.",
            "Set data.intensity.low, high, mean and std, low below high.",
        )
    return low, high, mean, std


def _terms(statistics: Statistics, config: IntensityConfig) -> tuple[float, float, float]:
    """(scale, low, width) such that input = (stored * scale - low) / width."""
    profile = profile_of(statistics, config)
    if profile == "identity":
        return statistics.scale, 0.0, 1.0
    if profile == "scaled":
        return statistics.scale, 0.0, _largest(statistics, config)
    if profile == "standard":
        return (statistics.scale, *_standard(config)[2:])
    if profile == "zscore":
        return statistics.scale, statistics.mean, max(statistics.std, 1e-6)
    if profile == "zscore_nonzero":
        if statistics.nonzero is None:
            raise DataError(
                "The intensities other than 0 of this image were not measured, which the profile zscore_nonzero needs.",
                "It is for images other than CT, in datasets made by this version; ingest again, or choose zscore.",
            )
        return statistics.scale, statistics.nonzero[0], max(statistics.nonzero[1], 1e-6)
    if profile == "window":
        low = CT_WINDOW[0] if config.low is None else config.low
        high = CT_WINDOW[1] if config.high is None else config.high
        if not high > low:
            raise ConfigError(f"The intensity window ends at {high}, not above its start {low}.", "Set low below high.")
        return statistics.scale, low, high - low
    low = statistics.percentile(0.5 if config.low is None else config.low)
    high = statistics.percentile(99.5 if config.high is None else config.high)
    return statistics.scale, low, max(high - low, 1e-6)
