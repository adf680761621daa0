"""Networks, their full-size parameters, and the way of weights between them, against the reference."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn

from tests.parity.cases import Case, Check
from training_backend.nn import registration
from training_backend.nn.plain_unet import PlainUnet, with_aliases, without_aliases
from training_backend.nn.swin import SwinTransformer
from training_backend.nn.swin_unetr import SwinUnetr
from training_backend.nn.voco import Voco
from training_backend.nn.voco_downstream import CcciiClassifier, ClipVisual, ReportVisual
from training_backend.weights.voco import canonical, published_names

SIZES = {"B": 48, "L": 96, "H": 192}
INDEX = "relative_position_index"


def check_segmentation(case: Case) -> None:
    config = case.config
    options = {"decoder": True, "classes": config["out_channels"]}
    network = _loaded(SwinUnetr(config["in_channels"], config["feature_size"], window=_window(case), **options), case)
    volume = _volume(case)
    with torch.no_grad():
        logits, hidden = network(volume), network.swinViT(volume)
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    actual = {
        "logit_mean": logits.mean(dim=(0, 2, 3, 4)),
        "dicece": loss(logits, case.tensor("label_u8").long()),
    }
    for name in case.arrays:
        if name.startswith("hidden"):
            case.compare(name, _part(name, hidden[int(name[6])]))
        elif match := re.fullmatch(r"logits(_s\d+)?", name):
            case.compare(name, _part(name, logits))
        elif name in actual:
            case.compare(name, actual[name])
        else:
            assert name in ("x_u8", "label_u8"), f"unknown array {name} {match}"


def check_transformer(case: Case) -> None:
    state = _floats(case.weights())
    config = {"in_channels": case.arrays["x_u8"].shape[1], "width": case.config["embed_dim"], "window": _window(case)}
    network = SwinTransformer(**config)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(name.endswith(INDEX) for name in missing)
    with torch.no_grad():
        hidden = network.eval()(_volume(case))
        network_fixed = SwinTransformer(**config, merging="fixed")
        network_fixed.load_state_dict(state, strict=False)
        other = network_fixed.eval()(_volume(case))
    for name in case.arrays:
        if name != "x_u8":
            case.compare(name, _part(name, hidden[int(name[6])]))
    assert float((other[1] - hidden[1]).abs().max()) > 0.01


def check_classifier(case: Case) -> None:
    channels, outputs = case.arrays["x_u8"].shape[1], case.arrays["logits"].shape[1]
    network = _loaded(CcciiClassifier(channels, case.config["feature_size"], outputs, window=_window(case)), case)
    with torch.no_grad():
        logits = network(_volume(case))
    case.compare("logits", logits)
    case.compare("ce", F.cross_entropy(logits, case.tensor("target")))


def check_report_visual(case: Case) -> None:
    channels = case.arrays["x_u8"].shape[1]
    network = _loaded(ReportVisual(channels, case.config["feature_size"], window=_window(case)), case)
    with torch.no_grad():
        tokens, mean = network.tokens(_volume(case))
    case.compare("tokens", tokens, atol=1e-4)  # two voxels in the deepest map: see voco_training
    case.compare("avg", mean)


def check_clip_visual(case: Case) -> None:
    channels, outputs = case.arrays["x_u8"].shape[1], case.arrays["out"].shape[-1]
    network = _loaded(ClipVisual(channels, case.config["feature_size"], outputs, window=_window(case)), case)
    with torch.no_grad():
        case.compare("out", network.regions(_volume(case)))


def check_registration(case: Case) -> None:
    image, flow, labels = case.tensor("src"), case.tensor("flow"), case.tensor("seg_u8")
    warped = registration.warp(image, flow)
    case.compare("warped", warped)
    case.compare("warped_nearest", registration.warp(image, flow, nearest=True))
    case.compare("ncc", registration.local_correlation(warped, image))
    case.compare("grad_l2", registration.roughness(flow))
    case.compare("dice", registration.warped_dice(labels, labels, flow, 36))


def check_plain_unet(case: Case) -> None:
    config, state = case.config, _floats(case.weights())
    outputs = [name for name in case.arrays if name.startswith("out")]
    network = PlainUnet(
        case.arrays["x_u8"].shape[1],
        case.arrays["out0"].shape[1],
        config["features"],
        deep_supervision=config["deep_supervision"],
    )
    network.load_state_dict(without_aliases(state))
    again = with_aliases(network.state_dict())
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    with torch.no_grad():
        logits = network.eval()(_volume(case))
    for name in outputs:
        case.compare(name, _part(name, logits[int(name[3])]))


def check_keys(path: Path) -> None:
    """Names and shapes of the parameters of a published file: ours, under its names, are the same."""
    expected = {name: tuple(shape) for name, shape in json.loads(path.read_text(encoding="utf-8")).items()}
    with torch.device("meta"):
        network = _full_size(path.stem)
    state = (
        with_aliases(network.state_dict()) if isinstance(network, PlainUnet) else published_names(network.state_dict())
    )
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    if not isinstance(network, PlainUnet):
        assert {canonical(name): shape for name, shape in expected.items()} == {
            name: tuple(tensor.shape) for name, tensor in network.state_dict().items()
        }


def check_load_map(path: Path) -> None:
    """The backbone of a pre-training file starts a whole SwinUNETR: what changes, what could, and what stays."""
    expected = {key: set(names) for key, names in json.loads(path.read_text(encoding="utf-8")).items()}
    torch.manual_seed(0)
    small = {"window": (3, 3, 3)}
    pretrained = Voco(1, 6, hidden=8, projected=8, **small)
    network = SwinUnetr(1, 6, decoder=True, classes=3, **small)
    with torch.no_grad():
        for parameter in pretrained.parameters():
            parameter.add_(0.1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    published = published_names(pretrained.state_dict())
    given = {canonical(f"module.{name}"): tensor for name, tensor in published.items()}
    found = {name: tensor for name, tensor in given.items() if name in before}
    network.load_state_dict(found, strict=False)
    after = network.state_dict()
    assert set(found) == expected["eligible"]
    assert {name for name in after if not torch.equal(after[name], before[name])} == expected["changed"]
    assert set(after) - set(found) == expected["untouched"]


def _full_size(name: str) -> nn.Module:
    if "plainconvunet" in name:
        return PlainUnet()
    size = next(SIZES[part] for part in name.split("_") if part in SIZES)
    if name.startswith("CCCII"):
        return CcciiClassifier(1, size)
    if name.startswith("VoComni"):
        return SwinUnetr(1, size, decoder=True, classes=21)
    if "backbone" in name:
        return SwinUnetr(1, size)
    if "v1" in name:
        return Voco(1, size, hidden=2048, projected=2048, whole_teacher=True)
    return Voco(1, size, decoder=True, classes=21) if "Omni" in name else Voco(1, size)


def _loaded(network: nn.Module, case: Case) -> nn.Module:
    network.load_state_dict(_floats(case.weights()))
    return network.eval()


def _floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _volume(case: Case) -> Tensor:
    return case.tensor("x_u8").float() / 255


def _window(case: Case) -> tuple[int, int, int]:
    side = int(case.config["window"])
    return (side, side, side)


def _part(name: str, values: Tensor) -> Tensor:
    """What the name of an array says of it: ``_s4`` every fourth voxel, ``_mean`` the mean of each channel."""
    if name.endswith("_mean"):
        return values.mean(dim=(0, 2, 3, 4))
    step = int(match[1]) if (match := re.search(r"_s(\d+)$", name)) else 1
    return values[..., ::step, ::step, ::step]


CHECKS: dict[str, Check] = {
    r"^monai\.networks\.nets\.SwinUNETR": check_segmentation,
    r"^monai SwinTransformer": check_transformer,
    r"CC-CCII/model\.py": check_classifier,
    r"M2KT/modules/swin\.py": check_report_visual,
    r"CT_CLIP/baseline/swin\.py": check_clip_visual,
    r"^Registration/": check_registration,
    r"^dynamic_network_architectures PlainConvUNet": check_plain_unet,
}
