"""Plain pictures and reports in the viewer: the right way round, in their colours, without sides of a patient."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from npe2 import PluginManifest
from PIL import Image

from napari_med3dssl import _canvas, _layers, _reader
from napari_med3dssl._scans import visible_case
from napari_med3dssl._state import State
from napari_med3dssl.data_panel import DataPanel
from training_backend.data.facts import PICTURES
from training_backend.data.phantom_modalities import write_modality
from training_backend.data.phantoms import thorax_ct

CORNERS = {"top left": 250, "top right": 160, "bottom left": 70, "bottom right": 0}


def film(size: int = 64) -> np.ndarray:
    """A picture whose corners differ."""
    picture = np.full((size, size), 30, np.uint8)
    edge = size // 3
    picture[:edge, :edge], picture[:edge, -edge:] = CORNERS["top left"], CORNERS["top right"]
    picture[-edge:, :edge], picture[-edge:, -edge:] = CORNERS["bottom left"], CORNERS["bottom right"]
    return picture


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    colours = np.stack([film(), film()[::-1], film()[:, ::-1]], axis=-1)
    Image.fromarray(colours).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


def test_napari_s_own_reader_keeps_pictures(repository: Path, slide: Path) -> None:
    manifest = PluginManifest.from_file(repository / "src" / "napari_med3dssl" / "napari.yaml")
    patterns = {pattern for reader in manifest.contributions.readers for pattern in reader.filename_patterns}
    assert not patterns & {f"*{ending}" for ending in PICTURES}
    assert _reader.get_reader(slide.parent) is None, "a folder of pictures is no scan either"


def test_a_layer_of_a_picture_is_not_mirrored(tmp_path: Path) -> None:
    Image.fromarray(film()).save(tmp_path / "film.png")
    [(data, options, kind)] = _reader.read_layers(tmp_path / "film.png")
    assert kind == "image"
    assert np.array_equal(data[0], film())
    assert options["scale"][1:] == (1, 1), "rows go down and columns to the right, as napari draws positive scales"
    assert options["contrast_limits"] == (0, 255)


def test_colours_are_added_and_stay_contrasts_with_their_numbers(slide: Path) -> None:
    viewer = ViewerModel()
    for layer in _reader.read_layers(slide):
        _layers.add(viewer, layer)
    assert [layer.colormap.name for layer in viewer.layers] == ["red", "green", "blue"]
    assert all(layer.blending == "additive" and layer.visible for layer in viewer.layers)
    volumes, label = visible_case(viewer)
    assert label is None
    assert [volume.meta["contrast"] for volume in volumes] == ["red", "green", "blue"]
    assert volumes[0].meta["largest"] == 255, "a model sees an open layer as it sees its file"
    assert np.array_equal(volumes[1].array[0], film()[::-1])


def test_pictures_have_no_sides_of_a_patient(slide: Path) -> None:
    viewer = ViewerModel()
    for layer in _reader.read_layers(slide):
        _layers.add(viewer, layer)
    view = _canvas.attach(viewer)
    assert set(view.letters().values()) == {""}
    text = _canvas.below_cursor(viewer, (0, 2, 60))
    assert text == "row 2 column 60  |  red 160  |  green 0  |  blue 250"
    grid = _layers.geometry_of(viewer.layers[0])
    _layers.add(viewer, _layers.picture_layer(np.zeros((1, 64, 64)), grid, "what was made of it"))
    assert set(view.letters().values()) == {""}
    _layers.add(viewer, _layers.volume_layer(thorax_ct(0, (8, 16, 16)).volume))
    assert view.letters()["right"] == "L"


@pytest.mark.gl
def test_what_the_canvas_shows_is_the_picture(qtbot: Any, slide: Path, make_napari_viewer: Callable[..., Any]) -> None:
    viewer = make_napari_viewer(show=True)
    for layer in _reader.read_layers(slide):
        _layers.add(viewer, layer)
    viewer.reset_view()
    qtbot.wait(100)
    seen = viewer.window.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
    rows, columns = (np.flatnonzero((seen.max(axis=2) > 20).any(axis=axis)) for axis in (1, 0))
    seen = seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    expected = np.asarray(Image.open(slide)).astype(int)
    for y in (0.1, 0.9):
        for x in (0.1, 0.9):
            here = seen[int(y * seen.shape[0]), int(x * seen.shape[1])]
            assert np.abs(here - expected[int(y * 64), int(x * 64)]).max() < 12, (y, x)


@pytest.fixture
def panel(state: State, shown: Callable[..., Any]) -> DataPanel:
    return shown(DataPanel(state))


@pytest.mark.usefixtures("source_path")
def test_a_folder_of_pictures_becomes_a_dataset(panel: DataPanel, wait: Callable[..., None], tmp_path: Path) -> None:
    folder = write_modality(tmp_path / "slides", "2D_path", 3, size=32)
    (folder / "cases.csv").unlink()
    panel.open_folder(folder)
    wait(lambda: panel.described is not None)
    wait(lambda: not panel.busy.isVisible())
    assert "a plain folder: 3 cases." in panel.notice.text
    assert panel.table.item(0, 2).text() == "1×32×32"
    panel.table.setCurrentCell(1, 0)
    panel.preview()
    wait(lambda: len(panel.state.viewer.layers) == 3)
    wait(lambda: not panel.busy.isVisible())
    assert [layer.name for layer in panel.state.viewer.layers] == [f"case_001 · {c}" for c in ("red", "green", "blue")]
    assert [layer.colormap.name for layer in panel.state.viewer.layers] == ["red", "green", "blue"]
    panel.output.show_path(tmp_path / "out")
    panel.save_dataset()
    wait(lambda: panel.dataset is not None)
    assert panel.dataset.info.contrasts == ("red", "green", "blue")


@pytest.mark.usefixtures("source_path")
def test_reports_are_shown_when_asked_for_and_never_logged(
    panel: DataPanel, wait: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "reports.csv"
    table.write_text('Id,Report,Label\na,"Heart is large.",1\nb,"Lungs are clear today.",0\n')
    with caplog.at_level(logging.DEBUG):
        panel.open_folder(table)
        wait(lambda: panel.described is not None)
        wait(lambda: not panel.busy.isVisible())
        assert "a table of reports: 2 cases." in panel.notice.text
        assert [panel.table.item(0, column).text() for column in (2, 3, 4)] == ["3 words", "", "value 1"]
        panel.table.setCurrentCell(0, 0)
        assert not panel.report.isVisible(), "only on demand"
        panel.preview()
        assert panel.report.isVisible()
        assert panel.report.toPlainText() == "Heart is large."
        assert not panel.state.viewer.layers
        panel.table.setCurrentCell(1, 0)
        assert not panel.report.isVisible(), "it is another case's"
        panel.output.show_path(tmp_path / "out")
        panel.save_dataset()
        wait(lambda: panel.dataset is not None)
    assert "2 cases are stored" in panel.notice.text
    assert "Heart is large" not in caplog.text
    panel.table.setCurrentCell(1, 0)
    panel.preview()
    assert panel.report.toPlainText() == "Lungs are clear today."
