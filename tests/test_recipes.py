"""Recipes: valid, faithful where published, checked against a dataset, and every one of them trains and predicts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from tests.recipe_kit import Cohorts, phantom
from training_backend.cli import main
from training_backend.config import RunConfig
from training_backend.config import recipes as catalogue
from training_backend.config.presets import pretrain_config
from training_backend.config.recipes import Recipe, matched, recipe, recipe_config, recipes
from training_backend.data.fits import check_fit, misfits
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.predict import predict_volumes
from training_backend.settings import _defaults
from training_backend.weights.load import load_model

PUBLISHED = {
    "msd03-liver": ((1.0, 1.0, 1.0), 1000, (-21, 189)),
    "msd06-lung": ((1.0, 1.0, 1.0), 1000, (-1000, 1000)),
    "msd07-pancreas": ((1.5, 1.0, 1.0), 500, (-87, 199)),
    "msd08-hepatic-vessel": ((1.5, 1.0, 1.0), 500, (0, 230)),
    "msd09-spleen": ((1.0, 1.0, 1.0), 1000, (-57, 175)),
    "msd10-colon": ((1.5, 1.0, 1.0), 1000, (-57, 175)),
}
"""Spacing (z, y, x), epochs, window."""
SMALL = {
    "method": {"embed_dim": 12, "depth": 4, "heads": 2, "mlp_dim": 24, "patch_size": (8, 8, 8)},
    "data": {"size": (16, 16, 16), "workers": 0},
    "optim": {"max_steps": 2, "batch_size": 2},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0, "micro_batch": 2},
}


def small(name: str, folder: Path, contrasts: tuple[str, ...], weights: str = "") -> RunConfig:
    """The recipe at a size that trains in a second."""
    changes = {
        **SMALL,
        **({"task": {"feature_size": 2, "overlap": 0.25}} if recipe(name).task == "segmentation" else {}),
    }
    return recipe_config(name, folder, weights=weights, contrasts=contrasts, changes=changes)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohorts:
    """Makes a dataset of three cases; recipes of one shape share one."""
    return Cohorts(tmp_path_factory)


@pytest.mark.parametrize("name", sorted(recipes("ar")))
def test_every_recipe_trains_two_steps_and_predicts_a_scan(name: str, cohort: Cohorts, tmp_path: Path) -> None:
    dataset = cohort(name)
    assert [one for one in misfits(recipe(name), dataset) if one.kind == "error"] == []
    config = small(name, dataset.folder, dataset.info.contrasts)
    run = RunDirectory.create(tmp_path / "run", config)
    assert execute(run) == 0, run.error()
    loaded = load_model(run.path)
    assert loaded.config.recipe == name
    volumes, label, _ = phantom(name, 9)
    found = predict_volumes(loaded, volumes, device="cpu")
    classes = recipe(name).dataset.classes
    if label is None:
        assert list(found.values) == list(classes)
        assert sum(found.values.values()) == pytest.approx(1, abs=1e-4)
    else:
        assert found.labels is not None
        assert found.labels.geometry.same_grid(volumes[0].geometry)
        assert set(found.volumes_ml) == set(classes[1:])


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_is_a_valid_run_whose_views_fit_the_patches(name: str) -> None:
    for weights in ("", "encoder.pth"):
        config = recipe_config(name, Path("data"), weights=weights)
        assert config.recipe == name
        assert config.weights == weights
        step = 32 if config.data.view == "crop" else 16  # what looks at whole volumes pads them
        patch = getattr(config.method, "patch_size", (step,) * 3)
        assert all(n % p == 0 or n == 1 for n, p in zip(config.data.size, patch, strict=True))  # 1: pictures and texts
        assert config.optim.batch_size % (config.engine.micro_batch or 1) == 0
    found = recipe(name)
    assert found.notes
    assert {note.source for note in found.notes} <= {"published", "ours"}
    assert Recipe.parse(yaml.safe_load(found.to_yaml())) == found


@pytest.mark.parametrize("name, facts", PUBLISHED.items())
def test_published_decathlon_recipes_have_the_published_numbers(name: str, facts: tuple[object, ...]) -> None:
    found = recipe(name)
    config = recipe_config(name, Path("data"), weights="encoder.pth")
    intensity = config.data.intensity
    assert (found.dataset.spacing_mm, config.optim.epochs, (intensity.low, intensity.high)) == facts
    assert intensity.profile == "window"
    assert config.optim.warmup * config.optim.epochs == pytest.approx(50)
    assert (config.optim.lr, config.optim.weight_decay, config.optim.layer_decay) == (3e-4, 0.05, 0.75)
    assert (config.task.decoder, config.task.loss, config.task.overlap) == ("unetr", "dice_ce_squared", 0.75)
    scratch = recipe_config(name, Path("data")).optim
    assert (scratch.lr, scratch.weight_decay, scratch.layer_decay) == (1e-4, 1e-5, 1.0)


def test_the_left_atrium_is_decayed_less_and_never_validated_on_its_test_list() -> None:
    config = recipe_config("la", Path("data"), weights="encoder.pth")
    assert (config.data.size, config.optim.layer_decay) == ((64, 192, 192), 0.9)
    assert recipe("la").dataset.splits.model_dump(exclude_none=True) == {
        "test": "official",
        "validation": "kfold",
        "folds": 5,
    }


def test_channels_go_by_the_names_of_the_dataset() -> None:
    wanted = ("FLAIR", "T1w", "t1gd", "T2w")
    assert matched(wanted, ("t2w", "flair", "T1-Gd", "T1w")) == ("flair", "T1w", "T1-Gd", "t2w")
    assert matched(wanted, ("a", "b", "c", "d")) == ("a", "b", "c", "d")
    assert matched(wanted, ("FLAIR", "T1w")) == ()
    assert recipe_config("msd01-brain-tumour", Path("d"), contrasts=("a", "b", "c", "d")).data.contrasts == tuple(
        "abcd"
    )


def test_unknown_names_and_keys_are_answered_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'msd06-lung'"):
        recipe("msd06-lungs")
    values = yaml.safe_load(recipe("la").to_yaml())
    with pytest.raises(ConfigError, match="did you mean 'dataset'"):
        Recipe.parse({**values, "datasett": {}})
    with pytest.raises(ConfigError, match="run and scratch know"):
        Recipe.parse({**values, "run": {"optimm": {}}})
    with pytest.raises(ConfigError, match="first class"):
        Recipe.parse({**values, "dataset": {**values["dataset"], "classes": ["atrium", "rest"]}})
    (tmp_path / "ar").mkdir()
    (tmp_path / "ar" / "wrong.yaml").write_text(recipe("la").to_yaml())
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"wrong\.yaml"):
        catalogue._all.__wrapped__()


def test_a_dataset_that_does_not_fit_is_refused_with_every_reason(cohort: Cohorts) -> None:
    lung = cohort("msd06-lung")
    with pytest.raises(DataError) as refused:
        check_fit(recipe("msd01-brain-tumour"), lung.folder)
    assert "stacks 4 contrasts (FLAIR, T1w, t1gd, T2w), but the dataset has CT." in str(refused.value)
    assert "for MR, but the dataset holds CT" in str(refused.value)
    with pytest.raises(DataError, match=r"2 classes \(background, cancer\), but the dataset has label value 2"):
        check_fit(recipe("msd06-lung"), cohort("msd03-liver").folder)
    with pytest.raises(DataError, match="no case has a target"):
        check_fit(recipe("ricord"), lung.folder)
    with pytest.raises(DataError, match="no case has a label map"):
        check_fit(recipe("msd06-lung"), cohort("ricord").folder)


def test_what_only_deserves_a_warning_is_told(cohort: Cohorts) -> None:
    sentences = [one.sentence for one in misfits(recipe("msd07-pancreas"), cohort("msd06-lung"))]
    assert any("voxels of 1.5 x 1 x 1 mm (z, y, x), the dataset has 1 x 1 x 1 mm" in text for text in sentences)
    assert any("no case has cancer" in text for text in sentences)
    dataset = cohort("la")
    assert any("official test list" in one.sentence for one in misfits(recipe("la"), dataset))


def test_the_command_line_lists_shows_and_trains_by_a_recipe(
    cohort: Cohorts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", "list", "--system", "ar"]) == 0
    assert "msd09-spleen" in capsys.readouterr().out
    assert main(["recipes", "show", "msd09-spleen"]) == 0
    shown = capsys.readouterr().out
    assert Recipe.parse(yaml.safe_load(shown)) == recipe("msd09-spleen")
    assert "data split DATASET --folds 5" in shown
    assert main(["recipes", "show", "spleen"]) == 1
    assert "no recipe called 'spleen'" in capsys.readouterr().err

    data, output = str(cohort("msd09-spleen").folder), str(tmp_path / "run")
    flags = ["--data.size", "16", "16", "16", "--method.patch-size", "8", "8", "8", "--method.embed-dim", "12"]
    flags += ["--method.heads", "2", "--method.depth", "4", "--task.feature-size", "2", "--optim.max-steps", "1"]
    flags += ["--optim.batch-size", "1", "--engine.device", "cpu", "--engine.threads", "1", "--task.overlap", "0.25"]
    assert main(["finetune", "--recipe", "msd09-spleen", "--data", data, "--output", output, *flags]) == 0
    written = RunDirectory.open(Path(output)).config()
    assert (written.recipe, written.method.name, written.task.classes) == (
        "msd09-spleen",
        "ar",
        ("background", "spleen"),
    )
    assert (written.optim.lr, written.optim.max_steps, written.data.intensity.low) == (1e-4, 1, -57.0)

    refused = ["finetune", "--recipe", "msd02-heart", "--data", data, "--output", str(tmp_path / "other")]
    assert main(refused) == 1
    assert "for MR, but the dataset holds CT" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--recipe", "la", "--task", "classification"], "task segmentation, but classification was given"),
        (["--recipe", "la", "--method", "mae3d"], "method ar, but mae3d was given"),
        (["--recipe", "la", "--preset", "tiny"], "preset published, but tiny was given"),
    ],
)
def test_flags_that_contradict_a_recipe_are_named(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        _defaults("finetune", arguments)
    with pytest.raises(ConfigError, match="for fine-tuning"):
        _defaults("pretrain", arguments[:2])


def test_weights_decide_the_optimiser_and_a_file_lies_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "changes.yaml"
    file.write_text("optim: {epochs: 7}\n")
    weights = str(RunDirectory.create(tmp_path / "ar", pretrain_config("ar", "tiny", tmp_path)).path)
    config = _defaults("finetune", ["--recipe", "la", "--weights", weights, "--config", str(file)])
    assert (config.optim.lr, config.optim.epochs, config.weights) == (3e-4, 7, weights)
    assert math.isclose(_defaults("finetune", ["--recipe", "la"]).optim.lr, 1e-4)
