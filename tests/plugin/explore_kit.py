"""What tests of the Explore panel do to it: click into the scan, and wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from napari_med3dssl import _work
from napari_med3dssl.explore import ExplorePanel


def finish(panel: ExplorePanel, qtbot: Any) -> None:
    """Wait for the model process to answer."""
    qtbot.waitUntil(lambda: not panel.busy, timeout=120_000)


def work_done(qtbot: Any) -> None:
    """Wait for the threads of the panel."""
    qtbot.waitUntil(lambda: not _work._running, timeout=60_000)
    qtbot.wait(1)


def click(panel: ExplorePanel, voxel: tuple[int, int, int], *modifiers: str, drag_to: Any = None) -> None:
    """A click on a voxel of the scan, as the canvas would announce it."""
    viewer, layer = panel.viewer, panel.scan
    event = SimpleNamespace(
        type="mouse_press",
        button=1,
        modifiers=[SimpleNamespace(name=name) for name in modifiers],
        position=layer.data_to_world(voxel),
        dims_displayed=list(viewer.dims.displayed),
        view_direction=None,
        handled=False,
    )
    generators = [callback(viewer, event) for callback in viewer.mouse_drag_callbacks]
    for step in (drag_to, None) if drag_to else (None,):
        for generator in generators:
            next(generator, None)
        event.type = "mouse_move" if step else "mouse_release"
        event.position = layer.data_to_world(step or voxel)
    for generator in generators:
        next(generator, None)
