"""Small widgets that several panels use: pages, sections, notices, path fields, and buttons that wrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qtpy.QtCore import QSize, Qt, QTimer, Signal
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QGuiApplication
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import QFlowLayout

EDGES = {"info": "#56b4e9", "ok": "#009e73", "warning": "#e69f00", "error": "#d55e00", "busy": "#808080"}
"""Colours of the edge of a notice, an addition to its sign."""
SIGNS = {"info": "•", "ok": "✓", "warning": "!", "error": "✗", "busy": "…"}
"""Signs that stand before a sentence, so that its kind never depends on colour."""
SETTLE_MS = 60
"""What a layout takes at most to make room for a text."""


class Page(QScrollArea):
    """Content of one tab: scrolls vertically, never sideways, and shrinks to any height."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMinimumHeight(120)
        inner = QWidget()
        self.column = QVBoxLayout(inner)
        self.column.setContentsMargins(6, 6, 6, 6)
        self.column.setSpacing(6)
        self.setWidget(inner)


class Section(QWidget):
    """A heading that folds what is below it; folded content is out of the tab order too."""

    def __init__(self, title: str, *, folded: bool = True, tip: str = "") -> None:
        super().__init__()
        self._title = title
        self.content = QWidget()
        self._button = QPushButton()
        self._button.setFlat(True)
        self._button.setStyleSheet("text-align: left; font-weight: bold; padding: 3px;")
        self._button.setToolTip(tooltip(tip))
        self._button.clicked.connect(lambda: self.fold(not self.content.isHidden()))
        self.column = QVBoxLayout(self.content)
        self.column.setContentsMargins(10, 0, 0, 4)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self._button)
        layout.addWidget(self.content)
        self.fold(folded)

    def fold(self, folded: bool) -> None:
        """Hide or show the content."""
        self.content.setVisible(not folded)
        self._button.setText(f"{'▸' if folded else '▾'} {self._title}")
        self._button.setAccessibleName(f"{self._title}, {'folded' if folded else 'unfolded'}")


class Notice(QFrame):
    """One sentence with a sign, and buttons that do something about it; hidden while empty."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("notice")
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self._text = wrapping("")
        self._text.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self._buttons = QWidget()
        self._flow = QFlowLayout(self._buttons)
        self._flow.setContentsMargins(0, 0, 0, 0)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 4, 6, 4)
        layout.addWidget(self._text)
        layout.addWidget(self._buttons)
        self.hide()

    @property
    def text(self) -> str:
        """The sentence shown, without its sign."""
        return self._text.text().partition(" ")[2] if not self.isHidden() else ""

    def say(self, kind: str, sentence: str, actions: Sequence[tuple[str, Callable[[], object]]] = ()) -> None:
        """Show a sentence of one of the kinds of `SIGNS`, with (label, function) buttons."""
        self._text.setText(f"{SIGNS[kind]} {sentence}")
        self.setStyleSheet(f"#notice {{ border: 1px solid #808080; border-left: 3px solid {EDGES[kind]}; }}")
        self.setAccessibleName(f"{kind}: {sentence}")
        while (item := self._flow.takeAt(0)) is not None:
            item.widget().deleteLater()
        for label, function in actions:
            self._flow.addWidget(button(label, function))
        self._buttons.setVisible(bool(actions))
        self.show()

    def clear(self) -> None:
        """Hide."""
        self._text.setText("")
        self.hide()


class PathField(QWidget):
    """A path to type, drop or browse for."""

    changed = Signal(str)

    def __init__(self, what: str, *, folder: bool = True, filters: str = "") -> None:
        super().__init__()
        self._what, self._folder, self._filters = what, folder, filters
        self.edit = QLineEdit()
        self.edit.setMinimumWidth(40)
        self.edit.setAccessibleName(what)
        self.edit.editingFinished.connect(lambda: self.changed.emit(self.edit.text()))
        browse = QPushButton("Browse…")
        browse.setAccessibleName(f"Browse for {what}")
        browse.clicked.connect(self.browse)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.edit, 1)
        layout.addWidget(browse)
        self.setFocusProxy(self.edit)
        self.setAcceptDrops(True)

    @property
    def path(self) -> Path | None:
        """The path, or None while empty."""
        text = self.edit.text().strip()
        return Path(text).expanduser() if text else None

    def show_path(self, path: Path | str | None) -> None:
        """Show a path without announcing it."""
        self.edit.setText("" if path is None else str(path))
        self.edit.setToolTip(self.edit.text())

    def browse(self) -> None:
        """Ask for a path with the system's dialog."""
        start = str(self.path or Path.home())
        if self._folder:
            chosen = QFileDialog.getExistingDirectory(self, self._what, start)
        else:
            chosen, _ = QFileDialog.getOpenFileName(self, self._what, start, self._filters)
        if chosen:
            self.show_path(chosen)
            self.changed.emit(chosen)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        """Accept local files."""
        if dropped_paths(event):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        """Take the first path dropped."""
        paths = dropped_paths(event)
        if paths:
            self.show_path(paths[0])
            self.changed.emit(str(paths[0]))
            event.acceptProposedAction()


def dropped_paths(event: QDropEvent) -> list[Path]:
    """Local paths that a drag holds."""
    data = event.mimeData()
    return [Path(url.toLocalFile()) for url in data.urls() if url.isLocalFile()] if data is not None else []


def button(label: str, function: Callable[[], object], tip: str = "") -> QPushButton:
    """A push button; `function` gets no arguments."""
    made = QPushButton(label)
    made.clicked.connect(lambda: function())
    made.setToolTip(tooltip(tip))
    made.setAccessibleDescription(tip)
    return made


def button_row(*buttons: QWidget) -> QWidget:
    """Buttons beside each other that wrap to more rows where the width does not suffice."""
    row = QWidget()
    QFlowLayout(row).setContentsMargins(0, 0, 0, 0)
    fill_row(row, buttons)
    policy = QSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    policy.setHeightForWidth(True)
    row.setSizePolicy(policy)
    return row


def fill_row(row: QWidget, widgets: Sequence[QWidget]) -> None:
    """Let a row made by `button_row` show these widgets only; hidden ones would leave gaps in a flow."""
    flow = row.layout()
    assert flow is not None
    kept = []
    while (item := flow.takeAt(0)) is not None:
        kept.append(item.widget())
    for widget in kept:
        if widget is not None and widget not in widgets:
            widget.hide()
    for widget in widgets:
        flow.addWidget(widget)
        widget.ensurePolished()  # or its size is not yet that of the theme
        widget.setVisible(True)
    flow.invalidate()
    row.updateGeometry()


def combo(name: str) -> QComboBox:
    """A drop-down list that may become narrower than its longest entry."""
    made = QComboBox()
    made.setAccessibleName(name)
    made.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    made.setMinimumContentsLength(6)
    made.setMinimumWidth(40)
    return made


class WrappingLabel(QLabel):
    """Plain text that wraps at any width, and asks for no more height than it has at that width."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.setWordWrap(True)
        self.setTextFormat(Qt.TextFormat.PlainText)
        policy = QSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self._settling = QTimer(self)
        self._settling.setSingleShot(True)
        self._settling.setInterval(SETTLE_MS)
        self._settling.timeout.connect(self._come_in_sight)

    def tell(self, text: str) -> None:
        """Show the answer to something the user did, and scroll the page to it where it is out of sight."""
        self.setText(text)
        self._settling.start()

    def _come_in_sight(self) -> None:
        page = self.parentWidget()
        while page is not None and not isinstance(page, Page):
            page = page.parentWidget()
        if page is not None and self.isVisible() and self.text():
            page.ensureWidgetVisible(self, 0, 6)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """One line; the layout asks for the height at its width besides."""
        return QSize(10, self.fontMetrics().height())


def wrapping(text: str) -> WrappingLabel:
    """A label whose text wraps at any width."""
    return WrappingLabel(text)


def tooltip(text: str) -> str:
    """`text` as rich text, so that Qt wraps long tooltips."""
    import html

    return f"<qt>{html.escape(' '.join(text.split()))}</qt>" if text else ""


def copy_text(text: str) -> None:
    """Put text on the clipboard."""
    clipboard = QGuiApplication.clipboard()
    if clipboard is not None:
        clipboard.setText(text)
