"""The Doctor: what of this machine would hinder training, with the command that mends it, ready to copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QDialog, QLineEdit, QVBoxLayout, QWidget

from napari_med3dssl import _work
from napari_med3dssl._widgets import Notice, Page, button, button_row, copy_text

if TYPE_CHECKING:
    from training_backend.jobs.doctor import Finding

KINDS = {"ok": "ok", "warn": "warning", "bad": "error"}


class DoctorDialog(QDialog):
    """Findings, the worst first; looking takes a few seconds and happens off the Qt thread."""

    def __init__(self, owner: QWidget) -> None:
        super().__init__(owner)
        self.setWindowTitle("Doctor")
        self.page = Page()
        self.notice = Notice()
        self.again = button("Look again", self.look)
        column = QVBoxLayout(self)
        column.addWidget(self.notice)
        column.addWidget(self.page, 1)
        column.addWidget(button_row(self.again, button("Copy report", self._copy), button("Close", self.close)))
        self.findings: list[Finding] = []
        self.resize(420, 480)
        self.look()

    def look(self) -> None:
        """Examine the machine in a thread."""
        from training_backend.jobs.doctor import examine

        self.again.setEnabled(False)
        self.notice.say("busy", "Looking at packages, PyTorch, driver, memory and disk…")
        _work.start(self, examine, done=self._show, failed=self._complain, ended=lambda: self.again.setEnabled(True))

    def _show(self, findings: list[Finding]) -> None:
        self.findings = findings
        while (item := self.page.column.takeAt(0)) is not None:
            if item.widget() is not None:
                item.widget().deleteLater()
        bad = sum(finding.state == "bad" for finding in findings)
        plural = "s" if bad > 1 else ""
        self.notice.say(
            "error" if bad else "ok", f"{bad} thing{plural} to mend." if bad else "Nothing hinders training here."
        )
        for finding in findings:
            self.page.column.addWidget(_line(finding))
        self.page.column.addStretch(1)

    def _complain(self, sentence: str) -> None:
        self.notice.say("error", sentence)

    def _copy(self) -> None:
        lines = [f"[{finding.state}] {finding.name}: {finding.sentence} {finding.command}" for finding in self.findings]
        copy_text("\n".join(line.rstrip() for line in lines))


def _line(finding: Finding) -> QWidget:
    """One finding, with its command in a field to copy from."""
    box = QWidget()
    column = QVBoxLayout(box)
    column.setContentsMargins(0, 0, 0, 0)
    notice = Notice()
    actions = [("Copy command", lambda: copy_text(finding.command))] if finding.command else []
    notice.say(KINDS[finding.state], f"{finding.name}: {finding.sentence}", actions)
    column.addWidget(notice)
    if finding.command:
        command = QLineEdit(finding.command)
        command.setReadOnly(True)
        command.setCursorPosition(0)
        command.setAccessibleName(f"Command that mends {finding.name}")
        column.addWidget(command)
    return box
