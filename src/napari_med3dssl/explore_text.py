"""Texts in the Explore panel: the report of a scan, and sentences whose words can be clicked; kept in memory only."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from qtpy.QtCore import QSize, Qt, QTimer, QUrl, Signal
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QPlainTextEdit, QSizePolicy, QTextBrowser, QVBoxLayout, QWidget

from napari_med3dssl import _work
from napari_med3dssl._widgets import button, button_row, wrapping
from napari_med3dssl.explore_views import ViewSection

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

STYLES = {
    "plain": ("", ""),
    "right": ("color: #009e73; font-weight: bold", "✓"),
    "wrong": ("color: #d55e00; text-decoration: underline", "✗"),
    "added": ("color: #56b4e9; text-decoration: underline", ""),
    "missing": ("color: #e69f00; text-decoration: line-through", ""),
}
"""How each kind of piece looks, and the sign behind it; none is told by colour alone."""
TALLEST = 260
"""Pixels of a list of sentences; longer ones scroll."""
SETTLE_MS = 400
"""Milliseconds after the last letter until a text counts as entered."""


class Passages(QTextBrowser):
    """Sentences below each other; each, and each of its words, is a link."""

    picked = Signal(int, int)
    """Numbers of the sentence and of the word, from 1; word 0 is the whole sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.passages: list[Mapping[str, Any]] = []
        self.setOpenLinks(False)
        self.setAccessibleName("Sentences")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.anchorClicked.connect(self._on_link)
        self.hide()

    def show_passages(self, passages: Sequence[Mapping[str, Any]], sentence: int = 0, word: int = 0) -> None:
        """Show texts, one of them as chosen; none hides the list."""
        self.passages = list(passages)
        place = self.verticalScrollBar().value()
        colour = self.palette().text().color().name()
        lines = [_line(number, one, sentence, word, colour) for number, one in enumerate(passages, 1)]
        self.setHtml("".join(lines))
        self.verticalScrollBar().setValue(place)
        self.setVisible(bool(passages))
        self.updateGeometry()

    def told(self, sentence: int, word: int) -> str:
        """What is known of a word."""
        if not 0 < sentence <= len(self.passages):
            return ""
        pieces = self.passages[sentence - 1]["pieces"]
        return str(pieces[word - 1]["told"]) if 0 < word <= len(pieces) else ""

    def sizeHint(self) -> QSize:  # noqa: N802
        """As tall as the text, up to a limit."""
        self.document().setTextWidth(max(120, self.viewport().width()))
        return QSize(200, min(TALLEST, int(self.document().size().height()) + 14))

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Any width."""
        return QSize(80, self.sizeHint().height())

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        """Lines break elsewhere, so another height is needed."""
        super().resizeEvent(event)
        self.updateGeometry()

    def _on_link(self, link: QUrl) -> None:
        sentence, _, word = link.toString().partition("-")
        if sentence.isdigit() and word.isdigit():
            self.picked.emit(int(sentence), int(word))


def _line(number: int, passage: Mapping[str, Any], sentence: int, word: int, colour: str) -> str:
    """A passage as a paragraph of links."""
    value = passage.get("value")
    title = passage.get("title") or str(number)
    head = title if value is None else f"{title} ({value:.2f})"
    chosen = number == sentence
    mark = "▶ " if chosen else ""
    parts = [f'<a href="{number}-0" style="color: {colour}"><b>{mark}{html.escape(head)}</b></a> ']
    for index, piece in enumerate(passage["pieces"], 1):
        style, sign = STYLES[piece["kind"]]
        style = f"text-decoration: none; color: {colour}; {style}"
        if chosen and index == word:
            style += "; background-color: #e69f00; color: black"
        text, blank = piece["text"].rstrip(), " " if piece["text"] != piece["text"].rstrip() else ""
        tip = f' title="{html.escape(piece["told"])}"' if piece["told"] else ""
        parts.append(f'<a href="{number}-{index}" style="{style}"{tip}>{html.escape(text)}{sign}</a>{blank}')
    weight = "font-weight: bold" if chosen and not word else ""
    return f'<p style="margin: 2px 0; {weight}">{"".join(parts)}</p>'


class ReportBox(QWidget):
    """The report of the present scan: pasted, or that of the case of the dataset in use which has the scan's name.

    Each scan keeps its own text as long as it is open, so that no scan is read with the report of another patient.

    Args:
        panel: the Explore panel.
    """

    changed = Signal()

    def __init__(self, panel: ExplorePanel) -> None:
        super().__init__()
        self._panel = panel
        self._texts: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self.changed)
        self.edit = QPlainTextEdit()
        self.edit.setAccessibleName("Report of the scan")
        self.edit.setPlaceholderText("Report of the scan: paste it here, or open a case of a dataset with reports.")
        self.edit.setTabChangesFocus(True)
        self.edit.setFixedHeight(88)
        self.edit.textChanged.connect(self._on_text)
        self.case_button = button(
            "Report of the case",
            self.look_up,
            "Take the report of the case with the scan's name in the dataset in use.",
        )
        self.about = wrapping("")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(wrapping("Report of the scan (never saved)"))
        column.addWidget(self.edit)
        column.addWidget(button_row(self.case_button))
        column.addWidget(self.about)
        self.about.hide()

    @property
    def text(self) -> str:
        """What was entered."""
        return str(self.edit.toPlainText())

    def show_scan(self, scan: Any | None) -> None:
        """Show the text of a scan; where it has none yet, that of its case, if there is one."""
        self.edit.blockSignals(True)
        self.edit.setPlainText(self._texts.get(scan, "") if scan is not None else "")
        self.edit.blockSignals(False)
        self._say("")
        if scan is not None and not self.text and self._panel.state.dataset is not None:
            self.look_up(asked=False)

    def look_up(self, asked: bool = True) -> None:
        """Take the report of the case that the scan is."""
        scan, folder = self._panel.scan, self._panel.state.dataset
        if scan is None:
            return
        if folder is None:
            self._say("No dataset is in use; open one in the Data tab, or paste the report.")
            return
        name = case_name(scan)

        def take(report: str | None) -> None:
            if scan is not self._panel.scan:
                return
            if report:
                self._texts[scan] = report
                self.edit.setPlainText(report)
                self._say(f"Report of the case {name}.")
            elif asked:
                lacks = "has no report" if report is not None else "is not in the dataset in use"
                self._say(f"{name} {lacks}; paste it instead.")

        _work.start(self, report_of_case, folder, name, done=take, failed=self._say)

    def _on_text(self) -> None:
        scan = self._panel.scan
        if scan is not None:
            self._texts[scan] = self.text
        self._settle.start()

    def _say(self, sentence: str) -> None:
        self.about.setText(sentence)
        self.about.setVisible(bool(sentence))


class TextSection(ViewSection):
    """A view that reads the report of the scan; sentences and words are clicked below it."""

    def __init__(self, panel: ExplorePanel, view: Any, maps: Any) -> None:
        super().__init__(panel, view, maps)
        self.passages = Passages()
        self.passages.picked.connect(self._on_sentence)
        self.told = wrapping("")
        self.told.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.column.addWidget(self.passages)
        self.column.addWidget(self.told)
        self._sentence, self._word = 1, 0
        self._read = ""
        panel.report.changed.connect(self._on_report)

    def forget(self) -> None:
        """Show nothing of the last scan's report."""
        super().forget()
        self._sentence, self._word = 1, 0
        self.passages.show_passages([])
        self.told.setText("")
        self.text.setText("")

    def pick(self, sentence: int, word: int = 0) -> None:
        """Draw a sentence, or a word of it."""
        self._sentence, self._word, self._follow = sentence, word, True
        self.passages.show_passages(self.passages.passages, sentence, word)
        self.draw()

    def _beside(self) -> dict[str, Any] | None:
        beside = super()._beside()
        text = self.panel.report.text
        if beside is None or not self._needs_text(text):
            return None
        self._read = text
        beside |= {"options": {"text": text}, "reads": "report"}
        if self._clickable:
            beside["options"] |= {"sentence": self._sentence, "word": self._word}
        return beside

    @property
    def _clickable(self) -> bool:
        """Whether a sentence can be chosen."""
        return "sentence" in self.view.options.model_fields

    def _needs_text(self, text: str) -> bool:
        if text.strip() or self.view.needs == "finetune":
            return True
        self.panel.notice.say("info", "Paste the report of the scan above, or open a case of a dataset with reports.")
        return False

    def _on_sentence(self, sentence: int, word: int) -> None:
        told = self.passages.told(sentence, word)
        if told:
            self.told.setText(f"Guessed: {told}.")
        if self._clickable:
            self.pick(sentence, word)

    def _on_report(self) -> None:
        """Sentences have other numbers now, so begin with the first; unless this very text was read already."""
        if self.panel.report.text == self._read:
            return
        self._sentence, self._word = 1, 0
        self.told.setText("")
        if self.passages.passages:
            self._on_options()

    def _tell(self, values: dict[str, Any]) -> None:
        chosen = (self._sentence, self._word) if self._clickable else (0, 0)
        self.passages.show_passages(values["passages"], *chosen)
        self.told.setText("")


def report_of_case(folder: Path, name: str) -> str | None:
    """Report of the case called `name` in a dataset; None where there is no such case."""
    from training_backend.data.dataset import Dataset

    record = Dataset.open(folder).records.get(name)
    return None if record is None else record.report


def case_name(layer: Any) -> str:
    """Id of the case that a layer was opened from, as the layers of a case are named."""
    return str(layer.name).partition(" · ")[0]
