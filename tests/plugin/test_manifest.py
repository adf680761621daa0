"""The manifest: accepted by npe2, every command there, nothing heavy behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from napari.components import ViewerModel
from npe2 import PluginManifest

from napari_med3dssl import _layers, _samples
from napari_med3dssl._state import State, state_of
from napari_med3dssl.finetune_panel import targets_of
from napari_med3dssl.window_chooser import WindowChooser
from training_backend.data.dataset import Dataset


@pytest.fixture(scope="module")
def manifest(repository: Path) -> PluginManifest:
    return PluginManifest.from_file(repository / "src" / "napari_med3dssl" / "napari.yaml")


def test_every_command_can_be_imported_and_is_used(manifest: PluginManifest) -> None:
    manifest.validate_imports()
    contributions = manifest.contributions
    used = {each.command for each in (*contributions.readers, *contributions.writers, *contributions.sample_data)}
    used |= {each.command for each in contributions.widgets}
    assert used == {each.id for each in contributions.commands}


def test_the_widgets_are_named_as_documented(manifest: PluginManifest) -> None:
    assert manifest.name == "napari-med3dssl"
    assert {each.display_name for each in manifest.contributions.widgets} == {"Workbench", "Runs", "Explore"}


def test_every_setting_has_title_type_and_default(manifest: PluginManifest) -> None:
    for page in manifest.contributions.configurations.values():
        for setting in page.properties.values():
            assert setting.title
            assert setting.type
            assert setting.default is not None


def test_reading_and_writing_load_neither_torch_nor_panels() -> None:
    code = (
        "import sys, json; from napari_med3dssl import _reader, _writer, _samples, _layers, _state, _canvas\n"
        "names = sorted({name for name in sys.modules})\n"
        "print(json.dumps(names))"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {"PYTHONPATH": f"{root}:{root / 'src'}", "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded = set(json.loads(result.stdout))
    assert not {name for name in loaded if name.split(".")[0] in ("torch", "monai", "SimpleITK", "pyqtgraph", "napari")}


def test_windows_are_offered_for_the_selected_scan(state: State, qtbot: Any) -> None:
    chooser = WindowChooser(state)
    qtbot.addWidget(chooser)
    assert chooser.isHidden()
    scan, labels = (_layers.add(state.viewer, layer) for layer in _samples.ct_phantom())
    state.viewer.layers.selection.active = labels
    assert chooser.isHidden()
    state.viewer.layers.selection.active = scan
    assert not chooser.isHidden()
    names = [chooser.box.itemText(row).partition(":")[0] for row in range(chooser.box.count())]
    assert {"lung", "mediastinum", "bone", "brain", "liver"} <= set(names)
    chooser._apply(names.index("lung"))
    assert tuple(scan.contrast_limits) == (-1350, 150)


def test_classification_outputs_follow_the_targets_of_the_dataset(dataset: Path) -> None:
    opened = Dataset.open(dataset)
    assert {case.target for case in opened.cases()} <= {(0.0,), (1.0,)}
    assert targets_of("classification", dataset) == {"kind": "binary", "classes": 1}
    assert targets_of("segmentation", dataset) == {}
    assert targets_of("classification", None) == {}


def test_a_viewer_that_is_gone_is_told_in_words() -> None:
    state = state_of(ViewerModel())
    import gc

    gc.collect()
    with pytest.raises(RuntimeError, match="closed"):
        state.viewer  # noqa: B018
