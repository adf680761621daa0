"""The report of a case: as it is written, or as the sentences that training makes of it."""

from __future__ import annotations

from qtpy.QtWidgets import QPlainTextEdit, QVBoxLayout, QWidget

from napari_med3dssl._widgets import combo, wrapping
from training_backend.data.reports import sections
from training_backend.data.text import Level, sentences

WAYS: dict[str, Level | None] = {"As written": None, "Sentences": "sentence", "Clauses": "clause"}
"""How a report is shown; clauses end at commas, semicolons and colons too."""
PARTS = {"findings": "Findings", "impression": "Impression"}


class ReportBox(QWidget):
    """A report with the choice of how it is split; the text is shown and goes nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self._report = ""
        self.way = combo("How the report is shown")
        self.way.addItems(list(WAYS))
        self.way.currentIndexChanged.connect(self._tell)
        self.text = QPlainTextEdit()
        self.text.setReadOnly(True)
        self.text.setAccessibleName("Report of the case that was opened")
        self.text.setMaximumHeight(140)
        self.told = wrapping("")
        self.told.setAccessibleName("What the report is made of")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.way, self.text, self.told):
            column.addWidget(widget)

    def show_report(self, report: str) -> None:
        """Show `report`, or nothing where it is empty."""
        self._report = report
        self._tell()
        self.setVisible(bool(report))

    def toPlainText(self) -> str:  # noqa: N802
        """The text as it is shown."""
        return self.text.toPlainText()

    def _tell(self) -> None:
        level = WAYS[self.way.currentText()]
        self.text.setPlainText(self._report if level is None else numbered(self._report, level))
        self.told.setText(summary(self._report, level or "sentence"))


def numbered(report: str, level: Level) -> str:
    """Sentences of a report, one a line and numbered, below the part that they are of where it tells its parts."""
    parts = sections(report)
    if not parts:
        return "\n".join(f"{number}  {one}" for number, one in enumerate(sentences(report, level), 1))
    lines, number = [], 0
    for name, text in parts.items():
        lines.append(f"{PARTS[name]}:")
        for one in sentences(text, level):
            number += 1
            lines.append(f"{number}  {one}")
    return "\n".join(lines)


def summary(report: str, level: Level) -> str:
    """How many sentences (or clauses) a report has, and which parts it tells; a warning where it has none."""
    number = len(sentences(report, level))
    if not number:
        return "This report has no sentence, so it cannot be learnt from."
    what = {"sentence": "sentence", "clause": "clause"}[level] + ("" if number == 1 else "s")
    parts = [PARTS[name].lower() for name in sections(report)]
    return f"{number} {what}; " + (f"it tells {' and '.join(parts)} apart." if len(parts) > 1 else "one part.")
