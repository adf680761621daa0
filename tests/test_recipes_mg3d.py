"""MG-3D's recipes: their numbers, and each trains two steps on phantoms of its own kind and predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.recipe_kit import Cohorts, phantom
from training_backend.config import RunConfig
from training_backend.config.recipes import recipe, recipe_config, recipes
from training_backend.data.dataset import Dataset
from training_backend.data.fits import check_fit, misfits
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.data.phantoms import thorax_ct
from training_backend.data.volume import Geometry, Volume
from training_backend.engine.events import EventReader
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import DataError
from training_backend.evaluate.predict import predict_volumes
from training_backend.tasks.vocabulary import CT_RATE
from training_backend.weights.load import load_model

SEGMENTATION = ("mg3d-lung", "mg3d-colon", "mg3d-covid", "mg3d-acdc")
CLASSES = ("mg3d-cc-ccii", "mg3d-stoic", "mg3d-luna16")
WORDS = ("mg3d-ct-rate-vocabulary", "mg3d-ct-rate-retrieval", "mg3d-ctrg-chest")
TEXTS = "mg3d-ct-rate-reports"
SMALL: dict[str, Any] = {
    "method": {"feature_size": 3, "window": 3},
    "data": {"size": (32, 32, 64), "workers": 0},
    "optim": {"max_steps": 2, "batch_size": 2},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0, "activation_checkpointing": False},
}
TEXT = {"source": "", "width": 16, "layers": 1, "heads": 2, "longest": 32}
MATCH = {"text": TEXT, "latent": 8}
OWN: dict[str, dict[str, Any]] = {
    **{name: {"task": {"overlap": 0.0}, "data": {**SMALL["data"], "crops_per_volume": 1}} for name in SEGMENTATION},
    "mg3d-ct-rate-vocabulary": {"task": MATCH},
    "mg3d-ct-rate-retrieval": {"task": MATCH},
    "mg3d-ctrg-chest": {"task": {"least_count": 1, "width": 16, "hidden": 16, "heads": 2, "slots": 4, "queries": 2}},
    TEXTS: {"task": {"text": TEXT}, "data": {"workers": 0}},
}
"""What makes networks and views of a recipe small."""


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohorts:
    """Makes a dataset of three cases with label maps."""
    return Cohorts(tmp_path_factory)


def small(name: str, dataset: Dataset) -> RunConfig:
    """The recipe at a size that trains in seconds."""
    return recipe_config(name, dataset.folder, changes={**SMALL, **OWN.get(name, {})})


def labels_of(name: str, index: int) -> tuple[float, ...] | None:
    """Labels of a case as the recipe expects them."""
    found = recipe(name)
    number = len(found.dataset.classes)
    if found.task == "report_generation":
        return None
    if found.task == "classification" and found.run["task"].get("kind") != "multilabel":
        return (float(index % number),)
    return tuple(float((index + bit) % 2) for bit in range(number))


def scans(folder: Path, name: str, *, reports: bool = True) -> Dataset:
    """Five cases with labels and reports, three of them to train on."""
    dataset = Dataset(folder, DatasetInfo(name="phantoms", modality="CT"))
    dataset.save()
    for index, split in enumerate(("train", "train", "train", "val", "val")):
        dataset.add_case(
            [scan(index)],
            None,
            id=f"case_{index}",
            split=split,  # type: ignore[arg-type]
            target=labels_of(name, index),
            report=thorax_ct(index, (4, 4, 4)).report if reports else "",
        )
    return dataset


def scan(seed: int) -> Volume:
    array = 60 + 15 * np.random.default_rng(seed).standard_normal((20, 36, 36))
    return Volume(array.astype(np.float32), Geometry.from_spacing((20, 36, 36), (2.0, 1.0, 1.0)), "CT", "scan")


def texts(folder: Path) -> Dataset:
    """Five reports with labels and no scan."""
    cases = [
        CaseRecord(
            id=f"r{index}",
            subject=f"r{index}",
            split=split,  # type: ignore[arg-type]
            report=thorax_ct(index, (4, 4, 4)).report,
            target=labels_of(TEXTS, index),
        )
        for index, split in enumerate(("train", "train", "train", "val", "val"))
    ]
    dataset = Dataset(folder, DatasetInfo(name="reports", modality="text"), cases)
    dataset.save()
    return dataset


def trained(name: str, dataset: Dataset, folder: Path) -> RunDirectory:
    assert [one.sentence for one in misfits(recipe(name), dataset) if one.kind == "error"] == []
    run = RunDirectory.create(folder / "run", small(name, dataset))
    assert execute(run) == 0, run.error()
    events = [event for event in EventReader(run.events_path).read() if event["type"] == "metrics"]
    assert [event["step"] for event in events if event["split"] == "train"] == [1, 2]
    (score,) = (event["score"] for event in events if event["split"] == "val")
    assert np.isfinite(score)
    return run


def test_the_names_are_all_there_are() -> None:
    assert set(recipes("mg3d")) == {*SEGMENTATION, *CLASSES, *WORDS, TEXTS}


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_trains_two_steps_and_predicts_a_scan(name: str, cohort: Cohorts, tmp_path: Path) -> None:
    run = trained(name, cohort(name), tmp_path)
    volumes, _, _ = phantom(name, 9)
    found = predict_volumes(load_model(run.path), volumes, device="cpu")
    assert found.labels is not None
    assert found.labels.geometry.same_grid(volumes[0].geometry)
    assert list(found.volumes_ml) == list(recipe(name).dataset.classes[1:])


@pytest.mark.parametrize("name", [*CLASSES, *WORDS])
def test_classes_and_words_train_two_steps_and_are_predicted(name: str, tmp_path: Path) -> None:
    dataset = scans(tmp_path / "data", name)
    run = trained(name, dataset, tmp_path)
    loaded = load_model(run.path)
    assert loaded.config.recipe == name
    found = predict_volumes(loaded, [scan(9)], device="cpu")
    assert found.text or found.values
    kept = b"".join(file.read_bytes() for file in run.path.rglob("*") if file.is_file())
    assert dataset.cases()[0].report.encode() not in kept


def test_reports_train_two_steps_without_a_scan(tmp_path: Path) -> None:
    trained(TEXTS, texts(tmp_path / "data"), tmp_path)


def numbers(name: str, *fields: str) -> list[Any]:
    """Settings of a recipe by their paths."""
    tree = recipe_config(name, Path("data"), weights="MG-3D-Swin-B.ckpt").model_dump()
    found = []
    for field in fields:
        value: Any = tree
        for key in field.split("."):
            value = value[key]
        found.append(value)
    return found


@pytest.mark.parametrize(
    "name, spacing, window, size, crops, foreground, lr, epochs, overlap",
    [
        ("mg3d-lung", (1.5, 1.5, 1.5), (-175, 250), (96, 96, 96), 4, 0.6667, 1e-4, 1000, 0.5),
        ("mg3d-colon", (1.0, 1.0, 1.0), (-57, 175), (96, 96, 96), 4, 0.5, 1e-4, 1000, 0.5),
        ("mg3d-covid", (5.0, 1.25, 1.25), (-1000, 500), (32, 192, 192), 3, 0.5, 2e-4, 1000, 0.5),
        ("mg3d-acdc", None, (None, None), (32, 192, 192), 2, 0.5, 3e-4, 300, 0.75),
    ],
)
def test_numbers_of_segmentation_are_the_published_ones(
    name: str, spacing: Any, window: Any, size: Any, crops: int, foreground: float, lr: float, epochs: int, overlap: Any
) -> None:
    fields = ("data.size", "data.crops_per_volume", "data.foreground", "optim.lr", "optim.epochs", "task.overlap")
    assert numbers(name, *fields) == [size, crops, foreground, lr, epochs, overlap]
    assert tuple(numbers(name, "data.intensity.low", "data.intensity.high")) == window
    assert recipe(name).dataset.spacing_mm == spacing
    assert numbers(name, "task.decoder", "optim.weight_decay") == ["swinunetr", 1e-5]


def test_numbers_of_the_other_tasks_are_the_published_ones() -> None:
    optim = ("optim.lr", "optim.batch_size", "optim.epochs", "data.size")
    assert numbers("mg3d-cc-ccii", *optim, "task.classes") == [3e-4, 2, 130, (32, 384, 384), 3]
    assert numbers("mg3d-cc-ccii", "optim.warmup")[0] * 130 == pytest.approx(30)
    assert numbers("mg3d-stoic", *optim, "task.kind", "task.classes") == [5e-5, 2, 40, (128,) * 3, "multilabel", 2]
    assert numbers("mg3d-luna16", *optim, "task.kind", "task.classes") == [1.5e-4, 32, 101, (48,) * 3, "binary", 1]
    assert numbers("mg3d-ctrg-chest", *optim) == [1e-4, 2, 30, (128, 96, 128)]
    assert numbers("mg3d-ctrg-chest", "task.beams", "task.block_trigrams", "optim.step_factor") == [3, True, 0.8]
    for name in ("mg3d-ct-rate-vocabulary", "mg3d-ct-rate-retrieval"):
        assert numbers(name, "task.gates", "task.findings", "data.size") == [2, CT_RATE, (128, 96, 128)]
        assert numbers(name, "data.intensity.low", "data.intensity.high", "optim.lr") == [-1000, 1000, 1e-5]
    assert numbers("mg3d-ct-rate-vocabulary", "task.latents_only", "task.group", "task.reading") == [True, 6, "first"]
    assert numbers("mg3d-ct-rate-retrieval", "task.reading", "task.as_pretrained") == ["mean", True]
    for name in WORDS:
        assert numbers(name, "data.centre", "data.keep_aspect") == [(0.88, 0.65625, 0.875), False]
    for name in WORDS[:2]:
        assert numbers(name, "task.grid", "task.maps", "task.project") == [(4, 3, 4), "tokens", 0]
    assert numbers("mg3d-ctrg-chest", "task.pool", "task.maps", "task.norm") == [3, "convolved", "positions"]
    assert recipe(TEXTS).dataset.classes == CT_RATE


@pytest.mark.parametrize(
    "name, other, sentence",
    [
        ("mg3d-stoic", "mg3d-luna16", "has 2 findings, but the dataset has 1 labels per case"),
        ("mg3d-luna16", "mg3d-stoic", "is for one class per case, but cases have several targets"),
        ("mg3d-ct-rate-vocabulary", "mg3d-ctrg-chest", "has 18 findings, but the dataset has no case with labels"),
    ],
)
def test_what_the_labels_lack_is_told(name: str, other: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence):
        check_fit(recipe(name), scans(tmp_path / "data", other).folder)


@pytest.mark.parametrize("name", ["mg3d-ctrg-chest", "mg3d-ct-rate-retrieval"])
def test_scans_without_reports_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="but no case has a report"):
        check_fit(recipe(name), scans(tmp_path / "data", name, reports=False).folder)
