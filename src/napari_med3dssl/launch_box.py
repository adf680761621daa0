"""The lower part of Pre-train and Fine-tune: name, estimate, what would hinder the run, and its start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QFormLayout, QLineEdit, QProgressBar, QVBoxLayout, QWidget

from napari_med3dssl import _work
from napari_med3dssl._state import State
from napari_med3dssl._widgets import SIGNS, Notice, button, button_row, copy_text, wrapping
from napari_med3dssl.commands import training_command
from napari_med3dssl.preflight import Check, checks
from training_backend.config import RunConfig
from training_backend.errors import Med3dError

SETTLE_MS = 400
"""Milliseconds after the last change of a form until it is checked."""


class LaunchBox(QWidget):
    """Starts what `config` describes.

    Args:
        state: what the panels of the viewer share.
        config: the configuration as entered; raises a `Med3dError` for mistakes.
    """

    def __init__(self, state: State, config: Callable[[], RunConfig]) -> None:
        super().__init__()
        self.state = state
        self._config = config
        self._job: _work.Job | None = None
        self.name = QLineEdit()
        self.name.setPlaceholderText("named after method and time")
        self.name.setAccessibleName("Name of the run")
        self.name.setMinimumWidth(40)
        form = QFormLayout()
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.addRow("Run name", self.name)
        self.notice = Notice()
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Progress of the model process")
        self.cancel = button("Cancel", self._cancel)
        self.estimate_button = button("Estimate", self.estimate, "Time and memory from a few real training steps.")
        self.start_button = button("Start", lambda: self.start(queue=False), "Train in the background.")
        self.queue_button = button("Queue", lambda: self.start(queue=True), "Train when the device is free.")
        self.save_button = button("Save YAML…", self.save_yaml, "Keep these settings as a file.")
        self.copy_button = button("Copy command", self.copy_command, "The same run from a terminal.")
        self.list = wrapping("")
        self.list.setAccessibleName("What was checked before the start")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(form)
        buttons = (self.start_button, self.queue_button, self.estimate_button, self.save_button, self.copy_button)
        column.addWidget(button_row(*buttons))
        for widget in (self.notice, self.bar, self.cancel, self.list):
            column.addWidget(widget)
        self.bar.hide()
        self.cancel.hide()
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self.check)

    def check_soon(self) -> None:
        """Check again once the form has been left alone for a moment."""
        self._settle.start()

    def check(self) -> None:
        """Check the run as described now, in a thread."""
        from training_backend.jobs.registry import runs_root

        try:
            config = self._config()
        except Med3dError as error:
            self._show([Check("error", str(error))])
            return
        _work.start(self, checks, config, runs_root(), done=self._show, failed=self._complain)

    def start(self, *, queue: bool) -> None:
        """Make the run directory and start it, or let it wait for its device."""
        try:
            config = self._config()
        except Med3dError as error:
            self._complain(str(error))
            return
        self.start_button.setEnabled(False)
        _work.start(
            self,
            launched,
            config,
            self.name.text().strip(),
            queue,
            done=self._started,
            failed=self._complain,
            ended=lambda: self.start_button.setEnabled(True),
        )

    def estimate(self) -> None:
        """Have a few steps tried in the model process."""
        try:
            config = self._config()
        except Med3dError as error:
            self._complain(str(error))
            return
        self.ask("estimate", lambda values: self.notice.say("info", values["sentence"]), "Trying a few steps…", config)

    def ask(
        self, op: str, then: Callable[[dict[str, Any]], object], doing: str, config: RunConfig, **params: Any
    ) -> None:
        """Send `config` with a request to the model process and hand its values to `then`."""
        if self._job is not None and self._job.running:
            self.notice.say("info", "The model process is at work; wait for it, or cancel.")
            return
        client, plain = self.state.client, config.model_dump(mode="json")
        self.notice.say("busy", doing)
        self.bar.setRange(0, 0)
        for widget in (self.bar, self.cancel):
            widget.show()
        self._job = _work.start(
            self,
            lambda progress: client.request(op, config=plain, progress=progress, **params),
            done=lambda values: self._answered(then, values),
            failed=self._complain,
            cancelled=lambda: self.notice.say("info", "Cancelled."),
            progressed=self._progress,
            ended=self._idle,
        )

    def save_yaml(self) -> None:
        """Write the settings to a file of the user's choice."""
        try:
            text = self._config().to_yaml()
        except Med3dError as error:
            self._complain(str(error))
            return
        path, _ = QFileDialog.getSaveFileName(self, "Save settings", str(Path.home() / "config.yaml"), "YAML (*.yaml)")
        if path:
            Path(path).write_text(text, encoding="utf-8")
            self.notice.say("ok", f"Saved {path}.")

    def copy_command(self) -> None:
        """Put the terminal command on the clipboard."""
        try:
            config = self._config()
        except Med3dError as error:
            self._complain(str(error))
            return
        copy_text(training_command(config, self.name.text().strip() or f"{config.method.name}-run"))
        self.notice.say("ok", "The command is on the clipboard.")

    def _show(self, found: list[Check]) -> None:
        self.list.setText("\n".join(f"{SIGNS[check.kind]} {check.sentence}" for check in found))
        ready = all(check.kind != "error" for check in found)
        for widget in (self.start_button, self.queue_button, self.estimate_button):
            widget.setEnabled(ready)

    def _started(self, run: Path) -> None:
        self.notice.say("ok", f"{run.name} was started; it is listed in Runs and goes on when napari is closed.")
        self.state.runs_changed.emit()
        self.state.tab_wanted.emit("Runs", run)

    def _progress(self, share: float, text: str) -> None:
        if share > 0:
            self.bar.setRange(0, 100)
            self.bar.setValue(round(100 * share))
        if text:
            self.notice.say("busy", f"{text}…")

    def _answered(self, then: Callable[[dict[str, Any]], object], values: dict[str, Any]) -> None:
        self.notice.clear()
        then(values)

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


def launched(config: RunConfig, name: str, queue: bool) -> Path:
    """Make a run directory and start the run, or let it wait for its device."""
    from training_backend.jobs.launcher import launch
    from training_backend.jobs.queue import enqueue
    from training_backend.jobs.registry import new_run

    run = new_run(config, name)
    (enqueue if queue else launch)(run)
    return run.path
