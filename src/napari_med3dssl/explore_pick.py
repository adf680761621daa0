"""Picking voxels with the mouse: a mode of its own, outside of which no click is touched.

A click sets the positive seed, Shift+click adds one, Ctrl+click adds a negative one, dragging moves the last seed, Esc
leaves. In 3D the voxel is the one that is seen under the cursor, see `explore_rays`; a drag that begins beside the scan
turns the view as ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from napari_med3dssl import _compat
from napari_med3dssl._layers import add, geometry_of, points_layer
from napari_med3dssl.explore_rays import Voxel, picked_voxel

LIVE_S = 1 / 15
"""Shortest time between two updates while dragging."""
UNDONE = 50
"""Changes that can be taken back, at most."""
POSITIVE, NEGATIVE = "#56b4e9", "#e69f00"
BANNER = "Click: pick · Shift: add · Ctrl: exclude · Esc: leave"


@dataclass
class Seeds:
    """Voxels that were clicked, (z, y, x) on the grid of the scan."""

    positive: list[Voxel] = field(default_factory=list)
    negative: list[Voxel] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.positive) + len(self.negative)


class PickMode:
    """The mode in which clicks on a viewer pick voxels of one layer.

    Args:
        viewer: the viewer.
        changed: called with the seeds after each change.
        left: called when the user left the mode with Esc.
        banner: what the canvas says while the mode is on.
        outside: called when a click was beside the layer.
    """

    def __init__(
        self,
        viewer: Any,
        changed: Callable[[Seeds], None],
        left: Callable[[], None],
        banner: str = BANNER,
        outside: Callable[[], None] = lambda: None,
    ) -> None:
        self._viewer, self._changed, self._left, self._banner, self._outside = viewer, changed, left, banner, outside
        self._past: list[Seeds] = []
        self._layer: Any = None
        self._escape: Any = None
        self.seeds = Seeds()

    @property
    def active(self) -> bool:
        """Whether clicks pick voxels now."""
        return self._layer is not None

    def enter(self, layer: Any) -> None:
        """Pick voxels of `layer` from now on."""
        if self.active:
            self.leave()
        self._layer = layer
        self._viewer.mouse_drag_callbacks.append(self._on_mouse)
        self._viewer.layers.selection.events.active.connect(self._show_cursor)
        self._escape = self._viewer.bind_key("Escape", lambda _: self._left(), overwrite=True)
        self._show_cursor()
        self._show_banner(self._banner)

    def leave(self) -> None:
        """Give mouse, cursor and Esc back; the seeds stay."""
        if not self.active:
            return
        self._layer = None
        self._viewer.mouse_drag_callbacks.remove(self._on_mouse)
        self._viewer.layers.selection.events.active.disconnect(self._show_cursor)
        self._viewer.bind_key("Escape", self._escape, overwrite=True)
        self._viewer.cursor.style = "standard"
        self._show_banner("")

    @property
    def undoable(self) -> bool:
        """Whether there is a change of the seeds to take back."""
        return bool(self._past)

    def undo(self) -> None:
        """Take the last click, drag or clearing back."""
        if self._past:
            self.seeds = self._past.pop()
            self._changed(self.seeds)

    def clear(self) -> None:
        """Remove all seeds; `undo` brings them back."""
        if len(self.seeds):
            self._remember()
        self.seeds = Seeds()

    def forget(self) -> None:
        """Begin anew, with nothing to undo."""
        self.seeds, self._past = Seeds(), []

    def _remember(self) -> None:
        self._past = [*self._past[1 - UNDONE :], deepcopy(self.seeds)]

    def _on_mouse(self, _viewer: Any, event: Any) -> Iterator[None]:
        if event.button not in (None, 1):
            return
        voxel = picked_voxel(self._viewer, self._layer, event)
        event.handled = voxel is not None or len(event.dims_displayed) == 2  # in 3D a drag beside the scan turns it
        if voxel is None:
            yield
            if event.type != "mouse_move":
                self._outside()
            return
        kind = self._place(voxel, [str(getattr(key, "name", key)) for key in event.modifiers])
        self._changed(self.seeds)
        last = time.monotonic()
        moved = False
        yield
        while event.type == "mouse_move":
            event.handled = True
            voxel = picked_voxel(self._viewer, self._layer, event) if self.active else None
            if voxel is not None and voxel != kind[-1]:
                kind[-1] = voxel
                moved = True
                if time.monotonic() - last >= LIVE_S:
                    self._changed(self.seeds)
                    last = time.monotonic()
            yield
        if moved:
            self._changed(self.seeds)

    def _place(self, voxel: Voxel, modifiers: list[str]) -> list[Voxel]:
        """Add a seed as the modifier keys ask; the list whose last seed it now is."""
        self._remember()
        kind = self.seeds.negative if "Control" in modifiers else self.seeds.positive
        if not modifiers:
            self.seeds.positive.clear()
            self.seeds.negative.clear()
        kind.append(voxel)
        return kind

    def _show_cursor(self) -> None:
        self._viewer.cursor.style = "cross"

    def _show_banner(self, text: str) -> None:
        overlay = _compat.canvas_text(self._viewer, "med3dssl_pick", "bottom_center")
        if overlay is not None:
            overlay.font_size = 8
            overlay.text, overlay.visible = text, bool(text)


def draw_seeds(viewer: Any, layer: Any, seeds: Seeds, source: Any) -> Any:
    """Points layer of the seeds, kept when there is one; kinds differ in symbol and colour."""
    import pandas as pd

    kinds = ["like this"] * len(seeds.positive) + ["unlike this"] * len(seeds.negative)
    voxels = np.array([*seeds.positive, *seeds.negative], float).reshape(-1, 3)
    if layer is None or layer not in viewer.layers:
        active = viewer.layers.selection.active
        size = max(3.0, 0.03 * max(source.data.shape[:3]))
        layer = add(viewer, points_layer(voxels, geometry_of(source), f"{source.name} · seeds", size=size))
        layer.projection_mode = "all"
        viewer.layers.selection.active = active
    elif not np.array_equal(layer.data, voxels):
        layer.selected_data = set()
        layer.data = voxels
    layer.features = pd.DataFrame({"kind": kinds})
    layer.symbol = ["disc" if kind == "like this" else "x" for kind in kinds]
    layer.face_color = [POSITIVE if kind == "like this" else NEGATIVE for kind in kinds]
    layer.border_color = "white"
    return layer


def raise_to_top(viewer: Any, layer: Any) -> None:
    """Draw a layer above all others."""
    last = len(viewer.layers) - 1
    index = viewer.layers.index(layer)
    if index != last:
        viewer.layers.move(index, last + 1)
