"""VoCo in the forms: what goes with its stage and region, and the recipes of its tasks other than segmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_med3dssl._fields import Editor
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Section
from napari_med3dssl.finetune_panel import FinetunePanel
from napari_med3dssl.preflight import checks
from napari_med3dssl.pretrain_panel import PretrainPanel
from training_backend.config.presets import pretrain_config
from training_backend.config.recipes import recipe, recipe_config
from training_backend.jobs.registry import new_run

OTHER_TASKS = (
    "voco-oasis",
    "voco-ixi",
    "voco-cc-ccii",
    "voco-luna16",
    "voco-ctrg-chest",
    "voco-ct-rate-vocabulary",
    "voco-ct-rate-retrieval",
)


@pytest.fixture
def panel(state: State, dataset: Path, shown: Callable[..., Any]) -> PretrainPanel:
    """The Pre-train tab with VoCo's smallest preset."""
    state.dataset = dataset
    panel = shown(PretrainPanel(state))
    panel.method.setCurrentIndex(panel.method.findData("voco"))
    panel.preset.setCurrentIndex(panel.preset.findData("tiny"))
    panel._restart()
    return panel


def choose(panel: PretrainPanel, path: str, value: str) -> None:
    panel.form.editor(path).box.setCurrentText(value)


def enter(panel: PretrainPanel, path: str, text: str) -> None:
    edit = panel.form.editor(path).edit
    edit.setText(text)
    edit.textEdited.emit(text)


@pytest.mark.parametrize(
    "changes",
    [{"region": "chest"}, {"region": "headneck"}, {"stage": "semi"}, {"stage": "omni", "region": "abdomen"}],
    ids=str,
)
def test_stage_and_region_bring_what_the_command_line_brings(
    panel: PretrainPanel, dataset: Path, changes: dict[str, str]
) -> None:
    before = panel.config()
    for name, value in changes.items():
        choose(panel, f"method.{name}", value)
    assert panel.config() == pretrain_config("voco", "tiny", dataset, {"method": changes})
    assert panel.followed.isVisibleTo(panel)
    for name in changes:  # and back again
        choose(panel, f"method.{name}", str(getattr(before.method, name)))
    assert panel.config() == before


def test_what_goes_with_the_method_is_said(panel: PretrainPanel) -> None:
    assert not panel.followed.isVisibleTo(panel)
    choose(panel, "method.region", "chest")
    assert panel.followed.text().startswith("Goes with the method: ")
    assert "intensity low -1000" in panel.followed.text()
    enter(panel, "method.cells", "2")
    assert panel.form.editor("data.size").value() == (64, 64, 64)
    assert panel.followed.text() == "Goes with the method: size 64 × 64 × 64."
    enter(panel, "method.crop", "")  # half typed
    assert panel.form.editor("data.size").value() == (64, 64, 64)
    enter(panel, "method.crop", "64")
    assert panel.form.editor("data.size").value() == (64, 128, 128)


def test_what_was_entered_by_hand_stays_and_is_told(panel: PretrainPanel, tmp_path: Path) -> None:
    enter(panel, "data.intensity.low", "-900")
    choose(panel, "method.region", "chest")
    config = panel.config()
    assert (config.data.intensity.low, config.data.intensity.high) == (-900, 500)
    assert "Kept as entered: intensity low." in panel.followed.text()
    said = [check.sentence for check in checks(config, tmp_path) if check.kind == "warning"]
    assert any(one.startswith("data.intensity is not what the settings of the method ask for") for one in said)
    choose(panel, "method.region", "abdomen")
    assert panel.config().data.intensity.low == -900
    panel._restart()  # a preset begins anew
    choose(panel, "method.region", "chest")
    assert panel.config().data.intensity.low == -1000


def test_the_settings_of_a_run_follow_only_where_the_method_changes(panel: PretrainPanel, dataset: Path) -> None:
    own = {"method": {"cells": 2}, "data": {"crops_per_volume": 5, "foreground": 0.25}, "optim": {"lr": 0.005}}
    run = new_run(pretrain_config("voco", "tiny", dataset, own), "earlier")
    panel.show_run(run.path)
    choose(panel, "method.region", "chest")
    assert panel.config() == pretrain_config(
        "voco", "tiny", dataset, {**own, "method": {"cells": 2, "region": "chest"}}
    )


def test_stages_with_labels_are_checked_before_the_start(dataset: Path, tmp_path: Path) -> None:
    def said(kind: str, **method: Any) -> str:
        config = pretrain_config("voco", "tiny", dataset, {"method": method})
        return " ".join(check.sentence for check in checks(config, tmp_path) if check.kind == kind)

    assert "After 50% of the steps a copy of the network labels for it" in said("ok", stage="omni")
    assert "3 labelled cases in phantoms" in said("ok", stage="omni")
    assert "copy of the network" not in said("ok")
    assert "The decoder has 2 classes" in said("error", stage="semi", decoder_classes=2)
    assert "method.version is 2024" in said("error", stage="omni", version="2024")


@pytest.mark.parametrize("name", OTHER_TASKS)
def test_recipes_of_other_tasks_fill_every_section(
    name: str, state: State, dataset: Path, shown: Callable[..., Any], wait: Callable[..., None]
) -> None:
    state.dataset = dataset
    panel = shown(FinetunePanel(state))
    assert panel.recipe.findData(name) > 0
    panel.recipe.setCurrentIndex(panel.recipe.findData(name))
    panel._on_recipe()
    expected, found = recipe_config(name, dataset), panel.config()
    assert found == expected
    assert panel.task.currentData() == recipe(name).task == expected.task.name
    assert panel.launch.notice.text == ""
    assert panel.about.isVisibleTo(panel)
    wait(lambda: panel.form.isVisibleTo(panel))
    assert set(panel.form.sections) >= {"task", "data", "optim", "engine"}
    assert panel.class_section.isVisibleTo(panel) == ("classes" in type(expected.task).model_fields)
    for path, form in sections(panel.form):
        assert form.findChildren(Editor), path
    for section in panel.form.findChildren(Section):
        section.fold(False)
        assert section.sizeHint().height() > 40, section
    task = panel.form.sections["task"]
    for field in ("window", "slots", "latent", "kind"):  # what makes each of the tasks
        if field in type(expected.task).model_fields:
            assert task.editor(field).value() == getattr(expected.task, field)
            assert task.editor(field).isVisibleTo(panel)


def sections(form: Any, above: str = "") -> list[tuple[str, Any]]:
    found = [(f"{above}{name}", one) for name, one in form.sections.items()]
    return found + [each for path, one in found for each in sections(one, f"{path}.")]
