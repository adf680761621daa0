"""VoCo's recipes for tasks other than segmentation: their numbers, two steps each on phantoms, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training_backend.cli import main
from training_backend.config import RunConfig
from training_backend.config.recipes import recipe, recipe_config, recipes
from training_backend.data.dataset import Dataset
from training_backend.data.fits import check_fit, misfits
from training_backend.data.manifest import ClassEntry, DatasetInfo
from training_backend.data.phantoms import thorax_ct
from training_backend.data.volume import Geometry, Volume
from training_backend.engine.events import EventReader
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.predict import predict_volumes
from training_backend.weights.load import load_model

SHAPE = (20, 36, 36)
NAMES = (
    "voco-cc-ccii",
    "voco-luna16",
    "voco-oasis",
    "voco-ixi",
    "voco-ctrg-chest",
    "voco-ct-rate-vocabulary",
    "voco-ct-rate-retrieval",
)
TEXT = {"source": "", "width": 16, "layers": 1, "heads": 2, "longest": 32}
SMALL: dict[str, Any] = {
    "method": {"feature_size": 3, "window": 3},
    "data": {"size": (32, 32, 64), "workers": 0},
    "optim": {"max_steps": 2, "batch_size": 2},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0, "activation_checkpointing": False},
}
OWN: dict[str, dict[str, Any]] = {
    "voco-cc-ccii": {"data": {**SMALL["data"], "size": (16, 32, 64)}},  # put behind itself along z
    "voco-oasis": {"task": {"window": 5}},
    "voco-ixi": {"task": {"window": 5, "atlas": "case_0"}},
    "voco-ctrg-chest": {"task": {"least_count": 1, "width": 16, "hidden": 16, "heads": 2, "slots": 4, "queries": 2}},
    "voco-ct-rate-vocabulary": {"task": {"text": TEXT, "latent": 8, "project": 8}},
    "voco-ct-rate-retrieval": {"task": {"text": TEXT, "latent": 8, "project": 8}},
}
"""What makes networks and views of a recipe small."""


def small(name: str, dataset: Dataset) -> RunConfig:
    """The recipe at a size that trains in seconds."""
    return recipe_config(name, dataset.folder, changes={**SMALL, **OWN.get(name, {})})


def scan(name: str, seed: int) -> tuple[Volume, Volume, tuple[float, ...], str]:
    """A scan as the recipe expects it, a label map, labels of the whole, and a report."""
    found, rng = recipe(name), np.random.default_rng(seed)
    classes = found.dataset.classes
    geometry = Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0))
    labels = np.zeros(SHAPE, np.uint8)
    for value in range(1, len(classes) or 4) if found.task == "registration" else ():
        z, y, x = rng.integers(1, (14, 26, 26))
        labels[z : z + 5, y : y + 8, x : x + 8] = value
    array = 60 + 10.0 * labels + 15 * rng.standard_normal(SHAPE)
    target: tuple[float, ...] = (float(seed % max(1, len(classes))),)
    if found.task == "vocabulary":
        target = tuple(float(bit) for bit in rng.integers(0, 2, len(classes)))
    volume = Volume(array.astype(np.float32), geometry, found.dataset.modality, "scan")
    label = Volume(labels, geometry, "labels", "labels", {"kind": "labels"})
    return volume, label, target, thorax_ct(seed, (4, 4, 4)).report


def cohort(folder: Path, name: str, *, reports: bool = True) -> Dataset:
    """Five cases for a recipe, three of them to train on."""
    found = recipe(name)
    pairs = found.task == "registration"
    names = found.dataset.classes or tuple(f"structure {index}" for index in range(4))
    classes = tuple(ClassEntry(index=index, name=each, colour="#000000") for index, each in enumerate(names))
    info = DatasetInfo(name="phantoms", modality=found.dataset.modality, classes=classes if pairs else ())
    dataset = Dataset(folder, info)
    dataset.save()
    for index, split in enumerate(("train", "train", "train", "val", "val")):
        volume, label, target, report = scan(name, index)
        dataset.add_case(
            [volume],
            label if pairs else None,
            id=f"case_{index}",
            split=split,  # type: ignore[arg-type]
            target=None if pairs or found.task == "report_generation" else target,
            report=report if reports else "",
        )
    return dataset


def test_the_names_are_all_there_are() -> None:
    assert {name for name, found in recipes("voco").items() if found.task != "segmentation"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains_two_steps_and_is_scored(name: str, tmp_path: Path) -> None:
    dataset = cohort(tmp_path / "data", name)
    assert [one.sentence for one in misfits(recipe(name), dataset) if one.kind == "error"] == []
    run = RunDirectory.create(tmp_path / "run", small(name, dataset))
    assert execute(run) == 0, run.error()
    events = [event for event in EventReader(run.events_path).read() if event["type"] == "metrics"]
    assert [event["step"] for event in events if event["split"] == "train"] == [1, 2]
    (score,) = (event["score"] for event in events if event["split"] == "val")
    assert np.isfinite(score)
    loaded = load_model(run.path)
    assert loaded.config.recipe == name
    if recipe(name).task != "registration":
        found = predict_volumes(loaded, [scan(name, 9)[0]], device="cpu")
        assert found.text or found.values


def numbers(name: str, *fields: str) -> list[Any]:
    """Settings of a recipe by their paths."""
    tree = recipe_config(name, Path("data"), weights="VoCo_B_SSL_head.pt").model_dump()
    found = []
    for field in fields:
        value: Any = tree
        for key in field.split("."):
            value = value[key]
        found.append(value)
    return found


OPTIM = ("optim.lr", "optim.batch_size", "optim.epochs", "optim.amsgrad")


@pytest.mark.parametrize(
    "name, optim, size",
    [
        ("voco-cc-ccii", [3e-4, 4, 100, True], (32, 256, 256)),
        ("voco-luna16", [1e-4, 8, 101, False], (64, 64, 64)),
        ("voco-oasis", [1e-4, 1, 100, True], (192, 224, 160)),
        ("voco-ixi", [1e-4, 1, 500, True], (192, 224, 160)),
        ("voco-ctrg-chest", [1e-4, 4, 30, True], (96, 96, 96)),
        ("voco-ct-rate-vocabulary", [1e-5, 1, 10, False], (240, 480, 480)),
    ],
)
def test_numbers_are_the_published_ones(name: str, optim: list[Any], size: tuple[int, int, int]) -> None:
    assert numbers(name, *OPTIM, "data.size", "data.view") == [*optim, size, "volume"]


def test_what_each_task_adds_is_the_published_way() -> None:
    pooled = ["multiclass", 3, "decoder", True, 5]
    warm = numbers("voco-cc-ccii", "optim.warmup")[0] * 100
    fields = ("task.kind", "task.classes", "task.pooling", "task.repeat_depth")
    assert [*numbers("voco-cc-ccii", *fields), warm] == pooled
    assert numbers("voco-luna16", *fields, "data.balanced") == ["binary", 1, "decoder", False, True]
    assert numbers("voco-luna16", "data.intensity.low", "data.intensity.high") == [-1000, 600]
    fields = ("task.decoder", "task.symmetric", "task.dice_weight", "task.window", "optim.schedule")
    assert numbers("voco-oasis", *fields) == ["swinunetr", True, 1, 9, "poly"]
    assert numbers("voco-ixi", *fields) == ["swinunetr", False, 0, 9, "poly"]
    assert len(recipe("voco-oasis").dataset.classes) == 36
    fields = ("task.longest", "task.least_count", "task.beams", "task.norm", "task.slots", "optim.layer_decay")
    assert numbers("voco-ctrg-chest", *fields) == [150, 3, 3, "positions", 60, 0.5]
    assert recipe("voco-ctrg-chest").dataset.splits.cases == (1444, 360, 360)
    for name in ("voco-ct-rate-vocabulary", "voco-ct-rate-retrieval"):
        fields = ("task.latent", "task.project", "task.norm", "data.intensity.low", "data.intensity.high")
        assert numbers(name, *fields) == [768, 768, "none", -1000, 200]
        assert len(numbers(name, "task.findings")[0]) == 18
    assert numbers("voco-ct-rate-vocabulary", "task.latents_only", "task.group") == [True, 6]


@pytest.mark.parametrize(
    "name, other, sentence",
    [
        ("voco-oasis", "voco-ct-rate-retrieval", "is for MR, but the dataset holds CT"),
        ("voco-oasis", "voco-ct-rate-retrieval", "for registration, but no case has a label map"),
        ("voco-cc-ccii", "voco-ctrg-chest", "for classification, but no case has a target"),
        ("voco-ct-rate-vocabulary", "voco-ctrg-chest", "has 18 findings, but the dataset has no case with labels"),
        ("voco-ct-rate-vocabulary", "voco-cc-ccii", "has 18 findings, but the dataset has 1 labels per case"),
        ("voco-ixi", "voco-oasis", ""),
    ],
)
def test_what_the_data_lacks_is_told(name: str, other: str, sentence: str, tmp_path: Path) -> None:
    dataset = cohort(tmp_path / "data", other)
    refused: Callable[[], None] = lambda: check_fit(recipe(name), dataset.folder)  # noqa: E731
    if not sentence:
        refused()
        return
    with pytest.raises(DataError, match=sentence):
        refused()


@pytest.mark.parametrize("name", ["voco-ctrg-chest", "voco-ct-rate-retrieval"])
def test_scans_without_reports_are_refused(name: str, tmp_path: Path) -> None:
    dataset = cohort(tmp_path / "data", name, reports=False)
    with pytest.raises(DataError, match="but no case has a report"):
        check_fit(recipe(name), dataset.folder)


def test_the_command_line_shows_them_and_refuses_another_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "voco-luna16"]) == 0
    assert "med3dssl data candidates candidates.csv" in capsys.readouterr().out
    assert main(["finetune", "--recipe", "voco-oasis", "--task", "segmentation"]) != 0
    assert "The recipe voco-oasis is for task registration" in capsys.readouterr().err


def test_only_tasks_without_names_may_lack_them() -> None:
    nameless = recipe("voco-ixi").model_dump()
    with pytest.raises(ConfigError, match="two or more different names"):
        type(recipe("voco-ixi")).parse({**nameless, "task": "vocabulary"})
