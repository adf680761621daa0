"""What VoCo's views show: true positions, what the network itself predicts, in the right place of the scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.data.phantoms import thorax_ct
from training_backend.data.position import base_starts, cut_plane, overlap
from training_backend.data.prepare import InputProfile, prepare
from training_backend.errors import ConfigError
from training_backend.evaluate.view import draw, views_of, write_pictures
from training_backend.methods.base import Frame, PreviewArray
from training_backend.methods.shared_views import SCALES, certainty_frame, colours
from training_backend.methods.voco_settings import VOCOMNI
from training_backend.methods.voco_views import VIEWS
from training_backend.nn.axes import turned
from training_backend.weights.load import LoadedModel, load_model
from training_backend.weights.save import save_model

VOCO = method("voco")
BY_NAME = {view.name: view for view in VIEWS}
TINY: dict[str, Any] = {
    "method": {"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 16, "projected": 8}
}
SLAB = (64, 64, 64)


def built(**changes: Any) -> Any:
    torch.manual_seed(0)
    run = pretrain_config("voco", "tiny", Path("d"), {**TINY, "method": {**TINY["method"], **changes}})
    return VOCO.build(run).eval()


@pytest.fixture(scope="module")
def network() -> Any:
    return built()


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    """A slab whose four quarters differ in texture and brightness."""
    slab = torch.rand(1, 1, *SLAB, generator=torch.Generator().manual_seed(1))
    slab[..., :32, :] *= 0.4
    slab[..., :32] = slab[..., :32].round()
    return slab


def drawn(name: str, network: Any, volume: torch.Tensor, **options: Any) -> list[Frame]:
    view = BY_NAME[name]
    with torch.inference_mode():
        kept = []
        for frame in view.draw(network, volume, view.options(**options), torch.Generator().manual_seed(3)):
            pictures = [
                PreviewArray(one.name, one.array.copy(), one.role, one.voxels, one.limits, one.classes, one.start)
                for one in frame.pictures
            ]
            kept.append(Frame(pictures, frame.text, frame.share))
        return kept


def arrays(frame: Frame) -> dict[str, np.ndarray]:
    return {one.name: one.array for one in frame.pictures}


def joint(network: Any, volume: torch.Tensor, start: tuple[int, int]) -> np.ndarray:
    """Predicted overlap of one crop, the long way: crop and bases through encoder and projections in one batch."""
    slab = turned(volume, network.axes)[0]
    places = np.concatenate([[start], base_starts(2, 32)])
    crops = cut_plane(slab, places, 32, network.sampling.plane)
    with torch.no_grad():
        _, student, teacher = network.project(crops, None)
        return network.contrast(student, teacher, torch.zeros(1, 1, 4)).predicted[0, 0].numpy()


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_positions_are_the_overlaps_of_the_frames_that_are_drawn(axes: str, volume: torch.Tensor) -> None:
    network = built(axes=axes)
    [frame] = drawn("positions", network, volume, crops=3, crop=2)
    found = arrays(frame)
    assert found["overlap of every crop"].shape == found["prediction of every crop"].shape == (3, 4)
    np.testing.assert_allclose(found["overlap of every crop"].sum(axis=1), 1, atol=1e-6)
    number = 3  # border, crop 1, crop 2
    _, ys, xs = np.nonzero(found["places"] == number)
    box = (ys.min(), xs.min())
    assert (ys.max() - ys.min(), xs.max() - xs.min()) == (31, 31)  # a later crop may cover a part of it, not a side
    start = (32 - box[1], 32 - box[0]) if axes == "xyz" else box  # x and y of the network run the other way
    np.testing.assert_allclose(overlap([start], 2, 32)[0], found["overlap of every crop"][1], atol=1e-6)
    tinted = found["overlap"].astype(float).mean(axis=0)
    grey = tinted[..., 0] - tinted[..., 1]  # green where the crop lies
    by_cell = np.array([[grey[:30, :30].mean(), grey[:30, 34:].mean()], [grey[34:, :30].mean(), grey[34:, 34:].mean()]])
    share = overlap([box], 2, 32).reshape(2, 2)
    assert np.argmin(by_cell) == np.argmax(share)
    assert "Crop 2 lies in" in frame.text
    assert "projected together with the base crops" in frame.text


def test_other_seeds_are_other_places_and_a_crop_that_is_not_there_is_refused(network: Any, volume: Any) -> None:
    with pytest.raises(ConfigError, match="There are 2 crops, so crop 3 does not exist"):
        drawn("positions", network, volume, crops=2, crop=3)
    with pytest.raises(ConfigError, match="A slab of this network has 64 x 64 x 64 voxels"):
        drawn("positions", network, volume[..., :32])


@pytest.mark.parametrize("version", ["2", "2024"])
def test_the_map_holds_what_the_network_says_of_each_place(version: str, volume: torch.Tensor) -> None:
    network = built(version=version)
    frames = drawn("position-map", network, volume, steps=2, cell=3)
    assert len(frames) == 9
    assert np.isfinite(arrays(frames[-1])["error in cells"]).any()
    assert [frame.share for frame in frames] == pytest.approx([(k + 1) / 9 for k in range(9)])
    assert int(np.isnan(arrays(frames[0])["error in cells"]).sum()) >= 8
    last = arrays(frames[-1])
    cells, best = last["predicted cell"][0], last["likeness to cell 3"][0]
    for y, x in ((0, 0), (2, 1), (1, 2)):
        start = (32 - 16 * x, 32 - 16 * y)  # of the network's frame, whose x and y run the other way
        found = joint(network, volume, start)
        assert best[y, x] == pytest.approx(found[2], abs=1e-3)  # batch norms amplify how batches are cut
        if not found.any():
            assert cells[y, x] == 0
            assert np.isnan(last["error in cells"][0, y, x])
            continue
        assert cells[y, x] == found.argmax() + 1
        centroid = found @ base_starts(2, 32) / 32 / found.sum()
        error = np.linalg.norm(centroid - np.array(start) / 32)
        assert last["error in cells"][0, y, x] == pytest.approx(error, abs=1e-2)


def test_elements_of_the_map_lie_around_the_centres_of_the_crops(network: Any, volume: torch.Tensor) -> None:
    *_, frame = drawn("position-map", network, volume, steps=2)
    picture = frame.pictures[0]
    assert (picture.start, picture.voxels) == ((0.0, 8.0, 8.0), (64, 16, 16))
    with pytest.raises(ConfigError, match="4 cells, so cell 5 does not exist"):
        drawn("position-map", network, volume, cell=5)


def test_likeness_is_the_cosine_of_projections_made_together(network: Any, volume: torch.Tensor) -> None:
    [frame] = drawn("likeness", network, volume)
    crops = cut_plane(turned(volume, "xyz")[0], base_starts(2, 32), 32, network.sampling.plane)
    with torch.no_grad():
        embeddings, student, teacher = network.project(crops, None)
    found = arrays(frame)
    for name, one, other in (
        ("student and itself", student, student),
        ("student and teacher", student, teacher),
        ("embeddings", embeddings, embeddings),
    ):
        expected = F.cosine_similarity(one[:, None], other[None], dim=2).numpy()
        np.testing.assert_allclose(found[name], expected, atol=1e-4)
    apart = np.clip(found["student and itself"][~np.eye(4, dtype=bool)], 0, None) ** 2
    assert f"likeness is {apart.mean():.2f}" in frame.text
    [other] = drawn("likeness", network, volume, projection="teacher")
    assert "teacher and itself" in arrays(other)


def test_organs_need_a_decoder_and_name_its_classes(network: Any, volume: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="has no decoder"):
        drawn("organs", network, volume)
    omni = built(stage="omni")
    [frame] = drawn("organs", omni, volume)
    labels, entropy = frame.pictures
    with torch.no_grad():
        logits = omni.logits(volume)[0]
    np.testing.assert_array_equal(labels.array, logits.argmax(dim=0).numpy())
    assert all(labels.classes[k] == VOCOMNI[k] for k in np.unique(labels.array))
    [cooler] = drawn("organs", omni, volume, temperature=0.1)
    assert cooler.pictures[1].array.mean() < entropy.array.mean()
    semi = built(stage="semi")
    assert drawn("organs", semi, volume)[0].pictures[0].array.shape == SLAB
    with pytest.raises(ConfigError, match="compares no crops"):
        drawn("positions", semi, volume)


def test_entropy_is_1_where_all_classes_are_equal_and_0_where_one_is_sure() -> None:
    logits = torch.zeros(3, 1, 1, 2)
    logits[2, ..., 1] = 50.0
    frame = certainty_frame(logits)
    labels, entropy = frame.pictures
    np.testing.assert_allclose(entropy.array, [[[1.0, 0.0]]], atol=1e-6)
    assert labels.array[0, 0, 1] == 2
    assert labels.classes[2] == "class 2"
    assert "50.0% of the voxels lie above one half" in frame.text


def test_scales_are_maps_at_their_own_resolution(network: Any, volume: torch.Tensor) -> None:
    frames = drawn("scales", network, volume)
    assert [len(frame.pictures) for frame in frames] == [0, 0, 0, 4]
    assert [one.voxels for one in frames[-1].pictures] == [(n, n, n) for n in (1, 2, 4, 8)]
    for one in frames[-1].pictures:
        assert np.array(one.array.shape[:3]) * one.voxels == pytest.approx(SLAB)
    [single] = drawn("scales", network, volume, level=6)
    assert single.pictures[0].array.shape == (2, 2, 2, 3)
    with pytest.raises(ConfigError, match="6 maps, so map 7 does not exist"):
        drawn("scales", network, volume, level=7)
    plain = method("mae3d").build(
        pretrain_config("mae3d", "tiny", Path(), {"data": {"size": (16, 16, 16)}, "method": {"depth": 1}})
    )
    with pytest.raises(ConfigError, match="features of one scale only"), torch.inference_mode():
        list(SCALES.draw(plain, torch.rand(1, 1, 16, 16, 16), SCALES.options(), torch.Generator()))


def test_colours_follow_the_largest_differences_inside_the_body() -> None:
    features = torch.zeros(5, 2, 4, 4)
    features[3, :, :2] = 10.0  # the largest difference
    features[1, :, :, :2] = 3.0
    body = torch.ones(2, 4, 4, dtype=torch.bool)
    body[0] = False
    rgb, share = colours(features, body)
    assert (rgb[0] == 0).all()  # air
    assert set(np.unique(rgb[1, :2, :, 0])) == {255}
    assert set(np.unique(rgb[1, 2:, :, 0])) == {0}
    assert set(np.unique(rgb[1, :, :2, 1])) == {255}
    assert share == pytest.approx(1)


@pytest.fixture(scope="module")
def loaded(network: Any, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("models") / "voco"
    config = pretrain_config("voco", "tiny", Path(), TINY)
    profile = InputProfile(size=SLAB, crop_body=False, intensity=config.data.intensity).model_dump(mode="json")
    save_model(folder, network, {"kind": "pretrain", "config": config.model_dump(mode="json"), "profile": profile})
    return load_model(str(folder))


def test_a_map_is_placed_around_the_centres_and_matrices_are_tables(loaded: LoadedModel, tmp_path: Path) -> None:
    scan = thorax_ct(2, (70, 80, 90)).volume
    prepared = prepare([scan], loaded.profile)
    names = [view.name for view in views_of(loaded)]
    assert names == [*(view.name for view in VIEWS), "likeness-across", "teacher"]
    drawing = draw(loaded, prepared, "position-map", {"steps": 1})
    *_, frame = drawing.frames
    first = drawing.placed(frame)[0]
    whole = drawing.cut.geometry
    assert first.geometry.shape == (1, 2, 2)
    np.testing.assert_allclose(first.geometry.spacing_mm, np.array(whole.spacing_mm) * (64, 32, 32), rtol=1e-6)
    drawing = draw(loaded, prepared, "position-map", {"steps": 2})
    *_, frame = drawing.frames
    first = drawing.placed(frame)[0]
    centre = np.linalg.solve(whole.to_lps, first.geometry.to_lps @ [0, 0, 0, 1])[:3]
    np.testing.assert_allclose(centre, [31.5, 15.5, 15.5], atol=1e-4)  # of a crop at the corner of the slab
    *_, frame = draw(loaded, prepared, "likeness").frames
    files = write_pictures(drawing.placed(frame), tmp_path)
    assert [path.name for path in files] == [
        "cells.nii.gz",
        "student and itself.csv",
        "student and teacher.csv",
        "embeddings.csv",
    ]
    table = np.loadtxt(files[1], delimiter=",")
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-4)


def test_every_segmentation_shows_where_it_hesitates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    changes = {"data": {"size": (16, 24, 24)}, "method": {"patch_size": (4, 4, 4), "depth": 1}}
    config = finetune_config("segmentation", "tiny", Path(), "mae3d", {**changes, "task": {"classes": ("air", "body")}})
    network = task("segmentation").build(config, method("mae3d").build_encoder(config))
    profile = InputProfile(size=(16, 24, 24), crop_body=False, intensity=config.data.intensity).model_dump(mode="json")
    save_model(tmp_path, network, {"kind": "finetune", "config": config.model_dump(mode="json"), "profile": profile})
    model = load_model(str(tmp_path))
    assert [view.name for view in views_of(model)] == ["token-attention", "certainty"]
    scan = thorax_ct(2, (20, 30, 28)).volume
    drawing = draw(model, prepare([scan], model.profile), "certainty")
    [frame] = drawing.frames
    labels, entropy = drawing.placed(frame)
    assert labels.picture.array.shape == entropy.picture.array.shape == (16, 24, 24)
    with torch.no_grad():
        logits = model.module(torch.from_numpy(drawing.cut.array)[None])[0][0]
    probability = logits.softmax(dim=0).double().numpy()
    expected = -(probability * np.log2(probability)).sum(axis=0)
    np.testing.assert_allclose(entropy.picture.array, expected, atol=1e-4)
