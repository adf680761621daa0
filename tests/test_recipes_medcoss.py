"""MedCoSS's recipes: faithful to the published table, and each trains and predicts on phantoms of its own kind."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.recipe_kit import Cohorts, phantom
from training_backend.cli import main
from training_backend.config import RunConfig
from training_backend.config.recipes import recipe, recipe_config, recipes
from training_backend.data.dataset import Dataset
from training_backend.data.fits import misfits
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.schedule import learning_rate
from training_backend.engine.worker import execute
from training_backend.evaluate.embed import predict_csv
from training_backend.evaluate.predict import predict_volumes
from training_backend.evaluate.score import score_split
from training_backend.weights.load import load_model

SMALL = {
    "method": {
        "embed_dim": 12,
        "depth": 4,
        "heads": 2,
        "mlp_dim": 24,
        "patch_2d": (1, 8, 8),
        "patch_3d": (8, 8, 8),
        "vocabulary": 64,
        "text_rows": 16,
        "text": {"source": "", "longest": 12},
    },
    "data": {"workers": 0},
    "optim": {"max_steps": 2, "batch_size": 2},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0, "micro_batch": 2},
}
TABLE = """
pubmed20k text_classification 5 1 1x1x1 64 5 2e-4
chestxr classification 3 1 1x224x224 32 80 5e-5
nct-crc-he classification 9 3 1x224x224 32 10 1e-4
ricord classification 2 1 64x192x192 8 200 1e-5
qata-cov19 segmentation 1 1 1x224x224 16 100 1e-4
glas segmentation 1 3 1x512x512 4 100 1e-4
lits segmentation 2 1 64x192x192 2 100 1e-4
vs segmentation 1 1 64x192x192 2 100 1e-4
la segmentation 1 1 64x192x192 2 80 5e-5
"""
"""Task, classes besides background, channels, view along (z, y, x), batch, epochs, learning rate."""
ROWS = {f"medcoss-{cells[0]}": cells[1:] for cells in map(str.split, TABLE.strip().splitlines())}


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohorts:
    """Makes a dataset of three cases; recipes of one shape share one."""
    return Cohorts(tmp_path_factory)


def small(name: str, dataset: Dataset) -> RunConfig:
    """The recipe at the smallest size that its network takes."""
    task = recipe(name).task
    depth = recipe_config(name, Path()).data.size[0]
    size = (1, 1, 1) if task == "text_classification" else (1, 16, 24) if depth == 1 else (16, 16, 24)
    wished = {"feature_size": 2} if task == "segmentation" else {"hidden": (8,)} if name == "medcoss-ricord" else {}
    changes = {**SMALL, "data": {"workers": 0, "size": size}, "task": wished}
    return recipe_config(name, dataset.folder, contrasts=dataset.info.contrasts, changes=changes)


@pytest.mark.parametrize("name", ROWS)
def test_numbers_are_the_published_ones(name: str) -> None:
    task, outputs, channels, size, batch, epochs, lr = ROWS[name]
    found, config = recipe(name), recipe_config(name, Path("data"), weights="checkpoint-299.pth")
    optim, data = config.optim, config.data
    assert found.task == task
    assert len(found.dataset.classes) == int(outputs) + (task == "segmentation")
    assert len(found.dataset.channels) == int(channels)
    assert data.size == tuple(int(side) for side in size.split("x"))
    assert (optim.batch_size, optim.epochs, optim.lr) == (int(batch), float(epochs), float(lr))
    assert (optim.weight_decay, optim.decay_all, optim.clip_grad, optim.layer_decay) == (1e-4, True, 12, 1)
    assert (optim.betas, optim.warmup, optim.schedule, optim.min_lr) == ((0.9, 0.999), 0, "poly", 0)
    assert optim.max_steps == (250 * int(epochs) if task == "segmentation" else None)
    rates = [learning_rate(step, 250 * int(epochs), optim) for step in (0, 249, 250, 499)]
    assert rates[0] == rates[1] == float(lr)
    assert rates[2] == rates[3] == pytest.approx(float(lr) * (1 - 1 / int(epochs)) ** 0.9)
    assert config.engine.precision == "fp32"
    if task == "segmentation":
        wanted = config.task.model_dump()  # type: ignore[union-attr]
        names = ("decoder", "loss", "overlap", "blend", "sigma", "pad_end", "fill", "test_flips")
        sigma = 0.25 if data.size[0] == 1 else 0.125
        assert [wanted[key] for key in names] == ["unetr", "dice_bce", 0.5, "nnunet", sigma, True, -1.0, True]


def test_what_a_preset_says_besides_is_overruled() -> None:
    seen = {name.removeprefix("medcoss-"): recipe_config(name, Path("data")).data for name in ROWS}
    for name in ("chestxr", "nct-crc-he"):
        assert (seen[name].intensity.profile, seen[name].intensity.high) == ("scaled", None)  # by 255
        augment = seen[name].augment
        assert (augment.colours, augment.grey, augment.smooth, augment.flip) == (0.8, 0.2, 0.5, (0, 0, 0.5))
        assert (augment.noise, augment.contrast) == (0, 0)
    assert seen["nct-crc-he"].contrasts == ("blue", "green", "red")
    assert seen["glas"].contrasts == ("red", "green", "blue")
    clip = seen["ricord"].intensity
    assert (clip.profile, clip.low, clip.high, clip.mean, clip.std) == ("standard", -1024, 325, 158.58, 324.7)
    profiles = [seen[name].intensity.profile for name in ("qata-cov19", "glas", "vs", "la", "lits")]
    assert profiles == ["zscore", "zscore", "zscore", "identity", "window"]
    assert {name: data.foreground for name, data in seen.items() if name in ("lits", "vs", "la")} == {
        "lits": 0.5,
        "vs": 0.5,
        "la": 0.0,
    }


def test_all_nine_are_there() -> None:
    assert set(recipes("medcoss")) == set(ROWS)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "medcoss-pubmed20k"])
def test_every_recipe_trains_two_steps_and_predicts(name: str, cohort: Cohorts, tmp_path: Path) -> None:
    dataset = cohort(name)
    assert [one for one in misfits(recipe(name), dataset) if one.kind == "error"] == []
    run = RunDirectory.create(tmp_path / "run", small(name, dataset))
    assert execute(run) == 0, run.error()
    loaded = load_model(run.path)
    assert loaded.config.recipe == name
    volumes, label, _ = phantom(name, 9)
    found = predict_volumes(loaded, volumes, device="cpu")
    classes = list(recipe(name).dataset.classes)
    if label is None:
        assert list(found.values) == classes
        assert sum(found.values.values()) == pytest.approx(1, abs=1e-4)
    else:
        assert found.labels is not None
        assert found.labels.geometry.same_grid(volumes[0].geometry)
        assert list(found.volumes_ml) == classes[1:]


def test_sentences_train_two_steps_and_are_predicted(cohort: Cohorts, tmp_path: Path) -> None:
    name = "medcoss-pubmed20k"
    dataset = cohort(name)
    assert [one for one in misfits(recipe(name), dataset) if one.kind == "error"] == []
    run = RunDirectory.create(tmp_path / "run", small(name, dataset))
    assert execute(run) == 0, run.error()
    assert {"auc_pairs", "accuracy", "f1"} < {row[0] for row in score_split(run.path, dataset.folder, "val").rows}
    (tmp_path / "in.csv").write_text("Text\na typical sentence\n")
    predict_csv(run.path, tmp_path / "in.csv", tmp_path / "out.csv", device="cpu")
    with (tmp_path / "out.csv").open(newline="") as stream:
        assert len(next(csv.DictReader(stream))["Predictions"].split(",")) == 5


def test_an_organ_is_learnt_with_its_tumour_and_scored_so(cohort: Cohorts, tmp_path: Path) -> None:
    config = small("medcoss-lits", cohort("medcoss-lits"))
    run = RunDirectory.create(tmp_path / "run", config)
    assert execute(run) == 0, run.error()
    table = score_split(run.path, cohort("medcoss-lits").folder, "val")
    assert {"liver", "tumour", "organ"} <= {row[1] for row in table.rows}
    assert load_model(run.path).module.out.conv.conv.out_channels == 2  # type: ignore[union-attr]


def test_the_list_is_readable_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list", "--system", "medcoss"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} > set(ROWS)
    assert main(["recipes", "show", "medcoss-qata-cov19"]) == 0
    assert "--label-values 255 1" in capsys.readouterr().out
