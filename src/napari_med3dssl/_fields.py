"""One editor per kind of configuration field; all have `value`, `show_value` and the signal `changed`."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLineEdit, QWidget
from superqt import QLabeledDoubleSlider, QLabeledSlider

from napari_med3dssl._widgets import PathField, combo

AXES = {2: ("", ""), 3: ("z", "y", "x")}
"""Names of the parts of a tuple of numbers, by its length."""
Bounds = tuple[float | None, float | None]


class Editor(QWidget):
    """Base of all editors."""

    changed = Signal()

    def value(self) -> Any:
        """What was entered; not yet validated."""
        raise TypeError(f"{type(self).__name__} edits nothing")

    def show_value(self, value: Any) -> None:
        """Show a value without announcing a change."""
        raise TypeError(f"{type(self).__name__} edits nothing")

    def _fill(self, *widgets: QWidget) -> None:
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        for widget in widgets:
            layout.addWidget(widget, 1)
        self.setFocusProxy(widgets[0])


class Check(Editor):
    """On or off."""

    def __init__(self) -> None:
        super().__init__()
        self.box = QCheckBox()
        self.box.toggled.connect(lambda: self.changed.emit())
        self._fill(self.box)

    def value(self) -> bool:
        """Whether it is on."""
        return bool(self.box.isChecked())

    def show_value(self, value: Any) -> None:
        """Show on or off."""
        self.box.blockSignals(True)
        self.box.setChecked(bool(value))
        self.box.blockSignals(False)


class Choice(Editor):
    """One of a few values."""

    def __init__(self, options: tuple[Any, ...], name: str) -> None:
        super().__init__()
        self.box = combo(name)
        for option in options:
            self.box.addItem("none" if option is None else str(option), option)
        self.box.currentIndexChanged.connect(lambda: self.changed.emit())
        self._fill(self.box)

    def value(self) -> Any:
        """The chosen one."""
        return self.box.currentData()

    def show_value(self, value: Any) -> None:
        """Show a choice."""
        self.box.blockSignals(True)
        self.box.setCurrentIndex(max(0, self.box.findData(value)))
        self.box.blockSignals(False)


class Text(Editor):
    """A line whose text stands for a value; `read` and `write` translate."""

    def __init__(self, *, optional: bool = False) -> None:
        super().__init__()
        self.optional = optional
        self.edit = QLineEdit()
        self.edit.setMinimumWidth(30)
        if optional:
            self.edit.setPlaceholderText("automatic")
        self.edit.textEdited.connect(lambda: self.changed.emit())
        self._fill(self.edit)

    def value(self) -> Any:
        """The value that the text stands for, or the text itself where it stands for none."""
        text = self.edit.text().strip()
        return None if self.optional and not text else self.read(text)

    def show_value(self, value: Any) -> None:
        """Show a value."""
        self.edit.setText("" if value is None else self.write(value))
        self.edit.setCursorPosition(0)

    def read(self, text: str) -> Any:
        """Value of a text."""
        return text

    def write(self, value: Any) -> str:
        """Text of a value."""
        return str(value)


class Number(Text):
    """A whole or broken number; empty where the field may be."""

    def read(self, text: str) -> Any:
        """The number, or the text where it is none."""
        return _number(text)

    def write(self, value: Any) -> str:
        """Shortest text that reads back exactly."""
        return repr(value) if isinstance(value, float) else str(value)


class Listing(Text):
    """Values separated by commas."""

    def __init__(self, *, numbers: bool, optional: bool) -> None:
        super().__init__(optional=optional)
        self._numbers = numbers
        if not optional:
            self.edit.setPlaceholderText("separated by commas")

    def read(self, text: str) -> Any:
        """The values as a tuple."""
        pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
        return tuple(_number(piece) if self._numbers else piece for piece in pieces)

    def write(self, value: Any) -> str:
        """The values with commas between."""
        return ", ".join(repr(item) if isinstance(item, float) else str(item) for item in value)


class Yaml(Text):
    """Anything else, as one line of YAML."""

    def read(self, text: str) -> Any:
        """The value, or the text where it is no YAML."""
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text

    def write(self, value: Any) -> str:
        """One line of YAML."""
        return yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6).strip().removesuffix("...").strip()


class Numbers(Editor):
    """A fixed count of numbers beside each other, such as (z, y, x); all empty where the field may be."""

    def __init__(self, count: int, name: str, *, optional: bool = False) -> None:
        super().__init__()
        self.optional = optional
        self.parts = [Number(optional=optional) for _ in range(count)]
        for part, axis in zip(self.parts, AXES.get(count, ("",) * count), strict=True):
            part.edit.setPlaceholderText(axis)
            part.edit.setAccessibleName(f"{name} {axis}".strip())
            part.changed.connect(self.changed)
        self._fill(*self.parts)
        self.setFocusProxy(self.parts[0].edit)

    def value(self) -> Any:
        """The numbers as a tuple, or None when all are empty."""
        values = tuple(part.value() for part in self.parts)
        return None if self.optional and all(value in (None, "") for value in values) else values

    def show_value(self, value: Any) -> None:
        """Show numbers."""
        for part, number in zip(self.parts, value or (None,) * len(self.parts), strict=True):
            part.show_value(number)


class Slider(Editor):
    """A number between two bounds, to drag or to type.

    Args:
        low: least value.
        high: largest value.
        whole: whole numbers only.
    """

    def __init__(self, low: float, high: float, *, whole: bool) -> None:
        super().__init__()
        self.bar = (QLabeledSlider if whole else QLabeledDoubleSlider)(Qt.Orientation.Horizontal)
        if not whole:
            self.bar.setDecimals(3)
        self.bar.setRange(int(low) if whole else low, int(high) if whole else high)
        self.bar.setMinimumWidth(80)
        self.bar.valueChanged.connect(lambda _: self.changed.emit())
        self._whole = whole
        self._fill(self.bar)

    def value(self) -> float:
        """Where it stands."""
        return int(self.bar.value()) if self._whole else round(float(self.bar.value()), 6)

    def show_value(self, value: Any) -> None:
        """Move it."""
        self.bar.blockSignals(True)
        self.bar.setValue(value)
        self.bar.blockSignals(False)


class PathEditor(Editor):
    """A file or folder."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.field = PathField(name)
        self.field.edit.textEdited.connect(lambda: self.changed.emit())
        self.field.changed.connect(lambda _: self.changed.emit())
        self._fill(self.field)
        self.setFocusProxy(self.field.edit)

    def value(self) -> Path | None:
        """The path."""
        return self.field.path

    def show_value(self, value: Any) -> None:
        """Show a path."""
        self.field.show_path(value)


def editor_for(annotation: Any, name: str, widget: str = "", bounds: Bounds = (None, None)) -> Editor:
    """The editor of a field of this type.

    Args:
        annotation: type of the field.
        name: what a screen reader says.
        widget: "slider" for a number with both bounds; else the type decides.
        bounds: least and largest value, where there are any.
    """
    bare, optional = _without_none(annotation)
    origin, inner = get_origin(bare), get_args(bare)
    low, high = bounds
    if widget == "slider" and bare in (int, float) and not optional and low is not None and high is not None:
        return Slider(low, high, whole=bare is int)
    if bare is bool:
        return Check()
    if origin is Literal:
        return Choice((None, *inner) if optional else inner, name)
    if bare in (int, float):
        return Number(optional=optional)
    if bare is str:
        return Text(optional=optional)
    if isinstance(bare, type) and issubclass(bare, Path):
        return PathEditor(name)
    if origin is tuple and Ellipsis in inner and inner[0] in (int, float, str, Path):
        return Listing(numbers=inner[0] in (int, float), optional=optional)
    if origin is tuple and all(kind in (int, float) for kind in inner):
        return Numbers(len(inner), name, optional=optional)
    return Yaml(optional=optional)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """The type without None, and whether None was allowed."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        if len(kinds) == 1:
            return kinds[0], True
    return annotation, False


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
