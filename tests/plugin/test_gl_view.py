"""What a real canvas shows: the phantom's L marker on the patient's left, in every plane and in 3D."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_med3dssl import _canvas, _layers
from napari_med3dssl._reader import read
from napari_med3dssl.results import centre_slices
from training_backend.data.phantoms import Phantom, thorax_ct
from training_backend.data.volume import Geometry, Volume
from training_backend.data.write import write_volume

pytestmark = pytest.mark.gl

SHAPE = (48, 64, 64)
LEAD = 1500
"""Only the marker is denser."""


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return thorax_ct(0, SHAPE)


@pytest.fixture(scope="module")
def viewer(qapp: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import napari

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAPARI_CONFIG", str(tmp_path_factory.mktemp("config") / "napari.yaml"))
        viewer = napari.Viewer(show=True)
        viewer.window.resize(800, 560)
        _canvas.attach(viewer)
        yield viewer
        viewer.close()


PAINTED = """
import napari, numpy as np
from qtpy.QtCore import QTimer
from napari_med3dssl import _canvas

viewer = napari.Viewer()
_canvas.attach(viewer)

def steps():
    for _ in range(2):
        viewer.add_image(np.random.rand(30, 100, 120).astype("float32"), scale=(3, 3, 3)); yield
        layer = viewer.add_labels(np.zeros((30, 100, 120), np.uint8), scale=(3, 3, 3))
        layer.mode = "paint"; yield
        layer.paint((15, 50, 50), 2); yield
        viewer.layers.clear(); yield
    viewer.add_image(np.random.rand(20, 30, 30).astype("float32")); yield
    viewer.layers.clear()
    viewer.add_image(np.random.rand(90, 88, 156).astype("float32")); yield
    print("lives", flush=True)
    viewer.close()

timer, todo = QTimer(), steps()
timer.timeout.connect(lambda: next(todo, None))
timer.start(200)
napari.run()
"""
"""Paints, removes what was painted, and opens other scans."""


def test_a_painted_layer_may_be_removed_and_another_scan_opened(tmp_path: Path) -> None:
    environment = {**os.environ, "NAPARI_CONFIG": str(tmp_path / "napari.yaml")}
    command = [sys.executable, "-c", PAINTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "lives"), done.stderr[-2000:]


def look(viewer: Any, layer: Any, qtbot: Any) -> tuple[np.ndarray, dict[str, str]]:
    """(row, column) of the marker relative to the middle of the body on the canvas, and the letters shown."""
    pictures = []
    for limits in ((LEAD, LEAD + 1), (-300, -299)):
        layer.contrast_limits = limits
        qtbot.wait(30)
        pictures.append(viewer.window.screenshot(canvas_only=True, flash=False)[..., :3].mean(axis=-1) > 128)
    marker, body = (np.argwhere(without_letters(picture)).mean(axis=0) for picture in pictures)
    return marker - body, _canvas.attach(viewer).letters()


def without_letters(picture: np.ndarray) -> np.ndarray:
    """The picture without its edges, where the letters of the sides are drawn."""
    inner = picture.copy()
    rows, columns = (max(1, n // 9) for n in picture.shape)
    inner[:rows] = inner[-rows:] = False
    inner[:, :columns] = inner[:, -columns:] = False
    return inner


PLANES = {
    # name: (order of axes, where the letters must be, sign of (row, column) of the marker: anterior, left, mid-height)
    "axial": ((0, 1, 2), {"top": "A", "right": "L"}, (-1, 1)),
    "coronal": ((1, 0, 2), {"top": "S", "right": "L"}, (0, 1)),
    "sagittal": ((2, 0, 1), {"top": "S", "left": "A"}, (0, -1)),
}


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("stored", ["as canonical", "flipped and permuted"])
def test_the_marker_is_on_the_patient_s_left(
    plane: str, stored: str, viewer: Any, phantom: Phantom, qtbot: Any, tmp_path: Path
) -> None:
    volume = phantom.volume if stored == "as canonical" else restored_other_way(phantom.volume, tmp_path)
    viewer.layers.clear()
    viewer.dims.ndisplay = 2
    layer = _layers.add(viewer, _layers.volume_layer(volume))
    order, letters, side = PLANES[plane]
    viewer.dims.order = order
    lead = np.argwhere(volume.array > LEAD)
    viewer.dims.set_point(range(3), layer.data_to_world(lead[len(lead) // 2]))
    viewer.reset_view()
    position, shown = look(viewer, layer, qtbot)
    assert letters.items() <= shown.items()
    for found, expected in zip(position, side, strict=True):
        if expected:
            assert np.sign(found) == expected, (plane, position)


def restored_other_way(volume: Volume, folder: Path) -> Volume:
    """The same patient, stored sagittally with flipped axes and read back from the file."""
    turned = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    geometry = volume.geometry
    dz, dy, dx = geometry.spacing_mm
    # file axes (i, j, k) run towards A, I, R
    affine = turned @ np.diag([dy, dz, dx, 1.0])
    depth, height, width = volume.array.shape
    stored = volume.array[::-1, ::-1, ::-1].transpose(1, 0, 2)
    last = geometry.to_lps @ (depth - 1, height - 1, width - 1, 1)
    affine[:3, 3] = (-last[0], -last[1], last[2])
    affine[:3, :3] = np.array([[0, 0, dx], [dy, 0, 0], [0, -dz, 0]])
    other = Geometry(affine, stored.shape)
    path = write_volume(Volume(other.to_canonical(np.ascontiguousarray(stored)), other, "CT"), folder / "turned.nii.gz")
    [(data, options, _)] = read(path)
    facts = options["metadata"]["med3dssl"]
    np.testing.assert_array_equal(data, volume.array)
    return Volume(data, Geometry.from_dict(facts["geometry"]), "CT")


VIEWS = {
    "from the feet": ((-1, 0, 0), (0, -1, 0), (-1, 1)),
    "from the front": ((0, 1, 0), (-1, 0, 0), (0, 1)),
    "from behind": ((0, -1, 0), (-1, 0, 0), (0, -1)),
    "from the left": ((0, 0, -1), (-1, 0, 0), (0, -1)),
}
"""Direction of view and up (world z, y, x), sign of (row, column) of the marker."""


@pytest.mark.parametrize("view", VIEWS)
def test_three_dimensions_are_no_mirror_image(view: str, viewer: Any, phantom: Phantom, qtbot: Any) -> None:
    viewer.layers.clear()
    viewer.dims.order = (0, 1, 2)
    viewer.dims.ndisplay = 3
    layer = _layers.add(viewer, _layers.volume_layer(phantom.volume))
    viewer.reset_view()
    direction, up, side = VIEWS[view]
    viewer.scene.camera.set_view_direction(direction, up)
    position, letters = look(viewer, layer, qtbot)
    for found, expected in zip(position, side, strict=True):
        if expected:
            assert np.sign(found) == expected, (view, position)
    column_letter = letters["right"] if side[1] > 0 else letters["left"]
    assert column_letter in ("L", "A")


def test_all_kinds_of_layers_are_drawn_without_warnings(
    viewer: Any, qtbot: Any, recwarn: pytest.WarningsRecorder
) -> None:
    viewer.layers.clear()
    viewer.dims.ndisplay = 2
    phantom = thorax_ct(1, (16, 24, 24))
    geometry = phantom.volume.geometry
    token = np.random.default_rng(0).random((2, 3, 3), np.float32)
    colours = np.zeros((2, 3, 3, 3), np.uint8)
    labels = phantom.labels.array
    for layer in (
        _layers.volume_layer(phantom.volume),
        _layers.labels_layer(labels, geometry, "organs", phantom.classes),
        _layers.picture_layer(token, geometry, "map", role="heatmap", voxels=(8, 8, 8)),
        _layers.picture_layer(colours, geometry, "rgb", role="rgb", voxels=(8, 8, 8)),
        _layers.points_layer(np.array([[10.0, 20.0, 30.0]]), geometry, "seeds"),
    ):
        _layers.add(viewer, layer)
    centre_slices(viewer, list(viewer.layers))
    for dimensions in (3, 2):
        viewer.dims.ndisplay = dimensions
        qtbot.wait(20)
    texts = [str(warning.message) for warning in recwarn]
    assert not [text for text in texts if "Inconsistent units" in text or "Non-orthogonal" in text]
