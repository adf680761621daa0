"""Image encoders of MG-3D, networks made of them, and the names of full-size files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.parity.cases import Case, Check
from training_backend.nn.dice import dice_ce
from training_backend.nn.heads import VolumeHead
from training_backend.nn.mg3d import Mg3d
from training_backend.nn.mg3d_encoders import SwinVision
from training_backend.nn.swin import SwinStage
from training_backend.nn.swin_unetr import SwinUnetr
from training_backend.weights.mg3d import UNREAD, canonical, published_names

SIZES = {"B": 48, "L": 96}
INDEX = "relative_position_index"


def check_encoder(case: Case) -> None:
    config = case.config
    assert (config["depths"], config["patch_size"]) == ([2, 2, 2, 2], [2, 2, 2])
    network = SwinVision(
        config["in_chans"], config["embed_dim"], window=tuple(config["window_size"]), heads=config["num_heads"]
    )
    network.load_state_dict(case.weights())
    with torch.no_grad():
        maps = network.eval().maps(case.tensor("image"))
        shown = network.shown(maps)
    for name in case.arrays:
        if match := re.fullmatch(r"hidden_norm_(\d)", name):
            case.compare(name, shown[int(match[1])])
    case.compare("last_raw", maps[-1])


def check_stage(case: Case) -> None:
    config = case.config
    network = SwinStage(config["dim"], config["num_heads"], (config["window"],) * 3, None)
    missing, unexpected = network.load_state_dict(case.weights(), strict=False)
    assert unexpected == []
    assert all(name.endswith(INDEX) for name in missing)
    with torch.no_grad():
        case.compare("y", network.eval()(case.tensor("x")))


def check_segmentation(case: Case) -> None:
    config = case.config
    network = _segmenter(config["feature_size"], config["out_channels"], config["window"], config["num_heads"])
    network.load_state_dict(case.weights())
    with torch.no_grad():
        logits = network.eval()(case.tensor("image"))
    labels = case.tensor("label")[:, 0].long()
    case.compare("logits", logits)
    case.compare("loss_dice_lung", dice_ce(logits, labels)[0])
    case.compare("loss_dicece_colon_covid", sum(dice_ce(logits, labels, smooth=1e-6, squared=True)))
    case.compare("loss_dicece_acdc", sum(dice_ce(logits, labels, background=False)))


def check_classifier(case: Case) -> None:
    config = case.config
    encoder = SwinVision(1, config["embed_dim"], window=tuple(config["window"]), heads=config["num_heads"])
    network = VolumeHead(encoder, config["num_classes"])
    network.fc_norm.eps = 1e-5
    network.load_state_dict(_of_head(case.weights()))
    with torch.no_grad():
        logits = network.eval()(case.tensor("image"))
    case.compare("logits", logits)
    case.compare("loss_ce", F.cross_entropy(logits, case.tensor("target")))


def check_keys(path: Path) -> None:
    """Names and shapes of a full-size file: ours, under its names, are those of it that anything reads."""
    expected = {name: tuple(shape) for name, shape in json.loads(path.read_text(encoding="utf-8")).items()}
    kind, size = re.fullmatch(r"(pretrain|seg|cls)_.*?([BL])_keys", path.stem).groups()  # type: ignore[union-attr]
    with torch.device("meta"):
        network = _full_size(kind, size, expected)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if kind == "cls":
        assert own == _of_head(expected)
        return
    if kind == "pretrain":
        own = published_names({canonical(name): shape for name, shape in own.items()})  # type: ignore[arg-type, assignment]
        own = {name: shape for name, shape in own.items() if not re.fullmatch(UNREAD, name)}
        expected = {name: shape for name, shape in expected.items() if not re.fullmatch(UNREAD, name)}
    assert own == expected


def _full_size(kind: str, size: str, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    import transformers

    if kind == "seg":
        return _segmenter(SIZES[size], shapes["out.conv.conv.bias"][0], (7, 7, 7), (3, 6, 12, 24))
    vision = SwinVision(1, SIZES[size], project=768 if kind == "pretrain" and size == "L" else 0)
    if kind == "cls":
        return VolumeHead(vision, shapes["head.bias"][0])
    words, _ = shapes["language_encoder.embeddings.word_embeddings.weight"]
    return Mg3d(vision, transformers.BertModel(transformers.BertConfig(vocab_size=words)), (4, 3, 4))


def _segmenter(features: int, classes: int, window: list[int] | tuple[int, ...], heads: object) -> SwinUnetr:
    return SwinUnetr(
        1,
        features,
        window=tuple(window),  # type: ignore[arg-type]
        heads=heads,  # type: ignore[arg-type]
        convolutions=False,
        decoder=True,
        classes=classes,
    )


def _of_head(state: dict[str, Any]) -> dict[str, Any]:
    """Names of a classifier of the authors in ours."""
    renamed = {re.sub(r"^norm\.", "fc_norm.", name): value for name, value in state.items()}
    return {name if name.startswith(("head.", "fc_norm.")) else f"encoder.{name}": renamed[name] for name in renamed}


CHECKS: dict[str, Check] = {
    r"^mg3d\.models\.vision_encoders\.swin_unetr\.SwinTransformer$": check_encoder,
    r"^swin_unetr\.BasicLayer": check_stage,
    r"^downstream/MSD/networks/swin_unetr\.SwinUNETR$": check_segmentation,
    r"^downstream/cc-ccii/networks/swin_b\.SwinTransformer": check_classifier,
}
