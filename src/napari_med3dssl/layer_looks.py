"""How layers look in a slice, as numbers: colours, contrast, opacity and blending of the canvas, without OpenGL.

A `Look` keeps what is needed to draw one layer, so that it can be drawn off the Qt thread. Its voxels stay those of the
layer; all else is a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LEVELS = 256
"""Entries of the colour table of scans."""
BLENDINGS = ("translucent", "translucent_no_depth", "additive", "opaque")
"""Ways to lie on what is below that `Look.laid_on` knows."""
SMOOTHINGS = ("nearest", "linear")
"""Interpolations of the canvas that `Look.sampled` knows."""


@dataclass(frozen=True)
class Look:
    """One layer of scans, colours or labels as it is drawn now.

    Args:
        data: voxels (z, y, x), or (z, y, x, 3 or 4) for colours.
        scale: millimetres of the viewer's world per voxel along (z, y, x); negative where the world runs backwards.
        translate: world (z, y, x) of the middle of the first voxel.
        kind: "scan", "colours" or "labels".
        table: RGBA of values between the `limits`, or of the labels 0, 1, …; None where `colormap` gives them.
        limits: values of the first and the last entry of `table`.
        smooth: whether values are interpolated between voxels.
        opacity: 0 to 1.
        blending: one of `BLENDINGS`.
        colormap: of labels that are too many for a table.
    """

    data: Any
    scale: tuple[float, ...]
    translate: tuple[float, ...]
    kind: str
    table: Floats | None
    limits: tuple[float, float]
    smooth: bool
    opacity: float
    blending: str
    colormap: Any = field(repr=False, default=None)

    def cut(self, axis: int, place: float) -> Any | None:
        """Slice [rows, columns] at a world millimetre along an axis, a copy; None outside the layer."""
        index = round((place - self.translate[axis]) / self.scale[axis])
        if not 0 <= index < self.data.shape[axis]:
            return None
        return np.array(self.data[(slice(None),) * axis + (index,)], order="C")

    def coloured(self, values: Any) -> Floats:
        """RGBA [..., 4] from 0 to 1 of values of the layer; what is no number is transparent."""
        if self.kind == "colours":
            share = np.float32(1 / 255 if values.dtype == np.uint8 else 1)
            colours = values.astype(np.float32) * share
            full = np.ones((*colours.shape[:-1], 1), np.float32)
            return np.concatenate([colours, full], axis=-1) if colours.shape[-1] == 3 else colours
        if self.table is None:
            return np.asarray(self.colormap.map(values), np.float32)
        if self.kind == "labels":
            return self.table[values]
        low, high = self.limits
        last = len(self.table) - 1
        share = np.clip((values - np.float32(low)) * np.float32(last / (high - low)), 0, last)
        known = np.isfinite(share)
        colours = self.table[np.where(known, share + np.float32(0.5), 0).astype(np.intp)]
        return colours if known.all() else np.where(known[..., None], colours, np.float32(0))

    def sampled(self, values: Any, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> Floats:
        """RGBA [len(rows), len(columns), 4] of a slice at places counted in voxels, transparent outside."""
        inside = [(at >= -0.5) & (at < n - 0.5) for at, n in zip((rows, columns), values.shape, strict=False)]
        if self.smooth and self.kind == "scan":
            colours = self.coloured(_between(_between(values, rows, 0), columns, 1))
        else:
            nearest = [
                np.clip(np.floor(at + 0.5).astype(np.intp), 0, n - 1)
                for at, n in zip((rows, columns), values.shape, strict=False)
            ]
            colours = self.coloured(values[np.ix_(*nearest)])
        colours[~inside[0]] = 0
        colours[:, ~inside[1]] = 0
        return colours

    def laid_on(self, below: Floats, colours: Floats, lowest: bool) -> Floats:
        """RGB [..., 3] of `colours` over what is below them; the lowest layer lies on the bare canvas."""
        share = colours[..., 3:] * np.float32(self.opacity)
        if self.blending == "additive":
            light = colours[..., :3] * share
            return np.minimum(light if lowest else below + light, 1)
        if self.blending == "opaque" and not lowest:
            return np.where(colours[..., 3:] > 0, colours[..., :3], below)
        return colours[..., :3] * share + below * (1 - share)


def has_voxels(layer: Any) -> bool:
    """Whether a layer is a scan or a label map in three dimensions, at one resolution."""
    return type(layer).__name__ in ("Image", "Labels") and layer.ndim == 3 and not getattr(layer, "multiscale", False)


def look_of(layer: Any) -> Look:
    """How a layer of voxels looks now."""
    table: Any = None
    limits, smooth, colormap = (0.0, 255.0), False, None
    if type(layer).__name__ == "Labels":
        kind = "labels"
        if layer.data.dtype == np.uint8:
            table = layer.colormap.map(np.arange(256, dtype=np.uint8))
        else:
            colormap = layer.colormap
    elif getattr(layer, "rgb", False):
        kind = "colours"
    else:
        kind = "scan"
        low, high = (float(value) for value in layer.contrast_limits)
        limits = (low, max(high, low + 1e-9))
        smooth = str(layer.interpolation2d) != "nearest"
        table = layer.colormap.map(np.linspace(0, 1, LEVELS) ** layer.gamma)
    return Look(
        layer.data,
        tuple(float(value) for value in layer.scale),
        tuple(float(value) for value in layer.translate),
        kind,
        None if table is None else np.asarray(table, np.float32),
        limits,
        smooth,
        float(layer.opacity),
        str(layer.blending),
        colormap,
    )


def _between(values: Any, at: npt.NDArray[np.float64], axis: int) -> Floats:
    """Values between neighbours along an axis; beyond the middles of the first and last voxel those of these voxels."""
    last = values.shape[axis] - 1
    at = np.clip(at, 0, last)
    lower = np.floor(at).astype(np.intp)
    part = (at - lower).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
    below = values.take(lower, axis).astype(np.float32)
    above = values.take(np.minimum(lower + 1, last), axis).astype(np.float32)
    return below + (above - below) * part
