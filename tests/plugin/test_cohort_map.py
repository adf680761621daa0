"""The cohort as a map: from the dataset to points, and from points to cases, lists and groups."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtWidgets import QInputDialog

from napari_med3dssl._state import State
from napari_med3dssl.cohort_files import (
    ALONE,
    EMPTY_LASSO,
    Cohort,
    Point,
    buffer_trait,
    classify,
    dice_trait,
    exclude,
    move,
    name_group,
    read_groups,
    undo,
    write_list,
)
from napari_med3dssl.cohort_map import NEEDS_DATASET, NEEDS_MODEL, NO_UMAP, CohortMap, CohortSection
from napari_med3dssl.data_panel import DataPanel
from napari_med3dssl.finetune_panel import targets_of
from napari_med3dssl.point_cloud import PointPlot, within
from tests.plugin.explore_kit import work_done
from training_backend.config.presets import pretrain_config
from training_backend.data.choice import read_ids
from training_backend.data.dataset import Dataset
from training_backend.data.prepare import InputProfile
from training_backend.data.subsets import class_names
from training_backend.errors import DataError
from training_backend.jobs.client import Cancelled


@pytest.fixture
def own(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may change."""
    return shutil.copytree(dataset, tmp_path / "mine")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A freshly initialised network, saved like the result of a run."""
    import torch

    from training_backend.config.registry import method
    from training_backend.weights.save import save_model

    torch.manual_seed(0)
    changes = {"data": {"size": (20, 32, 32)}, "method": {"patch_size": (4, 8, 8), "depth": 2, "decoder_depth": 1}}
    config = pretrain_config("mae3d", "tiny", Path(), changes)
    folder = tmp_path_factory.mktemp("models") / "untrained"
    profile = InputProfile(size=(20, 32, 32), crop_body=False).model_dump(mode="json")
    card = {"kind": "pretrain", "config": config.model_dump(mode="json"), "profile": profile}
    save_model(folder, method("mae3d").build(config), card)
    return str(folder)


@pytest.fixture
def mapped(own: Path) -> Cohort:
    points = [Point(own, case.id) for case in Dataset.open(own).cases()]
    places = np.float32([[0, 0], [1, 0], [0, 1], [3, 3]])
    traits = {"modality": ["CT", "CT", "MR", "MR"], "group": ["no group"] * 4}
    return Cohort(
        points, places, {"principal axes": places, "UMAP": -places}, traits, (0.5, 0.25), [(3, 9.0)], [(0, 1, 0.05)]
    )


@pytest.fixture
def window(state: State, mapped: Cohort, own: Path, shown: Any, qtbot: Any) -> CohortMap:
    made = CohortMap(None, state, [own])  # type: ignore[arg-type]
    made.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
    shown(made)
    made.show_cohort(mapped)
    qtbot.wait(30)
    return made


def draw(plot: PointPlot, qtbot: Any, corners: list[tuple[float, float]]) -> None:
    """A lasso through places of the data."""
    box, view = plot.widget.getViewBox(), plot.widget.viewport()

    def at(place: tuple[float, float]) -> QPoint:
        return plot.widget.mapFromScene(box.mapViewToScene(QPointF(*place)))

    qtbot.mousePress(view, Qt.MouseButton.LeftButton, pos=at(corners[0]))
    for corner in corners[1:]:
        qtbot.mouseMove(view, at(corner))
    qtbot.mouseRelease(view, Qt.MouseButton.LeftButton, pos=at(corners[-1]))


def test_points_inside_a_polygon() -> None:
    places = np.float32([[0.5, 0.5], [2, 2], [0.9, 0.1], [-1, 0.5]])
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    assert within(places, square).tolist() == [True, False, True, False]
    assert not within(places, square[:2]).any()


def test_a_lasso_chooses_and_an_empty_one_changes_nothing(window: CohortMap, qtbot: Any) -> None:
    window.lasso_button.click()
    draw(window.plot, qtbot, [(-0.4, -0.4), (1.4, -0.4), (1.4, 0.4), (-0.4, 0.4)])
    assert window.chosen.tolist() == [True, True, False, False]
    assert window.list_button.isEnabled()
    draw(window.plot, qtbot, [(2.0, 0.2), (2.2, 0.2), (2.2, 0.6)])
    assert window.notice.text == EMPTY_LASSO
    assert window.chosen.tolist() == [True, True, False, False]


def test_the_list_is_what_a_run_takes(window: CohortMap, mapped: Cohort, tmp_path: Path, qtbot: Any) -> None:
    window.take(np.array([True, False, True, False]))
    window.write_list(tmp_path / "some.txt")
    work_done(qtbot)
    assert read_ids(tmp_path / "some.txt") == (mapped.points[0].case, mapped.points[2].case)
    assert window.notice.text == "2 cases in some.txt; use it as data.only."


def test_exclude_and_undo(window: CohortMap, own: Path, qtbot: Any) -> None:
    window.take(np.array([False, False, False, True]))
    window.exclude_button.click()
    work_done(qtbot)
    assert len(Dataset.open(own).cases()) == 3
    window.undo_button.click()
    work_done(qtbot)
    assert len(Dataset.open(own).cases()) == 4
    assert not window.undo_button.isEnabled()


def test_a_subset_becomes_a_split_and_goes_back(window: CohortMap, mapped: Cohort, own: Path, qtbot: Any) -> None:
    told: list[Any] = []
    window.state.dataset = own
    window.state.dataset_changed.connect(told.append)
    before = {case.id: case.split for case in Dataset.open(own).cases()}
    window.take(np.array([True, True, False, False]))
    window.split.setCurrentIndex(3)
    window.split.activated.emit(3)
    work_done(qtbot)
    after = {case.id: case.split for case in Dataset.open(own).cases()}
    moved = [point.case for point in mapped.points[:2]]
    assert after == before | dict.fromkeys(moved, "test")
    assert window.colour.currentText() == "split"
    assert mapped.traits["split"][:2] == ["test", "test"]
    assert window.split.currentIndex() == 0
    assert told == [own]  # the Data tab reads the dataset again
    window.undo_button.click()
    work_done(qtbot)
    assert {case.id: case.split for case in Dataset.open(own).cases()} == before


def test_undo_in_data_leaves_what_the_map_decided(window: CohortMap, mapped: Cohort, own: Path, qtbot: Any) -> None:
    window.state.dataset = own
    data = DataPanel(window.state)
    qtbot.addWidget(data)
    work_done(qtbot)
    first, last = mapped.points[0].case, mapped.points[3].case
    for case in (first, last):
        data.table.clearSelection()
        data.table.selectRow([row.case.id for row in data.table.rows if row.case].index(case))
        data._toggle_excluded()
    window.take(np.array([True, True, False, False]))
    window.move_to("test")
    work_done(qtbot)
    data.undo()
    data.undo()
    cases = Dataset.open(own).records
    assert (cases[first].split, cases[first].excluded, cases[last].excluded) == ("test", True, False)
    move(mapped.points[1:2], "val")  # another program
    data.table.selectRow(0)
    data._toggle_excluded()
    assert "changed meanwhile" in data.notice.text
    assert Dataset.open(own).case(mapped.points[1].case).split == "val"


def test_a_subset_gets_a_class_that_fine_tuning_offers(
    window: CohortMap, mapped: Cohort, own: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Dataset.open(own)
    for case in plain.cases():
        plain.put(case.model_copy(update={"target": None}))
    plain.info = plain.info.model_copy(update={"target_names": ()})
    plain.save()
    offered: list[list[str]] = []

    def answer(_owner: Any, _title: str, _text: str, names: list[str], *_rest: Any) -> tuple[str, bool]:
        offered.append(names)
        return ("sharp", "blurred", "moved")[len(offered) - 1], True

    monkeypatch.setattr(QInputDialog, "getItem", answer)
    for chosen in ([True, False, False, False], [False, True, True, False], [False, False, False, True]):
        window.take(np.array(chosen))
        window.class_button.click()
        work_done(qtbot)
    assert offered == [[""], ["", "sharp"], ["", "sharp", "blurred"]]
    assert mapped.traits["class"] == ["sharp", "blurred", "blurred", "moved"]
    assert "blurred" in window.legend.text()
    assert targets_of("classification", own) == {"kind": "multiclass", "classes": 3}
    assert Dataset.open(own).info.target_names == ("sharp", "blurred", "moved")
    assert class_names(Dataset.open(own)) == ("sharp", "blurred", "moved")
    for left in (["sharp", "blurred", "blurred", "no class"], ["sharp"] + ["no class"] * 3, ["no class"] * 4):
        window.undo_button.click()
        work_done(qtbot)
        assert mapped.traits["class"] == left
    assert Dataset.open(own).info == plain.info
    assert not window.undo_button.isEnabled()


def test_not_all_cases_can_be_excluded(window: CohortMap, own: Path, qtbot: Any) -> None:
    window.take(np.ones(4, bool))
    window.exclude_button.click()
    work_done(qtbot)
    assert "would be left out" in window.notice.text
    assert len(Dataset.open(own).cases()) == 4
    assert not window.undo_button.isEnabled()


def test_of_two_datasets_both_change_or_none(own: Path, tmp_path: Path) -> None:
    other = shutil.copytree(own, tmp_path / "other")
    first, last = (Dataset.open(own).cases()[k].id for k in (0, -1))
    everything = [Point(other, case.id) for case in Dataset.open(other).cases()]
    with pytest.raises(DataError, match="would be left out"):
        exclude([Point(own, first), *everything])
    assert len(Dataset.open(own).cases()) == 4
    done = move([Point(own, first, "lung"), Point(own, first, "liver"), Point(other, last)], "test")
    assert done.count == 2
    assert Dataset.open(own).case(first).split == Dataset.open(other).case(last).split == "test"
    undo(done)
    assert not Dataset.open(own).cases("test") + Dataset.open(other).cases("test")


def test_groups_have_names_that_last(window: CohortMap, mapped: Cohort, own: Path, qtbot: Any) -> None:
    window.take(np.array([True, True, False, False]))
    window.give_name("artefacts")
    work_done(qtbot)
    first, second = (point.case for point in mapped.points[:2])
    assert read_groups(own) == {first: "artefacts", second: "artefacts"}
    assert window.colour.currentText() == "group"
    assert "artefacts" in window.legend.text()
    name_group(mapped.points[:1], "")
    assert read_groups(own) == {second: "artefacts"}
    window.undo_button.click()
    work_done(qtbot)
    assert read_groups(own) == {}


def test_hover_shows_the_case_and_click_opens_it(window: CohortMap, mapped: Cohort, qtbot: Any) -> None:
    box = window.plot.widget.getViewBox()
    place = box.mapViewToScene(QPointF(3, 3))
    assert window.plot.cloud.nearest(place) == 3
    window.plot._moved(place)
    work_done(qtbot)
    assert mapped.points[3].case in window.about.text()
    assert not window.picture.pixmap().isNull()
    added: list[Any] = []
    window._add = lambda case, layers: added.append((case, layers))  # type: ignore[method-assign]
    view = window.plot.widget.viewport()
    qtbot.mouseClick(view, Qt.MouseButton.LeftButton, pos=window.plot.widget.mapFromScene(place))
    qtbot.waitUntil(lambda: bool(added))
    assert added[0][0] == mapped.points[3].case
    assert added[0][1][0][2] == "image"


def test_findings_lead_to_their_points(window: CohortMap) -> None:
    texts = [window.found.item(row).text() for row in range(window.found.count())]
    assert texts[0].startswith("Outlier:")
    assert texts[1].startswith("Near-duplicates:")
    window.found.itemClicked.emit(window.found.item(1))
    assert window.chosen.tolist() == [True, True, False, False]


def test_points_are_drawn_where_they_lie_in_their_colour(window: CohortMap, qtbot: Any) -> None:
    picture = window.plot.widget.grab().toImage()
    box = window.plot.widget.getViewBox()
    inks = []
    for x, y in window.cohort.places["principal axes"]:
        at = window.plot.widget.mapFromScene(box.mapViewToScene(QPointF(float(x), float(y))))
        inks.append(picture.pixelColor(at).name())
    assert inks[0] == inks[1] != inks[2] == inks[3]
    window.axes.setCurrentText("UMAP")
    assert np.array_equal(window.plot.cloud.places, -window.cohort.places["principal axes"])


def test_axes_that_cannot_be_had_are_told(window: CohortMap, mapped: Cohort) -> None:
    del mapped.places["UMAP"]
    window.show_cohort(mapped)
    window.axes.setCurrentText("UMAP")
    assert window.notice.text == NO_UMAP
    assert window.axes.currentText() == "principal axes"


def test_axes_that_were_cancelled_are_not_shown(
    window: CohortMap, mapped: Cohort, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model process is stood in for; what is tested is what the window says."""
    answers: list[Any] = [Cancelled(), DataError("Too few."), {"places": -mapped.vectors}]

    def request(*_: Any, **__: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    del mapped.places["UMAP"]
    mapped.umap = True
    window.show_cohort(mapped)
    monkeypatch.setattr(type(window.state.client), "request", request)
    for said in ("Cancelled; the map is as it was.", "Too few."):
        window.axes.setCurrentText("UMAP")
        work_done(qtbot)
        assert window.notice.text == said
        assert window.axes.currentText() == "principal axes"
    window.axes.setCurrentText("UMAP")
    work_done(qtbot)
    assert window.axes.currentText() == "UMAP"
    assert np.array_equal(window.plot.cloud.places, -mapped.vectors)


def test_a_cohort_of_one_is_told(window: CohortMap, mapped: Cohort) -> None:
    zero = np.zeros((1, 2), np.float32)
    one = Cohort(mapped.points[:1], zero, {"principal axes": zero}, {"modality": ["CT"]}, (0.0, 0.0))
    window.show_cohort(one)
    assert window.notice.text == ALONE
    assert window.found.item(0).text() == "No outliers, no near-duplicates."


def test_scores_and_buffers_as_colours(mapped: Cohort, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scored validation cases"):
        dice_trait(mapped, tmp_path)
    (tmp_path / "predictions").mkdir()
    entries = [{"case": mapped.points[0].case, "dice": {"a": 0.9, "b": 0.7}}, {"case": "other", "dice": {"a": 1.0}}]
    (tmp_path / "predictions" / "cases.json").write_text(json.dumps(entries))
    assert dice_trait(mapped, tmp_path) == ["Dice 0.8 to 0.9", "no score", "no score", "no score"]
    with pytest.raises(DataError, match="no rehearsal buffer"):
        buffer_trait(mapped, tmp_path)


def test_nothing_chosen_changes_nothing(tmp_path: Path) -> None:
    changes = (lambda: exclude([]), lambda: name_group([], "a"), lambda: move([], "val"), lambda: classify([], "a"))
    for function in (lambda: write_list([], tmp_path / "x"), *changes):
        with pytest.raises(DataError, match="holds no point"):
            function()
    assert not (tmp_path / "x").exists()


@pytest.mark.gl
def test_from_the_dataset_to_the_map(panel: Any, own: Path, tiny_model: str, qtbot: Any) -> None:
    section: CohortSection = panel.cohort
    panel.state.dataset = None
    section.open_button.click()
    assert section.told.text() == NEEDS_DATASET
    panel.state.dataset, panel.state.model = own, ""
    section.open_button.click()
    assert section.told.text() == NEEDS_MODEL
    panel.state.model = tiny_model
    section.open_button.click()
    window = section.dialog
    assert window is not None
    for kind in (0, 1):
        window.kind.setCurrentIndex(kind)
        window.cohort = None
        window.compute_button.click()
        qtbot.waitUntil(lambda: window._job is None, timeout=120_000)
        assert window.cohort is not None, window.notice.text
        if not kind:
            assert [point.case for point in window.cohort.points] == [case.id for case in Dataset.open(own).cases()]
    assert len({point.region for point in window.cohort.points}) > 1
    assert window.cohort.traits["region"] == [point.region for point in window.cohort.points]
    window.open_case(0)
    work_done(qtbot)
    assert window.cohort.points[0].case in panel.viewer.layers[0].name
    bare = Dataset.open(own)
    for case in bare.cases():
        bare.put(case.model_copy(update={"label": None}))
    bare.save()
    shown = window.cohort
    window.compute_button.click()
    qtbot.waitUntil(lambda: window._job is None, timeout=120_000)
    assert window.notice.text.startswith("There is no case with a label map.")
    assert window.cohort is shown  # the map stays
    window.close()
