"""A form made from any configuration model: one editor per field, sections for nested models, sentences for mistakes.

Each editor's ``objectName`` is the path of its field in the configuration (``optim.lr``), its accessible name the
label, its tooltip the field's description. Fields marked advanced are folded away.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from pydantic import ValidationError
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFormLayout, QLabel, QVBoxLayout, QWidget

from napari_med3dssl._fields import Bounds, Editor, editor_for
from napari_med3dssl._widgets import SIGNS, Section, tooltip, wrapping
from training_backend.config import ConfigModel
from training_backend.errors import ConfigError

WORDS = {"lr": "learning rate", "min_lr": "least learning rate", "ema": "weight averaging", "optim": "optimisation"}
"""Names that a reader would not guess."""
UNITS = {"mm": "mm", "deg": "°", "s": "s", "minutes": "minutes", "hours": "hours"}
"""Units that end the name of a field."""


class Form(QWidget):
    """Editors for all fields of a configuration.

    Args:
        config: what is shown at first; its fields decide which editors there are.
        hidden: paths of fields that get no editor and keep their value.
        path: path of `config` inside a larger configuration.
    """

    changed = Signal()

    def __init__(self, config: ConfigModel, *, hidden: Collection[str] = (), path: str = "") -> None:
        super().__init__()
        self.setObjectName(path or "form")
        self._config, self._hidden, self._path = config, frozenset(hidden), path
        self._editors: dict[str, Editor] = {}
        self._mistakes: dict[str, QLabel] = {}
        self._edited: set[str] = set()
        self.sections: dict[str, Form] = {}
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        plain, advanced = self._rows()
        column.addLayout(plain)
        self._add_sections(column)
        if advanced.rowCount():
            folded = Section("Advanced")
            folded.column.addLayout(advanced)
            column.addWidget(folded)
        self._mistakes[""] = _mistake_label(f"{path}.mistake")
        column.addWidget(self._mistakes[""])
        self.show_config(config)

    def config(self) -> ConfigModel:
        """The configuration as entered; a `ConfigError` names every mistake."""
        mistakes = self.mistakes()
        if mistakes:
            raise ConfigError("; ".join(f"{path}: {text}" for path, text in mistakes.items()))
        return type(self._config).parse(self.values())

    def values(self) -> dict[str, Any]:
        """What was entered, over what the configuration had for fields without an editor; not validated."""
        values = self._config.model_dump()
        values.update({name: editor.value() for name, editor in self._editors.items()})
        values.update({name: section.values() for name, section in self.sections.items()})
        return values

    def show_config(self, config: ConfigModel) -> None:
        """Show another configuration of the same models."""
        self._config = config
        self._edited.clear()
        for name, editor in self._editors.items():
            editor.show_value(getattr(config, name))
        for name, section in self.sections.items():
            section.show_config(getattr(config, name))
        self.mistakes()

    def put(self, path: str, value: Any) -> None:
        """Show a value in the field at `path`; a field without an editor has it from now on."""
        name, _, rest = path.partition(".")
        if rest and name in self.sections:
            self.sections[name].put(rest, value)
        elif not rest and name in self._editors:
            self._editors[name].show_value(value)
        else:
            for part in reversed(path.split(".")):
                value = {part: value}
            self._config = self._config.updated(value)

    def mistakes(self) -> dict[str, str]:
        """What is wrong by field path; each sentence is also shown below its field."""
        found = {path: text for section in self.sections.values() for path, text in section.mistakes().items()}
        own = {
            name: text for name, text in self._own_mistakes().items() if not (found and name in ("", *self.sections))
        }
        for name, label in self._mistakes.items():
            text = own.get(name, "")
            label.setText(f"{SIGNS['error']} {text}" if text else "")
            label.setVisible(bool(text))
        return found | {self._join(name) if name else self._path: text for name, text in own.items()}

    @property
    def edited(self) -> frozenset[str]:
        """Paths of the fields that were changed by hand since a configuration was shown."""
        below = (section.edited for section in self.sections.values())
        return frozenset(map(self._join, self._edited)).union(*below)

    def editor(self, path: str) -> Editor:
        """Editor of a field by its path below this form."""
        name, _, rest = path.partition(".")
        return self.sections[name].editor(rest) if rest else self._editors[name]

    def _own_mistakes(self) -> dict[str, str]:
        try:
            type(self._config).model_validate(self.values())
        except ValidationError as error:
            return {str(next(iter(problem["loc"]), "")): _plain_sentence(problem) for problem in error.errors()}
        except ConfigError as error:  # a nested model refused, or a rule over several fields
            return {"": str(error)}
        return {}

    def _rows(self) -> tuple[QFormLayout, QFormLayout]:
        layouts = (QFormLayout(), QFormLayout())
        for layout in layouts:
            layout.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
            layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
            layout.setContentsMargins(0, 0, 0, 0)
            layout.setVerticalSpacing(4)
        for name, info in type(self._config).model_fields.items():
            value = getattr(self._config, name)
            hints = _hints(info)
            nested = isinstance(value, ConfigModel) or (value is None and _is_model(info.annotation))
            if nested or hints.get("hidden") or self._is_hidden(name) or _is_constant_name(name, self._path):
                continue
            layouts[1 if hints.get("advanced") else 0].addRow(*self._row(name, info, hints))
        return layouts

    def _row(self, name: str, info: Any, hints: dict[str, Any]) -> tuple[QLabel, QWidget]:
        title = str(hints.get("label") or label_of(name, str(hints.get("unit", ""))))
        editor = editor_for(info.annotation, title, str(hints.get("widget", "")), _bounds(info))
        editor.setObjectName(self._join(name))
        described = str(info.description or "")
        for widget in (editor, editor.focusProxy()):
            widget.setToolTip(tooltip(described))
            widget.setAccessibleName(title)
            widget.setAccessibleDescription(described)
        editor.changed.connect(partial(self._on_edit, name))
        self._editors[name] = editor
        mistake = self._mistakes[name] = _mistake_label(f"{self._join(name)}.mistake")
        cell = QWidget()
        column = QVBoxLayout(cell)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(1)
        column.addWidget(editor)
        column.addWidget(mistake)
        label = QLabel(title)
        label.setToolTip(tooltip(described))
        label.setBuddy(editor.focusProxy())
        return label, cell

    def _add_sections(self, column: QVBoxLayout) -> None:
        for name in type(self._config).model_fields:
            value = getattr(self._config, name)
            if not isinstance(value, ConfigModel) or self._is_hidden(name):
                continue
            form = Form(value, hidden=self._hidden, path=self._join(name))
            if not form._editors and not form.sections:
                continue
            form.changed.connect(self._on_change)
            self.sections[name] = form
            tip = (type(value).__doc__ or "").strip()
            section = Section(label_of(name), folded=bool(self._path) or name not in ("method", "task"), tip=tip)
            section.column.addWidget(form)
            column.addWidget(section)

    def _on_edit(self, name: str) -> None:
        self._edited.add(name)
        self._on_change()

    def _on_change(self) -> None:
        if not self._path:
            self.mistakes()
        self.changed.emit()

    def _is_hidden(self, name: str) -> bool:
        return self._join(name) in self._hidden

    def _join(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def label_of(name: str, unit: str = "") -> str:
    """Label of a field: words instead of underscores, its unit in brackets."""
    stem, _, last = name.rpartition("_")
    if not unit and stem and last in UNITS:
        name, unit = stem, UNITS[last]
    text = WORDS.get(name, name).replace("_", " ")
    return f"{text[:1].upper()}{text[1:]}{f' ({unit})' if unit else ''}"


def _mistake_label(name: str) -> QLabel:
    label = wrapping("")
    label.setObjectName(name)
    label.hide()
    return label


def _hints(info: Any) -> dict[str, Any]:
    extra = info.json_schema_extra
    return dict(extra.get("ui", {})) if isinstance(extra, dict) else {}


def _bounds(info: Any) -> Bounds:
    """Least and largest value that a field accepts, where it says so and includes them."""
    found = {key: getattr(rule, key) for rule in info.metadata for key in ("ge", "le") if hasattr(rule, key)}
    return found.get("ge"), found.get("le")


def _is_constant_name(name: str, path: str) -> bool:
    """Whether this is the registered name of a method or task, which another control chooses."""
    return name == "name" and path in ("method", "task")


def _is_model(annotation: Any) -> bool:
    from typing import get_args

    return any(isinstance(kind, type) and issubclass(kind, ConfigModel) for kind in (annotation, *get_args(annotation)))


def _plain_sentence(problem: Any) -> str:
    """What is wrong with one field, without the validator's jargon."""
    context = problem.get("ctx") or {}
    found = problem.get("input")
    sentences = {
        "greater_than": "Give a number above {gt}",
        "greater_than_equal": "Give a number of at least {ge}",
        "less_than": "Give a number below {lt}",
        "less_than_equal": "Give a number of at most {le}",
        "int_parsing": "Give a whole number",
        "int_type": "Give a whole number",
        "int_from_float": "Give a whole number",
        "float_parsing": "Give a number",
        "float_type": "Give a number",
        "missing": "This is needed",
    }
    text = sentences.get(problem["type"], "").format(**context) if problem["type"] in sentences else ""
    if not text:
        text = str(context.get("error") or problem["msg"])
        return text if text.endswith(".") else f"{text}."
    return f"{text}; found {found!r}."
