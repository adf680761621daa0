"""Words that are looked for in a scan: their heat map, those of earlier words below it, and a history to go back to."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QComboBox

from napari_med3dssl._widgets import button, button_row, combo, wrapping
from napari_med3dssl.explore_pictures import PictureLayers
from napari_med3dssl.explore_views import ViewSection

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

COLOURS = {
    "orange": "#e69f00",
    "blue": "#56b4e9",
    "green": "#009e73",
    "pink": "#cc79a7",
    "yellow": "#f0e442",
    "red": "#d55e00",
}
"""Of stacked maps, in turn; they are clear where a map is low, so that what lies below is seen."""
PLAIN = "inferno"
REMEMBERED = 30
"""Texts in the history; it ends with the window."""
LINKED = ("gamma", "opacity")
"""What stacked maps share. Contrast is each one's own: texts differ in how open the whole scan is to them."""


class QuerySection(ViewSection):
    """A line of words and a heat map; kept maps lie over each other as linked layers of different colours.

    Layers are numbered and do not tell the words, which may be a patient's; the list in the section does.
    """

    def __init__(self, panel: ExplorePanel, view: Any, maps: PictureLayers) -> None:
        super().__init__(panel, view, maps)
        self.words: QComboBox = combo("Words to look for")
        self.words.setEditable(True)
        self.words.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        line = self.words.lineEdit()
        assert line is not None  # of an editable box
        line.setPlaceholderText("nodule in the left lung")
        line.returnPressed.connect(self.show_pictures)
        self.words.textActivated.connect(lambda _: self.show_pictures())
        self.stack = QCheckBox("Keep earlier maps")
        self.stack.setToolTip("Each text gets a layer and a colour of its own; opacity and gamma are shared.")
        self.clear_button = button("Clear", self.clear, "Remove the maps.")
        self.list = wrapping("")
        self.list.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.form.insertRow(0, "Look for", self.words)
        self.form.insertRow(1, self.stack)
        self.column.addWidget(self.list)
        self.column.addWidget(button_row(self.clear_button))
        self.shown: dict[int, str] = {}
        """Texts of the maps by their number."""
        self._asked = ""
        self._refresh()

    @property
    def history(self) -> list[str]:
        """Texts looked for, the last one first."""
        return [self.words.itemText(index) for index in range(self.words.count())]

    def look_for(self, text: str) -> None:
        """Look for a text."""
        self.words.setEditText(text)
        self.show_pictures()

    def clear(self) -> None:
        """Remove the maps from the view."""
        for number in self.shown:
            layer = self._maps[f"query {number}"]
            if layer is not None:
                self.panel.viewer.layers.remove(layer)
        self.shown = {}
        self._refresh()

    def forget(self) -> None:
        """Begin anew for another scan or model; maps that were drawn stay in the view, with their numbers."""
        super().forget()
        self.shown = {}
        self._refresh()

    def _beside(self) -> dict[str, Any] | None:
        beside, text = super()._beside(), " ".join(self.words.currentText().split())
        if beside is None:
            return None
        if not text:
            self.panel.notice.say("info", "Type what to look for, such as: nodule in the left lung.")
            return None
        self._asked = text
        return {**beside, "options": {"text": text}}

    def _show(self, values: dict[str, Any]) -> None:
        text = self._asked
        self._remember(text)
        number = self._number_of(text)
        if not self.stack.isChecked():
            for old in [one for one in self.shown if one != number]:
                layer = self._maps[f"query {old}"]
                if layer is not None:
                    self.panel.viewer.layers.remove(layer)
                del self.shown[old]
        self.shown[number] = text
        self._follow = True
        pictures = [{**one, "name": f"query {number}"} for one in values["pictures"]]
        super()._show({**values, "pictures": pictures})
        self._colour()
        self._refresh()

    def _number_of(self, text: str) -> int:
        """Number of the map of a text: that which it has, the only one, or the next one."""
        for number, known in self.shown.items():
            if known == text and self._maps[f"query {number}"] is not None:
                return number
        return max(self.shown, default=0) + 1 if self.stack.isChecked() else 1

    def _colour(self) -> None:
        """One map looks as heat maps do; several have a colour each."""
        layers = {n: self._maps[f"query {n}"] for n in self.shown}
        shown = {number: layer for number, layer in layers.items() if layer is not None}
        viewer = self.panel.viewer
        if shown:
            viewer.layers.unlink_layers(list(shown.values()))
        several = len(shown) > 1
        for layer, (name, colour) in zip(shown.values(), cycle(COLOURS.items()), strict=False):
            layer.colormap = _clear_to(name, colour) if several else PLAIN
            layer.opacity = 0.7 if several else 0.5
        if several:
            viewer.layers.link_layers(list(shown.values()), LINKED)

    def _remember(self, text: str) -> None:
        index = self.words.findText(text, Qt.MatchFlag.MatchExactly | Qt.MatchFlag.MatchCaseSensitive)
        if index >= 0:
            self.words.removeItem(index)
        self.words.insertItem(0, text)
        while self.words.count() > REMEMBERED:
            self.words.removeItem(self.words.count() - 1)
        self.words.setCurrentIndex(0)

    def _refresh(self) -> None:
        lines = []
        for index, (number, text) in enumerate(self.shown.items()):
            colour = f", {tuple(COLOURS)[index % len(COLOURS)]}" if len(self.shown) > 1 else ""
            lines.append(f"query {number}{colour}: {text}")
        self.list.setText("\n".join(lines))
        self.list.setVisible(bool(lines))
        self.clear_button.setVisible(bool(lines))


def _clear_to(name: str, colour: str) -> Any:
    """Colormap from nothing at all to a colour."""
    from napari.utils.colormaps import Colormap
    from napari.utils.colormaps.standardize_color import transform_color

    full = transform_color(colour)[0]
    return Colormap([[*full[:3], 0.0], full], name=f"clear to {name}")
