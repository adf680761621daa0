"""The registration task: learning, scores, a whole run, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.api import evaluate, predict
from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import PRESETS, finetune_config
from training_backend.config.registry import method, task
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.manifest import ClassEntry
from training_backend.data.phantom_deformed import deformed_head
from training_backend.data.phantom_shapes import Phantom, centred, ellipsoid, patient_axes
from training_backend.data.phantoms import write_cohort
from training_backend.data.read import read_volume
from training_backend.data.volume import Volume
from training_backend.data.write import write_volume
from training_backend.engine.preview import read_preview, write_preview
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.runtime import Runtime
from training_backend.engine.step import optimise
from training_backend.engine.validate import validate
from training_backend.engine.work import open_work
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, DataError, GeometryError
from training_backend.methods.base import Batch
from training_backend.tasks.base import Cancelled, CaseResult
from training_backend.tasks.registration import TASK, label_names, measures

SMALL: dict[str, Any] = {
    "method": {"size": "tiny", "patch_size": (8, 8, 8), "embed_dim": 24, "heads": 2, "depth": 2},
    "task": {"channels": (8, 16), "smooth_weight": 0.3},
    "data": {"size": (24, 24, 24), "workers": 0},
    "optim": {"max_steps": 4, "batch_size": 2, "lr": 1e-2, "warmup": 0.0},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 2, "preview_minutes": 0},
}


CLASSES = (
    ClassEntry(index=1, name="organ", colour="#e69f00"),
    ClassEntry(index=2, name="core", colour="#56b4e9"),
)


def blob(seed: int, shape: tuple[int, int, int]) -> Phantom:
    """An organ with a core, of another place and shape for each seed."""
    rng = np.random.default_rng([seed, 5])
    grid = centred(shape, (1.0, 1.0, 1.0))
    z, y, x = rng.uniform(-2.5, 2.5, 3)
    a, b, c = rng.uniform(5.5, 8.5, 3)
    distance = ellipsoid(patient_axes(grid), (z, y, x), (a, b, c))
    labels = (distance < 1).astype(np.uint8) + (distance < 0.5)
    signal = np.choose(labels, (60, 200, 300)) + rng.normal(0, 8, shape)
    volume = Volume(signal.astype(np.float32), grid, "MR", f"blob {seed}", {"contrast": "T1"})
    marks = Volume(labels.astype(np.uint8), grid, name="labels", meta={"kind": "labels"})
    return Phantom((volume,), marks, CLASSES, "", 0)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight blobs with label maps, five for training and three for validation."""
    root = tmp_path_factory.mktemp("blobs")
    write_cohort(root / "cohort", 8, seed=1, shape=(24, 24, 24), kind=blob)
    ingest([root / "cohort"], root / "dataset", IngestConfig(workers=0, splits=(0.6, 0.4, 0.0), crop_body=False))
    return root / "dataset"


def config(dataset: Path, **changes: Any) -> RunConfig:
    return finetune_config("registration", "tiny", dataset, changes=SMALL).updated(changes)


@pytest.fixture(scope="module")
def finished(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory.create(tmp_path_factory.mktemp("registration") / "run", config(blobs))
    assert execute(run) == 0, run.error()
    return run


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_whole_scans_and_two_channels(preset: str) -> None:
    run = finetune_config("registration", preset, Path("data"))
    assert run.data.view == "volume"
    assert run.channels() == 2
    assert run.channels(1) == 2  # weights that were trained on single scans
    assert task("registration") is TASK


def test_published_preset_is_the_authors_recipe() -> None:
    run = finetune_config("registration", "published", Path("data"))
    assert (run.optim.batch_size, run.optim.epochs, run.optim.lr, run.optim.schedule) == (1, 100, 1e-4, "poly")
    weights = run.task.model_dump()  # type: ignore[union-attr]
    assert [weights[f"{name}_weight"] for name in ("similarity", "smooth", "dice")] == [1, 1, 1]
    assert (weights["window"], weights["symmetric"]) == (9, True)


def test_registration_brings_scans_closer_than_they_were(blobs: Path) -> None:
    run = config(blobs, optim={"max_steps": 60})
    work = open_work(run, Runtime(run.engine))
    first = validate(work)
    assert first["dice"] == pytest.approx(first["dice_before"], abs=0.01)  # it starts close to no displacement
    for views in work.loader.batches():
        optimise(work, views)
        work.state.progress.step += 1
    last = validate(work)
    assert last["similarity"] > first["similarity"] + 0.05
    assert last["dice"] > last["dice_before"] + 0.1
    assert last["folded"] < 0.05


def test_a_frozen_encoder_and_two_stems_give_displacements_of_the_scans_size(blobs: Path) -> None:
    for stride in (1, 2):
        run = config(blobs, task={"stem_stride": stride, "freeze": "encoder"})
        network = TASK.build(run, method("mae3d").build_encoder(run))
        assert not any(parameter.requires_grad for parameter in network.encoder.parameters())  # type: ignore[union-attr]
        pair = torch.rand(1, 2, 20, 17, 23)
        found = TASK.predict(network, run, pair, None)
        assert found.shape == (3, 20, 17, 23)
        assert float(found.abs().max()) < 0.1
        with pytest.raises(Cancelled):
            TASK.predict(network, run, pair, lambda share: False)
    depths = {name: TASK.layer_id(network, name) for name, _ in network.named_parameters()}
    assert max(depths.values()) == depths["head.0.weight"] == 3


def test_weights_of_single_scans_start_a_network_of_two(blobs: Path, tmp_path: Path) -> None:
    from training_backend.config.presets import pretrain_config
    from training_backend.weights.save import save_model
    from training_backend.weights.transfer import init_from

    plain = {"method": SMALL["method"] | {"decoder_embed_dim": 24, "decoder_heads": 2, "decoder_depth": 1}}
    before = pretrain_config("mae3d", "tiny", blobs, {**plain, "data": {"size": (24, 24, 24)}})
    network = method("mae3d").build(before)
    profile = {"size": (24, 24, 24)}
    save_model(tmp_path, network, {"kind": "pretrain", "config": before.model_dump(mode="json"), "profile": profile})
    run = config(blobs)
    encoder: Any = method("mae3d").build_encoder(run)
    report = init_from(encoder, tmp_path, run)
    assert report.encoder_matched == report.encoder
    kernel = network.state_dict()["patch_embed.proj.weight"]
    assert torch.allclose(encoder.state_dict()["patch_embed.proj.weight"].sum(1), kernel.sum(1), atol=1e-6)


def test_losses_can_be_chosen_and_say_what_lacks(blobs: Path) -> None:
    run = config(blobs)
    network = TASK.build(run, method("mae3d").build_encoder(run))
    pair = torch.rand(1, 2, 24, 24, 24)
    with pytest.raises(DataError, match="Label maps were asked for, but a have none"):
        TASK.training_step(network, Batch(pair, ["a"]), torch.Generator())
    labels = torch.full((1, 2, 24, 24, 24), 9)
    with pytest.raises(DataError, match="a label map has 9"):
        TASK.training_step(network, Batch(pair, ["a"], labels), torch.Generator())
    whole = TASK.training_step(network, Batch(pair, ["a"], labels % 3), torch.Generator())
    without = config(blobs, task={"use_labels": False})
    plain = TASK.build(without, method("mae3d").build_encoder(without))
    assert set(whole.scalars) - set(TASK.training_step(plain, Batch(pair, ["a"]), torch.Generator()).scalars) == {
        "dice_loss"
    }
    with pytest.raises(ConfigError, match="nothing would pull the scans together"):
        config(blobs, task={"similarity_weight": 0.0, "use_labels": False})
    with pytest.raises(ConfigError, match="window must be odd"):
        config(blobs, task={"window": 4})


def test_measures_count_dice_before_and_after(blobs: Path) -> None:
    fixed = np.zeros((8, 8, 8), np.uint8)
    fixed[3:6, 3:6, 3:6] = 1
    moving = np.roll(fixed, 1, axis=2)
    right = np.zeros((3, 8, 8, 8), np.float32)
    right[2] = 1
    pair = np.stack([moving, fixed]).astype(np.float32)
    numbers = measures(right, pair, (moving, fixed), 3, 3)
    similarity, folded, before, absent, after, absent_too = numbers
    assert (folded, after) == (0, 1)
    assert before == pytest.approx(2 / 3)
    assert similarity > 0.9 * measures(0 * right, np.stack([fixed, fixed]).astype(np.float32), None, 0, 3)[0]
    assert np.isnan([absent, absent_too]).all()
    run = config(blobs, task={"classes": ("background", "ball", "other")})
    means = TASK.evaluate(run, [CaseResult("a to b", numbers, np.zeros(0), (1, 1, 1))])
    assert means["score"] == means["dice"] == means["dice_ball"] == 1
    assert means["dice_before"] == pytest.approx(2 / 3)
    assert "dice_other" not in means
    only = TASK.evaluate(run, [CaseResult("a to b", numbers[:2], np.zeros(0), (1, 1, 1))])
    assert only["score"] == only["similarity"]


def test_a_run_scores_pairs_and_writes_what_can_be_compared(finished: RunDirectory, blobs: Path) -> None:
    entries = json.loads((finished.predictions / "cases.json").read_text(encoding="utf-8"))
    assert len(entries) == len(Dataset.open(blobs).cases(split="val"))
    assert all(" to " in entry["case"] and entry["dice"] for entry in entries)
    card = json.loads((finished.path / "card.json").read_text(encoding="utf-8"))
    assert card["config"]["task"]["classes"] == list(label_names(config(blobs)))
    assert 0 < card["scores"]["dice_before"] < 1
    prediction = read_volume(finished.path / entries[0]["prediction"])
    truth = read_volume(blobs / Dataset.open(blobs).info.root / entries[0]["label"])
    assert prediction.geometry.same_grid(truth.geometry)
    table = evaluate(str(finished.path), blobs)
    assert {row[0] for row in table.rows} == {entry["case"] for entry in entries} | {"mean"}


def test_two_files_give_warped_scan_labels_grid_jacobian_and_field(
    finished: RunDirectory, blobs: Path, tmp_path: Path
) -> None:
    source = blobs / Dataset.open(blobs).info.root
    moving, fixed = source / "imagesTr" / "case_000.nii.gz", source / "imagesTr" / "case_001.nii.gz"
    labels = source / "labelsTr" / "case_000.nii.gz"
    table = predict(str(finished.path), (moving, fixed), tmp_path / "out", labels=labels, device="cpu")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    parts = ("warped", "warped_seg", "grid", "jacobian", "displacement")
    assert names == {f"case_000_{part}.nii.gz" for part in parts}
    assert "Largest displacement" in str(table)
    for part in parts[:4]:
        found = read_volume(tmp_path / "out" / f"case_000_{part}.nii.gz")
        assert found.geometry.same_grid(read_volume(fixed).geometry)
    predict(str(finished.path), (moving, fixed), tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / "case_000_warped_2.nii.gz").is_file()  # nothing is replaced
    with pytest.raises(ConfigError, match="takes two scans, but 1 were given"):
        predict(str(finished.path), (moving,), tmp_path / "out", device="cpu")
    small = tmp_path / "small.nii.gz"
    write_volume(deformed_head(1, (12, 13, 14)).labels, small)
    with pytest.raises(GeometryError, match="drawn on the moving scan"):
        predict(str(finished.path), (moving, fixed), tmp_path / "out", labels=small, device="cpu")


def test_pictures_show_both_scans_the_bent_grid_and_the_jacobian(blobs: Path, tmp_path: Path) -> None:
    run = config(blobs)
    work = open_work(run, Runtime(run.engine))
    written = write_preview(work, tmp_path)
    assert written is not None
    facts, arrays = read_preview(written[0])
    assert " to " in facts["case"]
    assert [each.name for each in arrays] == ["fixed", "moving", "warped", "deformation grid", "Jacobian"]
    by_name = {each.name: each.array for each in arrays}
    assert np.abs(by_name["warped"] - by_name["moving"]).max() < 0.05  # nothing was learnt yet
    assert np.allclose(by_name["Jacobian"], 1, atol=0.05)
