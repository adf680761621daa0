"""Slices drawn without OpenGL look as the canvas does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication

from napari_med3dssl import _canvas, _compat
from napari_med3dssl._layers import add, labels_layer, volume_layer
from napari_med3dssl.canvas_views import bar_length, only_opengl, view_of
from training_backend.data.phantoms import Phantom

pytestmark = pytest.mark.gl
FAR = 8
"""Of 255."""
LINES = 3e-3
"""Share of pixels in a line or two: an edge of voxels in the middle of a pixel falls to either side."""


@pytest.fixture
def viewer(make_napari_viewer: Any, phantom: Phantom) -> Any:
    viewer = make_napari_viewer(show=True)
    add(viewer, volume_layer(phantom.volume, name="scan"))
    add(viewer, labels_layer(phantom.labels.array, phantom.volume.geometry, "truth", phantom.classes))
    viewer.reset_view()
    return viewer


def far_pixels(viewer: Any) -> float:
    """Share of pixels that differ from what OpenGL draws."""
    QApplication.processEvents()  # cells of a grid get their size
    seen = viewer.screenshot(flash=False)[..., :3].astype(int)
    drawn = view_of(viewer).drawn(seen.shape[1]).astype(int)
    rows = min(len(seen), len(drawn))
    assert abs(len(seen) - len(drawn)) <= 2
    assert seen.std() > 20  # something is seen
    return float((np.abs(seen[:rows] - drawn[:rows]).max(axis=-1) > FAR).mean())


def test_every_plane_and_look(viewer: Any) -> None:
    scan, truth = viewer.layers
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0)):
        viewer.dims.order = order
        viewer.reset_view()
        assert far_pixels(viewer) < LINES, order
    camera = _compat.camera(viewer)
    camera.zoom *= 2.3
    camera.center = (0, 20, -10)
    scan.gamma, scan.interpolation2d, scan.colormap = 1.7, "nearest", "magma"
    assert far_pixels(viewer) < LINES
    scan.contrast_limits, scan.blending = (-300.0, 150.0), "additive"
    truth.blending, truth.opacity = "additive", 0.8
    assert far_pixels(viewer) < LINES
    truth.data = truth.data.astype(np.int32)
    scan.visible = False
    assert far_pixels(viewer) < LINES
    _compat.grid(viewer).enabled = True
    scan.visible = True
    viewer.reset_view()
    assert far_pixels(viewer) < LINES


def test_colours_and_what_is_no_number(viewer: Any) -> None:
    shape = viewer.layers["scan"].data.shape
    placed = {name: getattr(viewer.layers["scan"], name) for name in ("scale", "translate", "units")}
    viewer.layers["truth"].visible = False
    colours = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    layer = viewer.add_image(colours, rgb=True, opacity=0.6, interpolation2d="nearest", **placed)
    assert far_pixels(viewer) < LINES
    viewer.layers.remove(layer)
    hollow = viewer.layers["scan"].data.astype(np.float32)
    hollow[:, 10:20] = np.nan
    viewer.add_image(hollow, colormap="viridis", interpolation2d="nearest", **placed)
    assert far_pixels(viewer) < LINES


def test_texts_stand_where_the_canvas_has_them(viewer: Any) -> None:
    _canvas.attach(viewer)
    _compat.scale_bar(viewer).visible = True
    assert far_pixels(viewer) < 2 * LINES  # the same texts in other fonts
    seen = viewer.screenshot(flash=False)[..., :3].astype(int)
    drawn = view_of(viewer).drawn(seen.shape[1]).astype(int)
    for layer in viewer.layers:
        layer.visible = False
    height, width = seen.shape[:2]
    places = ((height // 2, 15), (height // 2, width - 16), (15, width // 2), (height - 17, width // 2))
    places += ((height - 18, width - 60),)  # the scale bar
    for row, column in places:
        box = (slice(row - 12, row + 12), slice(column - 12, column + 12))
        assert (drawn[box] > 200).any() == (seen[box] > 200).any() == True  # noqa: E712
        assert view_of(viewer).drawn(width)[box].max() > 200


@pytest.mark.parametrize("zoom,length", [(1.0, 150), (2.0, 75), (1.3, 100), (0.1, 1000), (140.0, 1), (400.0, 0.2)])
def test_scale_bars_have_round_lengths(zoom: float, length: float) -> None:
    assert bar_length(zoom) == pytest.approx(length)
    assert bar_length(zoom) * zoom <= 150


def test_a_scale_bar_is_as_long_as_it_says(viewer: Any) -> None:
    viewer.layers["truth"].visible = viewer.layers["scan"].visible = False
    view = view_of(viewer, bar=True)
    drawn = view.drawn(2000)[..., 0]
    columns = np.flatnonzero((drawn > 200).any(axis=0))
    (mark,) = view.marks
    pixels_per_mm = view.zoom * 2000 / view.size[1]
    assert (columns[-1] - columns[0] + 1) / pixels_per_mm == pytest.approx(mark.length, rel=0.01)
    assert mark.text == f"{mark.length:g} mm"


def test_what_only_opengl_draws_is_named(viewer: Any) -> None:
    assert only_opengl(viewer) == ""
    layer = viewer.add_points([[0.0, 0.0, 0.0]], name="seeds", units=("mm",) * 3)
    assert only_opengl(viewer) == "The layer 'seeds'"
    layer.units = ("pixel",) * 3
    assert only_opengl(viewer) == "A view of layers with different units"
    layer.visible = False
    assert only_opengl(viewer) == ""
    viewer.layers["truth"].contour = 1
    assert only_opengl(viewer) == "The layer 'truth'"
    viewer.layers["truth"].contour = 0
    viewer.layers["scan"].interpolation2d = "cubic"
    assert only_opengl(viewer) == "The layer 'scan'"
    viewer.layers["scan"].interpolation2d = "linear"
    viewer.layers["scan"].rotate = 10
    assert only_opengl(viewer) == "The layer 'scan'"
    viewer.layers["scan"].rotate = 0
    viewer.canvas.overlays.axes.visible = True
    assert only_opengl(viewer) == "What is drawn over the layers"
    viewer.canvas.overlays.axes.visible = False
    viewer.dims.ndisplay = 3
    assert only_opengl(viewer) == "The view in 3D"
