"""The model process with real models: every operation, through the pipe, on phantoms."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.data.phantoms import Phantom, thorax_ct, write_cohort
from training_backend.data.prepare import InputProfile
from training_backend.data.volume import Geometry
from training_backend.errors import ConfigError, DataError, Med3dError, RunError, WeightsError
from training_backend.jobs.client import Cancelled, ServeClient

SIZE = (16, 16, 16)
SMALL: dict[str, Any] = {"data": {"size": SIZE}, "method": {"patch_size": (4, 4, 4), "depth": 2, "decoder_depth": 1}}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return thorax_ct(3, (18, 34, 26))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, phantom: Phantom) -> dict[str, str]:
    """Freshly initialised networks, saved like the result of a run."""
    import torch

    from training_backend.weights.save import save_model

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    profile = InputProfile(size=SIZE, crop_body=False).model_dump(mode="json")
    names = ("background", *(entry.name for entry in phantom.classes))
    # deep enough that a roll-out takes its time on any machine
    following: dict[str, Any] = {"data": {"size": SIZE}, "method": {"patch_size": (2, 4, 4), "depth": 32}}
    sequence = pretrain_config("ar", "tiny", Path(), following)
    finetune = finetune_config("segmentation", "tiny", Path(), changes={**SMALL, "task": {"classes": names}})
    pretrain = pretrain_config("mae3d", "tiny", Path(), SMALL)
    networks = {
        "mae": (pretrain, method("mae3d").build(pretrain)),
        "ar": (sequence, method("ar").build(sequence)),
        "organs": (finetune, task("segmentation").build(finetune, method("mae3d").build_encoder(finetune))),
    }
    for name, (config, network) in networks.items():
        card = {"kind": config.kind, "config": config.model_dump(mode="json"), "profile": profile}
        card["classes"] = [entry.model_dump() for entry in phantom.classes] if config.task else []
        save_model(root / name, network, card)
    return {name: str(root / name) for name in networks}


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[ServeClient]:
    os.environ["PYTHONPATH"] = str(repository)
    client = ServeClient("cpu")
    yield client
    client.close()


def test_ping_and_info(client: ServeClient) -> None:
    assert client.request("ping") == {"pid": client.pid}
    info = client.request("info")
    assert info["device"] == "CPU"
    assert 0 < info["memory_mb"] < info["total_mb"]


def test_load_describes_the_model(client: ServeClient, models: dict[str, str]) -> None:
    facts = client.request("load", source=models["mae"])
    assert facts["summary"] == "3D-MAE / TANGERINE, pre-trained; sees crops of 16 × 16 × 16 voxels."
    assert (facts["method"], facts["kind"], facts["depth"], facts["patch_size"]) == ("mae3d", "pretrain", 2, [4, 4, 4])
    assert facts["reconstructs"]
    assert client.request("info")["model"] == facts["summary"]
    assert not client.request("load", source=models["organs"])["reconstructs"]


def test_features_are_computed_once(client: ServeClient, models: dict[str, str], phantom: Phantom) -> None:
    seen: list[str] = []
    ask: dict[str, Any] = {"source": models["mae"], "volumes": [phantom.volume]}
    first = client.request("features", progress=lambda share, text: seen.append(text), **ask)
    assert first["tokens"].shape == (5, 9, 7, 192)
    assert first["tokens"].dtype == np.float16
    assert first["geometry"].shape == first["body"].shape == (5, 9, 7)
    assert not first["cached"]
    assert "Computing features" in seen
    again = client.request("features", **ask)
    assert again["cached"]
    np.testing.assert_array_equal(again["tokens"], first["tokens"])
    np.testing.assert_array_equal(again["body"], first["body"])
    other = phantom.volume.with_array(phantom.volume.array + 1)
    assert not client.request("features", source=models["mae"], volumes=[other])["cached"]
    assert not client.request("features", source=models["organs"], volumes=[phantom.volume])["cached"]
    assert not client.request("features", normalised=False, **ask)["cached"]


def test_what_features_take_is_told_before_any_voxel_is_sent(
    client: ServeClient, models: dict[str, str], phantom: Phantom
) -> None:
    told = client.request("features_need", source=models["mae"], geometry=phantom.volume.geometry)
    assert told["windows"] == 2 * 4 * 3  # of four tokens each way, half of them seen before
    assert told["sentence"].startswith("At most 5 × 9 × 7 places of 192 numbers in ")
    assert told["sentence"].endswith("GiB are free.")
    assert 5 * 9 * 7 * 192 * 6 < told["bytes"] < told["free"]
    huge = Geometry.from_spacing((4000, 4000, 4000), (0.1, 0.1, 0.1))
    told = client.request("features_need", source=models["mae"], geometry=huge)
    assert told["bytes"] > told["free"]


def test_a_scan_of_another_modality_is_looked_at_with_a_warning(
    client: ServeClient, models: dict[str, str], phantom: Phantom
) -> None:
    card = json.loads((Path(models["mae"]) / "card.json").read_text(encoding="utf-8"))
    folder = Path(models["mae"]).with_name("of-ct")
    shutil.copytree(models["mae"], folder)
    card["profile"]["modality"] = "CT"
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    ask: dict[str, Any] = {"source": str(folder)}
    assert client.request("features", volumes=[phantom.volume], **ask)["warning"] == ""
    mr = replace(phantom.volume, modality="MR", name="knee")
    for op in ("features", "attention", "reconstruct"):
        answer = client.request(op, volumes=[mr], **ask)
        assert answer["warning"] == ("This model learnt from CT, but knee is MR. What it shows here may mean little.")
    assert client.request("attention", source=models["mae"], volumes=[mr])["warning"] == ""  # learnt from nobody knows


def test_reconstruct_gives_pictures_in_hounsfield_units(
    client: ServeClient, models: dict[str, str], phantom: Phantom
) -> None:
    answer = client.request("reconstruct", source=models["mae"], volumes=[phantom.volume], mask_ratio=0.5, seed=3)
    pictures = {picture["name"]: picture for picture in answer["pictures"]}
    assert set(pictures) == {"original", "masked", "reconstruction", "error", "mask"}
    original = pictures["original"]
    assert original["array"].min() >= -1201
    assert original["array"].max() > 0
    between = np.linalg.inv(phantom.volume.geometry.to_lps) @ original["geometry"].to_lps
    start = np.rint(between[:3, 3]).astype(int)
    box = tuple(slice(s, s + 16) for s in start)
    np.testing.assert_allclose(original["array"], np.clip(phantom.volume.array[box], -1200, 800), atol=0.1)
    assert answer["unit"] == "HU"
    assert answer["error"] > 0
    assert pictures["mask"]["array"].mean() == 0.5


def test_a_fine_tuned_model_predicts_and_does_not_reconstruct(
    client: ServeClient, models: dict[str, str], phantom: Phantom
) -> None:
    answer = client.request("predict", source=models["organs"], volumes=[phantom.volume], probabilities=True)
    labels = answer["labels"]
    assert labels.array.shape == phantom.volume.array.shape
    assert labels.geometry.same_grid(phantom.volume.geometry)
    names = [entry.name for entry in phantom.classes]
    assert [entry["name"] for entry in answer["classes"]] == names
    assert list(answer["volumes_ml"]) == names
    assert len(answer["probabilities"]) == len(names) + 1
    total = sum(volume.array for volume in answer["probabilities"])
    np.testing.assert_allclose(total, 1, atol=1e-2)
    with pytest.raises(ConfigError, match="no longer reconstructs"):
        client.request("reconstruct", source=models["organs"], volumes=[phantom.volume])
    with pytest.raises(ConfigError, match="only pre-trained"):
        client.request("predict", source=models["mae"], volumes=[phantom.volume])


def test_attention_of_a_block_and_a_head(client: ServeClient, models: dict[str, str], phantom: Phantom) -> None:
    ask: dict[str, Any] = {"source": models["mae"], "volumes": [phantom.volume]}
    answer = client.request("attention", **ask)
    assert (answer["depth"], answer["heads"]) == (2, 6)
    assert answer["attention"].shape == answer["geometry"].shape == (5, 9, 7)
    assert answer["attention"].mean() == pytest.approx(1, abs=0.1)
    head = client.request("attention", block=0, head=5, **ask)
    assert not np.allclose(head["attention"], answer["attention"])
    with pytest.raises(ConfigError, match="has 2 blocks, so block 3 does not exist"):
        client.request("attention", block=2, **ask)


def test_a_model_tells_what_it_can_show(client: ServeClient, models: dict[str, str]) -> None:
    facts = client.request("load", source=models["ar"])
    views = {view["name"]: view for view in facts["views"]}
    assert list(views) == ["next-patch", "roll-out", "predictability", "sequence", "token-attention"]
    assert [name for name, view in views.items() if view["point"]] == ["token-attention"]
    prefix = views["next-patch"]["options"]["properties"]["prefix"]
    assert (prefix["minimum"], prefix["maximum"], prefix["ui"]["widget"]) == (0, 1, "slider")
    assert [view["name"] for view in client.request("load", source=models["mae"])["views"]] == ["token-attention"]


def test_a_roll_out_streams_frame_after_frame(client: ServeClient, models: dict[str, str], phantom: Phantom) -> None:
    shares: list[float] = []
    drawn: list[np.ndarray] = []

    def watch(values: dict[str, Any]) -> None:
        pictures = {picture["name"]: picture for picture in values["pictures"]}
        shares.append(values["share"])
        drawn.append(pictures["continuation"]["array"])
        assert list(pictures) == ["original", "continuation", "error"]
        assert pictures["continuation"]["geometry"].same_grid(pictures["original"]["geometry"])

    ask: dict[str, Any] = {"source": models["ar"], "volumes": [phantom.volume], "name": "roll-out"}
    answer = client.request("view", partial=watch, options={"prefix": 0.2}, **ask)
    last = next(picture["array"] for picture in answer["pictures"] if picture["name"] == "continuation")
    assert len(shares) >= 3
    assert all((before != after).any() for before, after in itertools.pairwise([*drawn, last]))
    assert shares == sorted(set(shares))
    assert (shares[0], answer["share"]) == (0.0, 1.0)
    assert answer["unit"] == "HU"
    assert "26 of 128 patches are given, 102 drawn" in answer["text"]
    assert answer["method"] == "ar"


def test_a_drawing_stops_between_two_frames_and_the_model_stays(
    client: ServeClient, models: dict[str, str], phantom: Phantom
) -> None:
    asked: list[float] = []

    def watch(values: dict[str, Any]) -> None:
        if values["share"] > 0 and not asked:
            asked.append(time.monotonic())
            client.cancel()

    ask: dict[str, Any] = {"source": models["ar"], "volumes": [phantom.volume], "name": "roll-out"}
    client.request("load", source=models["ar"])
    pid = client.pid
    with pytest.raises(Cancelled):
        client.request("view", partial=watch, options={"prefix": 0.0}, **ask)
    assert time.monotonic() - asked[0] < 1
    assert client.pid == pid
    first = client.request("view", **{**ask, "name": "sequence"})
    assert [one["name"] for one in first["pictures"][2]["classes"]] == ["slab 1", "slab 2", "slab 3", "slab 4"]
    colours = [one["colour"] for one in first["pictures"][2]["classes"]]
    assert len(set(colours)) == 4
    with pytest.raises(ConfigError, match="no view called 'roll'"):
        client.request("view", **{**ask, "name": "roll"})


def test_masking_can_be_seen_before_training(client: ServeClient, phantom: Phantom) -> None:
    config = pretrain_config("mae3d", "base", Path(), {"data": {"size": (32, 32, 32)}}).model_dump(mode="json")
    answer = client.request("preview_masking", config=config, volumes=[phantom.volume], seed=1)
    assert [picture["name"] for picture in answer["pictures"]] == ["original", "masked", "mask"]
    assert answer["pictures"][2]["array"].mean() == 0.75


def test_masking_with_weights_shows_what_they_reconstruct(
    client: ServeClient, models: dict[str, str], phantom: Phantom
) -> None:
    config = pretrain_config("mae3d", "tiny", Path(), {**SMALL, "weights": models["mae"]}).model_dump(mode="json")
    answer = client.request("preview_masking", config=config, volumes=[phantom.volume], mask_ratio=0.25)
    assert [picture["name"] for picture in answer["pictures"]][2] == "reconstruction"
    assert answer["error"] > 0


def test_estimate_of_a_run(client: ServeClient, tmp_path: Path) -> None:
    from training_backend.data.ingest import ingest

    source = write_cohort(tmp_path / "source", 3, shape=(24, 32, 32))
    ingest([source], tmp_path / "dataset")
    config = pretrain_config(
        "mae3d", "tiny", tmp_path / "dataset", {**SMALL, "optim": {"batch_size": 2, "max_steps": 50}}
    )
    answer = client.request("estimate", config=config.model_dump(mode="json"), steps=2)
    assert answer["total_steps"] == 50
    assert answer["total_s"] == pytest.approx(50 * answer["step_s"])
    assert answer["sentence"].startswith("About ")


def test_a_changed_model_is_loaded_again(client: ServeClient, models: dict[str, str], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(models["mae"], tmp_path / "model")
    source = str(tmp_path / "model")
    assert client.request("load", source=source)["kind"] == "pretrain"
    for name in ("model.safetensors", "card.json"):
        shutil.copy(Path(models["organs"]) / name, tmp_path / "model" / name)
    assert client.request("load", source=source)["kind"] == "finetune"


@pytest.mark.parametrize(
    ("op", "params", "error", "sentence"),
    [
        ("load", {}, RunError, "No model was named"),
        ("load", {"source": "/no/such/model.pth"}, Med3dError, "/no/such/model.pth"),
        ("features", {}, RunError, "No scan was given"),
        ("preview_masking", {"config": {"method": {"name": "mae4d"}}, "volumes": []}, ConfigError, "mae3d"),
    ],
)
def test_wrong_requests_are_sentences(
    client: ServeClient, models: dict[str, str], op: str, params: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    if op == "features":
        params = {"source": models["mae"], "volumes": []}
    with pytest.raises(error, match=sentence):
        client.request(op, **params)


def test_damaged_weights_and_bad_voxels_are_sentences(
    client: ServeClient, models: dict[str, str], phantom: Phantom, tmp_path: Path
) -> None:
    damaged = tmp_path / "model"
    damaged.mkdir()
    for name in ("model.safetensors", "card.json"):
        (damaged / name).write_bytes((Path(models["mae"]) / name).read_bytes()[:-100])
    with pytest.raises(WeightsError):
        client.request("load", source=str(damaged))
    broken = phantom.volume.with_array(np.where(phantom.volume.array > 0, np.nan, 0).astype(np.float32))
    with pytest.raises(DataError, match="not numbers"):
        client.request("features", source=models["mae"], volumes=[broken])


def test_features_can_be_cancelled_and_the_model_stays(client: ServeClient, models: dict[str, str]) -> None:
    volume = thorax_ct(5, (64, 96, 96)).volume
    client.request("load", source=models["mae"])
    pid = client.pid
    stopped: list[float] = []

    def progress(share: float, text: str) -> None:
        if text == "Computing features" and not stopped:
            stopped.append(share)
            client.cancel()

    with pytest.raises(Cancelled):
        client.request("features", source=models["mae"], volumes=[volume], overlap=0.75, progress=progress)
    assert client.pid == pid
    assert client.request("info")["model"]


def test_a_process_killed_at_work_is_replaced_and_finishes(
    client: ServeClient, models: dict[str, str], phantom: Phantom
) -> None:
    client.request("load", source=models["mae"])
    killed: list[int] = []

    def progress(share: float, text: str) -> None:
        if not killed and client.pid is not None:
            killed.append(client.pid)
            psutil.Process(client.pid).kill()

    shifted = phantom.volume.with_array(phantom.volume.array + 7)
    answer = client.request("features", source=models["mae"], volumes=[shifted], progress=progress)
    assert answer["tokens"].shape == (5, 9, 7, 192)
    assert client.pid not in (None, killed[0])


def test_an_import_report_is_about_the_network_that_the_weights_ask_for(
    client: ServeClient, models: dict[str, str]
) -> None:
    for name in ("mae", "ar"):  # the form is still at mae3d when weights of another method are chosen
        config = finetune_config("segmentation", "tiny", Path("somewhere"), changes={"weights": models[name]})
        values = client.request("import_report", config=config.model_dump(mode="json"))
        assert values["method"]["name"] == {"mae": "mae3d", "ar": "ar"}[name]
        assert values["encoder_matched"] == values["encoder"] > 0
