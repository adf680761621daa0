"""What is on the screen as files, from a real window."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qtpy.QtGui import QGuiApplication

from napari_med3dssl import _canvas, _compat
from napari_med3dssl._layers import add, geometry_of, labels_layer, volume_layer
from napari_med3dssl.canvas_views import view_of
from napari_med3dssl.explore import Asked, ExplorePanel
from napari_med3dssl.explore_export import (
    BY_OPENGL,
    CANCELLED,
    NO_COMMAND,
    NOTHING_ASKED,
    NOTHING_OPEN,
    NOTHING_VISIBLE,
    ExportSection,
)
from napari_med3dssl.figures import HOW_TO_FFMPEG, NEEDS_FFMPEG, can_write_mp4, dots, figure
from napari_med3dssl.kept_views import HOW_TO_ANIMATION, NEEDS_ANIMATION
from tests.plugin.explore_kit import work_done
from training_backend.cli import main
from training_backend.data.phantoms import Phantom
from training_backend.data.read import read_volume

pytestmark = pytest.mark.gl


@pytest.fixture
def section(panel: ExplorePanel, phantom: Phantom, qtbot: Any) -> ExportSection:
    assert panel.export.told.text() == NOTHING_OPEN
    add(panel.viewer, volume_layer(phantom.volume, name="scan"))
    add(panel.viewer, labels_layer(phantom.labels.array, phantom.volume.geometry, "truth", phantom.classes))
    _canvas.attach(panel.viewer)
    panel.viewer.reset_view()
    panel.export.fold(False)
    qtbot.wait(50)
    return panel.export


def files(folder: Path) -> list[str]:
    """Names of the files in a folder, hidden ones too."""
    return [path.name for path in folder.iterdir() if path.is_file()]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_layers_come_back_on_their_grid(section: ExportSection, tmp_path: Path, qtbot: Any, suffix: str) -> None:
    for name in ("scan", "truth"):
        section.which.setCurrentText(name)
        path = tmp_path / f"{name}{suffix}"
        section.write_layer(path)
        work_done(qtbot)
        assert section.told.text().startswith(f"Saved {path.name}")
        layer = section.panel.viewer.layers[name]
        read = read_volume(path)
        assert read.geometry.same_grid(geometry_of(layer))
        assert np.array_equal(read.array, layer.data)


def test_what_cannot_be_written_is_told(section: ExportSection, tmp_path: Path, qtbot: Any) -> None:
    section.write_layer(tmp_path / "nowhere" / "truth.nii.gz")
    work_done(qtbot)
    assert "does not exist" in section.told.text()
    section.write_seg(tmp_path, tmp_path / "truth.dcm")
    work_done(qtbot)
    assert "holds no DICOM images" in section.told.text()


def test_only_label_maps_become_segmentations(section: ExportSection) -> None:
    section.which.setCurrentText("scan")
    assert not section.seg_button.isEnabled()
    section.which.setCurrentText("truth")
    assert section.seg_button.isEnabled()


def test_a_figure_has_its_size_a_scale_bar_and_letters(section: ExportSection, tmp_path: Path, qtbot: Any) -> None:
    viewer = section.panel.viewer
    camera, bar = _compat.camera(viewer), _compat.scale_bar(viewer)
    before = (camera.zoom, camera.center, bar.visible, bar.font_size, tuple(viewer.canvas.size))
    section.width.setValue(60)
    section.write_figure(tmp_path / "figure.png")
    work_done(qtbot)
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width == round(60 / 25.4 * 300)
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        drawn = np.asarray(picture).astype(int)
    assert (camera.zoom, camera.center, bar.visible, bar.font_size, tuple(viewer.canvas.size)) == before
    by_opengl = figure(viewer, 60).astype(int)
    assert (camera.zoom, camera.center, bar.visible, bar.font_size, tuple(viewer.canvas.size)) == before
    for layer in viewer.layers:
        layer.visible = False
    empty = view_of(viewer, bar=True).drawn(dots(60)).astype(int)
    assert by_opengl.shape == drawn.shape == empty.shape
    height, width = empty.shape[:2]
    for rows, columns in (  # letters left, right, at the top; the bar at the bottom right
        (slice(height // 3, 2 * height // 3), slice(0, width // 12)),
        (slice(height // 3, 2 * height // 3), slice(-width // 12, None)),
        (slice(0, height // 12), slice(width // 3, 2 * width // 3)),
        (slice(-height // 6, None), slice(-width // 3, None)),
    ):
        assert empty[rows, columns].max() > 150
        assert drawn[rows, columns].max() > 150


@pytest.mark.parametrize("by_opengl", [False, True])
def test_the_whole_field_of_view_is_in_the_figure(section: ExportSection, by_opengl: bool) -> None:
    viewer = section.panel.viewer
    seen = viewer.screenshot(flash=False)[..., :3].astype(float)
    drawn = figure(viewer, 100) if by_opengl else view_of(viewer, bar=True).drawn(dots(100))
    small = np.asarray(Image.fromarray(drawn).resize(seen.shape[1::-1], Image.Resampling.BOX)).astype(float)
    inner = (slice(60, -60), slice(60, -60))
    assert np.corrcoef(seen[inner].ravel(), small[inner].ravel())[0, 1] > 0.98


def test_what_opengl_draws_is_said_before_and_drawn(section: ExportSection, tmp_path: Path, qtbot: Any) -> None:
    viewer = section.panel.viewer
    viewer.add_points([[5.0, 10.0, 10.0]], name="seeds", units=("mm",) * 3)
    section.width.setValue(30)
    section.write_figure(tmp_path / "points.png")
    assert section.told.text() == BY_OPENGL.format("The layer 'seeds'")
    qtbot.waitUntil(lambda: section.told.text().startswith("Saved points.png. 354 × "), timeout=60_000)
    with Image.open(tmp_path / "points.png") as picture:
        assert picture.width == dots(30)


def test_nothing_to_see_or_nowhere_to_write_gets_a_sentence(section: ExportSection, tmp_path: Path, qtbot: Any) -> None:
    for write, name in ((section.write_figure, "figure.png"), (section.write_animation, "film.gif")):
        write(tmp_path / "nowhere" / name)
        assert section.told.text().startswith(f"{name} cannot be written to")
    for layer in section.panel.viewer.layers:
        layer.visible = False
    for write, path in ((section.write_figure, "figure.png"), (section.write_animation, "film.gif")):
        write(tmp_path / path)
        assert section.told.text() == NOTHING_VISIBLE
    assert not files(tmp_path)


def test_an_mp4_needs_its_package(section: ExportSection, tmp_path: Path, qtbot: Any) -> None:
    section.frames.setValue(5)
    section.write_animation(tmp_path / "slices.mp4")
    if not can_write_mp4():
        assert section.told.text() == f"{NEEDS_FFMPEG} {HOW_TO_FFMPEG}"
        assert not files(tmp_path)
        return
    work_done(qtbot)
    assert section.told.text() == "Saved slices.mp4. 5 frames."
    import imageio_ffmpeg

    frames, seconds = imageio_ffmpeg.count_frames_and_secs(tmp_path / "slices.mp4")
    assert frames == 5
    assert seconds == pytest.approx(0.4, abs=0.1)
    assert files(tmp_path) == ["slices.mp4"]


def test_a_film_between_kept_views(section: ExportSection, tmp_path: Path, qtbot: Any, wait: Any) -> None:
    viewer = section.panel.viewer
    first, last, _ = viewer.dims.range[0]
    section.keep_button.click()
    if not importlib.util.find_spec("napari_animation"):
        assert section.told.text() == f"{NEEDS_ANIMATION} {HOW_TO_ANIMATION}"
        return
    viewer.dims.set_point(0, first)
    section.forget_button.click()
    section.keep_button.click()
    section.write_animation(tmp_path / "short.gif")
    wait(lambda: section.told.text().startswith("A film between views needs two"))
    viewer.dims.set_point(0, last)
    viewer.layers["scan"].gamma = 2.0
    section.keep_button.click()
    assert section.keep_button.text() == "Keep view (2)"
    viewer.layers["scan"].gamma = 1.5
    before = (tuple(viewer.dims.point), _compat.camera(viewer).zoom, 1.5)
    section.frames.setValue(4)
    section.write_animation(tmp_path / "between.gif")
    wait(lambda: (tmp_path / "between.gif").is_file())
    with Image.open(tmp_path / "between.gif") as film:
        assert film.n_frames == 4
    assert (tuple(viewer.dims.point), _compat.camera(viewer).zoom, viewer.layers["scan"].gamma) == before
    viewer.layers.remove("truth")
    section.write_animation(tmp_path / "gone.gif")
    wait(lambda: "'truth', which was closed" in section.told.text())
    assert not (tmp_path / "gone.gif").exists()


def test_an_animation_goes_through_the_slices_and_puts_the_view_back(
    section: ExportSection, tmp_path: Path, qtbot: Any, wait: Any
) -> None:
    viewer = section.panel.viewer
    viewer.dims.set_point(0, viewer.dims.range[0].start + 6)
    before = (tuple(viewer.dims.point), _compat.camera(viewer).zoom)
    section.frames.setValue(4)
    section.write_animation(tmp_path / "slices.gif")
    assert section.cancel_button.isEnabled()
    assert not section.figure_button.isEnabled()
    assert tuple(viewer.dims.point) == before[0]  # slices are drawn without moving the view
    wait(lambda: (tmp_path / "slices.gif").is_file())
    work_done(qtbot)
    with Image.open(tmp_path / "slices.gif") as film:
        assert film.n_frames == 4
        assert max(film.size) <= 640
        frames = []
        for number in range(4):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")))
    assert not np.array_equal(frames[1], frames[2])
    assert (tuple(viewer.dims.point), _compat.camera(viewer).zoom) == before
    assert section.told.text() == "Saved slices.gif. 4 frames."


def test_slices_can_be_cancelled(section: ExportSection, tmp_path: Path, qtbot: Any) -> None:
    section.frames.setValue(240)
    section.write_animation(tmp_path / "slices.gif")
    qtbot.waitUntil(lambda: section.bar.value() >= 1, timeout=60_000)
    section.cancel_button.click()
    work_done(qtbot)
    assert section.told.text() == CANCELLED
    assert not files(tmp_path)
    assert not section.cancel_button.isEnabled()


def test_slices_with_points_are_filmed_from_the_canvas(
    section: ExportSection, tmp_path: Path, qtbot: Any, wait: Any
) -> None:
    viewer = section.panel.viewer
    viewer.add_points([[5.0, 10.0, 10.0]], name="seeds", units=("mm",) * 3)
    before = tuple(viewer.dims.point)
    section.frames.setValue(3)
    section.write_animation(tmp_path / "slices.gif")
    wait(lambda: (tmp_path / "slices.gif").is_file())
    work_done(qtbot)
    with Image.open(tmp_path / "slices.gif") as film:
        assert film.n_frames == 3
    assert tuple(viewer.dims.point) == before


def test_a_turn_in_3d_can_be_cancelled(section: ExportSection, tmp_path: Path, qtbot: Any, wait: Any) -> None:
    viewer = section.panel.viewer
    viewer.layers["truth"].visible = False
    viewer.dims.ndisplay = 3
    angles = tuple(_compat.camera(viewer).angles)
    section.frames.setValue(200)
    section.write_animation(tmp_path / "turn.gif")
    wait(lambda: section.bar.value() >= 1)
    assert tuple(_compat.camera(viewer).angles) != pytest.approx(angles)
    section.cancel_button.click()
    assert tuple(_compat.camera(viewer).angles) == pytest.approx(angles)
    work_done(qtbot)
    assert not (tmp_path / "turn.gif").exists()
    assert section.told.text() == CANCELLED


def test_the_command_of_what_was_computed(section: ExportSection, capsys: Any) -> None:
    section.command_button.click()
    assert section.told.text() == NOTHING_ASKED
    scan = section.panel.scan
    section.panel.asked = Asked("features", "run", {"level": 0}, scan, None)
    section.command_button.click()
    assert section.told.text() == NO_COMMAND
    options = {"prefix": 0.25, "order": "spatial"}
    asked = {"name": "roll-out", "options": options, "centre": [1.0, 2.0, 3.4], "point": None}
    section.panel.asked = Asked("view", "my run", asked, scan, None)
    section.command_button.click()
    words = shlex.split(QGuiApplication.clipboard().text())
    assert words[:4] == ["med3dssl", "view", "--run", "my run"]
    assert words[words.index("--centre") + 1 :][:3] == ["1", "2", "3"]
    assert "prefix=0.25" in words
    assert "Replace SCAN by files" in section.told.text()
    assert main(words[1:]) == 1  # every flag is understood; there is no such run
    assert "my run" in capsys.readouterr().err
