"""Predictions of files and volumes: on the grid of the file, whatever the format, the window or the memory."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training_backend.config import IntensityConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.data.prepare import InputProfile
from training_backend.data.read import read_labels, read_volume
from training_backend.data.volume import Geometry, Volume
from training_backend.data.write import write_volume
from training_backend.errors import ConfigError, ResourceError
from training_backend.evaluate import predict
from training_backend.evaluate.predict import predict_files, predict_volumes
from training_backend.tasks.base import Cancelled
from training_backend.weights import load
from training_backend.weights.save import save_model

WINDOW = IntensityConfig(profile="window", low=0.0, high=100.0)
CLASSES = ("background", "dim", "bright")
SMALL = {"size": "tiny", "patch_size": (8, 8, 8), "embed_dim": 24, "heads": 2, "depth": 2}


class Threshold(nn.Module):
    """Dim from 0.3, bright from 0.7 of the intensity range."""

    def __init__(self) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(200.0))

    def forward(self, volume: Tensor) -> tuple[Tensor, ...]:
        x = volume[:, 0] * self.steepness
        return (torch.stack([0 * x, x - 60, 2 * x - 200], dim=1),)


def segmenter(**profile: Any) -> SimpleNamespace:
    config = finetune_config(
        "segmentation",
        "tiny",
        Path("nowhere"),
        changes={"task": {"classes": CLASSES}, "data": {"size": (16, 16, 16)}, "method": SMALL},
    )
    settings = {"intensity": WINDOW, "crop_body": False, "size": (16, 16, 16), **profile}
    return SimpleNamespace(module=Threshold(), config=config, profile=InputProfile(**settings), card={})


def scan(shape: tuple[int, int, int] = (20, 33, 27), degrees: float = 12.0) -> tuple[Volume, np.ndarray]:
    """An oblique, anisotropic scan with two nested ellipsoids, and their labels."""
    angle = math.radians(degrees)
    rotation = np.eye(4)
    rotation[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    affine = rotation @ np.diag([-0.9, 1.1, 2.5, 1.0])
    affine[:3, 3] = [17.0, -40.0, 8.5]
    geometry = Geometry(affine, (shape[2], shape[1], shape[0]))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in geometry.shape), indexing="ij"), -1)
    radius = np.linalg.norm(grid + np.array([0.1, 0.05, -0.15]), axis=-1)
    labels = np.where(radius < 0.4, 2, np.where(radius < 0.75, 1, 0)).astype(np.uint8)
    values = np.array([5, 50, 95], np.int16)[labels]
    return Volume(values, geometry, "MR", "scan"), labels


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("crop_body", [False, True])
def test_labels_lie_exactly_on_the_grid_of_the_scan(crop_body: bool) -> None:
    volume, labels = scan()
    found = predict_volumes(segmenter(crop_body=crop_body), [volume])
    assert found.labels is not None
    assert found.labels.geometry.same_grid(volume.geometry)
    assert np.array_equal(found.labels.array, labels)
    voxel_ml = 0.9 * 1.1 * 2.5 / 1000
    assert found.volumes_ml == pytest.approx(
        {"dim": (labels == 1).sum() * voxel_ml, "bright": (labels == 2).sum() * voxel_ml}
    )


def test_models_of_another_spacing_still_answer_on_the_grid_of_the_scan() -> None:
    volume, labels = scan()
    found = predict_volumes(segmenter(spacing_mm=(1.5, 1.5, 1.5)), [volume], probabilities=True)
    assert found.labels is not None
    assert dice(found.labels.array > 0, labels > 0) > 0.95
    assert dice(found.labels.array == 2, labels == 2) > 0.9
    assert [share.name for share in found.probabilities] == list(CLASSES)
    total = sum(share.array for share in found.probabilities)
    assert np.allclose(total, 1, atol=1e-3)
    assert np.array_equal(np.argmax([share.array for share in found.probabilities], 0), found.labels.array)


def test_classes_are_chosen_on_the_fly_when_probabilities_would_be_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, labels = scan()
    monkeypatch.setattr(predict, "PROBABILITY_BYTES", 0)
    monkeypatch.setattr(predict, "_probabilities", None)
    found = predict_volumes(segmenter(), [volume])
    assert found.labels is not None
    assert np.array_equal(found.labels.array, labels)


def test_scans_smaller_than_the_window_and_flips() -> None:
    volume, labels = scan((5, 7, 40), 0.0)
    found = predict_volumes(segmenter(), [volume], flips=True, overlap=0.25)
    assert found.labels is not None
    assert np.array_equal(found.labels.array, labels)


@pytest.mark.parametrize(
    ("name", "written"),
    [("a b é.nii.gz", "a b é_seg.nii.gz"), ("c.nrrd", "c_seg.nrrd"), ("d.mha", "d_seg.mha"), ("e.npz", "e_seg.nii.gz")],
)
def test_files_get_label_volumes_beside_their_grid(
    name: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_model", lambda source: segmenter())
    volume, labels = scan(degrees=0.0)
    path = tmp_path / name
    if name.endswith(".npz"):
        np.savez(path, volume=volume.array)
    else:
        write_volume(volume, path)
    (found,) = predict_files("model", [path], tmp_path / "out", probabilities=True)
    assert found.path == tmp_path / "out" / written
    assert len(found.probability_paths) == 3
    again = read_labels(found.path)
    assert again.geometry.same_grid(read_volume(path).geometry)
    assert np.array_equal(again.array, labels)
    assert "dim" in found.summary()


def test_results_never_replace_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_model", lambda source: segmenter())
    (tmp_path / "one").mkdir()
    for folder in (tmp_path, tmp_path / "one"):
        write_volume(scan()[0], folder / "scan.nii.gz")
    shares: list[float] = []
    found = predict_files(
        "model",
        [tmp_path / "scan.nii.gz", tmp_path / "one" / "scan.nii.gz"],
        tmp_path,
        progress=lambda share: shares.append(share) is None,
    )
    assert [prediction.path.name for prediction in found] == ["scan_seg.nii.gz", "scan_seg_2.nii.gz"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_saved_model_predicts_as_the_one_in_memory(tmp_path: Path) -> None:
    given = segmenter()
    torch.manual_seed(0)
    given.module = task("segmentation").build(given.config, method("mae3d").build_encoder(given.config)).eval()
    card = {"config": given.config.model_dump(mode="json"), "profile": given.profile.model_dump(mode="json")}
    save_model(tmp_path / "model", given.module, {**card, "kind": "finetune"})
    volume, _ = scan()
    write_volume(volume, tmp_path / "scan.nii.gz")
    (found,) = predict_files(tmp_path / "model", [tmp_path / "scan.nii.gz"], tmp_path)
    expected = predict_volumes(given, [volume]).labels
    assert expected is not None
    assert len(np.unique(expected.array)) > 1
    assert np.array_equal(read_labels(found.path).array, expected.array)


def test_classifiers_add_rows_to_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = finetune_config(
        "classification",
        "tiny",
        Path("nowhere"),
        changes={
            "task": {"kind": "multiclass", "classes": 3, "class_names": ("a", "b", "c")},
            "data": {"size": (16, 16, 16)},
            "method": SMALL,
        },
    )
    network = task("classification").build(config, method("mae3d").build_encoder(config)).eval()
    profile = InputProfile(intensity=WINDOW, view="volume", size=(16, 16, 16))
    model = SimpleNamespace(module=network, config=config, profile=profile, card={})
    monkeypatch.setattr(load, "load_model", lambda source: model)
    paths = [tmp_path / f"{name}.nii.gz" for name in "xy"]
    for path in paths:
        write_volume(scan()[0], path)
    found = predict_files("model", paths, tmp_path / "out")
    rows = list(csv.DictReader(found[0].path.open(encoding="utf-8")))
    assert [row["Path"] for row in rows] == [str(path) for path in paths]
    assert sum(float(rows[0][name]) for name in "abc") == pytest.approx(1, abs=1e-5)


def test_short_memory_is_met_step_by_step_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, labels = scan()
    cpu = torch.device("cpu")
    rungs = [
        predict._Rung(cpu, 4),
        predict._Rung(cpu, 1, None, "Memory was short, so windows were predicted one at a time."),
        predict._Rung(cpu, 1, cpu, "Results were collected in main memory."),
    ]
    monkeypatch.setattr(predict, "_ladder", lambda device: iter(rungs))
    real, tried = predict._probabilities, []

    def short(case: predict._Case, rung: predict._Rung) -> Tensor:
        tried.append(rung)
        if rung is not rungs[2]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(case, rung)

    monkeypatch.setattr(predict, "_probabilities", short)
    found = predict_volumes(segmenter(), [volume])
    assert found.labels is not None
    assert np.array_equal(found.labels.array, labels)
    assert tried == rungs
    assert found.notes == tuple(rung.sentence for rung in rungs[1:])


def test_no_memory_at_all_is_a_sentence_and_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: predict._Case, rung: predict._Rung) -> Tensor:
        raise MemoryError

    def wrong(case: predict._Case, rung: predict._Rung) -> Tensor:
        raise RuntimeError("shapes differ")

    volume, _ = scan()
    monkeypatch.setattr(predict, "_probabilities", fail)
    with pytest.raises(ResourceError, match="20, 33, 27"):
        predict_volumes(segmenter(), [volume])
    monkeypatch.setattr(predict, "_probabilities", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        predict_volumes(segmenter(), [volume])


def test_a_ladder_from_a_gpu_ends_on_the_cpu() -> None:
    rungs = list(predict._ladder(torch.device("cuda:0")))
    assert [rung.device.type for rung in rungs] == ["cuda", "cuda", "cuda", "cpu"]
    assert [rung.batch for rung in rungs] == [4, 1, 1, 1]
    assert not rungs[0].sentence
    assert all(rung.sentence.endswith(".") for rung in rungs[1:])


def test_cancelling_stops_at_the_next_window() -> None:
    volume, _ = scan((40, 40, 40))
    with pytest.raises(Cancelled):
        predict_volumes(segmenter(), [volume], progress=lambda share: share < 0.3)


def test_models_without_a_task_predict_nothing() -> None:
    model = segmenter()
    model.config = pretrain_config("mae3d", "tiny", Path("nowhere"))
    with pytest.raises(ConfigError, match="Fine-tune"):
        predict_volumes(model, [scan()[0]])
