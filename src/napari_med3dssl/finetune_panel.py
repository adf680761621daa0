"""The Fine-tune panel: a task on a backbone, started in the background; and its prediction of the open scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFormLayout, QVBoxLayout, QWidget

from napari_med3dssl._state import State
from napari_med3dssl._widgets import Page, Section, button, button_row, combo, wrapping
from napari_med3dssl.class_editor import ClassEditor
from napari_med3dssl.forms import Form
from napari_med3dssl.import_report import ImportReportDialog
from napari_med3dssl.launch_box import LaunchBox
from napari_med3dssl.predict_box import PredictBox
from napari_med3dssl.pretrain_panel import NO_DATA, dataset_line
from napari_med3dssl.weights_picker import WeightsPicker
from training_backend.config import RunConfig, merged
from training_backend.config.presets import PRESETS, backbone_config
from training_backend.config.recipes import PRESET, recipe_config, recipes
from training_backend.config.recipes import recipe as find_recipe
from training_backend.config.registry import tasks
from training_backend.data.fits import contrasts_of
from training_backend.errors import ConfigError, Med3dError

HIDDEN = ("kind", "preset", "recipe", "weights", "data.dataset", "task.classes", "method")
"""Settings that other controls of the panel decide; those of the method come with the backbone."""


class FinetunePanel(QWidget):
    """Describe and start a fine-tuning run.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self.form: Form | None = None
        self._backbone: dict[str, Any] = {}
        self._build()
        state.follow(self, state.dataset_changed, lambda _: self._on_dataset())
        self._restart()
        self._on_dataset()

    def config(self) -> RunConfig:
        """The run as entered; a `Med3dError` says what is wrong."""
        if self.state.dataset is None:
            raise ConfigError(NO_DATA)
        if self.form is None:
            raise ConfigError("No task is installed.")
        values = self.form.config().model_dump()
        changes: dict[str, Any] = {"data": {"dataset": self.state.dataset}, "weights": self.weights.source}
        if "classes" in values["task"] and (self.classes.names or not self.recipe.currentData()):
            changes["task"] = {"classes": self.classes.names}
        return RunConfig.parse({**merged(values, changes), "preset": self.preset.currentData()})

    def show_run(self, path: Path) -> None:
        """Fill the form with the settings of a run."""
        try:
            config = RunConfig.load(Path(path) / "config.yaml")
        except Med3dError as error:
            self.launch.notice.say("error", str(error))
            return
        if config.task is not None:
            self.task.setCurrentIndex(max(0, self.task.findData(config.task.name)))
        self.preset.setCurrentIndex(max(0, self.preset.findData(config.preset)))
        self._choose_recipe(config.recipe)
        if (Path(config.data.dataset) / "dataset.json").is_file():
            self.state.dataset = Path(config.data.dataset)
        self.weights.blockSignals(True)
        self.weights.choose(config.weights)
        self.weights.blockSignals(False)
        self._show(config)

    def read_report(self) -> None:
        """Have the backbone compared with the network, and show what matches."""
        if not self.weights.source:
            self.launch.notice.say("info", "Choose a backbone first.")
            return
        try:
            config = self.config()
        except Med3dError as error:
            self.launch.notice.say("error", str(error))
            return
        self.launch.ask("import_report", self._judge, "Reading the backbone…", config)

    def _build(self) -> None:
        self.task = combo("Task")
        for name, found in tasks().items():
            self.task.addItem(found.title, name)
        self.task.setCurrentIndex(max(0, self.task.findData("segmentation")))
        self.task.activated.connect(lambda _: self._restart())
        self.preset = combo("Preset")
        for name, text in PRESETS.items():
            self.preset.addItem(f"{name}: {text}", name)
        self.preset.activated.connect(lambda _: self._restart())
        self.recipe = combo("Recipe")
        self.recipe.addItem("none: settings of the preset", "")
        for name, known in recipes().items():
            self.recipe.addItem(f"{name}: {known.title}", name)
        self.recipe.activated.connect(lambda _: self._on_recipe())
        self.about = wrapping("")
        self.dataset = wrapping("")
        self.launch: LaunchBox = LaunchBox(self.state, self.config)
        self.weights = WeightsPicker(self.state, "pretrain", "Backbone", "random weights")
        self.weights.changed.connect(self._on_backbone)
        self.classes = ClassEditor()
        self.classes.changed.connect(lambda: self.launch.check_soon())
        rows = QFormLayout()
        rows.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        rows.addRow("Recipe", self.recipe)
        rows.addRow(self.about)
        rows.addRow("Task", self.task)
        rows.addRow("Preset", self.preset)
        rows.addRow("Dataset", self.dataset)
        rows.addRow("Backbone", self.weights)
        self.report = button("Import report", self.read_report, "Which tensors of the backbone match the network.")
        self.settings = Section("Settings", folded=False)
        self.class_section = Section("Classes", folded=False, tip="Names and colours of the labels in the dataset.")
        self.class_section.column.addWidget(self.classes)
        self.predict = PredictBox(self.state)
        predict = Section("Predict current layer", folded=False)
        predict.column.addWidget(self.predict)
        page = Page()
        page.column.addLayout(rows)
        page.column.addWidget(button_row(self.report))
        for widget in (self.class_section, self.launch, predict, self.settings):
            page.column.addWidget(widget)
        page.column.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(page)
        self._choose_recipe(str(self.state.settings.get("recipe", "")))

    def _choose_recipe(self, name: str) -> None:
        """Select a recipe, say what it is, and let it decide task and preset."""
        self.recipe.setCurrentIndex(max(0, self.recipe.findData(name)))
        chosen = self.recipe.currentData()
        for widget in (self.task, self.preset):
            widget.setEnabled(not chosen)
        self.about.setVisible(bool(chosen))
        if chosen:
            found = find_recipe(chosen)
            self.about.setText(f"{found.paper}. Dataset: {found.dataset.url}, then {found.ingest_command()}")
            self.task.setCurrentIndex(max(0, self.task.findData(found.task)))
            self.preset.setCurrentIndex(max(0, self.preset.findData(PRESET)))

    def _on_recipe(self) -> None:
        name = self.recipe.currentData()
        self.state.settings.set("recipe", name)
        self._choose_recipe(name)
        self._restart()

    def _restart(self) -> None:
        """Fill the form with the recipe, or the task's preset, and the encoder settings of the backbone."""
        if self.recipe.currentData():
            self._follow_recipe()
            return
        name, preset = self.task.currentData(), self.preset.currentData()
        if name is None:
            return
        changes = {"task": targets_of(name, self.state.dataset)}
        try:
            self._show(backbone_config(name, preset, self.state.dataset or Path(), self._backbone, changes))
        except Med3dError as error:
            self.launch.notice.say("error", str(error))

    def _follow_recipe(self) -> None:
        found, dataset = find_recipe(self.recipe.currentData()), self.state.dataset or Path()
        method = self._backbone.get("method", {})
        self.launch.notice.clear()
        if method and method.get("name") != found.system:
            self.launch.notice.say(
                "error",
                f"The recipe is for backbones of {found.system}, but the one chosen is of {method.get('name')}; choose "
                "another one, or no recipe.",
            )
            method = {}
        try:
            contrasts = contrasts_of(dataset)
            self._show(
                recipe_config(found.name, dataset, weights=self.weights.source, contrasts=contrasts, backbone=method)
            )
        except Med3dError as error:
            self.launch.notice.say("error", str(error))

    def _show(self, config: RunConfig) -> None:
        if self.form is not None:
            self.form.setParent(None)
            self.form.deleteLater()
        self.form = Form(config, hidden=HIDDEN)
        self.form.changed.connect(self.launch.check_soon)
        self.settings.column.addWidget(self.form)
        self.class_section.setVisible(config.task is not None and "classes" in type(config.task).model_fields)
        self.launch.check_soon()

    def _on_backbone(self) -> None:
        """Take the encoder's settings from a run; those of a file are read with its import report."""
        source = self.weights.source
        self._backbone = {}
        if source and (Path(source) / "config.yaml").is_file():
            try:
                config = RunConfig.load(Path(source) / "config.yaml")
            except Med3dError as error:
                self.launch.notice.say("error", str(error))
                return
            self._backbone = {"method": config.method.model_dump(), "data": config.data.model_dump()}
            self._restart()
        elif source:
            self.read_report()
        else:
            self._restart()

    def _judge(self, values: dict[str, Any]) -> None:
        dialog = ImportReportDialog(self, values)
        dialog.accepted.connect(lambda: self._accept(values))
        dialog.rejected.connect(lambda: self.weights.choose(""))
        dialog.open()

    def _accept(self, values: dict[str, Any]) -> None:
        self._backbone = {"method": values["method"], "data": values["data"]}
        self._restart()
        matched = f"{values['encoder_matched']} of {values['encoder']} encoder tensors match"
        self.launch.notice.say("ok", f"{matched}; the settings of the encoder were taken over.")

    def _on_dataset(self) -> None:
        from training_backend.data.dataset import Dataset

        folder = self.state.dataset
        self.dataset.setText(dataset_line(folder))
        try:
            self.classes.show_classes(Dataset.open(folder).info.classes if folder is not None else ())
        except Med3dError:
            self.classes.show_classes(())  # the line above says what is wrong
        if self.form is not None and (self.task.currentData() == "classification" or self.recipe.currentData()):
            self._restart()
        self.launch.check_soon()


def targets_of(task: str, folder: Path | None) -> dict[str, Any]:
    """Kind and number of outputs that the targets of a dataset ask a classification for."""
    from training_backend.data.dataset import Dataset

    if task != "classification" or folder is None:
        return {}
    try:
        targets = [case.target for case in Dataset.open(folder).cases() if case.target]
    except Med3dError:
        return {}
    if not targets:
        return {}
    if len(targets[0]) > 1:
        return {"kind": "multilabel", "classes": len(targets[0])}
    most = int(max(target[0] for target in targets))
    return {"kind": "multiclass", "classes": most + 1} if most > 1 else {"kind": "binary", "classes": 1}
