"""The Data panel: from a folder or open layers to a dataset, with everything that was left out told."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QInputDialog

from napari_med3dssl import _layers, _prepare, _samples
from napari_med3dssl._state import State
from napari_med3dssl.case_table import in_mm
from napari_med3dssl.data_panel import DataPanel
from training_backend.data.dataset import Dataset
from training_backend.data.importers import describe
from training_backend.errors import DataError

pytestmark = pytest.mark.usefixtures("source_path")


@pytest.fixture
def panel(state: State, shown: Callable[..., Any]) -> DataPanel:
    return shown(DataPanel(state))


@pytest.fixture
def described(panel: DataPanel, cohort: Path, wait: Callable[..., None]) -> DataPanel:
    panel.open_folder(cohort)
    wait(lambda: panel.described is not None)
    wait(lambda: not panel.busy.isVisible())
    return panel


def idle(panel: DataPanel) -> bool:
    return panel._job is None or not panel._job.running


def test_the_first_look_explains_and_offers_three_ways(panel: DataPanel) -> None:
    assert panel.empty.isVisible()
    assert not panel.table.isVisible()
    assert not panel.saving.isVisible()
    assert [panel.used.itemText(row) for row in range(panel.used.count())] == ["none"]


def test_a_dropped_folder_is_recognised_and_its_cases_listed(
    panel: DataPanel, cohort: Path, wait: Callable[..., None]
) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(cohort))])
    panel.dropEvent(
        QDropEvent(
            QPointF(5, 5), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
        )
    )
    wait(lambda: panel.described is not None)
    assert "Recognised as MSD: 4 cases" in panel.notice.text
    assert panel.table.item(0, 2).text() == "20×32×32"
    assert {panel.table.item(row, 4).text() for row in range(4)} == {"mask"}
    assert {panel.table.item(row, 5).text() for row in range(4)} == {"drawn"}


def test_cases_are_excluded_moved_and_saved(described: DataPanel, wait: Callable[..., None], tmp_path: Path) -> None:
    panel = described
    panel.table.selectRow(0)
    panel._toggle_excluded()
    assert panel.table.item(0, 5).text() == "excluded"
    panel.table.clearSelection()
    panel.table.selectRow(1)
    panel._move(3)
    assert panel.table.item(1, 5).text() == "test"
    panel.table.clearSelection()
    panel.table.selectRow(2)
    panel._drop_labels()
    assert "GB" in panel.size.text()
    panel.output.show_path(tmp_path / "new set ä")
    panel.save_dataset()
    wait(lambda: idle(panel), 60)
    assert panel.state.dataset == tmp_path / "new set ä", panel.notice.text
    saved = Dataset.open(tmp_path / "new set ä")
    assert [case.excluded for case in saved.records.values()] == [True, False, False, False]
    assert saved.case("case_001").split == "test"
    assert saved.case("case_002").label is None
    assert panel.table.isVisible()
    assert not panel.saving.isVisible()


def test_changes_of_cases_are_taken_back(described: DataPanel) -> None:
    panel = described
    before = panel.described
    assert not panel.undo_button.isEnabled()
    panel.table.selectRow(0)
    panel._drop_labels()
    panel._move(2)
    assert panel.table.item(0, 4).text() != "mask"
    assert panel.table.item(0, 5).text() == "val"
    panel.undo_button.click()
    assert panel.table.item(0, 5).text() == "drawn"
    panel.undo_button.click()
    assert panel.described == before
    assert panel.table.item(0, 4).text() == "mask"
    assert not panel.undo_button.isEnabled()


def test_excluding_a_mixed_choice_excludes_all_and_excluded_cases_are_counted(described: DataPanel) -> None:
    panel = described
    panel.table.selectRow(0)
    panel._toggle_excluded()
    panel.table.selectAll()
    panel._toggle_excluded()
    assert {panel.table.item(row, 5).text() for row in range(4)} == {"excluded"}
    assert "4 cases, 4 of them excluded for now," in panel.size.text()
    panel._toggle_excluded()
    assert {panel.table.item(row, 5).text() for row in range(4)} == {"drawn"}


def test_names_of_cases_are_readable_at_400_pixels(described: DataPanel) -> None:
    table = described.table
    assert table.columnWidth(1) >= table.fontMetrics().horizontalAdvance("case_000")
    assert in_mm((0.625, 0.625, 0.625)) == "0.625"
    assert in_mm((5, 0.7, 0.7)) == "5×0.7×0.7"


def test_other_panels_hear_of_changed_cases(panel: DataPanel, dataset: Path, tmp_path: Path) -> None:
    panel.open_folder(shutil.copytree(dataset, tmp_path / "set"))
    told: list[int] = []
    panel.state.dataset_changed.connect(lambda folder: told.append(len(Dataset.open(folder).cases())))
    panel.table.selectRow(0)
    panel._toggle_excluded()
    assert told == [3]
    panel.undo_button.click()
    assert told == [3, 4]
    assert not any(case.excluded for case in Dataset.open(tmp_path / "set").records.values())


def test_a_damaged_scan_is_left_out_with_its_reason(
    panel: DataPanel, cohort: Path, wait: Callable[..., None], tmp_path: Path
) -> None:
    source = shutil.copytree(cohort, tmp_path / "cohort")
    scan = source / "imagesTr" / "case_001.nii.gz"
    data = bytearray(gzip.decompress(scan.read_bytes()))
    packed = bytearray(gzip.compress(bytes(data)))
    packed[len(packed) // 2] ^= 0xFF
    scan.write_bytes(bytes(packed))
    panel.open_folder(source)
    wait(lambda: panel.described is not None and idle(panel))
    panel.output.show_path(tmp_path / "set")
    panel.save_dataset()
    wait(lambda: idle(panel) and panel.state.dataset is not None, 60, lambda: panel.notice.text)
    assert panel.table.item(0, 0).text() == "✗"
    assert "case_001" in panel.table.item(0, 1).text()
    panel.table.setCurrentCell(0, 0)
    assert "case_001" in panel.row_text.text()
    assert len(panel.row_text.text()) > 30


def test_a_folder_without_scans_is_told_in_a_sentence(
    panel: DataPanel, wait: Callable[..., None], tmp_path: Path
) -> None:
    panel.open_folder(tmp_path / "nowhere")
    wait(lambda: "does not exist" in panel.notice.text)
    assert panel.empty.isVisible()
    assert not panel.busy.isVisible()


def test_a_double_click_opens_a_case_with_named_classes(described: DataPanel, wait: Callable[..., None]) -> None:
    panel = described
    panel.table.setCurrentCell(0, 1)
    panel.table.cellDoubleClicked.emit(0, 1)
    wait(lambda: len(panel.state.viewer.layers) == 2)
    scan, labels = panel.state.viewer.layers
    assert scan.name == "case_000"
    assert "nodule" in list(labels.features["class"])
    panel.preview()
    wait(lambda: idle(panel))
    assert len(panel.state.viewer.layers) == 2  # replaced, not added again


def test_a_dataset_folder_is_used_at_once(panel: DataPanel, dataset: Path) -> None:
    panel.open_folder(dataset)
    assert panel.state.dataset == dataset
    assert panel.table.rowCount() == 4
    assert panel.used.currentText() == "phantoms (phantoms)"


def test_changes_that_leak_a_subject_are_refused(panel: DataPanel, dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "copy")
    opened = Dataset.open(folder)
    opened.records = {
        id: case.model_copy(update={"subject": "same", "split": "train"}) for id, case in opened.records.items()
    }
    opened.save()
    panel.open_folder(folder)
    panel.table.selectRow(0)
    panel._move(2)
    assert "in train" in panel.notice.text
    assert {case.split for case in panel.dataset.records.values()} == {"train"}


def test_open_layers_become_a_case_and_a_new_dataset(
    panel: DataPanel, wait: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    panel._new_from_layers()
    assert "No scan is visible" in panel.notice.text
    for layer in _samples.mr_phantom():
        _layers.add(panel.state.viewer, layer)
    for layer in panel.state.viewer.layers:
        layer.visible = True
    monkeypatch.setattr(QInputDialog, "getText", lambda *_, text, **__: (text, True))
    panel._new_from_layers()
    wait(lambda: panel.dataset is not None and panel.dataset.records and idle(panel), 60, lambda: panel.notice.text)
    [case] = Dataset.open(panel.state.dataset).records.values()
    assert [image.contrast for image in case.images] == ["T1", "T2"]
    assert case.label is not None
    assert "was added" in panel.notice.text


def test_work_of_the_child_is_cancelled(
    panel: DataPanel, cohort: Path, wait: Callable[..., None], tmp_path: Path
) -> None:
    panel.open_folder(cohort)
    panel._cancel()
    wait(lambda: idle(panel))
    assert panel.described is None
    assert "Cancelled" in panel.notice.text


def test_a_description_crosses_to_the_child_unchanged(cohort: Path) -> None:
    found = describe(cohort)
    assert _prepare.from_plain(_prepare.to_plain(found)) == found


def test_errors_of_the_child_arrive_as_sentences(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        _prepare.call("describe", lambda *_: True, path=str(tmp_path / "nowhere"))
