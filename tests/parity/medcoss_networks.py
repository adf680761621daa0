"""Networks of pre-training and distillation of MedCoSS, their full-size parameters, and what tasks take of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.parity.cases import Case, Check
from training_backend.nn.mae import Masking
from training_backend.nn.medcoss import KINDS, MedcossEncoder, MedcossNetwork, MedcossSettings
from training_backend.nn.medcoss_distil import TextDraws, distillation_loss, mix_images, mix_text
from training_backend.nn.medcoss_tokens import Kind, text_mask
from training_backend.nn.param_groups import decay_groups
from training_backend.nn.patch import patchify, unpatchify

UNUSED_ROWS = 1600
"""Of a table in the authors' full-size files."""


def settings(config: dict[str, Any]) -> MedcossSettings:
    """Sizes of the case, taken out of `config`, with the published options."""
    patch = config.pop("P")
    volume, image = tuple(config.pop("now3D")), (1, *config.pop("now2D"))
    rows = {kind: int(np.prod([size // patch for size in config.pop(f"in{kind.upper()}")])) for kind in ("2d", "3d")}
    config.pop("words")  # the arrays have it
    return MedcossSettings(
        width=config.pop("D"),
        depth=config.pop("L"),
        heads=config.pop("H"),
        mlp_dim=config.pop("FF"),
        vocabulary=config.pop("V"),
        text_rows=config.pop("T"),
        unused_rows=config.pop("NP"),
        patch_2d=(1, patch, patch),
        patch_3d=(patch, patch, patch),
        size_2d=image,
        size_3d=volume,  # type: ignore[arg-type]
        rows_2d=rows["2d"],
        rows_3d=rows["3d"],
        decoder_width=config.pop("DD"),
        decoder_depth=config.pop("DL"),
        decoder_heads=config.pop("DH"),
        mask_ratio=config.pop("mask_ratio", 0.75),
        positions="flat",
        text_mask="compatible",
    )


def whole(case: Case, sizes: MedcossSettings, learns: Kind = "3d") -> MedcossNetwork:
    """Network with every part, whose names must be those of the file."""
    network = MedcossNetwork(sizes, learns, KINDS, KINDS)
    network.load_state_dict(case.weights())
    return network


def teacher_of(case: Case, sizes: MedcossSettings) -> MedcossEncoder:
    teacher = MedcossEncoder(sizes, KINDS).eval()
    teacher.load_state_dict(load_file(case.folder / case.entry["parts"]["teacher"]))
    return teacher.requires_grad_(False)


def as_volume(image: Tensor) -> Tensor:
    """A picture [B, C, H, W] as a volume of one slice."""
    return image if image.ndim == 5 else image.unsqueeze(2)


def as_given(case: Case, name: str, volume: Tensor) -> Tensor:
    """`volume` without the slice axis, if the array `name` has none."""
    return volume.reshape(case.arrays[name].shape)


def check_images(case: Case) -> None:
    config = case.config
    kind: Kind = {"2D image": "2d", "3D image": "3d"}[config.pop("modality")]
    assert config.pop("norm_pix_loss")
    assert config.pop("mode") == "eval"
    network = whole(case, settings(config), kind).eval()
    assert not config, f"settings that the suite does not understand: {sorted(config)}"
    volume, noise = as_volume(case.tensor("image")), case.tensor("noise")
    patch = network.patch_size
    masking = Masking.draw(noise, network.settings.mask_ratio)
    case.compare("ids_shuffle", torch.cat([masking.visible, masking.hidden], dim=1))
    case.compare("token_embed", network.video_embed(volume, kind))
    case.compare("feature_masked", network.encode_image(volume, noise))
    full = network.encode_image(volume)
    case.compare("feature_full", full)
    case.compare("kmeans_feature", full.mean(dim=1))
    encoded = network.encode(volume)
    assert encoded.summary is not None
    case.compare("feature_full", torch.cat([encoded.summary[:, None], encoded.tokens], dim=1))
    found = network.reconstruct(volume, noise)
    for name, value in {"mask": found.mask, "pred": found.prediction, "loss": found.loss}.items():
        case.compare(name, value)
    pixels = patchify(volume, patch)
    case.compare("target_patches", pixels)
    case.compare("patch_mean", pixels.mean(dim=-1, keepdim=True))
    case.compare("patch_var", pixels.var(dim=-1, keepdim=True))
    drawn = network.denormalise(found.prediction, volume)
    pasted = torch.where(found.mask[..., None] > 0, drawn, pixels)
    for name, patches in {"recon": drawn, "pasted": pasted}.items():
        case.compare(name, as_given(case, name, unpatchify(patches, patch, found.grid, volume.shape[1])))
    loss = network.image_loss(volume, noise)
    case.compare("loss", loss)
    compare_gradients(case, network, loss)


def check_text(case: Case) -> None:
    config = case.config
    assert config.pop("modality") == "text"
    assert config.pop("mode") == "eval"
    network = whole(case, settings(config), "text").eval()
    assert not config, f"settings that the suite does not understand: {sorted(config)}"
    ids, labels, attention = (case.tensor(name) for name in ("input_ids", "labels", "attention_mask"))
    case.compare("token_embed", network.token_embed(ids))
    mask = text_mask(attention, network.settings.heads, compatible=True)
    case.compare("ext_mask", mask.flatten(0, 1))
    features = network.encode_text(ids, attention)
    case.compare("feature", features)
    case.compare("kmeans_feature", features.mean(dim=1))
    case.compare("feature_embed_returned", features + network.decoder_pos_embed_1D.weight[0])
    case.compare("mlm_logits", network.word_logits(features))
    loss = network.text_loss(ids, labels, attention)
    case.compare("loss", loss)
    compare_gradients(case, network, loss)


def check_distillation(case: Case) -> None:
    config = case.config
    kind = config.pop("kind").lower()
    assert config.pop("mode") == "eval"
    sizes = settings(config)
    assert not config, f"settings that the suite does not understand: {sorted(config)}"
    network, teacher = whole(case, sizes, kind).eval(), teacher_of(case, sizes)
    if kind == "text":
        seen = _mixed_text(case)
        student, wanted = network.encode_text(*seen), teacher.encode_text(*seen)
    else:
        volume, share = as_volume(case.tensor("image")), case.tensor("lam").reshape(-1, 1, 1, 1, 1)
        mixed, noise = mix_images(volume, case.tensor("perm"), share), case.tensor("noise")
        case.compare("mixed", as_given(case, "mixed", mixed))
        student, wanted = network.encode_image(mixed, noise), teacher.encode_image(mixed, noise)
    case.compare("student_feature", student)
    case.compare("teacher_feature", wanted)
    loss = distillation_loss(student, wanted)
    case.compare("loss", loss)
    compare_gradients(case, network, loss)


def _mixed_text(case: Case) -> tuple[Tensor, Tensor]:
    ids, attention = case.tensor("input_ids"), case.tensor("attention_mask")
    own = case.tensor("binary_mask").double()
    ratio = case.tensor("mixup_ratio").reshape(1)
    uniform = torch.where(own > 0, 0.0, 1.0).double()  # what was compared with the ratio is not told
    assert 0 < ratio < 1
    mixed = mix_text(ids, attention, TextDraws(case.tensor("perm"), ratio, uniform))
    case.compare("mixed_ids", mixed[0])
    case.compare("mixed_attention", mixed[1])
    return mixed


def compare_gradients(case: Case, network: nn.Module, loss: Tensor) -> None:
    loss.backward()
    found = dict(network.named_parameters())
    for name in [name for name in case.arrays if name.startswith("grad__")]:
        case.compare(name, found[name.removeprefix("grad__")].grad)


def check_keys(name: str, expected: dict[str, list[int]]) -> None:
    """Names and shapes of a whole file of the authors."""
    if name not in ("pretrain", "teacher"):
        pytest.fail(f"the suite does not know the network {name!r}")
    assert {key: list(tensor.shape) for key, tensor in _full_size(name).state_dict().items()} == expected


def check_report(path: Path) -> None:
    """Counts of parameters, of decayed tensors, and what every task takes of a pre-training file."""
    report = json.loads(path.read_text(encoding="utf-8"))
    network, teacher = _full_size("pretrain"), _full_size("teacher")
    assert report.pop("pretrain_full_params") == _count(network)
    assert report.pop("teacher_params") == _count(teacher)
    for part, count in report.pop("pretrain_param_split").items():
        prefix = "decoder" if part == "decoder" else part
        found = [p.numel() for n, p in network.named_parameters() if n.startswith(prefix)]
        assert (part, sum(found)) == (part, count)
    without, with_decay = (len(group["params"]) for group in decay_groups(network, 0.05))
    assert (report.pop("n_no_decay"), report.pop("n_decay")) == (without, with_decay)
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    for key, entry in report.items():
        name = key.removesuffix("_full")
        keys = json.loads((path.parent / f"{name}_full_keys.json").read_text(encoding="utf-8"))
        taken = {name for name, shape in keys.items() if shapes.get(name) == shape}
        assert (len(keys), len(taken)) == (entry["keys"], entry["loaded_from_pretrain"]), name
        assert entry["params"] == sum(int(np.prod(shape)) for shape in keys.values())
        assert entry["shape_conflicts"] == [n for n, shape in keys.items() if n in shapes and shapes[n] != shape]
        assert set(entry["new_key_prefixes"]) == {n.split(".")[0] for n in keys if n not in shapes}
        dropped = {".".join(n.split(".")[:2]) for n in shapes if n not in keys}
        assert set(entry["pretrain_keys_dropped"]) == dropped


def _full_size(name: str) -> nn.Module:
    sizes = MedcossSettings(unused_rows=UNUSED_ROWS)
    with torch.device("meta"):
        return MedcossNetwork(sizes, "2d", KINDS, KINDS) if name == "pretrain" else MedcossEncoder(sizes, KINDS)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


CHECKS: dict[str, Check] = {
    r"pretrain_(2d|3d)": check_images,
    r"pretrain_text": check_text,
    r"distill_(2d|3d|text)": check_distillation,
}
"""By a pattern of the name of a case."""
