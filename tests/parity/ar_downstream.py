"""Segmentation, classification and layer decay of AR-SSL4M against the reference."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch

from tests.parity.cases import Case, Check
from training_backend.config import OptimConfig
from training_backend.config.recipes import recipes
from training_backend.data.finetune_published import atrium_crop, decathlon_case
from training_backend.data.read import read_labels, read_volume
from training_backend.engine.schedule import learning_rate, lr_at_epoch
from training_backend.evaluate.sliding import Tiling, predict_probabilities
from training_backend.nn.ar import ArEncoder
from training_backend.nn.dice import dice_ce
from training_backend.nn.heads import VolumeHead
from training_backend.nn.param_groups import layer_decay_groups
from training_backend.nn.unetr_published import PublishedUnetr
from training_backend.tasks import segmentation
from training_backend.tasks.classification import ClassificationConfig, classification_loss, evidence, soft_target


def encoder(config: dict[str, Any], size: str) -> ArEncoder:
    """Takes its settings out of `config`, in the frame of the reference."""
    return ArEncoder(
        tuple(config.pop(size)),
        tuple(config.pop("patch_size")),
        width=config.pop("hidden_size"),
        depth=config.pop("num_layers"),
        heads=config.pop("num_heads"),
        mlp_width=config.pop("intermediate_size"),
        positions=config.pop("pos_type"),
        axes="zyx",
    )


def to_ours(state: dict[str, Any], stem: str) -> dict[str, Any]:
    """Tensors under our names: the authors call their encoder `stem`."""
    return {f"encoder.{key.removeprefix(stem)}" if key.startswith(stem) else key: state[key] for key in state}


def to_theirs(state: dict[str, Any], stem: str) -> dict[str, Any]:
    return {f"{stem}{key.removeprefix('encoder.')}" if key.startswith("encoder.") else key: state[key] for key in state}


def tolerance(case: Case, name: str) -> dict[str, float]:
    """Of an array, from a sentence like "atol 2e-5 rtol 1e-4" under a key like "tokens/hidden"."""
    sentences = case.entry["tolerance"]
    stem = name.partition("/")[0]
    key = next((key for key in sentences if any(part and stem.startswith(part) for part in key.split("/"))), None)
    if key is None:
        pytest.fail(f"the manifest gives no tolerance for {name}")
    found = dict(re.findall(r"(atol|rtol) ([\d.e+-]+)", sentences[key]))
    return {"atol": float(found.get("atol", 0.0)), "rtol": float(found.get("rtol", 0.0))}


def compare(case: Case, name: str, actual: Any, like: str = "") -> None:
    case.compare(name, actual, **tolerance(case, like or name))


def check_segmentation(case: Case) -> None:
    config = case.config
    roi, step = tuple(config["roi"]), {"batch": 4, "overlap": 0.75}
    assert "sw_batch 4, overlap 0.75, constant weighting" in case.entry["arrays"]["sw_logits"]
    encoder_ = encoder(config, "roi")
    net = PublishedUnetr(encoder_, config.pop("out_channels"), feature_size=config.pop("feature_size"))
    assert not config, f"settings that the suite does not understand: {sorted(config)}"
    net.load_state_dict(to_ours(case.weights(), "vit."))
    assert to_theirs(net.state_dict(), "vit.").keys() == case.weights().keys()

    volume = case.tensor("image")
    depth = int(case.arrays["n_hidden"])
    assert depth == encoder_.depth
    taps = [int(name.removeprefix("hidden_")) for name in case.arrays if name.startswith("hidden_")]
    assert set(net.taps) <= set(taps)
    features = encoder_.encode(volume, hidden=taps)
    last = encoder_.norm(features.tokens)
    for tap, tokens in zip(taps, features.hidden, strict=True):
        compare(case, f"hidden_{tap}", last if tap == depth - 1 else tokens)
    compare(case, "tokens", last)
    compare(case, "proj_feat_tokens", last.transpose(1, 2).unflatten(2, features.grid), "tokens")
    (logits,) = net(volume)
    compare(case, "logits", logits)
    labels = case.tensor("label").long()[:, 0]
    dice, entropy = dice_ce(logits, labels, squared=True, smooth=1e-6)
    compare(case, "dice_loss", dice, "loss")
    compare(case, "loss", dice + entropy)
    (dice + entropy).backward()
    norms = to_theirs({name: p.grad.norm() for name, p in net.named_parameters()}, "vit.")
    assert sorted(norms) == sorted(name.removeprefix("gradnorm/") for name in case.arrays if "gradnorm/" in name)
    for name, norm in norms.items():
        compare(case, f"gradnorm/{name}", norm)
    tiling = Tiling(roi, **step, blend="constant", fill=0.0)
    with torch.no_grad():
        whole = predict_probabilities(lambda windows: net.eval()(windows)[0], case.tensor("sw_image"), tiling)
    compare(case, "sw_logits", whole[None], "logits")


def check_classification(case: Case) -> None:
    config = case.config
    classes = config.pop("num_classes")
    encoder_ = encoder(config, "img_size")
    assert not config, f"settings that the suite does not understand: {sorted(config)}"
    net = VolumeHead(encoder_, classes, "tokens")
    net.load_state_dict(to_ours(case.weights(), "model."))
    assert to_theirs(net.state_dict(), "model.").keys() == case.weights().keys()

    volume, labels = case.tensor("image"), case.tensor("labels")
    features = encoder_.encode(volume)
    assert features.summary is not None
    compare(case, "tokens", encoder_.norm(torch.cat([features.summary[:, None], features.tokens], 1)))
    logits = net(volume)
    if "logits" in case.arrays:
        compare(case, "logits", logits)
    compare(case, "softmax", logits.softmax(1))
    map_ = evidence(net, volume[:1])
    assert map_.shape == (classes, *features.grid)
    torch.testing.assert_close(map_.mean(dim=(1, 2, 3)), logits[0].detach(), atol=1e-5, rtol=1e-4)

    balanced = "loss_single_class_batch" in case.arrays  # the two heads differ in their losses alone
    task = ClassificationConfig(kind="multiclass", classes=classes, balanced=balanced)
    loss = classification_loss(logits, soft_target(labels, task), task)
    compare(case, "loss", loss)
    if balanced:
        right = (logits.argmax(1) == labels).double().mean()
        case.compare("accuracy", right, atol=1e-12)
        one = classification_loss(logits, soft_target(labels[:1].expand(len(labels)), task), task)
        compare(case, "loss_single_class_batch", one, "loss")
    loss.backward()
    gradients = to_theirs({name: p.grad for name, p in net.named_parameters()}, "model.")
    assert sorted(gradients) == sorted(name.removeprefix("grad/") for name in case.arrays if "grad/" in name)
    for name, gradient in gradients.items():
        compare(case, f"grad/{name}", gradient)


def check_left_atrium(case: Case) -> None:
    stored = {name: case.arrays[f"h5_{name}"] for name in ("image", "label")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mri_norm2.h5"
        with h5py.File(path, "w") as file:
            for name, array in stored.items():
                file.create_dataset(name, data=array)
        image = read_volume(path, key="image").array.transpose(2, 1, 0)
        label = read_labels(path, key="label").array.transpose(2, 1, 0)
    case.compare("valid_image_shape", (1, *image.shape), atol=0)
    case.compare("valid_equal", [np.array_equal(image, stored["image"]), np.array_equal(label, stored["label"])])
    draw = random.Random(int(case.arrays["seed"]))
    found = atrium_crop(image, label, tuple(case.config["crop"]), draw)
    for name, array in zip(("crop_image", "crop_label"), found, strict=True):
        case.compare(name, array[None], atol=0, rtol=0)


def check_decathlon(case: Case) -> None:
    facts = {found.dataset.name: found for found in recipes("ar").values()}
    recipe = facts[case.config["task"]]
    assert recipe.dataset.spacing_mm == tuple(reversed(case.config["pixdim"]))
    window = (recipe.run["data"]["intensity"]["low"], recipe.run["data"]["intensity"]["high"])
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name in ("image", "label"):
            paths[name] = Path(folder) / f"{name}.nii.gz"
            nib.save(nib.Nifti1Image(case.arrays[f"nifti_{name}"], case.arrays["affine"]), paths[name])
        image, label = read_volume(paths["image"]), read_labels(paths["label"])
        found = decathlon_case(image, label, tuple(case.config["pixdim"]), window)
    compare(case, "image", found[0][None])
    expected = case.arrays["label"]
    assert found[1][None].shape == expected.shape
    assert (found[1][None] != expected).mean() <= 1e-3


def check_groups(folder: Path, value: Any) -> None:
    """Rates and decays of every parameter, also without several processes, where the reference loses its own."""
    told = json.loads((folder / value).read_text(encoding="utf-8"))
    for kind, groups in told["groups"].items():
        expected = {name: (g["weight_decay"], g["lr_scale"]) for g in groups for name in g["params"]}
        positions = "learnable" if any("pos_embed" in name for name in expected) else "sincos3d"
        depth = 1 + max(int(found[1]) for name in expected if (found := re.search(r"layers\.(\d+)\.", name)))
        small = ArEncoder((32, 32, 32), (16, 16, 16), 1, 12, depth, 2, 24, positions=positions, axes="zyx")
        net = VolumeHead(small, 2, "tokens") if kind == "covid" else PublishedUnetr(small, 2, feature_size=2)
        stem = "model." if kind == "covid" else "vit."
        decay = 1.0 if kind.endswith("single") else told["layer_decay"]
        groups_ = layer_decay_groups(
            net, lambda name, net=net: segmentation.layer_id(net, name), depth + 1, decay, told["weight_decay"]
        )
        prefix = "module." if all(name.startswith("module.") for name in expected) else ""
        ours = {
            f"{prefix}{name}": (group["weight_decay"], group["lr_scale"])
            for group in groups_
            for name in to_theirs(dict.fromkeys(group["names"]), stem)
        }
        assert ours.keys() == expected.keys()
        for name, pair in expected.items():
            assert ours[name] == pytest.approx(pair), name


def check_warm_up(folder: Path, value: Any) -> None:
    rates = [lr_at_epoch(point, value["lr"], 0.0, value["warmup"], value["epochs"]) for point in value["points"]]
    np.testing.assert_allclose(rates, value["values"], rtol=1e-9, atol=1e-18)
    steps = 1000  # of an epoch
    optim = OptimConfig(lr=value["lr"], warmup=value["warmup"] / value["epochs"], warmup_start="zero")
    found = [learning_rate(round(point * steps), value["epochs"] * steps, optim) for point in value["points"]]
    np.testing.assert_allclose(found, value["values"], rtol=1e-9, atol=1e-18)


def check_poly(folder: Path, value: Any) -> None:
    assert value["power"] == 0.9
    optim = OptimConfig(lr=value["lr"], epochs=value["epochs"], warmup=0.0, schedule="poly", lr_per_epoch=True)
    steps = 24  # of an epoch; the last one has the rate of the first
    rates = [learning_rate(steps * point + steps - 1, steps * value["epochs"], optim) for point in value["points"]]
    np.testing.assert_allclose(rates, value["values"], rtol=1e-9)


CHECKS: dict[str, Check] = {
    r"downstream/segmentation UNETR": check_segmentation,
    r"base_model\.py": check_classification,
    r"data_laseg\.py": check_left_atrium,
    r"data_utils\.py": check_decathlon,
}
LISTS: dict[str, Callable[[Path, Any], None]] = {
    r"param_groups.*": check_groups,
    r"lr_segmentation.*": check_warm_up,
    r"lr_covid.*": check_poly,
}
