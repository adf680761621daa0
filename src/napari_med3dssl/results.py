"""Results of a run in the viewer: predictions beside the ground truth with Dice per class, or the newest pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import QAbstractItemView, QDialog, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from napari_med3dssl import _layers, _work
from napari_med3dssl._previews import BELOW, picture_line, read_pictures
from napari_med3dssl._widgets import Notice, button, button_row, wrapping
from napari_med3dssl.explore_pictures import PictureLayers
from training_backend.errors import DataError

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import ClassEntry
    from training_backend.jobs.registry import RunSummary

TRUTH = " · truth"
"""End of the name of a layer of ground truth."""


@dataclass(frozen=True)
class CaseResult:
    """One validation case of a run: its files and the Dice of each class."""

    case: str
    image: Path
    label: Path | None
    prediction: Path
    dice: dict[str, float] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)
    """Class that a value of the label map stands for, where it is another."""

    @property
    def mean(self) -> float:
        """Mean Dice over classes; not a number without any."""
        return float(np.mean(list(self.dice.values()))) if self.dice else float("nan")


def open_results(owner: QWidget, viewer: Any, run: RunSummary, notice: Notice) -> None:
    """Show the validated cases of a run to open, else its newest pictures, else a sentence that there is nothing."""
    notice.clear()
    if (run.path / "predictions" / "cases.json").is_file():
        _work.start(
            owner,
            read_results,
            run.path,
            done=lambda found: ResultsDialog(owner, viewer, run.name, *found).show(),
            failed=lambda text: notice.say("error", text),
        )
        return
    folders = sorted((run.path / "previews").glob("step_*"))
    if not folders:
        notice.say("info", "This run has no results yet. Pictures come with its first preview, a model with its end.")
        return

    def draw(pictures: list[dict[str, Any]]) -> None:
        layers = PictureLayers(viewer, f" · {run.name}")
        for picture, layer in zip(pictures, layers.show(pictures), strict=True):
            layer.visible = picture["role"] not in BELOW
        layers.link_contrast()
        viewer.reset_view()
        notice.say("ok", picture_line(folders[-1]))

    _work.start(owner, read_pictures, folders[-1], done=draw, failed=lambda text: notice.say("error", text))


def read_results(run: Path) -> tuple[list[CaseResult], tuple[ClassEntry, ...]]:
    """Validated cases of a run, the worst first, and the class table of its dataset."""
    from training_backend.config import RunConfig
    from training_backend.data.dataset import Dataset

    try:
        entries = json.loads((run / "predictions" / "cases.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The list of predictions of this run cannot be read: {error}.") from error
    dataset = Dataset.open(RunConfig.load(run / "config.yaml").data.dataset)
    root = (dataset.folder / dataset.info.root).resolve()
    found = [
        CaseResult(
            entry["case"],
            root / entry["image"],
            root / entry["label"] if entry.get("label") else None,
            run / entry["prediction"],
            {str(name): float(value) for name, value in (entry.get("dice") or {}).items()},
            _values(dataset, entry["case"]),
        )
        for entry in entries
    ]
    return sorted(found, key=lambda case: case.mean), dataset.info.classes


def _values(dataset: Dataset, case: str) -> dict[int, int]:
    record = dataset.records.get(case)
    return dict(record.label.values) if record is not None and record.label is not None else {}


def case_layers(case: CaseResult, classes: tuple[ClassEntry, ...]) -> list[_layers.LayerData]:
    """Scan, ground truth and prediction of a case; the prediction's features hold the Dice of each class."""
    from training_backend.data.read import read_classes, read_volume

    layers = [_layers.volume_layer(read_volume(case.image), name=case.case)] if case.image.exists() else []
    for path, what, values in ((case.label, TRUTH, case.values), (case.prediction, " · prediction", {})):
        if path is None or not path.exists():
            continue
        labels = read_classes(path, values=values)
        layers.append(_layers.labels_layer(labels.array, labels.geometry, f"{case.case}{what}", classes))
    if not layers:
        raise DataError(f"The files of {case.case} are gone.", "Put the dataset back where the run found it.")
    features = layers[-1][1].get("features")
    if case.dice and features is not None:
        layers[-1][1]["features"] = features.assign(Dice=[case.dice.get(name, np.nan) for name in features["class"]])
    return layers


class ResultsDialog(QDialog):
    """Validated cases with their Dice; a double click opens one in the viewer."""

    def __init__(
        self, owner: QWidget, viewer: Any, title: str, cases: list[CaseResult], classes: tuple[ClassEntry, ...]
    ) -> None:
        super().__init__(owner)
        self.setWindowTitle(f"Results of {title}")
        self._viewer, self._cases, self._classes = viewer, cases, classes
        names = [entry.name for entry in classes if any(entry.name in case.dice for case in cases)]
        self.table = QTableWidget(len(cases), 2 + len(names))
        self.table.setAccessibleName("Validated cases with Dice per class")
        self.table.setHorizontalHeaderLabels(["Case", "mean Dice", *names])
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.verticalHeader().hide()
        for row, case in enumerate(cases):
            numbers = [case.mean, *(case.dice.get(name, float("nan")) for name in names)]
            for column, text in enumerate([case.case, *(_three(number) for number in numbers)]):
                self.table.setItem(row, column, QTableWidgetItem(text))
        self.table.resizeColumnsToContents()
        self.table.cellDoubleClicked.connect(lambda row, _: self.open_case(row))
        self.notice = Notice()
        column = QVBoxLayout(self)
        column.addWidget(
            wrapping("Validation cases, the worst first. Double-click one to see it beside its ground truth.")
        )
        column.addWidget(self.table)
        column.addWidget(self.notice)
        column.addWidget(button_row(button("Open case", self._open_chosen), button("Close", self.close)))
        self.resize(420, 320)
        if cases:
            self.table.selectRow(0)
            self.open_case(0)

    def open_case(self, row: int) -> None:
        """Read the files of a case in a thread and add them as layers."""
        self.notice.say("busy", f"Reading {self._cases[row].case}…")
        _work.start(self, case_layers, self._cases[row], self._classes, done=self._add, failed=self._complain)

    def _open_chosen(self) -> None:
        if self.table.currentRow() >= 0:
            self.open_case(self.table.currentRow())

    def _add(self, layers: list[_layers.LayerData]) -> None:
        for layer in replace_layers(self._viewer, layers):
            if layer.name.endswith(TRUTH):
                layer.contour = 1  # both have the colours of the class table; this one is the line
        self.notice.clear()

    def _complain(self, text: str) -> None:
        self.notice.say("error", text)


def replace_layers(viewer: Any, layers: list[_layers.LayerData]) -> list[Any]:
    """Add layers, in place of those of the same name that this plugin made; the view is reset when it was empty."""
    was_empty = not viewer.layers
    names = {options["name"] for _, options, _ in layers}
    for layer in [layer for layer in viewer.layers if layer.name in names and _layers.facts_of(layer) is not None]:
        viewer.layers.remove(layer)
    added = [_layers.add(viewer, layer) for layer in layers]
    if was_empty:
        viewer.reset_view()
        centre_slices(viewer, added)
    return added


def show_alone(viewer: Any, layers: list[_layers.LayerData], hidden: Iterable[Any]) -> list[Any]:
    """Add the layers of a patient in place of `hidden` ones: scans of different patients lie at different places."""
    for layer in hidden:
        layer.visible = False
    added = replace_layers(viewer, layers)
    shown = [layer for layer in added if layer.visible]
    viewer.fit_to_view(layers=shown)
    centre_slices(viewer, shown)
    return added


def centre_slices(viewer: Any, layers: list[Any]) -> None:
    """Show the middle of the first layer."""
    if layers:
        middle = [(n - 1) / 2 for n in _layers.geometry_of(layers[0]).shape]
        viewer.dims.set_point(range(3), layers[0].data_to_world(middle))


def _three(number: float) -> str:
    return "–" if np.isnan(number) else f"{number:.3f}"
