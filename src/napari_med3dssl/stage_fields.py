"""What describes one stage of continual learning: modality, its kind, its dataset, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QFormLayout, QVBoxLayout, QWidget

from napari_med3dssl._state import State, dataset_name
from napari_med3dssl._widgets import combo, tooltip
from napari_med3dssl.forms import Form
from training_backend.config.plan import StageConfig
from training_backend.config.presets import PRESETS
from training_backend.errors import ConfigError
from training_backend.jobs.sources import modalities

KINDS = {"": "as published", "text": "reports", "2d": "2-D images", "3d": "volumes"}
FREE = "3D_MR"
"""Modality that is offered first: what most users add to an encoder of CT."""
OWN_FIELDS = ("modality", "kind", "dataset", "preset", "settings")
BROWSE = "browse"


class StageFields(QWidget):
    """Fields of a `StageConfig`.

    Args:
        state: what the panels of the viewer share.
        name: begins the object names of the fields.
    """

    changed = Signal()

    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        self._state = state
        self._settings: dict[str, Any] = {}
        self._picked = False
        self.modality = combo("Modality")
        self.modality.setEditable(True)
        self.modality.addItems(list(modalities()))
        self.modality.setCurrentText(FREE)
        self.kind = combo("Kind")
        for key, text in KINDS.items():
            self.kind.addItem(text, key)
        self.dataset = combo("Dataset of the stage")
        self.preset = combo("Preset of the stage")
        self.preset.addItem("that of the plan", "")
        for key, text in PRESETS.items():
            self.preset.addItem(f"{key}: {text}", key)
        described = StageConfig.model_fields
        rows = QFormLayout()
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for field in ("modality", "kind", "dataset", "preset"):
            widget = getattr(self, field)
            widget.setObjectName(f"{name}.{field}")
            widget.setToolTip(tooltip(str(described[field].description)))
            rows.addRow(field.capitalize(), widget)
        self.form = Form(StageConfig(modality=FREE, dataset=Path()), hidden=OWN_FIELDS)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(rows)
        column.addWidget(self.form)
        self.modality.currentTextChanged.connect(self._on_change)
        self.kind.currentIndexChanged.connect(self._on_change)
        self.preset.currentIndexChanged.connect(self._on_change)
        self.dataset.activated.connect(self._on_dataset)
        self.form.changed.connect(self.changed)
        state.follow(self, state.dataset_changed, lambda _: self.list_datasets())
        self.list_datasets()

    def stage(self) -> StageConfig:
        """The stage as entered; a `ConfigError` says what is wrong."""
        modality, kind = self.modality.currentText().strip(), self.kind.currentData() or None
        if not modality:
            raise ConfigError("The modality has no name.", f"Choose one of {', '.join(modalities())} or your own.")
        if kind is None and modality not in modalities():
            raise ConfigError(f"{modality} is a name of your own.", "Choose its kind: reports, 2-D images or volumes.")
        folder = self.dataset.currentData()
        if not folder:
            raise ConfigError(f"The stage {modality} has no dataset.", "Make one in the Data tab, or browse for one.")
        entered = self.form.config().model_dump()
        own = {"modality": modality, "kind": kind, "dataset": folder, "preset": self.preset.currentData()}
        return StageConfig.parse({**entered, **own, "settings": self._settings}, where="stage")

    def show_stage(self, stage: StageConfig) -> None:
        """Show a stage, without announcing it."""
        self.blockSignals(True)
        self._settings = dict(stage.settings)
        self.modality.setCurrentText(stage.modality)
        self.kind.setCurrentIndex(max(0, self.kind.findData(stage.kind or "")))
        self.preset.setCurrentIndex(max(0, self.preset.findData(stage.preset)))
        self._choose(stage.dataset)
        self.form.show_config(stage)
        self.blockSignals(False)

    def release(self) -> None:
        """Describe another stage: the dataset is the one in use again, and settings that have no field are gone."""
        self._picked, self._settings = False, {}
        self.list_datasets()

    def list_datasets(self) -> None:
        """Offer the datasets that were used last; one that was picked here stays, else the one in use is chosen."""
        chosen = self.dataset.currentData() if self._picked else str(self._state.dataset or "")
        known = [path for path in self._state.settings.get("datasets", []) if Path(path, "dataset.json").is_file()]
        self.dataset.clear()
        self.dataset.addItem("none", "")
        for path in dict.fromkeys([*known, *([chosen] if chosen else [])]):
            self.dataset.addItem(dataset_name(Path(path)), path)
        self.dataset.addItem("Browse…", BROWSE)
        self.dataset.setCurrentIndex(max(0, self.dataset.findData(chosen)))
        self._on_change()

    def _choose(self, folder: Path) -> None:
        text, self._picked = str(folder), True
        if self.dataset.findData(text) < 0:
            self.dataset.insertItem(self.dataset.count() - 1, dataset_name(folder), text)
        self.dataset.setCurrentIndex(self.dataset.findData(text))
        self.dataset.setToolTip(text)

    def _on_dataset(self, _index: int) -> None:
        if self.dataset.currentData() == BROWSE:
            self.dataset.setCurrentIndex(0)
            chosen = QFileDialog.getExistingDirectory(self, "Dataset", str(self._state.dataset or Path.home()))
            if chosen:
                self._choose(Path(chosen))
        self._picked = bool(self.dataset.currentData())
        self._on_change()

    def _on_change(self) -> None:
        """A kind of its own belongs to names of the user's only."""
        published = self.modality.currentText().strip() in modalities()
        if published and self.kind.currentIndex() != 0:
            self.kind.setCurrentIndex(0)
        self.kind.setEnabled(not published)
        self.changed.emit()
