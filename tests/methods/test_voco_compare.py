"""VoCo's networks beside another scan, and beside the teacher that a run keeps with its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training_backend.cli import main
from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method
from training_backend.data.phantoms import thorax_ct
from training_backend.data.position import base_starts, cut_plane
from training_backend.data.prepare import InputProfile, prepare
from training_backend.data.write import write_volume
from training_backend.errors import ConfigError, WeightsError
from training_backend.evaluate.view import draw, write_pictures
from training_backend.methods.base import Frame
from training_backend.methods.voco_compare import AcrossOptions, TeacherOptions, disagreement, likeness_across
from training_backend.methods.voco_settings import VOCOMNI
from training_backend.nn.axes import turned, turned_back
from training_backend.weights.load import LoadedModel, load_model
from training_backend.weights.save import save_model
from training_backend.weights.teacher import TEACHER, save_teacher

VOCO = method("voco")
TINY: dict[str, Any] = {
    "method": {"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 16, "projected": 8}
}
SLAB = (64, 64, 64)


def config(**changes: Any) -> Any:
    return pretrain_config("voco", "tiny", Path("d"), {**TINY, "method": {**TINY["method"], **changes}})


def built(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return VOCO.build(config(**changes)).eval()


def slab(seed: int) -> torch.Tensor:
    return torch.rand(1, 1, *SLAB, generator=torch.Generator().manual_seed(seed))


def last(frames: Any) -> Frame:
    with torch.inference_mode():
        *_, frame = frames
    return frame


def arrays(frame: Frame) -> dict[str, np.ndarray]:
    return {one.name: one.array for one in frame.pictures}


@pytest.mark.parametrize("projection", ["student", "teacher"])
def test_cells_of_two_scans_are_compared_in_one_batch(projection: str) -> None:
    network, first, second = built(), slab(1), slab(2)
    frame = last(likeness_across(network, first, AcrossOptions(projection=projection), torch.Generator(), other=second))
    crops = [
        cut_plane(turned(one, "xyz")[0], base_starts(2, 32), 32, network.sampling.plane) for one in (first, second)
    ]
    with torch.no_grad():
        _, student, teacher = network.project(torch.cat(crops), None)
    rows = student if projection == "student" else teacher
    found = arrays(frame)
    for name, one, other in (
        ("this scan and other scan", rows[:4], rows[4:]),
        ("this scan and itself", rows[:4], rows[:4]),
        ("other scan and itself", rows[4:], rows[4:]),
    ):
        expected = F.cosine_similarity(one[:, None], other[None], dim=2).numpy()
        np.testing.assert_allclose(found[name], expected, atol=1e-3)
    same = int((found["this scan and other scan"].argmax(axis=1) == np.arange(4)).sum())
    assert f"For {same} of 4 cells" in frame.text
    assert [one.other for one in frame.pictures[:2]] == [False, True]


def test_a_scan_beside_itself_finds_every_cell_again() -> None:
    frame = last(likeness_across(built(), slab(1), AcrossOptions(), torch.Generator(), other=slab(1)))
    assert "For 4 of 4 cells" in frame.text
    found = arrays(frame)
    np.testing.assert_allclose(found["this scan and other scan"], found["this scan and itself"], atol=1e-4)


def test_student_and_teacher_are_compared_voxel_by_voxel() -> None:
    network = built(stage="omni")
    teacher = VOCO.snapshot(config(stage="omni")).build(config(stage="omni")).eval()
    with torch.no_grad():
        network.out.conv.conv.bias[0] += 0.3  # some background
    volume = slab(3)
    frame = last(disagreement(network, volume, TeacherOptions(), torch.Generator(), teacher=teacher))
    found = arrays(frame)
    with torch.no_grad():
        mine, theirs = (one.logits(volume)[0].argmax(dim=0).numpy() for one in (network, teacher))
    np.testing.assert_array_equal(found["student"], mine)
    np.testing.assert_array_equal(found["teacher"], theirs)
    np.testing.assert_array_equal(found["differences"] > 0, mine != theirs)
    np.testing.assert_array_equal(found["differences"] == 1, (mine == 0) & (theirs != 0))
    np.testing.assert_array_equal(found["differences"] == 2, (mine != 0) & (theirs == 0))
    assert f"differ at {(mine != theirs).mean():.1%} of the voxels" in frame.text
    either = (mine != 0) | (theirs != 0)
    assert f"{(mine != theirs)[either].mean():.0%} of those that either gives a class" in frame.text
    for label in np.unique([mine, theirs])[1:]:
        where = (mine == label) | (theirs == label)
        assert f"{VOCOMNI[label]} {(mine != theirs)[where].mean():.0%}" in frame.text
    label = int(np.bincount(theirs[theirs > 0]).argmax())
    narrow = last(disagreement(network, volume, TeacherOptions(label=label), torch.Generator(), teacher=teacher))
    np.testing.assert_array_equal(arrays(narrow)["differences"] > 0, (mine == label) != (theirs == label))
    with pytest.raises(ConfigError, match="classes 0 to 20, so class 21 does not exist"):
        last(disagreement(network, volume, TeacherOptions(label=21), torch.Generator(), teacher=teacher))
    alike = last(disagreement(teacher, volume, TeacherOptions(), torch.Generator(), teacher=teacher))
    assert "differ at 0.0% of the voxels" in alike.text


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_arrows_go_from_the_crop_to_the_centroid_of_what_it_resembles(axes: str) -> None:
    network = built(axes=axes)
    view = next(one for one in VOCO.views if one.name == "position-map")
    frame = last(view.draw(network, slab(4), view.options(steps=2), torch.Generator()))
    arrows = next(one for one in frame.pictures if one.role == "vectors")
    error = arrays(frame)["error in cells"][0]
    assert arrows.voxels == (64, 1, 1)
    assert len(arrows.array) == np.isfinite(error).sum() > 0
    lengths = np.linalg.norm(arrows.array[:, 1], axis=1) / 32
    for (_, y, x), length in zip(arrows.array[:, 0], lengths, strict=True):
        assert error[round((y - 15.5) / 16), round((x - 15.5) / 16)] == pytest.approx(length, abs=1e-4)
    # the crop that is darkest where an arrow says it begins
    start = np.array([16, 0])
    marked = torch.zeros(1, 1, *turned(slab(4), axes).shape[2:])  # type: ignore[arg-type]
    plane = [axis - 1 for axis in network.sampling.plane]
    marked[0, 0].narrow(plane[0], 16, 32).narrow(plane[1], 0, 32).fill_(1)
    _, _, ys, xs = np.nonzero(turned_back(marked, axes)[0].numpy())  # type: ignore[arg-type]
    from training_backend.methods.voco_views import _arrow

    begins = _arrow(network, network.sampling, start, start + np.array([8, 0]))
    np.testing.assert_allclose(begins[0], [0, (ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2])
    np.testing.assert_allclose(begins[1], [0, 0, -8] if axes == "xyz" else [0, 8, 0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of stage omni whose decoder changed since half time."""
    run, network = config(stage="omni"), built(stage="omni")
    teacher = VOCO.snapshot(run).build(run)
    profile = InputProfile(size=SLAB, crop_body=False, intensity=run.data.intensity).model_dump(mode="json")
    card = {"kind": "pretrain", "config": run.model_dump(mode="json"), "profile": profile, "step": 20}
    told = save_teacher(tmp_path / "omni", teacher, 10)
    save_model(tmp_path / "omni", network, {**card, "teacher": told})
    return tmp_path / "omni"


def prepared(loaded: LoadedModel, seed: int = 2) -> Any:
    return prepare([thorax_ct(seed, (70, 80, 90)).volume], loaded.profile)


def test_the_teacher_beside_a_model_is_the_one_that_was_kept(folder: Path) -> None:
    loaded = load_model(str(folder))
    frame = last(draw(loaded, prepared(loaded), "teacher").frames)
    assert [one.name for one in frame.pictures] == ["original", "student", "teacher", "differences"]
    shutil.copy(folder / TEACHER, folder / "kept")
    (folder / TEACHER).unlink()
    with pytest.raises(WeightsError, match="missing beside the model"):
        draw(load_model(str(folder)), prepared(loaded), "teacher")
    data = bytearray((folder / "kept").read_bytes())
    data[-1] ^= 1
    (folder / TEACHER).write_bytes(data)
    with pytest.raises(WeightsError, match="not the teacher that the card"):
        draw(load_model(str(folder)), prepared(loaded), "teacher")


def test_a_model_without_a_teacher_says_which_runs_have_one(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    del card["teacher"]
    (folder / "card.json").write_text(json.dumps(card))
    loaded = load_model(str(folder))
    with pytest.raises(WeightsError, match="no teacher that labelled for it") as caught:
        draw(loaded, prepared(loaded), "teacher")
    assert "stages omni and semi take one at half of their steps" in str(caught.value)
    assert save_teacher(folder, None, 0) == {}
    assert not (folder / TEACHER).exists()


def test_two_scans_lie_each_in_its_place_and_arrows_are_tables_in_millimetres(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(str(folder))
    with pytest.raises(ConfigError, match="Base crops of two scans compares two scans"):
        draw(loaded, prepared(loaded), "likeness-across")
    drawing = draw(loaded, prepared(loaded), "likeness-across", other=prepared(loaded, 7), other_centre=(32, 32, 32))
    placed = {one.picture.name: one.geometry for one in drawing.placed(last(drawing.frames))}
    assert drawing.other is not None
    for name, cut in (("cells", drawing.cut), ("cells of the other scan", drawing.other)):
        corner = placed[name].to_lps @ [-0.5, -0.5, -0.5, 1]
        np.testing.assert_allclose(corner, cut.geometry.to_lps @ [-0.5, -0.5, -0.5, 1], atol=1e-4)
    drawing = draw(loaded, prepared(loaded), "position-map", {"steps": 1})
    frame = last(drawing.frames)
    arrows = next(one for one in drawing.placed(frame) if one.picture.role == "vectors")
    assert arrows.geometry.shape == (1, 64, 64)
    [path] = write_pictures([arrows], tmp_path)
    rows = path.read_text().splitlines()
    assert rows[0] == "from L,from P,from S,to L,to P,to S"
    first = arrows.picture.array[0]
    voxels = np.array([[31.5, *first[0, 1:], 1], [31.5, *(first[0] + first[1])[1:], 1]])
    expected = (voxels @ drawing.cut.geometry.to_lps.T)[:, :3].ravel()
    np.testing.assert_allclose([float(one) for one in rows[1].split(",")], expected, atol=0.02)


def test_the_command_line_takes_a_second_scan(folder: Path, tmp_path: Path, capsys: Any) -> None:
    scans = [write_volume(thorax_ct(k, (64, 64, 64)).volume, tmp_path / f"scan{k}.nii.gz") for k in (1, 2)]
    common = ["view", "--run", str(folder), "--input", str(scans[0])]
    out = tmp_path / "seen"
    assert main([*common, "--output", str(out), "--name", "likeness-across", "--other", str(scans[1])]) == 0
    assert np.loadtxt(out / "this scan and other scan.csv", delimiter=",").shape == (4, 4)
    assert (out / "cells of the other scan.nii.gz").is_file()
    assert main([*common, "--output", str(out), "--name", "teacher"]) == 0
    assert (out / "differences.nii.gz").is_file()
    assert "Student and teacher differ at" in capsys.readouterr().out
    assert main([*common, "--output", str(tmp_path / "no"), "--name", "likeness-across"]) != 0
    assert "give --other FILE" in capsys.readouterr().err
    assert main([*common, "--output", str(tmp_path / "no"), "--name", "likeness", "--other", str(scans[1])]) != 0
    assert "Leave --other out" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert main(["view", "--run", str(folder)]) == 0
    listed = capsys.readouterr().out
    assert "--other" in listed
    assert "a teacher" in listed


@pytest.mark.parametrize(("step", "said"), [(20, False), (10, True)])
def test_a_model_that_is_older_than_its_teacher_says_so(folder: Path, step: int, said: bool) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "step": step}))
    loaded = load_model(str(folder))
    text = last(draw(loaded, prepared(loaded), "teacher").frames).text
    assert ("before it had this teacher, which is the network of step 10" in text) == said
