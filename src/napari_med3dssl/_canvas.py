"""What the canvas and the status bar say about the patient: side letters, obliqueness, and what lies below the cursor.

The viewer's world is (-S, P, L) millimetres, see `_layers`; the letters follow from it whatever is sliced or rotated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from napari_med3dssl import _compat
from napari_med3dssl._layers import classes_of, facts_of, geometry_of, is_picture
from napari_med3dssl._settings import preference
from training_backend.errors import Med3dError

SIDES = (("I", "S"), ("P", "A"), ("L", "R"))
"""Letters of the positive and the negative end of world axes (z, y, x)."""
EDGES = {"top": "top_center", "bottom": "bottom_center", "left": "middle_left", "right": "middle_right"}
_DEGREES = 0.1
"""Scans rotated by less than this against each other count as parallel."""

_views: WeakKeyDictionary[Any, PatientView] = WeakKeyDictionary()


def attach(viewer: Any) -> PatientView:
    """The patient view of `viewer`, made at the first call."""
    viewer = _compat.unwrapped(viewer)
    if viewer not in _views:
        _views[viewer] = PatientView(viewer)
    return _views[viewer]


class PatientView:
    """Keeps letters, badge and status text of one viewer up to date."""

    def __init__(self, viewer: Any) -> None:
        from weakref import ref

        self._viewer = ref(viewer)
        _compat.bare_brush(viewer)
        self._letters = {edge: _compat.canvas_text(viewer, f"med3dssl_{edge}", place) for edge, place in EDGES.items()}
        self._badge = _compat.canvas_text(viewer, "med3dssl_oblique", "bottom_left")
        for overlay in self._letters.values():
            if overlay is not None:
                overlay.font_size = 14
                overlay.gridded = True  # in each cell; said once, for the canvas makes all its texts anew at a change
        for event in (
            viewer.layers.events.inserted,
            viewer.layers.events.removed,
            viewer.dims.events.order,
            viewer.dims.events.ndisplay,
            _compat.camera(viewer).events.angles,
            _compat.grid(viewer).events.enabled,
        ):
            event.connect(self._refresh)
        viewer.events.status.connect(self._on_status, position="last")
        self._refresh()

    def letters(self) -> dict[str, str]:
        """Letter at each edge of the canvas as it is seen now; empty texts where the axes are far from it."""
        viewer = self._viewer()
        if viewer is None or viewer.dims.ndim < 3 or not any(_has_sides(facts) for facts in self._facts(viewer)):
            return dict.fromkeys(EDGES, "")
        if viewer.dims.ndisplay == 2:
            down, right = (_axis(axis) for axis in viewer.dims.displayed[-2:])
            vertical, horizontal = (str(way) for way in _compat.camera(viewer).orientation2d)
            down, right = (-down if vertical == "up" else down), (-right if horizontal == "left" else right)
        else:
            camera = _compat.camera(viewer)
            up, view = np.asarray(camera.up_direction), np.asarray(camera.view_direction)
            down, right = -up, np.cross(view, up)
        return {"top": side(-down), "bottom": side(down), "left": side(-right), "right": side(right)}

    def badge(self) -> str:
        """Sentence about the obliqueness of the scans shown, empty when all are aligned."""
        viewer = self._viewer()
        angles = sorted({round(float(facts["oblique_deg"]), 1) for facts in self._facts(viewer)} - {0.0})
        if not angles:
            return ""
        text = " and ".join(f"{angle:g}°" for angle in angles)
        return f"oblique {text}: drawn along its own axes, saved exactly"

    def _refresh(self, event: Any = None) -> None:
        viewer = self._viewer()
        if viewer is None:
            return
        wanted = bool(preference("view.letters", True))
        gridded = bool(_compat.grid(viewer).enabled)
        for edge, letter in self.letters().items():
            overlay = self._letters[edge]
            if overlay is not None:
                overlay.text = letter
                overlay.visible = wanted and bool(letter) and not (gridded and edge == "top")  # names stand there
        if self._badge is not None:
            lines = self.badge().replace(": ", ":\n").replace(", ", ",\n")  # short, beside the letter at the bottom
            self._badge.text, self._badge.visible = lines, bool(lines)

    def _facts(self, viewer: Any) -> list[dict[str, Any]]:
        found = [] if viewer is None else [facts_of(layer) for layer in viewer.layers]
        return [facts for facts in found if facts is not None]

    def _on_status(self, event: Any) -> None:
        """Replace napari's coordinates by the patient's; other messages stay as they are."""
        viewer, status = self._viewer(), event.value
        if viewer is None or not isinstance(status, dict) or status.get("med3dssl"):
            return
        if not preference("view.coordinates", True):
            return
        text = below_cursor(viewer, viewer.cursor.position)
        if text:
            viewer.status = {**status, "coordinates": text, "med3dssl": "1"}


def below_cursor(viewer: Any, position: Sequence[float]) -> str:
    """Voxel, patient millimetres, value and class at a world position; empty outside every scan of ours."""
    layers = [layer for layer in reversed(viewer.layers) if layer.visible and facts_of(layer) is not None]
    scan = next((found for layer in layers if _is_scan(layer) and (found := _voxel(layer, position))), None)
    scan = scan or next((found for layer in layers if (found := _voxel(layer, position))), None)
    if scan is None:
        return ""
    layer, voxel = scan
    if is_picture(facts_of(layer) or {}):
        return _in_picture(layers, layer, voxel)
    left, posterior, superior = (geometry_of(layer).to_lps @ (*voxel, 1.0))[:3]
    parts = [f"voxel {voxel[0]} {voxel[1]} {voxel[2]}", f"L {left:.1f}  P {posterior:.1f}  S {superior:.1f} mm"]
    if _is_scan(layer):
        parts.append(_value(layer, voxel))
    parts += [_class_name(each, position) for each in layers if type(each).__name__ == "Labels"]
    return "  |  ".join(part for part in parts if part)


def side(direction: Any) -> str:
    """Letters of the patient's side that a world direction (z, y, x) points to, the nearest first."""
    unit = np.asarray(direction, float) / max(float(np.linalg.norm(direction)), 1e-12)
    order = np.argsort(-np.abs(unit))
    return "".join(SIDES[axis][0 if unit[axis] > 0 else 1] for axis in order if abs(unit[axis]) > 0.45)


def parallel(one: Any, other: Any) -> bool:
    """Whether two layers' scans have the same axes in space, so that they overlay truly."""
    axes = [geometry_of(layer).to_lps[:3, :3] / geometry_of(layer).spacing_mm for layer in (one, other)]
    cosines = np.clip((axes[0] * axes[1]).sum(axis=0), -1, 1)
    return bool(np.degrees(np.arccos(cosines.min())) < _DEGREES)


def _axis(axis: int) -> Any:
    direction = np.zeros(3)
    direction[axis - 3 if axis < 0 else axis] = 1.0
    return direction


def _has_sides(facts: dict[str, Any]) -> bool:
    """Whether a layer tells where the patient's sides are: not a plain picture, nor what was computed from one."""
    shape = facts.get("geometry", {}).get("source_shape", ())
    return not is_picture(facts) and (1 not in shape or "provenance" in facts)


def _in_picture(layers: Sequence[Any], layer: Any, voxel: tuple[int, int, int]) -> str:
    """Row, column and the numbers of all visible colours of the picture that `layer` is of."""
    grid = geometry_of(layer)
    shown = [
        each for each in reversed(layers) if is_picture(facts_of(each) or {}) and geometry_of(each).same_grid(grid)
    ]
    names = [str((facts_of(each) or {}).get("provenance", {}).get("contrast", "")) for each in shown]
    values = [f"{name} {_value(each, voxel)}".strip() for name, each in zip(names, shown, strict=True)]
    return "  |  ".join([f"row {voxel[1]} column {voxel[2]}", *values])


def _is_scan(layer: Any) -> bool:
    return (facts_of(layer) or {}).get("role") == "image"


def _voxel(layer: Any, position: Sequence[float]) -> tuple[Any, tuple[int, int, int]] | None:
    """The layer and its voxel at a world position, or None outside it."""
    try:
        shape = geometry_of(layer).shape
    except Med3dError:
        return None
    z, y, x = (round(float(value)) for value in layer.world_to_data(position)[-3:])
    inside = all(0 <= index < n for index, n in zip((z, y, x), shape, strict=True))
    return (layer, (z, y, x)) if inside else None


def _value(layer: Any, voxel: tuple[int, int, int]) -> str:
    value = layer.data[voxel]
    if np.ndim(value):
        return ""
    unit = " HU" if (facts_of(layer) or {}).get("modality") == "CT" else ""
    return f"{float(value):.5g}{unit}"


def _class_name(layer: Any, position: Sequence[float]) -> str:
    found = _voxel(layer, position)
    if found is None or not (value := int(layer.data[found[1]])):
        return ""
    name = next((entry.name for entry in classes_of(layer) if entry.index == value), f"class {value}")
    return f"{layer.name}: {name}"
