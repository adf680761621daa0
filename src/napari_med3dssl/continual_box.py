"""Continual learning in the Pre-train tab: one stage more on an existing encoder, or a whole plan of stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QFileDialog,
    QFormLayout,
    QLineEdit,
    QListWidget,
    QProgressBar,
)

from napari_med3dssl import _prepare, _work
from napari_med3dssl._state import State
from napari_med3dssl._widgets import SIGNS, Notice, Section, button, button_row, combo, copy_text, wrapping
from napari_med3dssl.commands import plan_command, stage_command
from napari_med3dssl.forms import Form
from napari_med3dssl.launch_box import SETTLE_MS
from napari_med3dssl.plan_files import plan_checks
from napari_med3dssl.preflight import Check
from napari_med3dssl.stage_fields import StageFields
from napari_med3dssl.weights_picker import WeightsPicker
from training_backend.config.plan import PlanConfig, StageConfig
from training_backend.errors import ConfigError, Med3dError
from training_backend.files import write_text
from training_backend.jobs.sources import continual_sources

ABOUT = (
    "MedCoSS teaches one encoder modality after modality. A few samples of what it knew are shown again, so that it "
    "does not forget."
)
MODES = ("A new stage on an existing encoder", "A whole plan")
PLAN_FIELDS = ("name", "weights", "stages", "settings")
NO_ENCODER = "Choose the encoder that learns the new modality: a run or plan of MedCoSS, or its published file."


class ContinualBox(Section):
    """Describes and starts a plan, which is listed in Runs and is stopped and resumed there.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__("Continual learning (MedCoSS)", tip=ABOUT)
        self.state = state
        self.stages: list[StageConfig] = []
        self._job: _work.Job | None = None
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self.check)
        self._build()
        self._show_mode()

    @property
    def whole(self) -> bool:
        """Whether a whole plan is described, not a single stage."""
        return bool(self.mode.currentIndex() == 1)

    def plan(self) -> PlanConfig:
        """The plan as entered, of one stage for a new stage on an existing encoder.

        Raises:
            ConfigError: something is missing or does not fit.
        """
        entered = self.form.config().model_dump()
        if self.whole:
            if not self.stages:
                raise ConfigError("The plan has no stages yet.", "Describe one and press Add stage.")
            stages = [stage.model_dump() for stage in self.stages]
        else:
            if not self.weights.source:
                raise ConfigError(NO_ENCODER)
            stages = [self.fields.stage().model_dump()]
        own = {"name": self.name.text().strip(), "weights": self.weights.source, "stages": stages}
        return PlanConfig.parse({**entered, **own})

    def show_plan(self, plan: PlanConfig) -> None:
        """Show a whole plan."""
        self.mode.setCurrentIndex(1)
        self.stages = list(plan.stages)
        self.name.setText(plan.name)
        self.weights.choose(plan.weights)
        self.form.show_config(plan)
        self._list_stages(0)
        self.check_soon()

    def check_soon(self) -> None:
        """Check again once the fields have been left alone for a moment."""
        self._settle.start()

    def check(self) -> None:
        """Look at data and buffers in a thread."""
        if self.content.isHidden():
            return
        try:
            plan = self.plan()
        except Med3dError as error:
            self._show_checks([Check("error", str(error))])
            return
        _work.start(self, plan_checks, plan, done=self._show_checks, failed=self._complain)

    def start(self) -> None:
        """Make the plan's directory, or append the stage to the chosen plan, and start it."""
        try:
            plan = self.plan()
        except Med3dError as error:
            self._complain(str(error))
            return
        self.start_button.setEnabled(False)
        self.notice.say("busy", "Looking at data and weights…")
        self.bar.show()
        self._job = _work.start(
            self,
            _launch,
            plan,
            self._appends,
            done=self._started,
            failed=self._complain,
            cancelled=lambda: self.notice.say("info", "Cancelled; nothing was started."),
            progressed=lambda *_: None,
            ended=self._idle,
        )

    def load_yaml(self) -> None:
        """Show a plan from a file of the user's choice."""
        path, _ = QFileDialog.getOpenFileName(self, "Plan", str(Path.home()), "YAML (*.yaml *.yml)")
        if path:
            self.load_file(Path(path))

    def load_file(self, path: Path) -> None:
        """Show the plan in a file; relative paths in it are taken from its folder."""
        try:
            self.show_plan(PlanConfig.load(path).located(path.parent))
        except Med3dError as error:
            self._complain(str(error))
            return
        self.notice.say("ok", f"{path.name} has {len(self.stages)} stages.")

    def save_yaml(self) -> None:
        """Write the plan to a file of the user's choice."""
        try:
            text = self.plan().to_yaml()
        except Med3dError as error:
            self._complain(str(error))
            return
        path, _ = QFileDialog.getSaveFileName(self, "Save plan", str(Path.home() / "plan.yaml"), "YAML (*.yaml)")
        if path:
            write_text(Path(path), text)
            self.notice.say("ok", f"Saved {path}. A terminal runs it with: {plan_command(path, 'FOLDER')}")

    def copy_command(self) -> None:
        """Put the terminal command on the clipboard; a whole plan needs a file first."""
        try:
            plan = self.plan()
        except Med3dError as error:
            self._complain(str(error))
            return
        if self.whole:
            self.notice.say("info", "A command reads the plan from a file: Save YAML…, which says the command.")
            return
        output = "" if self._appends else plan.name or f"{plan.stages[0].modality}-plan"
        copy_text(stage_command(plan.stages[0], self.weights.source, output))
        self.notice.say("ok", "The command is on the clipboard.")

    def fold(self, folded: bool) -> None:
        """Hide or show the content, which is checked when it is shown."""
        super().fold(folded)
        if not folded and hasattr(self, "_settle"):
            self.check_soon()

    @property
    def _appends(self) -> bool:
        """Whether the chosen encoder is a plan, which gets a stage more in place of a new plan."""
        return not self.whole and (Path(self.weights.source or "-") / "plan.yaml").is_file()

    def _build(self) -> None:
        self.mode = combo("What to teach")
        self.mode.addItems(list(MODES))
        self.mode.currentIndexChanged.connect(lambda _: self._show_mode())
        self.weights = WeightsPicker(self.state, "pretrain", "Encoder", "choose an encoder", continual_sources)
        self.weights.changed.connect(self.check_soon)
        top = _rows()
        top.addRow("Teach", self.mode)
        top.addRow("Encoder", self.weights)
        stage = StageConfig(modality="3D_CT", dataset=Path())
        self.form = Form(PlanConfig(stages=(stage,)), hidden=PLAN_FIELDS)
        self.form.changed.connect(self.check_soon)
        self.settings = Section("Settings of the plan")
        self.settings.column.addWidget(self.form)
        self.name = QLineEdit()
        self.name.setPlaceholderText("named after its modalities")
        self.name.setAccessibleName("Name of the plan")
        self.name.setMinimumWidth(40)
        bottom = _rows()
        bottom.addRow("Plan name", self.name)
        self.column.addWidget(wrapping(ABOUT))
        self.column.addLayout(top)
        self._build_stages()
        self.column.addWidget(self.settings)
        self.column.addLayout(bottom)
        self._build_start()

    def _build_stages(self) -> None:
        """The list of stages and its buttons, and the fields of one stage."""
        self.fields = StageFields(self.state, "stage")
        self.fields.changed.connect(self._on_fields)
        self.list = QListWidget()
        self.list.setAccessibleName("Stages of the plan, in their order")
        self.list.setMaximumHeight(110)
        self.list.currentRowChanged.connect(self._choose)
        self.about = wrapping("")
        self.add_button = button("Add stage", self.add_stage, "Append the stage that is described below.")
        self.new_button = button("New stage", self.new_stage, "Let go of the chosen stage and describe another one.")
        self.stage_buttons = button_row(
            self.add_button,
            self.new_button,
            button("Remove", self.remove_stage, "Take the chosen stage out of the plan."),
            button("Up", lambda: self.move_stage(-1), "Teach the chosen stage earlier."),
            button("Down", lambda: self.move_stage(1), "Teach the chosen stage later."),
        )
        for widget in (self.list, self.stage_buttons, self.about, self.fields):
            self.column.addWidget(widget)

    def _build_start(self) -> None:
        """The buttons that start and keep a plan, and what is said about it."""
        self.start_button = button("Start", self.start, "Train in the background; Runs lists the plan with its stages.")
        self.load_button = button("Load YAML…", self.load_yaml, "A plan from a file.")
        self.save_button = button("Save YAML…", self.save_yaml, "Keep this plan as a file.")
        self.copy_button = button("Copy command", self.copy_command, "The same from a terminal.")
        self.notice = Notice()
        self.bar = QProgressBar()
        self.bar.setRange(0, 0)
        self.bar.setAccessibleName("Data and weights are looked at")
        self.bar.hide()
        self.checks = wrapping("")
        self.checks.setAccessibleName("What was checked before the start")
        self.column.addWidget(button_row(self.start_button, self.load_button, self.save_button, self.copy_button))
        for widget in (self.notice, self.bar, self.checks):
            self.column.addWidget(widget)

    def add_stage(self) -> None:
        """Append what the fields describe."""
        try:
            stage = self.fields.stage()
            PlanConfig.parse({"stages": [one.model_dump() for one in (*self.stages, stage)]})
        except Med3dError as error:
            self._complain(str(error))
            return
        self.stages.append(stage)
        self._list_stages(-1)
        self.new_stage()

    def new_stage(self) -> None:
        """Describe a further stage; the chosen one stays as it is."""
        self.list.setCurrentRow(-1)
        self.fields.release()
        self.notice.clear()
        self._tell_chosen()
        self.check_soon()

    def remove_stage(self) -> None:
        """Take the chosen stage out."""
        row = self.list.currentRow()
        if 0 <= row < len(self.stages):
            del self.stages[row]
            self._list_stages(min(row, len(self.stages) - 1))
            self.check_soon()

    def move_stage(self, by: int) -> None:
        """Move the chosen stage in the order."""
        row = self.list.currentRow()
        if 0 <= row < len(self.stages) and 0 <= row + by < len(self.stages):
            self.stages.insert(row + by, self.stages.pop(row))
            self._list_stages(row + by)
            self.check_soon()

    def _on_fields(self) -> None:
        """In a plan, what is changed in the fields changes the chosen stage."""
        row = self.list.currentRow()
        if self.whole and 0 <= row < len(self.stages):
            try:
                stages = [*self.stages[:row], self.fields.stage(), *self.stages[row + 1 :]]
                PlanConfig.parse({"stages": [one.model_dump() for one in stages]})
            except Med3dError as error:
                self._show_checks([Check("error", str(error))])
                return
            self.stages = stages
            self.list.item(row).setText(_line(row, stages[row]))
        self.check_soon()

    def _choose(self, row: int) -> None:
        if 0 <= row < len(self.stages):
            self.fields.show_stage(self.stages[row])
        self._tell_chosen()

    def _tell_chosen(self) -> None:
        row, whole = self.list.currentRow(), self.whole
        self.about.setVisible(whole)
        self.about.setText(f"Stage {row + 1}; changes are kept." if row >= 0 else "A further stage, not added yet:")
        self.add_button.setEnabled(row < 0)
        self.new_button.setEnabled(row >= 0)

    def _list_stages(self, chosen: int) -> None:
        self.list.blockSignals(True)
        self.list.clear()
        self.list.addItems([_line(row, stage) for row, stage in enumerate(self.stages)])
        self.list.blockSignals(False)
        self.list.setCurrentRow(chosen)
        self._choose(chosen)

    def _show_mode(self) -> None:
        for widget in (self.list, self.stage_buttons, self.load_button):
            widget.setVisible(self.whole)
        self._tell_chosen()
        self.weights.name_nothing("random weights" if self.whole else "choose an encoder")
        self.check_soon()

    def _show_checks(self, found: list[Check]) -> None:
        self.checks.setText("\n".join(f"{SIGNS[check.kind]} {check.sentence}" for check in found))
        self.start_button.setEnabled(all(check.kind != "error" for check in found))

    def _started(self, run: Path) -> None:
        self.notice.say("ok", f"{run.name} was started; it is listed in Runs with its stages, and stopped there.")
        self.state.runs_changed.emit()
        self.state.tab_wanted.emit("Runs", run)

    def _idle(self) -> None:
        self.bar.hide()
        self.start_button.setEnabled(True)

    def _complain(self, sentence: str) -> None:
        self.notice.say("error", sentence)


def _launch(plan: PlanConfig, appends: bool, progress: Any) -> Path:
    """Folder of the plan, which is at work; a stage for a plan is appended to it."""
    from training_backend.jobs.launcher import RunDirectory, launch
    from training_backend.jobs.plan import add_stage
    from training_backend.jobs.registry import free_folder

    if appends:
        run = RunDirectory.open(Path(plan.weights))
        add_stage(run, plan.stages[0])
    else:
        modalities = plan.stages[0].modality if len(plan.stages) == 1 else f"{len(plan.stages)} modalities"
        folder = free_folder(plan.name or f"medcoss {modalities}")
        _prepare.call("plan", progress, folder=str(folder), plan=plan.model_dump(mode="json"))
        run = RunDirectory.open(folder)
    launch(run)
    return run.path


def _line(row: int, stage: StageConfig) -> str:
    length = (
        f"{stage.steps} steps"
        if stage.steps
        else f"{stage.epochs:g} passes"
        if stage.epochs
        else "passes of the preset"
    )
    return f"{row + 1}. {stage.modality} · {stage.dataset.name} · {length}"


def _rows() -> QFormLayout:
    rows = QFormLayout()
    rows.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
    rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return rows
