"""Predict current layer: overlay with class names, volumes in ml, probabilities, export on the scan's grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QFileDialog,
    QFormLayout,
    QHeaderView,
    QProgressBar,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_med3dssl import _layers, _work
from napari_med3dssl._scans import contrasts, selected_scan
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Notice, button, button_row, combo
from napari_med3dssl.moving_scan import MovingScan, registered_layers
from napari_med3dssl.results import replace_layers
from training_backend.data.manifest import ClassEntry
from training_backend.data.volume import Volume
from training_backend.errors import Med3dError
from training_backend.jobs.sources import WeightsSource, model_facts, run_sources

EMPTY = "No fine-tuned model yet. Start one above; it appears here when it has finished."
FORMATS = "NIfTI (*.nii.gz);;NRRD (*.nrrd);;MetaImage (*.mha)"


class PredictBox(QWidget):
    """Applies a fine-tuned model to the scan on the screen.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self._job: _work.Job | None = None
        self._result: Volume | None = None
        self.model = combo("Fine-tuned model")
        self.model.currentIndexChanged.connect(lambda _: self._on_model())
        self.moving = MovingScan(state)
        self.probabilities = QCheckBox("Also show probabilities")
        form = QFormLayout()
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Model", self.model)
        form.addRow("Moving scan", self.moving.box)
        self._form = form
        form.addRow(self.probabilities)
        self.predict_button = button("Predict current layer", self.predict, "Segment or classify the selected scan.")
        self.export_button = button("Export…", self.export, "Save the prediction on the grid of the scan's file.")
        self.cancel = button("Cancel", self._cancel)
        self.notice = Notice()
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Progress of the prediction")
        self.table = QTableWidget(0, 2)
        self.table.setAccessibleName("Result")
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.table.setFixedHeight(150)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(form)
        column.addWidget(button_row(self.predict_button, self.export_button, self.cancel))
        for widget in (self.notice, self.bar, self.table):
            column.addWidget(widget)
        for widget in (self.bar, self.table, self.cancel, self.export_button):
            widget.hide()
        state.follow(self, state.runs_changed, self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Look for fine-tuned models again."""
        _work.start(self, run_sources, "finetune", done=self._fill, failed=self._complain)

    def predict(self) -> None:
        """Have the selected scan predicted by the model process."""
        layer, source = selected_scan(self.state.viewer), self.model.currentData()
        if layer is None:
            self.notice.say("info", "Open a scan first: drop a file, or File › Open Sample › Med3D SSL.")
            return
        if self._job is not None and self._job.running:
            self.notice.say("info", "A prediction is being made; wait for it, or cancel.")
            return
        if self.registers:
            self._register(layer, source)
            return
        try:
            volumes = [_layers.volume_of(each) for each in contrasts(self.state.viewer, layer)]
        except Med3dError as error:
            self._complain(str(error))
            return
        wanted, name, run = self.probabilities.isChecked(), layer.name, self.model.currentText()
        ask = {"source": source, "volumes": volumes, "probabilities": wanted}
        self._ask("predict", ask, f"Predicting {name}…", lambda values: self._show(name, run, values))

    @property
    def registers(self) -> bool:
        """Whether the chosen model moves one scan onto another."""
        facts = model_facts(str(self.model.currentData() or ""))
        return facts is not None and facts.task == "registration"

    def _register(self, fixed: Any, source: str) -> None:
        """Have another scan moved onto the selected one."""
        moving = self.moving.chosen(fixed)
        if moving is None:
            self.notice.say("info", "Registration needs two scans: open another one and choose it as the moving scan.")
            return
        try:
            labels, volumes = self.moving.labels(moving), [_layers.volume_of(each) for each in (moving, fixed)]
        except Med3dError as error:
            self._complain(str(error))
            return
        classes, name = self.moving.classes(labels), fixed.name
        ask = {"source": source, "volumes": volumes, "labels": labels}

        def show(values: dict[str, Any]) -> None:
            self._result = values["warped"]
            replace_layers(self.state.viewer, registered_layers(moving, name, values, classes))
            self.table.hide()
            self.export_button.show()
            self.notice.say("ok", " ".join([f"{moving.name} was moved onto {name}.", values["text"], *values["notes"]]))

        self._ask("register", ask, f"Moving {moving.name} onto {name}…", show)

    def _ask(self, op: str, ask: dict[str, Any], text: str, done: Callable[[dict[str, Any]], None]) -> None:
        client = self.state.client
        self.notice.say("busy", text)
        self.bar.setRange(0, 0)
        for widget in (self.bar, self.cancel):
            widget.show()
        self._job = _work.start(
            self,
            lambda progress: client.request(op, progress=progress, **ask),
            done=done,
            failed=self._complain,
            cancelled=lambda: self.notice.say("info", "Cancelled; nothing was changed."),
            progressed=self._progress,
            ended=self._idle,
        )

    def export(self) -> None:
        """Save the last prediction in the file's own grid."""
        if self._result is None:
            return
        start = str(Path.home() / f"{self._result.name}.nii.gz".replace(" ", "_"))
        path, _ = QFileDialog.getSaveFileName(self, "Export the prediction", start, FORMATS)
        if path:
            self.export_to(Path(path))

    def export_to(self, path: Path) -> None:
        """Write the last prediction to `path`; the file dialog has asked before replacing."""
        from training_backend.data.write import write_volume

        if self._result is None:
            return
        _work.start(
            self,
            lambda: write_volume(self._result, path, overwrite=True),  # type: ignore[arg-type]
            done=lambda written: self.notice.say("ok", f"Saved {written} on the grid of the scan's file."),
            failed=self._complain,
        )

    def _on_model(self) -> None:
        """Show what the chosen model needs besides the selected scan."""
        self._form.setRowVisible(self.moving.box, self.registers)
        self.probabilities.setVisible(not self.registers)

    def _fill(self, found: list[WeightsSource]) -> None:
        chosen = self.model.currentData()
        self.model.clear()
        for each in found:
            self.model.addItem(each.title, each.source)
        self.model.setCurrentIndex(max(0, self.model.findData(chosen)))
        self._on_model()
        self.predict_button.setEnabled(bool(found))
        if not found:
            self.notice.say("info", EMPTY)
        elif self.notice.text == EMPTY:
            self.notice.clear()

    def _show(self, name: str, run: str, values: dict[str, Any]) -> None:
        self._result = values["labels"]
        if self._result is not None:
            replace_layers(self.state.viewer, predicted_layers(name, run, values))
        rows = {key: f"{value:.1f} ml" for key, value in values["volumes_ml"].items()}
        rows |= {key: f"{value:.4g}" for key, value in values["values"].items()}
        self.table.setHorizontalHeaderLabels(["Class", "Volume" if values["volumes_ml"] else "Probability or value"])
        self.table.setRowCount(len(rows))
        for row, texts in enumerate(rows.items()):
            for column, text in enumerate(texts):
                self.table.setItem(row, column, QTableWidgetItem(text))
        self.table.setVisible(bool(rows))
        self.export_button.setVisible(self._result is not None)
        notes = " ".join(values["notes"])
        said = [notes or f"{name} was predicted by {run}.", values.get("text", "")]
        self.notice.say("warning" if notes else "ok", "\n".join(part for part in said if part))

    def _progress(self, share: float, text: str) -> None:
        if share > 0:
            self.bar.setRange(0, 100)
            self.bar.setValue(round(100 * share))
        if text:
            self.notice.say("busy", f"{text}…")

    def _idle(self) -> None:
        self.bar.hide()
        self.cancel.hide()

    def _cancel(self) -> None:
        self.notice.say("busy", "Stopping…")
        if self._job is not None:
            self._job.stop()  # for a request that is still to be sent
        self.state.client.cancel()

    def _complain(self, sentence: str) -> None:
        self.notice.say("error", sentence)


def predicted_layers(name: str, run: str, values: dict[str, Any]) -> list[_layers.LayerData]:
    """Probabilities, hidden, and below the label map that a model made of the scan `name`; classes have ml."""
    labels: Volume = values["labels"]
    classes = tuple(ClassEntry(**entry) for entry in values["classes"])
    layers = []
    for volume in values["probabilities"]:
        made = _layers.picture_layer(
            volume.array,
            volume.geometry,
            f"{name} · {volume.name} · {run}",
            role="heatmap",
            limits=(0.0, 1.0),
            derived=True,
        )
        made[1]["visible"] = False
        layers.append(made)
    title = f"{name} · pred · {run}"
    made = _layers.labels_layer(labels.array, labels.geometry, title, classes, run=run, derived=True)
    features, volumes_ml = made[1]["features"], values["volumes_ml"]
    made[1]["features"] = features.assign(ml=[volumes_ml.get(each) for each in features["class"]])
    return [*layers, made]
