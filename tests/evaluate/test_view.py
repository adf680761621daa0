"""Views of a model lie on the scan, around the place asked for, and are written as volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.cli import main
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.data.phantoms import mr_contrasts, oblique, thorax_ct
from training_backend.data.prepare import InputProfile, prepare
from training_backend.data.read import read_volume
from training_backend.data.volume import Geometry
from training_backend.data.write import write_volume
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.view import Picture, draw, find_view, views_of, write_pictures
from training_backend.methods.base import PreviewArray
from training_backend.weights.load import LoadedModel, load_model
from training_backend.weights.save import save_model

SIZE = (16, 24, 24)
CHANGES: dict[str, Any] = {"data": {"size": SIZE}, "method": {"patch_size": (4, 4, 4), "depth": 2}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Freshly initialised models of both kinds."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    pretrain = pretrain_config("ar", "tiny", Path(), CHANGES)
    finetune = finetune_config("segmentation", "tiny", Path(), "ar", {**CHANGES, "task": {"classes": ("air", "body")}})
    networks = {
        "pretrain": (pretrain, method("ar").build(pretrain)),
        "finetune": (finetune, task("segmentation").build(finetune, method("ar").build_encoder(finetune))),
    }
    for kind, (config, network) in networks.items():
        profile = InputProfile(size=SIZE, crop_body=False, intensity=config.data.intensity)
        card = {"kind": kind, "config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
        save_model(root / kind, network, card)
    return {kind: str(root / kind) for kind in networks}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, str]) -> LoadedModel:
    return load_model(folders["pretrain"])


@pytest.mark.parametrize("make", [thorax_ct, oblique], ids=["aligned", "oblique"])
def test_the_view_is_the_scan_around_the_place_asked_for(make: Any, loaded: LoadedModel) -> None:
    volume = make(2, (40, 44, 48)).volume
    prepared = prepare([volume], loaded.profile)
    drawing = draw(loaded, prepared, "next-patch", {"prefix": 0.5}, centre=(20, 10, 30))
    [frame] = drawing.frames
    placed = {one.picture.name: one for one in drawing.placed(frame)}
    original = placed["original"]
    start = np.rint((np.linalg.inv(volume.geometry.to_lps) @ original.geometry.to_lps)[:3, 3]).astype(int)
    box = tuple(slice(s, s + n) for s, n in zip(start, SIZE))
    low, high = prepared.in_units(np.array([0.0, 1.0]))
    np.testing.assert_allclose(original.picture.array, np.clip(volume.array[box], low, high), atol=0.6)
    assert all(s <= c < s + n for s, c, n in zip(start, (20, 10, 30), SIZE))
    loss = placed["loss"]
    assert loss.geometry.shape == loss.picture.array.shape == (4, 6, 6)
    assert loss.picture.limits == (0, 2)  # no intensities, so not in units of the scan


def test_a_clicked_place_is_the_patch_that_looks(loaded: LoadedModel) -> None:
    volume = oblique(2, (40, 44, 48)).volume
    prepared = prepare([volume], loaded.profile)
    for point in ((20, 12, 30), (39, 43, 47), (0, 0, 0)):  # the last two lie outside the box around the centre
        drawing = draw(loaded, prepared, "token-attention", {}, centre=(20, 10, 30), point=point)
        [frame] = drawing.frames
        [picture] = drawing.placed(frame)
        between = np.linalg.solve(picture.geometry.to_lps, volume.geometry.to_lps)
        cell = np.floor(between[:3] @ [*point, 1] + 0.5 + 1e-6).astype(int)
        assert f"z, y, x = {', '.join(str(n + 1) for n in cell)} looks" in frame.text


def test_arrays_that_are_placed_do_not_change_with_the_next_frame(loaded: LoadedModel) -> None:
    prepared = prepare([thorax_ct(2, (20, 30, 30)).volume], loaded.profile)
    drawing = draw(loaded, prepared, "roll-out", {"prefix": 0.9})
    kept = [drawing.placed(frame)[1].picture.array for _, frame in zip(range(3), drawing.frames)]
    assert not np.array_equal(kept[0], kept[1])
    assert not np.array_equal(kept[1], kept[2])
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_files_have_names_that_every_system_allows_and_texts_leave_no_folder(tmp_path: Path) -> None:
    matrix = PreviewArray("cases: own / others", np.eye(2), role="matrix")
    [path] = write_pictures([Picture(matrix, Geometry.from_spacing((2, 2, 1), (1.0, 1.0, 1.0)))], tmp_path / "seen")
    assert path.name == "cases- own - others.csv"
    assert path.read_text().splitlines() == ["1,0", "0,1"]
    assert write_pictures([], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_wrong_requests_are_sentences(loaded: LoadedModel, folders: dict[str, str]) -> None:
    volume = thorax_ct(2, (20, 30, 30)).volume
    prepared = prepare([volume], loaded.profile)
    with pytest.raises(ConfigError, match="Did you mean 'next-patch'"):
        find_view(loaded, "next-path")
    with pytest.raises(ConfigError, match="starts from a voxel"):
        draw(loaded, prepared, "token-attention")
    with pytest.raises(ConfigError, match="unknown setting 'prefixx'; did you mean 'prefix'"):
        draw(loaded, prepared, "next-patch", {"prefixx": 1})
    with pytest.raises(DataError, match="does not see this place"):
        draw(loaded, prepared, "token-attention", point=(20, 100, 10))
    finetuned = load_model(folders["finetune"])
    assert [view.name for view in views_of(finetuned)] == ["token-attention", "certainty"]
    with pytest.raises(ConfigError, match="needs a model with its pre-training heads"):
        find_view(finetuned, "roll-out")


def test_the_command_lists_and_writes_views(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folders["pretrain"]
    assert main(["view", "--run", run]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()[1:]] == [
        "next-patch",
        "roll-out",
        "predictability",
        "sequence",
        "token-attention",
    ]
    volume = mr_contrasts(0, (20, 30, 28)).volume
    scan, output = write_volume(volume, tmp_path / "scan.nii.gz"), tmp_path / "seen"
    asked = ["view", "--run", run, "--input", str(scan), "--output", str(output), "--device", "cpu"]
    assert main([*asked, "--name", "roll-out", "--set", "prefix=0.95", "brightness=mean"]) == 0
    assert "137 of 144 patches are given, 7 drawn" in capsys.readouterr().out
    drawn = read_volume(output / "continuation.nii.gz")
    assert drawn.array.shape == SIZE
    assert np.abs(drawn.geometry.to_lps[:3, :3] - volume.geometry.to_lps[:3, :3]).max() < 1e-4
    assert main([*asked, "--name", "token-attention", "--point", "10", "15", "14"]) == 0
    assert read_volume(output / "attention.nii.gz").array.shape == (4, 6, 6)
    assert main([*asked, "--name", "token-attention"]) == 1
    assert "starts from a voxel of the scan" in capsys.readouterr().err
    assert main(["view", "--run", run, "--name", "roll-out"]) == 1
    assert "--input SCAN" in capsys.readouterr().err
