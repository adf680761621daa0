"""The few places where napari's viewer model differs between versions, and nothing else.

napari 0.9 moved what is drawn on the canvas to ``viewer.canvas`` and what is in the scene to ``viewer.scene``; older
versions have the same objects on the viewer itself. Only public attributes are used.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def unwrapped(viewer: Any) -> Any:
    """The viewer behind the proxy that napari hands to plugin widgets; the same viewer always gives the same object."""
    return getattr(viewer, "__wrapped__", viewer)


def grid(viewer: Any) -> Any:
    """The model of the grid mode."""
    return viewer.canvas.grid if hasattr(viewer, "canvas") else viewer.grid


def camera(viewer: Any) -> Any:
    """The camera model."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def scale_bar(viewer: Any) -> Any:
    """The model of the scale bar."""
    return viewer.canvas.overlays.scale_bar if hasattr(viewer, "canvas") else viewer.scale_bar


def canvas_text(viewer: Any, key: str, position: str) -> Any | None:
    """A text overlay of our own at a corner or edge of the canvas; None where napari is too old to hold one."""
    if not hasattr(viewer, "canvas"):
        return None
    overlays = viewer.canvas.overlays
    if key not in overlays:
        from napari.components.overlays import TextOverlay

        overlays[key] = TextOverlay(text="", position=position, visible=False)
    return overlays[key]


def bare_brush(viewer: Any) -> None:
    """No box behind the circle of the brush.

    napari 0.9 gives it one, which outlives a painted layer that is removed; software OpenGL crashes when it is drawn.
    """
    overlay = viewer.canvas.overlays.get("_brush_circle") if hasattr(viewer, "canvas") else None
    if overlay is not None:
        overlay.box = False


def show_name(layer: Any, visible: bool = True) -> None:
    """Draw the layer's name into its cell of the grid, where napari can (0.9 and later)."""
    overlay = getattr(layer, "name_overlay", None)
    if overlay is not None:
        overlay.visible = visible


def at_once(viewer: Any) -> AbstractContextManager[Any]:
    """Lets the canvas take in several layers that go together, where napari can; it searches for cycles after each."""
    batched = getattr(viewer.layers, "batched_update", None)
    return nullcontext() if batched is None else batched()


def theme_colours(viewer: Any) -> dict[str, str]:
    """Colours of the viewer's theme as ``#rrggbb``: background, foreground, text, secondary, warning, error, ..."""
    from napari.utils.theme import get_theme

    theme = get_theme(str(viewer.theme))
    names = ("background", "foreground", "primary", "secondary", "highlight", "text", "warning", "error", "current")
    return {name: getattr(theme, name).as_hex(format="long") for name in names}


def texts_on_canvas(viewer: Any) -> list[Any]:
    """What has a font size and is drawn on the canvas now: the scale bar, and texts of our own."""
    overlays = viewer.canvas.overlays if hasattr(viewer, "canvas") else {}
    ours = [overlays[key] for key in list(overlays) if key == "scale_bar" or key.startswith("med3dssl_")]
    return [overlay for overlay in ours if overlay.visible]
