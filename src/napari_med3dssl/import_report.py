"""What became of every tensor when weights are taken over, for the user to judge before a run starts."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QDialog, QDialogButtonBox, QPlainTextEdit, QVBoxLayout, QWidget

from napari_med3dssl._widgets import Notice, wrapping

SURE = 0.95
"""Share of the encoder above which no doubt is raised."""


class ImportReportDialog(QDialog):
    """Counts, and the names behind them; accepting uses the weights.

    Args:
        owner: widget it belongs to.
        values: fields of the backend's import report, with `text` and `share`.
    """

    def __init__(self, owner: QWidget, values: dict[str, Any]) -> None:
        super().__init__(owner)
        self.setWindowTitle("Import report")
        share = float(values["share"])
        self.notice = Notice()
        kind = "ok" if share >= SURE else "warning"
        self.notice.say(
            kind, f"{values['encoder_matched']} of {values['encoder']} encoder tensors match ({share:.1%})."
        )
        counts = [
            f"{fate}: {len(values[fate])}" for fate in ("matched", "missing", "unexpected", "resized", "mismatched")
        ]
        details = QPlainTextEdit(str(values["text"]))
        details.setReadOnly(True)
        details.setAccessibleName("Names of the tensors")
        details.setMinimumHeight(160)
        buttons = QDialogButtonBox()
        buttons.addButton("Use these weights", QDialogButtonBox.ButtonRole.AcceptRole)
        buttons.addButton("Do not use them", QDialogButtonBox.ButtonRole.RejectRole)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        column = QVBoxLayout(self)
        column.addWidget(self.notice)
        column.addWidget(wrapping(", ".join(counts)))
        column.addWidget(details)
        column.addWidget(buttons)
        self.resize(420, 320)
