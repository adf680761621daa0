"""VoCo's recipes: faithful to the published table, and each trains and predicts on phantoms of its own kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.recipe_kit import Cohorts, phantom
from training_backend.cli import main
from training_backend.config import IngestConfig, RunConfig
from training_backend.config.recipes import recipe, recipe_config, recipes
from training_backend.data.dataset import Dataset
from training_backend.data.fits import check_fit, misfits
from training_backend.data.ingest import ingest
from training_backend.data.volume import Volume
from training_backend.data.write import write_volume
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import DataError
from training_backend.evaluate.predict import predict_volumes
from training_backend.evaluate.score import score_split
from training_backend.weights.load import load_model

WIDTH = 100
"""Columns of a terminal."""
SMALL = {
    "method": {"feature_size": 3, "window": 3},
    "task": {"overlap": 0.0},
    "data": {"size": (32, 32, 64), "crops_per_volume": 1, "workers": 0},
    "optim": {"max_steps": 2, "batch_size": 1},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0, "activation_checkpointing": False},
}
TABLE = """
3d-ircadb 15/5/0 1 3 -175..250 1.5/1.5/1.5 96x96x96 4 1:1 500 5 10 3e-4 1e-5
acdc 160/40/100 1 4 zscore native 192x192x32 2 1:1 300 5 10 3e-4 1e-5
aiib23 95/25/0 1 2 -1000..500 1.25/1.25/5 192x192x32 2 1:1 500 5 20 3e-4 .005
amos-mri 48/12/40 1 16 zscore native 192x192x32 2 9:1 300 5 10 3e-4 1e-5
asoca 20/20/0 1 2 0..600 1/1/1 96x96x96 4 1:1 500 5 10 3e-4 1e-5
atlas-mri 45/15/0 1 3 zscore native 96x96x96 2 1:1 300 5 10 3e-4 1e-5
abdomen1k 361/0/100 1 5 -175..250 1.5/1.5/1.5 96x96x96 4 9:1 1000 50 1000 3e-4 .005
abdomenatlas 4156/1039/0 1 10 -175..250 1.5/1.5/2 96x96x96 4 9:1 100 5 100 1e-3 1e-5
amos 200/100/200 1 16 -175..250 1.5/1.5/1.5 96x96x96 4 9:1 1000 50 1000 3e-4 .005
aorta 42/14/0 1 2 -175..250 1.5/1.5/1.5 96x96x96 4 1:1 500 5 10 3e-4 1e-5
bhsd 153/39/0 1 6 0..100 1/1/5 192x192x32 2 1:1 500 5 10 3e-4 1e-5
brats 387/97/266 4 4 zscore native 128x128x128 2 1:1 300 5 10 3e-4 1e-5
brats21 folds 4 4 zscore native 128x128x128 1 1:1 100 5 5 3e-4 1e-5
btcv 24/6/20 1 14 -175..250 1.5/1.5/1.5 96x96x96 4 9:1 1000 20 10 3e-4 1e-5
chaos 16/4/0 1 2 -175..250 1.5/1.5/5.5 96x96x96 4 1:1 500 5 10 3e-4 1e-5
covid folds 1 2 -1000..500 1.25/1.25/5 192x192x32 3 1:1 1000 5 20 3e-4 1e-5
colon 100/26/64 1 2 -175..250 1/1/5 192x192x32 2 1:1 500 5 10 3e-4 1e-5
fumpe 28/7/0 1 2 -1000..500 1.25/1.25/3 192x192x32 2 1:1 1000 5 20 3e-4 .005
flare22 40/10/200 1 14 -175..250 1.5/1.5/1.5 96x96x96 4 9:1 1000 100 50 3e-4 .005
heart 16/4/10 1 2 zscore native 128x128x64 2 1:1 300 5 10 3e-4 1e-5
hip 208/52/130 1 3 zscore native 64x64x64 2 1:1 300 5 10 3e-4 1e-5
kits 465/24/0 1 3 -175..250 1.5/1.5/1.5 96x96x96 2 1:1 500 5 10 3e-4 1e-5
kipa 56/14/30 1 5 900..1400 1/1/1 128x128x128 2 1:1 500 5 10 3e-4 1e-5
lndb 205/31/0 1 2 -1000..500 1.25/1.25/5 160x160x32 2 1:1 1000 5 20 3e-4 .005
lits 108/23/70 1 3 -175..250 1.5/1.5/1.5 96x96x96 2 1:1 500 5 10 3e-4 1e-5
lung 50/13/32 1 2 -1000..500 1.25/1.25/5 128x128x128 4 1:1 1000 5 20 3e-4 .005
mm-whs 16/4/0 1 8 0..1700 1.5/1.5/1.5 64x64x64 4 9:1 500 50 5 3e-4 1e-5
mm-whs-mri 15/5/40 1 8 zscore native 96x96x96 4 1:1 300 5 10 3e-4 1e-5
panorama 1782/447/0 1 7 -175..250 1.5/1.5/1.5 96x96x96 4 3:1 1000 5 10 3e-4 1e-5
pengwin 100/0/0 1 31 -175..250 1.5/1.5/1.5 96x96x96 4 3:1 1000 5 10 3e-4 1e-5
panc 257/24/139 1 3 -175..250 1.5/1.5/1.5 96x96x96 2 1:1 500 5 10 3e-4 1e-5
parse22 80/20/0 1 2 -1000..500 1.25/1.25/3 192x192x32 2 1:1 500 5 20 3e-4 .005
prostate 50/14/32 2 3 zscore native 192x192x32 2 1:1 300 5 10 3e-4 1e-5
segthor 40/0/20 1 5 -1000..500 1.5/1.5/1.5 96x96x96 4 3:1 1000 5 10 3e-4 1e-5
sliver07 16/4/0 1 2 -175..250 1.5/1.5/1.5 96x96x96 4 1:1 500 5 10 3e-4 1e-5
spleen 32/9/20 1 2 -175..250 1.5/1.5/1.5 96x96x96 4 3:1 500 5 10 3e-4 1e-5
structseg19 40/10/0 1 23 -600..1500 1.25/1.25/5 192x192x32 2 1:1 500 5 10 3e-4 1e-5
tcia-panc 64/16/0 1 2 -175..250 1.5/1.5/1.5 96x96x96 4 1:1 500 5 10 3e-4 1e-5
totalsegmentator 911/228/65 1 105 -1000..1000 1.5/1.5/1.5 96x96x96 4 3:1 500 5 200 3e-4 .005
vessel 242/61/140 1 3 -175..250 1/1/5 192x192x32 2 1:1 500 5 10 3e-4 1e-5
word 100/20/30 1 17 -175..250 1.5/1.5/1.5 96x96x96 4 9:1 200 5 10 3e-4 1e-5
"""
"""Cases, channels, classes, intensities, spacing and view along (x, y, z), patches, crops on labelled voxels to others,
epochs, those of the warm-up and between validations, learning rate, weight decay."""
ROWS = {f"voco-{cells[0]}": cells[1:] for cells in map(str.split, TABLE.strip().splitlines())}
FOLDS = {"voco-brats21": 1001, "voco-covid": 159, "voco-abdomen1k": 289, "voco-segthor": 32, "voco-pengwin": 80}
"""Training cases where four of five folds are trained on."""


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohorts:
    """Makes a dataset of three cases; recipes of one shape share one."""
    return Cohorts(tmp_path_factory)


def small(name: str, dataset: Dataset) -> RunConfig:
    """The recipe at the smallest size that its network takes."""
    return recipe_config(name, dataset.folder, contrasts=dataset.info.contrasts, changes=SMALL)


def test_there_is_a_recipe_for_each_of_the_published_datasets() -> None:
    assert len(ROWS) == 41
    found = {name for name, one in recipes("voco").items() if one.task == "segmentation"}
    assert {name for name in found if not name.startswith("vocomni-")} == set(ROWS)  # these are pre-training


@pytest.mark.parametrize("name", ROWS)
def test_numbers_are_the_published_ones(name: str) -> None:
    cases, channels, classes, window, spacing, view, patches, crops, epochs, warm, every, lr, decay = ROWS[name]
    facts, config = recipe(name).dataset, recipe_config(name, Path("data"), weights="VoCo_B_SSL_head.pt")
    data, optim, task = config.data, config.optim, config.task
    assert (len(facts.channels), len(facts.classes)) == (int(channels), int(classes))
    assert len(data.contrasts) == (int(channels) if channels != "1" else 0)
    mm = None if spacing == "native" else tuple(float(step) for step in reversed(spacing.split("/")))
    assert facts.spacing_mm == mm
    assert facts.modality == ("MR" if mm is None else "CT")
    assert data.size == tuple(int(side) for side in reversed(view.split("x")))
    wanted = ("zscore_nonzero", None, None) if window == "zscore" else ("window", *map(float, window.split("..")))
    assert (data.intensity.profile, data.intensity.low, data.intensity.high) == wanted
    positive, negative = map(int, crops.split(":"))
    assert data.foreground == pytest.approx(positive / (positive + negative), abs=1e-4)
    assert (data.crops_per_volume, optim.batch_size, optim.epochs) == (int(patches), int(patches), float(epochs))
    assert optim.warmup * optim.epochs == pytest.approx(int(warm))
    assert (optim.lr, optim.weight_decay, optim.decay_all) == (float(lr), float(decay), True)
    assert (optim.warmup_start, optim.schedule, optim.min_lr) == ("zero_to_peak", "cosine", 0)
    counted = facts.splits.cases
    assert counted == (None if cases == "folds" else tuple(map(int, cases.split("/"))))
    assert facts.splits.validation == ("kfold" if name in FOLDS else "official")
    trained = FOLDS[name] if name in FOLDS or counted is None else counted[0]
    assert config.engine.val_steps == int(every) * trained
    assert (task.decoder, task.loss) == ("swinunetr", "dice_ce_foreground")  # type: ignore[union-attr]
    assert (task.overlap, task.blend) == (0.75, "constant")  # type: ignore[union-attr]


def test_changes_at_random_are_those_of_each_script() -> None:
    changes = {name: recipe_config(name, Path("data")).data.augment for name in ROWS}
    for name, augment in changes.items():
        mr = recipe(name).dataset.modality == "MR"
        assert augment.flip == ((0.1,) * 3 if mr else (0.2,) * 3)
        assert augment.quarter_turn == (0.0 if mr else 0.2)
        assert augment.noise == augment.smooth == augment.contrast == augment.rotate == augment.scale == 0
    shifts = {name: augment.shift for name, augment in changes.items() if recipe(name).dataset.modality == "CT"}
    assert {name for name, shift in shifts.items() if shift == 0.5} == {"voco-btcv", "voco-word"}
    assert {name for name, shift in shifts.items() if shift == 0} == {
        f"voco-{name}" for name in ("abdomen1k", "amos", "lung", "mm-whs")
    }
    scaled = {name for name, augment in changes.items() if augment.brightness}
    assert scaled == {"voco-btcv", "voco-flare22", "voco-word"}
    exact = {name for name in ROWS if recipe_config(name, Path("data")).engine.precision == "fp32"}
    assert exact == {"voco-mm-whs", "voco-totalsegmentator"}


@pytest.mark.parametrize("name", ROWS)
def test_every_recipe_trains_two_steps_and_predicts_a_scan(name: str, cohort: Cohorts, tmp_path: Path) -> None:
    dataset = cohort(name)
    assert [one for one in misfits(recipe(name), dataset) if one.kind == "error"] == []
    run = RunDirectory.create(tmp_path / "run", small(name, dataset))
    assert execute(run) == 0, run.error()
    loaded = load_model(run.path)
    assert loaded.config.recipe == name
    volumes, _, _ = phantom(name, 9)
    found = predict_volumes(loaded, volumes, device="cpu")
    assert found.labels is not None
    assert found.labels.geometry.same_grid(volumes[0].geometry)
    assert list(found.volumes_ml) == list(recipe(name).dataset.classes[1:])


def test_the_list_is_readable_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list", "--system", "voco"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} > set(ROWS)
    assert max(len(line) for line in lines if line.split()[0] in ROWS) <= WIDTH
    assert main(["recipes", "show", "voco-mm-whs"]) == 0
    assert "--label-values 205 1 420 2 500 3 550 4 600 5 820 6 850 7" in capsys.readouterr().out


def brain_tumours(folder: Path, cases: int = 2) -> Path:
    """Scans of four contrasts with label values 1, 2 and 4, and a list with folds, as BraTS 2021 is given."""
    folder.mkdir()
    entries = []
    for index in range(cases):
        volumes, label, _ = phantom("voco-brats21", index)
        assert label is not None
        images = [f"case_{index}_{name}.nii.gz" for name in ("flair", "t1ce", "t1", "t2")]
        for volume, image in zip(volumes, images, strict=True):
            write_volume(volume, folder / image)
        marks = np.where(label.array == 3, 4, label.array)
        write_volume(Volume(marks, label.geometry, name="seg", meta={"kind": "labels"}), folder / f"seg_{index}.nii.gz")
        entries.append({"image": images, "label": f"seg_{index}.nii.gz", "fold": (index + 1) % 2})
    path = folder / "list.json"
    path.write_text(json.dumps({"training": entries}))
    return path


def test_brain_tumours_are_renumbered_stacked_and_scored_as_regions(tmp_path: Path) -> None:
    found = recipe("voco-brats21")
    listed = brain_tumours(tmp_path / "scans")
    ingest(listed, tmp_path / "raw", IngestConfig(workers=0))
    with pytest.raises(DataError, match=r"4 classes .* but the dataset has label value 4"):
        check_fit(found, tmp_path / "raw")

    ingest(listed, tmp_path / "data", IngestConfig(workers=0, label_values=found.dataset.label_values))
    check_fit(found, tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    assert [len(dataset.cases(split=split)) for split in ("train", "val")] == [1, 1]  # type: ignore[arg-type]
    assert dataset.info.contrasts == ("image 0", "image 1", "image 2", "image 3")
    config = small("voco-brats21", dataset)
    assert config.data.contrasts == dataset.info.contrasts
    run = RunDirectory.create(tmp_path / "run", config)
    assert execute(run) == 0, run.error()
    events = (run.path / "events.jsonl").read_text()
    assert re.search(r'"dice_TC": ?[\d.]', events)
    assert '"regions"' in events
    table = score_split(run.path, tmp_path / "data", "val")
    assert {row[1] for row in table.rows} == {"class 1", "class 2", "class 3", "mean", "TC", "WT", "ET", "regions"}


def test_a_list_that_names_missing_cases_says_which(tmp_path: Path) -> None:
    listed = brain_tumours(tmp_path / "scans")
    (tmp_path / "scans" / "case_1_t1.nii.gz").unlink()
    report = ingest(listed, tmp_path / "data", IngestConfig(workers=0))
    assert len(report.ok) == 1
    (left,) = report.quarantined
    assert left.category == "missing"
    assert "case_1_t1.nii.gz" in left.path
    assert "does not exist" in left.reason
    (tmp_path / "scans" / "seg_0.nii.gz").unlink()
    with pytest.raises(DataError, match=r"No scan was found .*does not exist"):
        ingest(listed, tmp_path / "none", IngestConfig(workers=0))
    assert not (tmp_path / "none" / "manifest.jsonl").exists()


def test_what_the_data_lacks_is_told(cohort: Cohorts) -> None:
    spleen = cohort("voco-spleen").folder
    with pytest.raises(DataError, match="stacks 2 contrasts"):
        check_fit(recipe("voco-prostate"), spleen)
    with pytest.raises(DataError, match="for MR, but the dataset holds CT"):
        check_fit(recipe("voco-heart"), spleen)
    with pytest.raises(DataError, match=r"2 classes \(background, spleen\), but the dataset has label value 13"):
        check_fit(recipe("voco-spleen"), cohort("voco-btcv").folder)
    told = [one.sentence for one in misfits(recipe("voco-lits"), cohort("voco-spleen"))]
    assert any("no case has tumor" in sentence for sentence in told)
    told = [one.sentence for one in misfits(recipe("voco-btcv"), cohort("voco-btcv"))]
    assert any("train on 24 cases and validate on 6, the dataset has 2 and 1" in sentence for sentence in told)
