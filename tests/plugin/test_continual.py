"""Buffers, forgetting and plans in the viewer; no OpenGL needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPointF, Qt
from qtpy.QtGui import QGuiApplication

from napari_med3dssl import _work, continual_box
from napari_med3dssl._layers import geometry_of
from napari_med3dssl._plot import LossPlot
from napari_med3dssl._state import State
from napari_med3dssl.buffer_files import buffers_of, feature_map, member_layers, small_picture
from napari_med3dssl.buffer_gallery import BuffersDialog
from napari_med3dssl.continual_box import ContinualBox
from napari_med3dssl.explore_maths import pca_points
from napari_med3dssl.forgetting_plot import Forgetting, ForgettingPlot
from napari_med3dssl.plan_files import plan_checks, read_forgetting
from napari_med3dssl.runs_panel import RunsPanel
from napari_med3dssl.stage_fields import StageFields
from training_backend.config import IngestConfig
from training_backend.config.plan import PlanConfig, StageConfig
from training_backend.data import rehearsal
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantom_modalities import write_modality
from training_backend.data.pictures import save_picture
from training_backend.data.store import open_case
from training_backend.errors import ConfigError, DataError
from training_backend.jobs.monitor import Series
from training_backend.jobs.registry import runs_root, summary

TAUGHT = ("1D_text", "2D_path", "3D_CT")
KINDS = ("text", "2d", "3d")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small datasets of three kinds of modalities, by modality."""
    folder, found = tmp_path_factory.mktemp("modalities"), {}
    for seed, modality in enumerate(TAUGHT):
        source = write_modality(folder / "source" / modality, modality, 6, seed, size=32, volume=(8, 24, 24))
        found[modality] = folder / "datasets" / modality
        ingest(source, found[modality], IngestConfig(splits=(0.8, 0.2, 0.0), workers=0), name=f"phantoms {modality}")
    return found


@pytest.fixture(scope="module")
def plan_folder(datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a plan leaves behind, with features drawn at random."""
    folder = tmp_path_factory.mktemp("plans") / "plan"
    rng = np.random.default_rng(0)
    for number, (modality, kind) in enumerate(zip(TAUGHT, KINDS, strict=True), 1):
        dataset = Dataset.open(datasets[modality])
        cases = dataset.cases(split="train")
        features = (rng.normal(size=(len(cases), 5)) + 8 * number).astype(np.float32)
        chosen = rehearsal.choose(features, "kmeans", 0.6, clusters=2)
        made = rehearsal.make(modality, kind, dataset, {}, cases, chosen, policy="kmeans", ratio=0.6, seed=0)
        made.save(folder / "stages" / f"{number:02d}-{modality}" / "buffer", features, chosen)
    return folder


def opened(dialog: BuffersDialog, qtbot: Any) -> BuffersDialog:
    qtbot.waitUntil(lambda: bool(dialog.buffers) and not _work._running, timeout=30_000)
    return dialog


def test_forgetting_is_told_drawn_and_copied(state: State, qtbot: Any) -> None:
    values = {("a", "a"): 0.5, ("b", "a"): 0.6, ("b", "b"): 2.0, ("c", "a"): 0.75, ("c", "b"): 1.9, ("c", "c"): 1.0}
    found = Forgetting(("a", "b", "c"), ("a", "b", "c"), {"loss": values})
    assert found.sentence("loss") == "From its own stage until c: a 0.5 → 0.75 (+50.0 %); b 2 → 1.9 (-5.0 %)."
    assert found.changes("loss", "a") == pytest.approx([0, 20, 50])
    assert found.to_csv().splitlines() == [
        "stage,quantity,a,b,c",
        "a,loss,0.5,,",
        "b,loss,0.6,2,",
        "c,loss,0.75,1.9,1",
    ]
    plot = ForgettingPlot(state.viewer)
    qtbot.addWidget(plot)
    plot.show_forgetting(found)
    assert [plot.quantity.itemText(row) for row in range(plot.quantity.count())] == ["change of loss in %", "loss"]
    np.testing.assert_allclose(plot.lines()["a"], [0, 20, 50])
    assert np.isnan(plot.lines()["c"][0])
    plot.quantity.setCurrentIndex(1)
    drawn = [item.getData() for item in plot._plot.getPlotItem().listDataItems()]
    np.testing.assert_allclose(drawn[1], [[1, 2], [2.0, 1.9]])
    dark = plot.legend.text()
    state.viewer.theme = "light"
    assert plot.legend.text() != dark  # darker inks
    plot.copy_button.click()
    assert QGuiApplication.clipboard().text() == found.to_csv()


def test_curves_of_runs_whose_steps_take_turns_begin_with_the_own_modality(state: State, qtbot: Any) -> None:
    plot = LossPlot(state.viewer)
    qtbot.addWidget(plot)
    one = Series([1, 2], [0.5, 0.4])
    plot.show_series({f"train/{name}": one for name in ("loss", "distillation 3D_CT", "reconstruction")})
    assert plot._quantity.currentText() == "reconstruction"
    other = LossPlot(state.viewer)
    qtbot.addWidget(other)
    other.show_series({f"train/{name}": one for name in ("loss", "reconstruction")})
    assert other._quantity.currentText() == "loss"


def test_what_a_plan_measured_is_read(tmp_path: Path) -> None:
    rows = [
        {"number": 1, "stage": "a", "modality": "a", "loss": 0.5, "accuracy": None},
        {"number": 2, "stage": "b", "modality": "a", "loss": 0.7, "accuracy": 0.9},
        {"number": 2, "stage": "b", "modality": "b", "loss": None, "note": "gone"},
    ]
    (tmp_path / "forgetting.json").write_text(json.dumps({"schema": 1, "rows": rows}))
    found = read_forgetting(tmp_path)
    assert (found.stages, found.modalities) == (["a", "b"], ["a", "b"])
    assert found.values == {
        "loss": {("a", "a"): 0.5, ("b", "a"): 0.7},
        "accuracy of neighbours": {("b", "a"): 0.9},
    }
    (tmp_path / "forgetting.json").write_text("[")
    assert read_forgetting(tmp_path) == Forgetting()


def test_buffers_show_their_members_and_a_click_opens_one(state: State, plan_folder: Path, qtbot: Any) -> None:
    dialog = BuffersDialog(None, state.viewer, "plan", plan_folder)  # type: ignore[arg-type]
    qtbot.addWidget(dialog)
    dialog.show()
    opened(dialog, qtbot)
    assert [buffer.modality for buffer in dialog.buffers] == list(TAUGHT)
    first = dialog.gallery.list.item(0)
    member = dialog.buffers[0].members[0]
    assert f"cluster {member.cluster + 1} · {member.distance:.3g}" in first.text()
    dialog.gallery.list.itemClicked.emit(first)
    qtbot.waitUntil(lambda: dialog.report.isVisibleTo(dialog))
    assert dialog.report.text() == dialog.buffers[0].open().case(member.case).report
    dialog.which.setCurrentIndex(2)
    opened(dialog, qtbot)
    assert "2 centres of clusters" in dialog.gallery.text.text()
    item = dialog.gallery.list.item(0)
    assert not item.icon().isNull()
    case = item.data(Qt.ItemDataRole.UserRole)
    dialog.gallery.list.itemClicked.emit(item)
    qtbot.waitUntil(lambda: case in state.viewer.layers)
    stored = open_case(dialog.buffers[2].open(), dialog.buffers[2].open().case(case))
    assert geometry_of(state.viewer.layers[case]).same_grid(stored.geometry)
    assert not dialog.report.isVisibleTo(dialog)


def test_colours_of_a_member_add_up_and_nothing_is_mirrored(tmp_path: Path) -> None:
    pixels = np.full((40, 80, 3), 20, np.uint8)
    pixels[:10, :20] = (250, 10, 10)  # the upper left corner is red
    pixels[30:, 60:] = (10, 10, 250)
    (tmp_path / "source").mkdir()
    save_picture(tmp_path / "source" / "a.png", pixels)
    save_picture(tmp_path / "source" / "b.png", pixels[::-1])
    ingest(tmp_path / "source", tmp_path / "data", IngestConfig(splits=(1.0, 0.0, 0.0), workers=0))
    dataset = Dataset.open(tmp_path / "data")
    small = small_picture(open_case(dataset, dataset.case("a")))
    assert small.shape == (38, 76, 3)
    assert small[3, 3, 0] > 200 > 60 > small[3, 3, 2]
    assert small[-3, -3, 2] > 200 > 60 > small[-3, -3, 0]
    features = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    chosen = rehearsal.choose(features, "random", 1.0)
    cases = dataset.cases()
    made = rehearsal.make("2D_own", "2d", dataset, {}, cases, chosen, policy="random", ratio=1.0, seed=0)
    layers = member_layers(made.save(tmp_path / "buffer", features, chosen), "a")
    assert [options["colormap"] for _, options, _ in layers] == ["red", "green", "blue"]
    assert {options["blending"] for _, options, _ in layers} == {"additive"}
    np.testing.assert_array_equal(layers[0][0][0], pixels[..., 0])
    with pytest.raises(DataError, match="c is not in the dataset"):
        member_layers(made, "c")


def test_a_grey_picture_opens_grey(tmp_path: Path) -> None:
    ingest(write_modality(tmp_path / "source", "2D_xray", 2, size=32), tmp_path / "data", IngestConfig(workers=0))
    dataset = Dataset.open(tmp_path / "data")
    cases = dataset.cases()
    features = np.zeros((2, 4), np.float32)
    chosen = rehearsal.choose(features, "random", 1.0)
    made = rehearsal.make("2D_xray", "2d", dataset, {}, cases, chosen, policy="random", ratio=1.0, seed=0)
    ((data, options, _),) = member_layers(made, cases[0].id)
    assert (data.shape, options.get("colormap", "gray"), options["name"]) == ((1, 32, 32), "gray", cases[0].id)


def test_the_map_of_features_marks_members_and_opens_them(state: State, plan_folder: Path, qtbot: Any) -> None:
    buffers = buffers_of(plan_folder)
    found = feature_map(buffers)
    rows = np.concatenate([rehearsal.arrays(buffer.folder)["features"] for buffer in buffers])
    places, explained = pca_points(rows)
    np.testing.assert_allclose(np.concatenate([one.places for one in found.groups.values()]), places, atol=1e-4)
    assert found.explained == pytest.approx(tuple(explained))
    values = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    np.testing.assert_allclose(explained, values[:2] / values.sum(), rtol=1e-4)
    for buffer in buffers:
        group = found.groups[buffer.modality]
        assert {group.cases[row] for row in np.flatnonzero(group.chosen)} == set(buffer.ids)
    alone = feature_map(buffers[2:])
    assert list(alone.groups) == ["cluster 1", "cluster 2"]
    labels = rehearsal.arrays(buffers[2].folder)["labels"]
    assert [len(one.places) for one in alone.groups.values()] == [int((labels == k).sum()) for k in (0, 1)]
    dialog = BuffersDialog(None, state.viewer, "plan", plan_folder)  # type: ignore[arg-type]
    qtbot.addWidget(dialog)
    dialog.show()
    opened(dialog, qtbot)
    qtbot.waitUntil(lambda: dialog.map.found is not None)
    shown = dialog.map
    drawn = shown.plot.cloud
    assert int(drawn.chosen.sum()) == sum(len(buffer.members) for buffer in buffers)
    modalities = np.array([modality for modality, _ in shown.points])
    member, other = (int(np.flatnonzero((modalities == "3D_CT") & (drawn.chosen == one))[0]) for one in (True, False))
    qtbot.waitUntil(lambda: shown.plot.widget.isVisible() or not dialog.tabs.setCurrentWidget(shown))
    place = shown.plot.widget.getViewBox().mapViewToScene(QPointF(*map(float, drawn.places[member])))
    assert drawn.chosen[drawn.nearest(place)]
    shown.plot.clicked.emit(member)
    case = shown.points[member][1]
    qtbot.waitUntil(lambda: case in state.viewer.layers)
    assert state.viewer.layers[case].visible
    shown.plot.clicked.emit(other)
    assert "only members" in dialog.notice.text
    groups = {name: set(drawn.groups[(modalities == name) & drawn.chosen].tolist()) for name in TAUGHT}
    assert len({drawn._inks[number][0] for (number,) in groups.values()}) == 3
    shown.which.setCurrentIndex(3)
    qtbot.waitUntil(lambda: "cluster 2" in shown.legend.text())
    assert set(drawn.groups.tolist()) == {0, 1, 2, 3}


def test_a_buffer_whose_files_moved_says_so(state: State, plan_folder: Path, tmp_path: Path, qtbot: Any) -> None:
    shutil.copytree(plan_folder, tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("buffer.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "gone", "beside": "gone"}))
    dialog = BuffersDialog(None, state.viewer, "plan", tmp_path / "moved")  # type: ignore[arg-type]
    qtbot.addWidget(dialog)
    opened(dialog, qtbot)
    assert "which is not at" in dialog.gallery.notice.text
    empty = BuffersDialog(None, state.viewer, "plan", tmp_path)  # type: ignore[arg-type]
    qtbot.addWidget(empty)
    qtbot.waitUntil(lambda: "no buffer yet" in empty.notice.text)


def test_a_stage_is_described_with_sentences_for_what_is_missing(
    state: State, datasets: dict[str, Path], shown: Callable[..., Any]
) -> None:
    state.dataset = datasets["2D_path"]
    fields = shown(StageFields(state, "stage"))
    assert fields.dataset.currentData() == str(datasets["2D_path"])
    state.dataset = datasets["3D_CT"]
    assert fields.stage() == StageConfig(modality="3D_MR", dataset=datasets["3D_CT"])  # follows the dataset in use
    assert not fields.kind.isEnabled()
    fields.modality.setCurrentText("3D_PET")
    with pytest.raises(ConfigError, match=r"3D_PET is a name of your own.* Choose its kind"):
        fields.stage()
    fields.kind.setCurrentIndex(fields.kind.findData("3d"))
    fields.form.editor("steps").edit.setText("7")
    stage = fields.stage()
    assert (stage.kind, stage.steps) == ("3d", 7)
    fields.modality.setCurrentText("2D_path")
    assert fields.stage().kind is None
    whole = StageConfig(modality="own", kind="2d", dataset=datasets["2D_path"], epochs=3, settings={"optim": {"lr": 1}})
    fields.show_stage(whole)
    assert fields.stage() == whole
    fields.dataset.setCurrentIndex(0)
    with pytest.raises(ConfigError, match="own has no dataset"):
        fields.stage()


def test_a_plan_is_put_together_saved_and_loaded(
    state: State, datasets: dict[str, Path], shown: Callable[..., Any], tmp_path: Path, qtbot: Any, monkeypatch: Any
) -> None:
    box = shown(ContinualBox(state))
    box.fold(False)
    with pytest.raises(ConfigError, match="Choose the encoder"):
        box.plan()
    box.mode.setCurrentIndex(1)
    with pytest.raises(ConfigError, match="no stages yet"):
        box.plan()
    for modality in ("2D_path", "3D_CT"):
        state.dataset = datasets[modality]
        box.fields.modality.setCurrentText(modality)
        box.add_stage()
    assert [stage.modality for stage in box.plan().stages] == ["2D_path", "3D_CT"]
    box.add_stage()
    assert "3D_CT is taught twice" in box.notice.text
    box.list.setCurrentRow(1)
    assert not box.add_button.isEnabled()
    box.move_stage(-1)
    assert [stage.modality for stage in box.plan().stages] == ["3D_CT", "2D_path"]
    box.list.setCurrentRow(1)
    box.fields.form.editor("steps").edit.setText("9")
    box.fields.form.editor("steps").edit.textEdited.emit("9")
    assert box.plan().stages[1].steps == 9
    assert box.list.item(1).text().endswith("9 steps")
    box.fields.modality.setCurrentText("3D_CT")
    assert "taught twice" in box.checks.text()
    assert box.plan().stages[1].modality == "2D_path"
    box.new_stage()
    state.dataset = datasets["1D_text"]
    box.fields.modality.setCurrentText("1D_text")
    assert box.plan().stages[1].dataset == datasets["2D_path"]  # the stage that was chosen before stays what it is
    path = tmp_path / "plan.yaml"
    monkeypatch.setattr(continual_box.QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    box.save_yaml()
    assert PlanConfig.load(path) == box.plan()
    assert f"med3dssl plan run {path}" in box.notice.text
    box.list.setCurrentRow(0)
    box.remove_stage()
    assert len(box.stages) == 1
    box.load_file(path)
    assert box.plan() == PlanConfig.load(path)
    box.load_file(tmp_path / "nothing.yaml")
    assert "cannot be read" in box.notice.text
    box.check()
    qtbot.waitUntil(lambda: "cases to train on" in box.checks.text())
    assert box.start_button.isEnabled()


def test_what_hinders_a_plan_is_said(datasets: dict[str, Path], plan_folder: Path, tmp_path: Path) -> None:
    stage = {"modality": "3D_CT", "dataset": datasets["3D_CT"]}
    assert [check.kind for check in plan_checks(PlanConfig.parse({"stages": [stage]}))] == ["ok", "ok"]
    wrong = plan_checks(PlanConfig.parse({"stages": [{**stage, "dataset": datasets["1D_text"]}]}))
    assert wrong[0].kind == "error"
    assert "teaches volumes, but the dataset phantoms 1D_text holds reports" in wrong[0].sentence
    lost = plan_checks(PlanConfig.parse({"stages": [{**stage, "dataset": tmp_path}]}))
    assert "data of the stage 3D_CT are missing" in lost[0].sentence
    published = plan_checks(PlanConfig.parse({"weights": str(tmp_path / "checkpoint-299.pth"), "stages": [stage]}))
    assert published[-1].kind == "warning"
    assert "cannot reconstruct CT and MR" in published[-1].sentence


def test_a_plan_is_started_followed_and_its_last_stage_built_upon(
    state: State, datasets: dict[str, Path], shown: Callable[..., Any], wait: Callable[..., None], source_path: None
) -> None:
    box, panel = shown(ContinualBox(state)), shown(RunsPanel(state))
    wanted: list[Any] = []
    state.tab_wanted.connect(lambda name, what: wanted.append((name, what)))
    settings = {
        "method": {"size_3d": (8, 24, 24), "depth": 1, "decoder_depth": 1},
        "engine": {"threads": 1, "device": "cpu", "val_steps": 1},
        "optim": {"batch_size": 2},
    }
    stage = StageConfig(modality="3D_CT", dataset=datasets["3D_CT"], steps=2)
    buffer = {"ratio": 0.5, "clusters": 2}
    plan = {"name": "one", "preset": "tiny", "buffer": buffer, "settings": settings, "stages": [stage.model_dump()]}
    box.fold(False)
    box.show_plan(PlanConfig.parse(plan))
    box.start_button.click()
    wait(lambda: bool(wanted), 90, lambda: box.notice.text)
    name, folder = wanted[0]
    assert (name, folder) == ("Runs", runs_root() / "one")
    panel.choose(folder)
    wait(lambda: summary(folder).state in ("finished", "failed"), 180, lambda: (folder / "log.txt").read_text())
    assert summary(folder).state == "finished", (folder / "log.txt").read_text()
    wait(lambda: len(panel.runs) == 2 and panel.plan.chart.found.stages == ["3D_CT"], 60)
    assert [panel.table.item(row, 0).text() for row in range(2)] == ["one", "    01-3D_CT"]
    assert panel.plan.isVisibleTo(panel)
    assert not panel.card.plot.isVisibleTo(panel)
    assert "buffers" in panel.card._allowed
    panel.table.setCurrentCell(1, 0)
    wait(lambda: panel.chosen is not None and panel.chosen.name == "01-3D_CT", 30)
    assert panel.card.plot.isVisibleTo(panel)
    assert not panel.plan.isVisibleTo(panel)
    assert panel.monitor is not None
    wait(lambda: "train/loss" in panel.monitor.series, 30)  # the card has been brought up to date
    assert not {"resume", "delete", "stop", "pause"} & set(panel.card._allowed)  # its plan does that
    box.mode.setCurrentIndex(0)
    box.weights.refresh()
    wait(lambda: box.weights.box.findData(str(folder)) > 0, 30)
    assert box.weights.box.itemText(box.weights.box.findData(str(folder))) == "one (this plan goes on)"
    box.weights.choose(str(folder))
    assert box._appends
    box.fields.show_stage(StageConfig(modality="3D_CT", dataset=datasets["3D_CT"]))
    box.check()
    wait(lambda: "was taught to this encoder before" in box.checks.text(), 30, lambda: box.checks.text())
    box.fields.modality.setCurrentText("2D_path")
    state.dataset = datasets["2D_path"]
    box.fields.show_stage(StageConfig(modality="2D_path", dataset=datasets["2D_path"]))
    box.check()
    wait(lambda: "Rehearses 3D_CT (2 cases)" in box.checks.text(), 30, lambda: box.checks.text())
