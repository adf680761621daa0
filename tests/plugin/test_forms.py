"""Forms made from configuration models: every field goes in and comes out, mistakes are sentences, nothing is cut."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import ValidationError
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QScrollBar, QWidget

from napari_med3dssl._widgets import Page, Section
from napari_med3dssl.forms import Form, label_of
from training_backend.config import (
    AugmentConfig,
    ConfigModel,
    DataConfig,
    EngineConfig,
    IngestConfig,
    IntensityConfig,
    OptimConfig,
    RunConfig,
)
from training_backend.config.presets import PRESETS, finetune_config, pretrain_config
from training_backend.config.registry import methods, tasks
from training_backend.errors import ConfigError

PLAIN = [AugmentConfig, DataConfig, EngineConfig, IngestConfig, IntensityConfig, OptimConfig]
HIDDEN = ("kind", "preset", "recipe", "method.name")
"""Fields of a run that other controls choose."""
PLAIN += [each.config for each in (*methods().values(), *tasks().values())]


def leaves(model: ConfigModel, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, annotation, value) of every field that is no section, nor a section that this model does not have."""
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, ConfigModel):
            yield from leaves(value, f"{path}{name}.")
        elif not is_section(info.annotation):
            yield f"{path}{name}", info.annotation, value


def is_section(annotation: Any) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, ConfigModel) for kind in get_args(annotation))


def others(annotation: Any, value: Any) -> list[Any]:
    """Values that a field of this type might take instead."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return [None, *(other for kind in kinds for other in others(kind, value))]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if annotation is bool:
        return [True, False]
    if annotation is int:
        return [1, 7, 254, 10**6]
    if annotation is float:
        return [0.123456789, 1e-5, 0.5, 3.75, 120.0]
    if annotation is str:
        return ["other ä name", "cpu", "zoo:x"]
    if annotation is Path:
        return [Path("/somewhere/else")]
    if get_origin(annotation) is tuple:
        kinds = get_args(annotation)
        if Ellipsis in kinds:
            samples: dict[Any, list[Any]] = {
                str: [("background", "b c"), ("whole = 1 + 2",)],
                int: [(8, 16, 24)],
                float: [(0.25, 1.5)],
                Path: [(Path("/one/list.txt"), Path("/another list.txt"))],
            }
            named = [get_args(kinds[0])[:2]] if get_origin(kinds[0]) is Literal else []
            return [*samples.get(kinds[0], []), *named, ()]
        lists = [others(kind, None) for kind in kinds]
        return [tuple(options[k % len(options)] for options in lists) for k in range(max(map(len, lists)))]
    if get_origin(annotation) is dict:
        return [{3: 1, 205: 2}, {"tumour of the liver": 50}]
    return []


def changed(model: ConfigModel, path: str, annotation: Any, value: Any) -> ConfigModel | None:
    """Copy of `model` with another valid value in one field."""
    for other in others(annotation, value):
        change: Any = other
        for name in reversed(path.split(".")):
            change = {name: change}
        try:
            result = model.updated(change)
        except (ConfigError, ValidationError):
            continue
        if result != model:
            return result
    return None


STARTS: list[dict[str, Any]] = [
    {},
    {"kind": "multiclass", "classes": 2},
    {"pooling": "decoder"},
    {"loss": "dice_bce"},
    {"report_memory": True},
    {"classes": ("nothing", "one", "two")},
]
"""Settings under which fields that depend on others can be changed."""


def starts(model: ConfigModel) -> Iterator[ConfigModel]:
    """`model` and what becomes of it under each of `STARTS` that it accepts."""
    for change in STARTS:
        try:
            yield model.updated(change)
        except ConfigError:
            continue


@pytest.mark.parametrize("model", PLAIN, ids=lambda model: model.__name__)
def test_every_field_goes_in_and_comes_out(model: type[ConfigModel], qtbot: Any) -> None:
    start = model()
    form = Form(start)
    qtbot.addWidget(form)
    assert form.config() == start
    for path, annotation, value in leaves(start):
        if path == "name":
            continue
        found = (changed(other, path, annotation, value) for other in starts(start))
        altered = next((each for each in found if each is not None), None)
        assert altered is not None, f"no other value for {path}"
        form.show_config(altered)
        assert form.config() == altered, path


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["pretrain", *tasks()])
def test_every_preset_of_every_method_and_task_survives_the_form(kind: str, preset: str, qtbot: Any) -> None:
    for name in methods():
        data = Path("data")
        config = (
            pretrain_config(name, preset, data) if kind == "pretrain" else finetune_config(kind, preset, data, name)
        )
        form = Form(config, hidden=("kind", "preset", "data.dataset"))
        qtbot.addWidget(form)
        assert form.config() == config


def test_typing_changes_the_configuration_and_announces_it(qtbot: Any) -> None:
    form = Form(RunConfig(method={"name": "mae3d"}))
    qtbot.addWidget(form)
    edit = form.editor("optim.lr").edit
    with qtbot.waitSignal(form.changed):
        edit.clear()
        qtbot.keyClicks(edit, "3e-4")
    with qtbot.waitSignal(form.changed):
        form.editor("engine.compile").box.setChecked(True)
    config = form.config()
    assert config.optim.lr == 3e-4
    assert config.engine.compile is True


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("lr", "-1", "Give a number above 0"),
        ("lr", "fast", "Give a number; found 'fast'"),
        ("batch_size", "2.5", "Give a whole number"),
        ("batch_size", "0", "at least 1"),
        ("warmup", "1", "below 1"),
        ("epochs", "", "Give a number"),
    ],
)
def test_mistakes_are_sentences_below_their_field(path: str, text: str, sentence: str, qtbot: Any) -> None:
    form = Form(OptimConfig())
    qtbot.addWidget(form)
    form.show()
    edit = form.editor(path).edit
    edit.setText(text)
    edit.textEdited.emit(text)
    label = form.findChild(QLabel, f"{path}.mistake")
    assert label.isVisibleTo(form)
    assert label.text().startswith("✗ ")
    assert sentence in label.text()
    with pytest.raises(ConfigError, match=path):
        form.config()
    form.show_config(OptimConfig())
    assert not label.isVisibleTo(form)


def test_empty_optional_fields_mean_none(qtbot: Any) -> None:
    form = Form(OptimConfig(clip_grad=1.0))
    qtbot.addWidget(form)
    form.editor("clip_grad").edit.setText("")
    assert form.config().clip_grad is None


def test_every_control_has_path_name_and_description(qtbot: Any) -> None:
    form = Form(pretrain_config("mae3d", "tiny", Path("data")))
    qtbot.addWidget(form)
    names = [path for path, _, _ in leaves(form.config()) if path not in HIDDEN]
    for path in names:
        editor = form.findChild(QWidget, path)
        assert editor is not None, path
        assert editor.accessibleName(), path
        assert editor.focusProxy().focusPolicy() != Qt.FocusPolicy.NoFocus, path
        assert editor.toolTip(), path


def test_advanced_fields_are_folded_and_out_of_the_tab_order(qtbot: Any) -> None:
    form = Form(OptimConfig())
    qtbot.addWidget(form)
    form.show()
    assert form.editor("lr").isVisible()
    assert not form.editor("ema").isVisible()
    section = next(each for each in form.findChildren(Section) if each.isVisible())
    section.fold(False)
    assert form.editor("ema").isVisible()


def test_hidden_fields_keep_their_value(qtbot: Any) -> None:
    config = finetune_config("segmentation", "tiny", Path("data"), changes={"weights": "zoo:x"})
    form = Form(config, hidden=("method", "weights", "task.classes"))
    qtbot.addWidget(form)
    assert form.findChild(QWidget, "weights") is None
    assert form.findChild(QWidget, "method.size") is None
    assert form.config() == config


@pytest.mark.parametrize("width", [300, 400])
def test_no_control_is_wider_than_the_page(width: int, qtbot: Any) -> None:
    page = Page()
    qtbot.addWidget(page)
    form = Form(pretrain_config("mae3d", "published", Path("/a/rather/long/folder/name/of/a/dataset")))
    page.column.addWidget(form)
    for section in form.findChildren(Section):
        section.fold(False)
    page.resize(width, 700)
    page.show()
    qtbot.waitExposed(page)
    limit = page.viewport().width()
    wide = [
        child.objectName() or type(child).__name__
        for child in form.findChildren(QWidget)
        if child.isVisible() and not isinstance(child, QScrollBar)
        and child.mapTo(page, child.rect().topRight()).x() > limit
    ]  # fmt: skip
    assert wide == []


@pytest.mark.parametrize(
    ("name", "label"),
    [("lr", "Learning rate"), ("spacing_mm", "Spacing (mm)"), ("checkpoint_minutes", "Checkpoint (minutes)"),
     ("crop_body", "Crop body")],
)  # fmt: skip
def test_labels_are_words(name: str, label: str) -> None:
    assert label_of(name) == label
