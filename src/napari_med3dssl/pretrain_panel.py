"""The Pre-train panel: choose a method, a preset and data, look at what the network will see, and start."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFormLayout, QVBoxLayout, QWidget

from napari_med3dssl._layers import volume_of
from napari_med3dssl._scans import selected_scan
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Page, Section, button, button_row, combo, wrapping
from napari_med3dssl.continual_box import ContinualBox
from napari_med3dssl.explore_pictures import PictureLayers
from napari_med3dssl.forms import Form, label_of
from napari_med3dssl.launch_box import LaunchBox
from napari_med3dssl.weights_picker import WeightsPicker
from training_backend.config import RunConfig
from training_backend.config.presets import DEFAULT_METHOD, PRESETS, pretrain_config
from training_backend.config.registry import method as find_method
from training_backend.config.registry import methods
from training_backend.errors import ConfigError, Med3dError

HIDDEN = ("kind", "preset", "weights", "task", "data.dataset")
"""Settings that other controls of the panel decide."""
MASKED = (
    "One view as the network gets it lies over the scan: whole below, masked above; hide the upper layer to compare. "
    "The run draws other places of every scan in each epoch."
)
NO_DATA = "Choose a dataset in the Data tab first; a small generated one is made there with one click."


class PretrainPanel(QWidget):
    """Describe and start a pre-training run.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self.form: Form | None = None
        self._implied: dict[str, Any] = {}
        self._pictures = PictureLayers(state.viewer, " · masking")
        self._sequences = PictureLayers(state.viewer, " · sequence", grid=())
        self._build()
        state.follow(self, state.dataset_changed, lambda _: self._on_dataset())
        self._restart()
        self._on_dataset()

    def config(self) -> RunConfig:
        """The run as entered; a `Med3dError` says what is wrong."""
        if self.state.dataset is None:
            raise ConfigError(NO_DATA)
        if self.form is None:
            raise ConfigError("No method is installed.")
        entered = self.form.config()
        changes = {"data": {"dataset": self.state.dataset}, "weights": self.weights.source}
        return RunConfig.parse({**entered.updated(changes).model_dump(), "preset": self.preset.currentData()})

    def show_run(self, path: Path) -> None:
        """Fill the form with the settings of a run."""
        try:
            config = RunConfig.load(Path(path) / "config.yaml")
        except Med3dError as error:
            self.launch.notice.say("error", str(error))
            return
        self.method.setCurrentIndex(max(0, self.method.findData(config.method.name)))
        self.preset.setCurrentIndex(max(0, self.preset.findData(config.preset)))
        if (Path(config.data.dataset) / "dataset.json").is_file():
            self.state.dataset = Path(config.data.dataset)
        self.weights.choose(config.weights)
        self._show(config)

    def preview(self) -> None:
        """Show what this run would learn from: the open scan masked, or example sequences beside it."""
        if self.glues:
            self.preview_sequences()
        else:
            self.preview_masking()

    @property
    def glues(self) -> bool:
        """Whether the views of the run as entered are sequences of slabs."""
        return self.form is not None and self.form.editor("data.view").value() == "sequence"

    def preview_sequences(self) -> None:
        """Have an example of each kind of sequence made from the dataset, or without one from the open scan."""
        layer = selected_scan(self.state.viewer)
        try:
            volumes = [] if layer is None else [volume_of(layer)]
            config = self.config() if self.state.dataset is not None else self._without_dataset()
        except Med3dError as error:
            self.launch.notice.say("error", str(error))
            return
        doing = "Making example sequences…"
        self.launch.ask("preview_masking", self._draw_sequences, doing, config, volumes=volumes, seed=config.seed)

    def preview_masking(self) -> None:
        """Have the open scan masked as this run would, and show it beside the scan."""
        layer = selected_scan(self.state.viewer)
        if layer is None:
            self.launch.notice.say("info", "Open a scan first: drop a file, or File › Open Sample › Med3D SSL.")
            return
        try:
            config, volume = self.config(), volume_of(layer)
        except Med3dError as error:
            self.launch.notice.say("error", str(error))
            return
        doing = "Masking the open scan…"
        self.launch.ask("preview_masking", self._draw, doing, config, volumes=[volume], seed=config.seed)

    def _build(self) -> None:
        self.method = combo("Method")
        for name, found in methods().items():
            self.method.addItem(f"{name}: {found.card.title}", name)
        self.method.setCurrentIndex(self.method.findData(DEFAULT_METHOD))
        self.method.activated.connect(lambda _: self._restart())
        self.about = wrapping("")
        self.preset = combo("Preset")
        for name, text in PRESETS.items():
            self.preset.addItem(f"{name}: {text}", name)
        self.preset.activated.connect(lambda _: self._restart())
        self.dataset = wrapping("")
        self.launch: LaunchBox = LaunchBox(self.state, self.config)
        self.weights = WeightsPicker(self.state, "pretrain", "Start from", "random weights")
        self.weights.changed.connect(lambda: self.launch.check_soon())
        rows = QFormLayout()
        rows.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        rows.addRow("Method", self.method)
        rows.addRow(self.about)
        rows.addRow("Preset", self.preset)
        rows.addRow("Dataset", self.dataset)
        rows.addRow("Start from", self.weights)
        self.preview_button = button("Preview masking", self.preview, "On the open scan, beside it.")
        self.settings = Section("Settings", folded=False)
        self.continual = ContinualBox(self.state)
        page = Page()
        page.column.addLayout(rows)
        page.column.addWidget(button_row(self.preview_button))
        page.column.addWidget(self.launch)
        page.column.addWidget(self.settings)
        page.column.addWidget(self.continual)
        page.column.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(page)

    def _restart(self) -> None:
        """Fill the form with the chosen method's preset."""
        name = self.method.currentData()
        if name is None:
            return
        card = find_method(name).card
        self.about.setText(f"{card.summary} {card.paper}".strip())
        self._show(pretrain_config(name, self.preset.currentData(), self.state.dataset or Path()))

    def _show(self, config: RunConfig) -> None:
        if self.form is not None:
            self.form.setParent(None)
            self.form.deleteLater()
        self.form = Form(config, hidden=HIDDEN)
        self.followed = wrapping("")
        self.followed.hide()
        self._implied = _by_path(find_method(config.method.name).implied(config.method.model_dump()))
        if (section := self.form.sections.get("method")) is not None and section.layout() is not None:
            section.layout().insertWidget(1, self.followed)  # below the fields, above the advanced ones
        self.form.changed.connect(self._follow_method)
        self.form.changed.connect(self.launch.check_soon)
        self.settings.column.addWidget(self.form)
        self.form.changed.connect(self._name_preview)
        self._name_preview()
        self.launch.check_soon()

    def _follow_method(self) -> None:
        """Settings that follow from those of the method go with them, but for those that were entered by hand."""
        name = self.method.currentData()
        if self.form is None or "method" not in self.form.sections:
            return
        try:
            entered = self.form.sections["method"].config().model_dump()
            config = pretrain_config(name, self.preset.currentData(), Path(), {"method": entered})
        except Med3dError:  # said below the field
            return
        before, self._implied = self._implied, _by_path(find_method(name).implied(entered))
        moved = sorted(path for path in before | self._implied if before.get(path) != self._implied.get(path))
        if not moved:
            return
        kept = [path for path in moved if path in self.form.edited]
        for path in moved:
            if path not in kept:
                self.form.put(path, _at(config, path))
        self.form.mistakes()
        told = [f"{_said(path)} {_text(_at(config, path))}" for path in moved if path not in kept]
        parts = [f"Goes with the method: {'; '.join(told)}." if told else ""]
        parts += [f"Kept as entered: {', '.join(map(_said, kept))}." if kept else ""]
        self.followed.setText(" ".join(filter(None, parts)))
        self.followed.show()

    def _on_dataset(self) -> None:
        self.dataset.setText(dataset_line(self.state.dataset))
        self.launch.check_soon()

    def _name_preview(self) -> None:
        self.preview_button.setText("Preview sequences" if self.glues else "Preview masking")

    def _without_dataset(self) -> RunConfig:
        if self.form is None:
            raise ConfigError("No method is installed.")
        return RunConfig.parse(self.form.config().model_dump())

    def _draw_sequences(self, values: dict[str, Any]) -> None:
        new = all(self._sequences[picture["name"]] is None for picture in values["pictures"])
        self._sequences.show([{**picture, "facts": {"derived": True}} for picture in values["pictures"]])
        for picture in values["pictures"]:
            if picture["role"] == "labels":
                self._sequences[picture["name"]].contour = 1  # borders only
        if new:
            self.state.viewer.reset_view()
        self.launch.notice.say("info", values["text"])

    def _draw(self, values: dict[str, Any]) -> None:
        self._pictures.show([{**picture, "facts": {"derived": True}} for picture in values["pictures"]])
        self._pictures.link_contrast()
        mask = self._pictures["mask"]
        if mask is not None:
            mask.visible = False
        self.launch.notice.say("info", MASKED)


def _by_path(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their paths."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{above}{name}"
        found.update(_by_path(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return found


def _at(config: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), config)


def _said(path: str) -> str:
    """Name of a setting as the form has it: its section, where that is inside another one, and its label."""
    return " ".join(label_of(part).lower() for part in path.split(".")[1:])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " × ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def dataset_line(folder: Path | None) -> str:
    """Name and counts of a dataset in one line."""
    from training_backend.data.dataset import Dataset

    if folder is None:
        return NO_DATA
    try:
        dataset = Dataset.open(folder)
    except Med3dError as error:
        return str(error)
    counts = {split: len(dataset.cases(split=split)) for split in ("train", "val")}
    labelled = len(dataset.cases(labelled=True))
    return f"{dataset.info.name}: {counts['train']} train, {counts['val']} val, {labelled} with labels"
