"""What a fine-tuning run on the command line takes over from its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training_backend.config.presets import backbone_config, finetune_config, pretrain_config
from training_backend.config.registry import method, methods, tasks
from training_backend.config.registry import task as find_task
from training_backend.data.prepare import InputProfile
from training_backend.engine.rundir import RunDirectory, located
from training_backend.errors import WeightsError
from training_backend.settings import _defaults
from training_backend.weights.export import export
from training_backend.weights.save import save_model

SMALL: dict[str, Any] = {"data": {"size": (16, 16, 16)}, "method": {"embed_dim": 24, "depth": 2, "heads": 4}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder of a small next-patch network."""
    folder = tmp_path_factory.mktemp("models") / "ar"
    config = pretrain_config("ar", "tiny", Path(), SMALL)
    profile = InputProfile(size=(16, 16, 16), crop_body=False).model_dump(mode="json")
    card = {"kind": "pretrain", "config": config.model_dump(mode="json"), "profile": profile}
    save_model(folder, method("ar").build(config), card)
    return folder


@pytest.mark.parametrize("kind", ["model folder", "authors' file", "run"])
def test_method_and_encoder_are_those_of_the_weights(kind: str, model: Path, tmp_path: Path) -> None:
    flags = []
    if kind == "authors' file":
        weights = export(model, tmp_path / "theirs.pth")
    elif kind == "run":
        weights = RunDirectory.create(tmp_path / "run", pretrain_config("ar", "tiny", tmp_path, SMALL)).path
    else:
        weights = model
    found = _defaults("finetune", ["--data", "d", "--weights", str(weights), "--output", str(tmp_path / "new"), *flags])
    assert found.method.name == "ar"
    assert (found.method.embed_dim, found.method.depth, found.method.heads) == (24, 2, 4)  # type: ignore[attr-defined]
    assert found.data.view == "crop"
    assert found.task is not None


def test_a_method_that_is_named_stays(model: Path) -> None:
    found = _defaults("finetune", ["--data", "d", "--weights", str(model), "--method", "mae3d"])
    assert found.method.name == "mae3d"


def test_the_recipe_keeps_its_own_and_leaves_the_rest_to_the_backbone(model: Path) -> None:
    found = _defaults("finetune", ["--recipe", "la", "--weights", str(model)])
    assert (found.method.embed_dim, found.method.axes) == (24, "xyz-lps")  # type: ignore[attr-defined]


def test_weights_that_are_not_there_are_told_at_once_unless_a_run_goes_on(model: Path, tmp_path: Path) -> None:
    arguments = ["--data", "d", "--weights", str(tmp_path / "nowhere.pth"), "--output", str(tmp_path / "run")]
    with pytest.raises(WeightsError, match="no weights file"):
        _defaults("finetune", arguments)
    before = _defaults("finetune", ["--data", "d", "--weights", str(model)])
    RunDirectory.create(tmp_path / "run", before)
    again = _defaults("finetune", arguments)
    assert again.method == before.method
    assert _defaults("finetune", [*arguments, "--help"]).method.name == "mae3d"


@pytest.mark.parametrize("task", tasks())
@pytest.mark.parametrize("name", methods())
def test_tasks_see_scans_and_voxels_are_told_apart_on_crops_whatever_the_backbone_saw(name: str, task: str) -> None:
    for preset in ("tiny", "published"):
        trained = pretrain_config(name, preset, Path("d"))
        backbone = {"method": trained.method.model_dump(), "data": trained.data.model_dump()}
        found = backbone_config(task, preset, Path("d"), backbone)
        assert found.method == trained.method
        assert found.data.view in (("text",) if task == "text_classification" else ("crop", "volume"))
        assert found.data.labelled is None
        if find_task(task).needs == "labels":
            assert found.data.view == "crop"
            assert finetune_config(task, preset, Path("d"), name).data.view == "crop"


def test_a_view_that_is_named_stays() -> None:
    backbone = {"method": {"name": "mg3d"}, "data": {"view": "volume"}}
    found = backbone_config("segmentation", "tiny", Path("d"), backbone, {"data": {"view": "volume"}})
    assert found.data.view == "volume"


def test_a_text_model_is_found_from_any_folder_and_no_card_tells_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "bert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = {"text": {"source": "models/bert"}}
    pretrain = pretrain_config("mg3d", "tiny", Path("d"), {"method": text})
    read: Any = {"task": {**text, "reader": "text"}}
    for run in (pretrain, finetune_config("text_classification", "tiny", Path("d"), "mg3d", read)):
        found = located(run)
        part: Any = found.task or found.method
        assert part.text.source == str((tmp_path / "models" / "bert").resolve())
        assert part.updated(part.portable()).text.source == "bert"
    hub = pretrain_config("mg3d", "published", Path("d"))
    assert located(hub).method.text.source == "StanfordAIMI/RadBERT"  # type: ignore[attr-defined]
    assert hub.method.portable() == {"text": {}}
