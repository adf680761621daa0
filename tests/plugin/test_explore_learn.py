"""Correct and learn in a real window: the next case by a click, a mask into the dataset and back, and the run after."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qtpy.QtCore import Qt

from napari_med3dssl import _work, mask_drafts
from napari_med3dssl._layers import add, geometry_of, labels_layer
from napari_med3dssl._state import State
from napari_med3dssl.data_panel import DataPanel
from napari_med3dssl.explore import ExplorePanel
from napari_med3dssl.explore_learn import NO_DATASET, LearnSection
from tests.plugin.explore_kit import work_done
from training_backend.config.presets import finetune_config
from training_backend.config.registry import method, task
from training_backend.data.accept import accept
from training_backend.data.dataset import Dataset
from training_backend.data.prepare import InputProfile
from training_backend.data.read import read_labels
from training_backend.data.store import open_case
from training_backend.data.volume import Volume
from training_backend.engine.export import self_contained
from training_backend.engine.rundir import RunDirectory
from training_backend.files import write_json
from training_backend.jobs.launcher import cancel
from training_backend.jobs.learn import next_name
from training_backend.jobs.registry import summary
from training_backend.weights.save import save_model

pytestmark = pytest.mark.gl


@pytest.fixture
def state(window_state: State) -> State:
    return window_state


@pytest.fixture
def folder(dataset: Path, cohort: Path, tmp_path: Path) -> Path:
    """The dataset, two of whose three training cases have no label map."""
    shutil.copytree(dataset, tmp_path / "data")
    copy = Dataset.open(tmp_path / "data")
    copy.info = copy.info.model_copy(update={"root": cohort.resolve().as_posix()})
    for case in copy.cases(split="train")[:2]:
        store = {name: entry for name, entry in case.store.items() if name != "label"}
        copy.put(case.model_copy(update={"label": None, "store": store}))
    copy.save()
    return copy.folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A fine-tuning run with its model, as an untrained network."""
    small = {
        "method": {"size": "tiny", "patch_size": (8, 8, 8), "embed_dim": 24, "heads": 2, "depth": 2},
        "task": {"channels": (8, 8, 16)},
        "data": {"size": (16, 16, 16), "workers": 0, "train_cases": 1},
        "optim": {"max_steps": 2, "batch_size": 1},
        "engine": {"device": "cpu", "threads": 1, "preview_minutes": 0},
    }
    config = self_contained(finetune_config("segmentation", "tiny", folder, changes=small))
    torch.manual_seed(0)
    network = task("segmentation").build(config, method("mae3d").build_encoder(config))
    profile = InputProfile.of(config, Dataset.open(folder).info)
    RunDirectory.create(tmp_path / "runs" / "former", config)
    card = {"kind": "finetune", "config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
    save_model(tmp_path / "runs" / "former", network, card)
    return tmp_path / "runs" / "former"


@pytest.fixture
def section(panel: ExplorePanel, folder: Path, run: Path, qtbot: Any) -> LearnSection:
    """The section with a dataset and a model."""
    panel.learning.fold(False)
    assert panel.learning.told.text() == NO_DATASET
    assert not panel.learning.accept_button.isEnabled()
    panel.state.dataset = folder
    panel.state.model = str(run)
    work_done(qtbot)
    return panel.learning


def done(section: LearnSection, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: not section._jobs, timeout=60_000)


def click_first(section: LearnSection, qtbot: Any) -> str:
    """Click the first case in the list, as a mouse would."""
    item = section.list.item(0)
    place = section.list.visualItemRect(item).center()
    qtbot.mouseClick(section.list.viewport(), Qt.MouseButton.LeftButton, pos=place)
    done(section, qtbot)
    return str(item.data(Qt.ItemDataRole.UserRole))


def test_from_the_next_case_to_a_run_that_trains_on(section: LearnSection, folder: Path, run: Path, qtbot: Any) -> None:
    assert "1 of 3 training cases have a label map" in section.told.text()
    section.next_button.click()
    done(section, qtbot)
    assert section.list.count() == 2
    assert "unsure of" in section.list.item(0).text()
    id = click_first(section, qtbot)
    viewer = section.panel.viewer
    scan = viewer.layers[id]
    assert section.case_box.currentData() == id
    assert section.panel.scan is scan
    assert scan is not None

    section.predict_button.click()
    done(section, qtbot)
    name = f"{id} · pred · former"
    assert viewer.layers.selection.active is viewer.layers[name]
    assert [layer.name for layer in viewer.layers if layer.visible] == [id, name]
    viewer.layers[name].data[8:12, 10:20, 20:24] = 2  # the correction
    assert section.mask_box.currentText() == name
    section.accept_button.click()
    done(section, qtbot)
    assert section.notice.text.startswith(f"The mask was accepted for case {id}")
    assert "2 of 3 training cases have a label map; accepted masks: 1." in section.told.text()
    dataset = Dataset.open(folder)
    case = dataset.case(id)
    assert case.label is not None
    assert np.array_equal(read_labels(dataset.source(case.label)).array, np.asarray(viewer.layers[name].data))
    assert (case.accepted[0].how, case.accepted[0].model) == ("prediction of former, corrected", str(run))
    assert case.annotated is None
    assert [str(section.list.item(row).data(Qt.ItemDataRole.UserRole)) for row in range(section.list.count())] != [id]
    assert section.list.count() == 1

    shown: list[Any] = []
    section.panel.state.tab_wanted.connect(lambda tab, what: shown.append((tab, what)))
    section.train_button.click()
    done(section, qtbot)
    (tab, started) = shown[-1]
    assert tab == "Runs"
    config = RunDirectory.open(started).config()
    assert config.weights == str(run)
    assert started.name == "former-2"
    assert config.data.train_cases is None
    qtbot.waitUntil(lambda: not summary(started).alive or summary(started).step > 0, timeout=60_000)
    cancel(RunDirectory.open(started))
    assert summary(started).state in ("finished", "stopped", "stopping"), summary(started).sentence

    section.undo_button.click()
    done(section, qtbot)
    assert Dataset.open(folder).case(id).label is None
    assert not section.undo_button.isEnabled()


def test_what_the_next_run_gained_is_told(section: LearnSection, run: Path, tmp_path: Path, qtbot: Any) -> None:
    """The scores are those that both runs wrote; the new model is one click away."""
    now = tmp_path / "runs" / "former-2"
    shutil.copytree(run, now)
    for path, scores in ((run, {"a": 0.5, "b": 0.7, "z": 0.1}), (now, {"a": 0.7, "b": 0.8})):
        (path / "predictions").mkdir()
        write_json(path / "predictions" / "cases.json", [{"case": k, "dice": {"lung": v}} for k, v in scores.items()])
    section._launched(now)
    section._state.runs_changed.emit()
    work_done(qtbot)
    assert "trains on" in section.notice.text  # it has not finished yet
    RunDirectory.open(now).update(state="finished")
    section._state.runs_changed.emit()
    work_done(qtbot)
    assert section.notice.text == "Mean Dice of the 2 validation cases: 0.600 with former, 0.750 with former-2."
    section.notice.findChildren(type(section.accept_button))[-1].click()
    assert section._state.model == str(now)
    assert next_name(now) == "former-3"


def test_a_cancelled_search_changes_nothing(section: LearnSection, qtbot: Any) -> None:
    assert not section.cancel_button.isVisible()
    section.next_button.click()
    section.cancel_button.click()
    done(section, qtbot)
    assert section.notice.text in ("Cancelled; nothing was changed.",) or section.list.count() == 2
    assert section.cancel_button.isHidden()
    assert section.next_button.isEnabled()


KILLED = """
import os, signal, sys, time
from pathlib import Path
import napari
import numpy as np
from qtpy.QtWidgets import QApplication
from napari_med3dssl import _work, mask_drafts
from napari_med3dssl._layers import add, geometry_of, labels_layer
from napari_med3dssl._state import state_of
from napari_med3dssl.explore import ExplorePanel

folder, id = Path(sys.argv[1]), sys.argv[2]
viewer = napari.Viewer()
state = state_of(viewer)
state.dataset = folder
panel = ExplorePanel(state)
viewer.window.add_dock_widget(panel)
section = panel.learning
section.open_case(id)
until = time.monotonic() + 60
while not (section._jobs == set() and id in viewer.layers) and time.monotonic() < until:
    QApplication.processEvents()
scan = viewer.layers[id]
empty, name = np.zeros(scan.data.shape, np.uint8), f"{id} · pred · former"
mask = add(viewer, labels_layer(empty, geometry_of(scan), name, run="former"))
section.mask_box.setCurrentText(mask.name)
mask.n_edit_dimensions, mask.brush_size = 3, 3
mask.paint((10, 12, 14), 2)
panel.strokes._paint_on(scan)
panel.strokes._painted.paint((8, 9, 10), 2)
while time.monotonic() < until:
    QApplication.processEvents()
    kept = mask_drafts.find(folder, id)
    from napari_med3dssl import stroke_store
    from napari_med3dssl._layers import volume_of
    if kept is not None and stroke_store.find(volume_of(scan)) is not None:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_masks_and_strokes_are_back_after_napari_was_killed(
    section: LearnSection, folder: Path, qtbot: Any, source_path: None
) -> None:
    id = Dataset.open(folder).cases(split="train", labelled=False)[0].id
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder), id], capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    section.open_case(id)
    done(section, qtbot)
    assert "that was being corrected is back" in section.notice.text
    layer = section.panel.viewer.layers[f"{id} · pred · former"]
    assert section.mask_box.currentText() == layer.name
    assert layer.data[10, 12, 14] == 2
    assert 1 < np.count_nonzero(layer.data) < 30
    section.panel.strokes._paint_on(section.panel.scan)
    assert section.panel.strokes._painted.data[8, 9, 10] == 2
    section.mask_box.setCurrentText(layer.name)
    section.accept_button.click()
    done(section, qtbot)
    assert Dataset.open(folder).case(id).accepted[0].how == "prediction of former, corrected"
    assert mask_drafts.find(folder, id) is None


def test_strokes_are_partial_labels_of_the_classes_that_were_looked_for(
    section: LearnSection, folder: Path, qtbot: Any
) -> None:
    id = Dataset.open(folder).cases(split="train", labelled=False)[0].id
    section.open_case(id)
    done(section, qtbot)
    scan = section.panel.viewer.layers[id]
    array = np.zeros(scan.data.shape, np.uint8)
    array[10, 10:14, 10:14] = 2
    array[10, 2:4, 2:4] = 1
    add(section.panel.viewer, labels_layer(array, geometry_of(scan), f"{id} · painted"))
    assert section.painted.isChecked()
    for row in range(1, section.classes.count()):
        section.classes.item(row).setCheckState(Qt.CheckState.Unchecked)
    section.accept_button.click()
    done(section, qtbot)
    dataset = Dataset.open(folder)
    case = dataset.case(id)
    assert case.annotated == (1,)
    assert case.accepted[0].how == "strokes"
    assert case.store["label"]["values"] == {"1": 16}
    values, counts = np.unique(open_case(dataset, case).read_label(), return_counts=True)
    assert values.tolist() == [0, 1, 255]
    assert counts[:2].tolist() == [4, 16]


def test_a_layer_of_unknown_place_is_asked_about(section: LearnSection, folder: Path, qtbot: Any) -> None:
    id = Dataset.open(folder).cases(split="train", labelled=False)[0].id
    section.open_case(id)
    done(section, qtbot)
    viewer = section.panel.viewer
    array = np.zeros(viewer.layers[id].data.shape, np.uint8)
    array[8:12, 10:20, 10:20] = 1
    viewer.add_labels(array[:4], name="too small")
    section.accept_button.click()
    assert "does not say where its voxels lie" in section.notice.text
    assert Dataset.open(folder).case(id).label is None
    viewer.layers.remove("too small")
    viewer.add_labels(array, name="foreign")
    section.accept_button.click()
    assert "as many as" in section.notice.text
    assert Dataset.open(folder).case(id).label is None
    buttons = [one for one in section.notice.findChildren(type(section.accept_button)) if one.isVisible()]
    buttons[0].click()
    done(section, qtbot)
    case = Dataset.open(folder).case(id)
    assert case.label is not None
    assert np.array_equal(read_labels(Dataset.open(folder).source(case.label)).array, array)


def test_faults_are_told_and_the_section_goes_on(section: LearnSection, folder: Path, qtbot: Any) -> None:
    id = Dataset.open(folder).cases(split="train", labelled=False)[0].id
    section.open_case(id)
    done(section, qtbot)
    scan = section.panel.viewer.layers[id]
    add(section.panel.viewer, labels_layer(np.full(scan.data.shape, 255, np.uint8), geometry_of(scan), "empty"))
    section.mask_box.setCurrentText("empty")
    section.accept_button.click()
    done(section, qtbot)
    assert "unlabelled voxels only" in section.notice.text
    assert section.accept_button.isEnabled()
    section.panel.state.dataset = None
    assert section.told.text() == NO_DATASET
    assert not _work._running


def test_undo_in_data_never_takes_an_accepted_mask_back(section: LearnSection, folder: Path, qtbot: Any) -> None:
    """Data remembers whole cases for its own undo; those from before a mask was accepted are forgotten."""
    data = DataPanel(section.panel.state)
    qtbot.addWidget(data)
    work_done(qtbot)
    case = Dataset.open(folder).cases(split="train", labelled=False)[0]
    data.table.selectRow([row.case.id for row in data.table.rows if row.case].index(case.id))
    data._toggle_excluded()
    data._toggle_excluded()
    section.open_case(case.id)
    done(section, qtbot)
    scan = section.panel.viewer.layers[case.id]
    array = np.zeros(scan.data.shape, np.uint8)
    array[8:12, 10:20, 10:20] = 1
    add(section.panel.viewer, labels_layer(array, geometry_of(scan), "mask"))
    section.accept_button.click()
    done(section, qtbot)
    data.undo()
    assert Dataset.open(folder).case(case.id).accepted
    accept(folder, case.id, Volume(array, geometry_of(scan)))  # another program
    data._toggle_excluded()
    assert len(Dataset.open(folder).case(case.id).accepted) == 2
    assert "changed meanwhile" in data.notice.text
