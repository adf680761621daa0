"""Correct and learn: which case next, its mask into the dataset, and a run that goes on from the best model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.compat import isalive
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QCheckBox, QFormLayout, QListWidget, QListWidgetItem

from napari_med3dssl import _work, mask_drafts
from napari_med3dssl._layers import classes_of, facts_of, geometry_of, labels_layer, volume_of
from napari_med3dssl._scans import contrasts
from napari_med3dssl._state import dataset_name
from napari_med3dssl._widgets import Notice, Section, button, button_row, combo, wrapping
from napari_med3dssl.data_panel import layers_of_case
from napari_med3dssl.launch_box import launched
from napari_med3dssl.predict_box import predicted_layers
from napari_med3dssl.results import replace_layers, show_alone
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import Med3dError
from training_backend.jobs.sources import model_facts

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

NO_DATASET = "Choose a dataset in Data first; masks are accepted into it."
NO_SCAN = "Open a scan first: click a case above, or drop a file on the viewer."
NO_MASK = "Open or draw a labels layer to accept: a corrected prediction, or strokes."
ORDERS = {"unsure and unlike": "both", "model is unsure": "uncertainty", "unlike labelled ones": "diversity"}
PAINTED = {0: 255, 1: 0}
"""What strokes are: nothing is unlabelled, 1 is background; structures follow from 2 on."""
PAUSE_MS = 1000
"""How long the brush must rest before the mask is kept on disk."""
LIST_HEIGHT = 130


@dataclass(frozen=True)
class _Wish:
    """A mask on its way into the dataset."""

    case: str
    mask: Volume
    names: dict[int, str]
    values: dict[int, int]
    annotated: list[int]
    how: str
    model: str


class LearnSection(Section):
    """A list of cases to label next, a mask to accept, and a button that trains on."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Take corrected masks into the dataset, see which case is worth labelling next, and train on."
        super().__init__("Correct and learn", folded=True, tip=tip)
        self.panel = panel
        self._state = panel.state
        self._dataset: Dataset | None = None
        self._masks: list[Any] = []
        self._jobs: set[_work.Job] = set()
        self._asked: _work.Job | None = None
        self._followed: tuple[Path, Path] | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PAUSE_MS)
        self._timer.timeout.connect(self._keep_draft)
        self._build()
        self._state.follow(self, self._state.dataset_changed, self.reload)
        self._state.follow(self, self._state.model_changed, lambda _: self._refresh())
        self._state.follow(self, self._state.runs_changed, self._look_at_run)
        events = panel.viewer.layers.events
        for event in (events.inserted, events.removed):
            event.connect(self.offer)
        self.destroyed.connect(lambda: [event.disconnect(self.offer) for event in (events.inserted, events.removed)])
        self.reload(self._state.dataset)

    def reload(self, folder: Path | None) -> None:
        """Show the dataset in `folder` as it is on disk."""
        self._dataset = None
        if folder is not None:
            try:
                self._dataset = Dataset.open(folder)
            except Med3dError as error:
                self.notice.say("error", str(error))
        self._offer_cases()
        self._offer_classes()
        self._drop_labelled()
        self.offer()

    def offer(self, event: Any = None) -> None:
        """List the label maps that are open."""
        chosen = self._mask
        for layer in self._masks:
            layer.events.paint.disconnect(self._on_paint)
        self._masks = [one for one in self.panel.viewer.layers if type(one).__name__ == "Labels" and one.ndim == 3]
        self.mask_box.blockSignals(True)
        self.mask_box.clear()
        self.mask_box.addItems([layer.name for layer in self._masks])
        for layer in self._masks:
            layer.events.paint.connect(self._on_paint)
        if chosen in self._masks:
            self.mask_box.setCurrentIndex(self._masks.index(chosen))
        self.mask_box.blockSignals(False)
        if self._mask is not chosen:
            self._on_mask()
        self._refresh()

    def find_next(self) -> None:
        """Ask the model process which cases are worth labelling next."""
        if self._dataset is None or not self._state.model:
            self.notice.say("info", NO_DATASET if self._dataset is None else "Choose a model above first.")
            return
        client, folder, source = self._state.client, str(self._dataset.folder), self._state.model
        params: dict[str, Any] = {"source": source, "folder": folder, "by": ORDERS[self.by.currentText()], "count": 20}
        self._ask(
            lambda progress: client.request("next_cases", progress=progress, **params),
            lambda values: self._show_next(values["choices"]),
            "Looking at the unlabelled cases",
        )

    def open_case(self, id: str) -> None:
        """Open the scans of a case, and its label map where it has one."""
        if self._dataset is None:
            return
        dataset, case = self._dataset, self._dataset.case(id)
        root = dataset.folder / dataset.info.root
        self.notice.say("busy", f"Reading {id}…")
        self._start(
            lambda: (layers_of_case(case, root, dataset.info.classes), mask_drafts.find(dataset.folder, id)),
            done=lambda found: self._opened(id, *found),
        )

    def predict(self) -> None:
        """Have the model segment the scan above; the label map that comes of it is there to be corrected."""
        scan, source, client = self.panel.scan, self._state.model, self._state.client
        if scan is None:
            self.notice.say("info", NO_SCAN)
            return
        try:
            volumes = [volume_of(each) for each in contrasts(self.panel.viewer, scan)]
        except Med3dError as error:
            self.notice.say("error", str(error))
            return
        params: dict[str, Any] = {"source": source, "volumes": volumes, "probabilities": False}
        name, run = scan.name, Path(source).name
        self._ask(
            lambda progress: client.request("predict", progress=progress, **params),
            lambda values: self._predicted(predicted_layers(name, run, values)),
            f"Predicting {name}",
        )

    def cancel(self) -> None:
        """Stop what the model process does for this section."""
        if self._asked is not None:
            self._asked.stop()
            self._state.client.cancel()

    def accept(self) -> None:
        """Make the chosen mask the label map of the chosen case; asks where its voxels lie if the layer cannot tell."""
        layer, scan = self._mask, self.panel.scan
        if layer is None or self._dataset is None:
            return
        if facts_of(layer) is not None:
            self._accept(layer, None)
            return
        if scan is None or geometry_of(scan).shape != tuple(layer.data.shape):
            self.notice.say(
                "error",
                f"The layer {layer.name!r} does not say where its voxels lie, and no scan of {layer.data.shape} voxels "
                "is chosen above. Choose the scan it was drawn on, or save it as NIfTI and open that file.",
            )
            return
        said = f"The layer {layer.name!r} does not say where its voxels lie. It has as many as {scan.name!r}."
        self.notice.say(
            "warning", said, [("They are those of the scan", lambda: self._accept(layer, geometry_of(scan)))]
        )

    def undo(self) -> None:
        """Give the case whose mask was accepted last its label map before back."""
        if self._dataset is None:
            return
        from training_backend.data.accept import undo

        folder = self._dataset.folder
        self._start(lambda: undo(folder), done=lambda report: self._changed(str(report)))

    def train_on(self) -> None:
        """Start a run like that of the model, from its best weights, on all cases that have a label map by now."""
        if self._dataset is None:
            return
        from training_backend.jobs.learn import continued, next_name

        former, folder = Path(self._state.model), self._dataset.folder
        self._start(lambda: launched(continued(former, folder), next_name(former), False), done=self._launched)

    @property
    def _mask(self) -> Any | None:
        index = self.mask_box.currentIndex()
        return self._masks[index] if 0 <= index < len(self._masks) else None

    def _build(self) -> None:
        self.told = wrapping("")
        self.by = combo("Next by")
        self.by.addItems(list(ORDERS))
        self.by.setToolTip("What makes a case worth labelling: both, how unsure the model is, or how new the scan is.")
        self.next_button = button("Next cases", self.find_next, "Which unlabelled cases to label first, and why.")
        self.list = QListWidget()
        self.list.setAccessibleName("Cases to label next")
        self.list.setToolTip("Click a case to open it.")
        self.list.setWordWrap(True)
        self.list.setSpacing(3)
        self.list.setFixedHeight(LIST_HEIGHT)
        self.list.itemClicked.connect(self._open_item)
        self.list.itemActivated.connect(self._open_item)
        self.list.hide()
        self.predict_button = button("Predict", self.predict, "Have the model segment the scan above; correct that.")
        self.cancel_button = button("Cancel", self.cancel, "Stop the model; nothing is changed.")
        self.mask_box, self.case_box = combo("Mask"), combo("Case")
        self.mask_box.setToolTip("Labels layer to accept.")
        self.mask_box.currentIndexChanged.connect(self._on_mask)
        self.case_box.setToolTip("Case of the dataset that the mask belongs to.")
        self.case_box.currentIndexChanged.connect(self._refresh)
        self.painted = QCheckBox("Strokes: 0 is unlabelled, 1 background")
        self.painted.setToolTip("For strokes: only what was painted is learnt from; structures follow from 2 on.")
        self.classes = QListWidget()
        self.classes.setAccessibleName("Classes that were looked for")
        self.classes.setToolTip("Uncheck what you did not look for: it then counts neither in training nor in scores.")
        self.accept_button = button("Accept mask", self.accept, "Make it the label map of the case; undo brings back.")
        self.undo_button = button("Undo", self.undo, "Take the mask that was accepted last back.")
        self.train_button = button("Continue from best", self.train_on, "Fine-tune on with all accepted masks.")
        self.notice = Notice()
        above, below = _form(), _form()
        above.addRow("Next by", self.by)
        above.addRow(button_row(self.next_button))
        below.addRow("Mask", self.mask_box)
        below.addRow("Case", self.case_box)
        below.addRow(self.painted)
        below.addRow("Looked for", self.classes)
        below.addRow(button_row(self.accept_button, self.undo_button, self.train_button))
        self.column.addWidget(self.told)  # not into a form, which would cut lines off a text that grows
        self.column.addLayout(above)
        self.column.addWidget(self.list)
        self.column.addWidget(button_row(self.predict_button, self.cancel_button))
        self.cancel_button.hide()
        self.column.addWidget(self.notice)  # in sight from the buttons above and below
        self.column.addLayout(below)

    def _offer_cases(self) -> None:
        known = self.case_box.currentData()
        self.case_box.blockSignals(True)
        self.case_box.clear()
        for case in self._dataset.cases() if self._dataset is not None else ():
            if case.images:
                self.case_box.addItem(f"{case.id} ({_state_of(case)})", case.id)
        self.case_box.setCurrentIndex(max(0, self.case_box.findData(known)))
        self.case_box.blockSignals(False)

    def _offer_classes(self) -> None:
        self.classes.clear()
        entries = self._dataset.info.classes if self._dataset is not None else ()
        for entry in entries:
            item = QListWidgetItem(entry.name)
            item.setData(Qt.ItemDataRole.UserRole, entry.index)
            item.setCheckState(Qt.CheckState.Checked)
            self.classes.addItem(item)
        row = max(18, self.classes.sizeHintForRow(0))
        self.classes.setFixedHeight(8 + row * max(1, min(5, len(entries))))

    def _on_mask(self) -> None:
        """Guess the case of the mask by the names of mask and scan, and what its values are."""
        layer = self._mask
        names = [one.name for one in (layer, self.panel.scan) if one is not None]
        ids = [str(self.case_box.itemData(row)) for row in range(self.case_box.count())]
        for name in names:
            fits = [id for id in ids if name == id or name.startswith(f"{id} ")]
            if fits:
                self.case_box.setCurrentIndex(ids.index(max(fits, key=len)))
                break
        self.painted.setChecked(layer is not None and layer.name.endswith("· painted"))
        self._refresh()

    def _accept(self, layer: Any, geometry: Geometry | None) -> None:
        from training_backend.data.accept import Origin, accept

        try:
            wish = self._wish(layer, geometry)
        except Med3dError as error:
            self.notice.say("error", str(error))
            return
        assert self._dataset is not None  # the button is off without one
        folder = self._dataset.folder
        self.notice.say("busy", f"Accepting the mask of {wish.case}…")
        origin = Origin(wish.how, wish.model)
        options: dict[str, Any] = {"annotated": wish.annotated, "names": wish.names, "values": wish.values}
        self._timer.stop()

        def work() -> str:
            report = accept(folder, wish.case, wish.mask, origin=origin, **options)
            mask_drafts.drop(folder, wish.case)
            return str(report)

        self._start(work, done=self._changed)

    def _wish(self, layer: Any, geometry: Geometry | None) -> _Wish:
        """What is to be accepted, with the voxels as they are now."""
        mask = volume_of(layer)
        mask = replace(mask, array=mask.array.copy(), geometry=geometry or mask.geometry)
        names = {entry.index: entry.name for entry in classes_of(layer)}
        values: dict[int, int] = {}
        if self.painted.isChecked():
            most = int(mask.array.max(initial=1))
            values = PAINTED | {value: value - 1 for value in range(2, most + 1)}
            names = {values[value]: name for value, name in names.items() if value > 1}
        predicted = str((facts_of(layer) or {}).get("run") or "")
        strokes = self.painted.isChecked() or "strokes" in layer.name
        how = f"prediction of {predicted}, corrected" if predicted else "strokes" if strokes else "drawn"
        rows = [self.classes.item(row) for row in range(self.classes.count())]
        wanted = [row.data(Qt.ItemDataRole.UserRole) for row in rows if row.checkState() == Qt.CheckState.Checked]
        known = {row.data(Qt.ItemDataRole.UserRole) for row in rows}
        new = [int(values.get(int(value), int(value))) for value in np.unique(mask.array)]
        wanted += [value for value in new if value not in known and 0 < value < 255]
        model = self._state.model if predicted or strokes else ""
        return _Wish(str(self.case_box.currentData()), mask, names, values, wanted, how, model)

    def _start(self, function: Any, *, done: Any, progressed: Any = None) -> _work.Job:
        """Work in a thread; the buttons wait for it."""
        job = _work.start(
            self,
            function,
            done=done,
            failed=lambda sentence: self.notice.say("error", sentence),
            cancelled=lambda: self.notice.say("info", "Cancelled; nothing was changed."),
            ended=self._ended,
            progressed=progressed,
        )
        self._jobs.add(job)
        self._refresh()
        return job

    def _ask(self, function: Any, done: Any, doing: str) -> None:
        """Have the model process work, and say how far it is."""
        self.notice.say("busy", f"{doing}…")

        def progressed(share: float, text: str) -> None:
            self.notice.say("busy", f"{text or doing}, {100 * share:.0f} %…")

        self._asked = self._start(function, done=done, progressed=progressed)
        self.cancel_button.show()

    def _ended(self) -> None:
        self._jobs = {job for job in self._jobs if job.running}
        if self._asked is not None and not self._asked.running:
            self._asked = None
            self.cancel_button.hide()
        self._refresh()

    def _show_next(self, choices: list[dict[str, Any]]) -> None:
        self.list.clear()
        for choice in choices:
            item = QListWidgetItem(f"{choice['case_id']}\n{choice['reason']}")
            item.setData(Qt.ItemDataRole.UserRole, choice["case_id"])
            self.list.addItem(item)
        self.list.show()
        which = "One case" if len(choices) == 1 else f"{len(choices)} cases, the one to label first at the top"
        self.notice.say("ok", f"{which}. Click one to open it.")

    def _drop_labelled(self) -> None:
        """Take cases off the list that have a label map by now."""
        for row in reversed(range(self.list.count())):
            id = str(self.list.item(row).data(Qt.ItemDataRole.UserRole))
            case = self._dataset.records.get(id) if self._dataset is not None else None
            if case is None or case.label is not None:
                self.list.takeItem(row)
        self.list.setVisible(self.list.count() > 0)

    def _open_item(self, item: QListWidgetItem) -> None:
        self.open_case(str(item.data(Qt.ItemDataRole.UserRole)))

    def _opened(self, id: str, made: list[Any], draft: mask_drafts.Draft | None) -> None:
        viewer = self.panel.viewer
        added = show_alone(viewer, made, list(viewer.layers))
        grid = geometry_of(added[0])
        back = draft is not None and self._dataset is not None and draft.array.shape == grid.shape
        if draft is not None and back:
            facts = {"run": draft.run} if draft.run else {}
            classes = self._dataset.info.classes  # type: ignore[union-attr]
            kept = labels_layer(draft.array, grid, draft.name, classes, derived=True, **facts)
            added += replace_layers(viewer, [kept])
        viewer.layers.selection.active = added[-1]
        if back:
            self.mask_box.setCurrentIndex(self._masks.index(added[-1]))
        self.case_box.setCurrentIndex(max(0, self.case_box.findData(id)))
        names = [self.panel.scan_box.itemText(row) for row in range(self.panel.scan_box.count())]
        scan = next((row for row, name in enumerate(names) if name == id or name.startswith(f"{id} ")), -1)
        if scan >= 0:
            self.panel.scan_box.setCurrentIndex(scan)
        if back:
            self.notice.say(
                "ok", f"{id} is open, and the mask that was being corrected is back. Go on, or predict anew."
            )
            return
        self.notice.say("ok", f"{id} is open. Predict it and correct the labels, or paint; then accept the mask.")

    def _on_paint(self, event: Any) -> None:
        if isalive(self) and event.source is self._mask and not self.painted.isChecked():
            self._timer.start()  # strokes are kept where they are painted

    def _keep_draft(self) -> None:
        """Keep the mask as it is now, in a thread."""
        layer, case = self._mask, self.case_box.currentData()
        if layer is None or self._dataset is None or case is None:
            return
        folder, run = self._dataset.folder, str((facts_of(layer) or {}).get("run") or "")

        def keep() -> None:
            mask_drafts.keep(folder, case, mask_drafts.Draft(np.asarray(layer.data), layer.name, run))

        _work.start(self, keep, failed=lambda sentence: self.notice.say("warning", f"Not kept on disk: {sentence}"))

    def _predicted(self, made: list[Any]) -> None:
        """Show the prediction with the brush in hand."""
        layer = replace_layers(self.panel.viewer, made)[-1]
        self.panel.viewer.layers.selection.active = layer
        layer.n_edit_dimensions, layer.brush_size = 3, 5
        self.mask_box.setCurrentIndex(self._masks.index(layer))
        self.notice.say(
            "ok",
            "Correct the labels: choose the brush in the layer controls at the left and paint with the class's number, "
            "or 0 to erase. Then press Accept mask.",
        )

    def _changed(self, said: str) -> None:
        self.notice.say("ok", said)
        folder = self._dataset.folder if self._dataset is not None else None
        self._state.dataset_changed.emit(folder)

    def _launched(self, run: Path) -> None:
        self._followed = (Path(self._state.model), run)
        self.notice.say("ok", f"{run.name} trains on from {Path(self._state.model).name}; follow it in Runs.")
        self._state.runs_changed.emit()
        self._state.tab_wanted.emit("Runs", run)

    def _look_at_run(self) -> None:
        """Say what the run that trained on has gained, once it has finished."""
        if self._followed is None:
            return
        from training_backend.jobs.learn import outcome

        _work.start(self, outcome, *self._followed, done=self._tell_gain, failed=lambda _: None)

    def _tell_gain(self, said: str) -> None:
        if not said or self._followed is None:
            return
        run = self._followed[1]
        self._followed = None

        def use() -> None:
            self._state.model = str(run)
            self.notice.say("ok", f"{run.name} is the model now: ask for the next cases, or predict.")

        self.notice.say("ok", said, [("Use this model", use)])

    def _refresh(self) -> None:
        """Say where things stand, and enable what can be done."""
        dataset, idle = self._dataset, not self._jobs
        facts = model_facts(self._state.model) if self._state.model else None
        if dataset is None:
            self.told.setText(NO_DATASET)
        else:
            cases = [case for case in dataset.cases() if case.images and case.split in ("train", "unlabelled")]
            labelled = sum(case.label is not None for case in cases)
            accepted = sum(bool(case.accepted) for case in dataset.cases())
            told = f"{dataset_name(dataset.folder)}: {labelled} of {len(cases)} training cases have a label map"
            told += f"; accepted masks: {accepted}." if accepted else "."
            self.told.setText(told if self._masks else f"{told} {NO_MASK}")
        self.next_button.setEnabled(idle and dataset is not None and bool(self._state.model))
        self.accept_button.setEnabled(idle and self._mask is not None and self.case_box.currentIndex() >= 0)
        self.undo_button.setEnabled(idle and dataset is not None and any(c.accepted for c in dataset.records.values()))
        segments = facts is not None and facts.kind == "finetune" and facts.task == "segmentation"
        self.predict_button.setEnabled(idle and segments)
        runs = facts is not None and facts.kind == "finetune" and Path(self._state.model, "run.json").is_file()
        self.train_button.setEnabled(idle and dataset is not None and runs)


def _form() -> QFormLayout:
    form = QFormLayout()
    form.setContentsMargins(0, 4, 0, 0)
    form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return form


def _state_of(case: CaseRecord) -> str:
    label = "accepted" if case.accepted else "labelled" if case.label is not None else "no label map"
    return f"{case.split}, {label}" if case.split != "unlabelled" else label
