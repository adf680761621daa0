"""Downstream networks, sliding windows and scores of MedCoSS against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity import medcoss_networks
from tests.parity.cases import Case, Check
from tests.parity.medcoss_networks import as_volume
from training_backend.evaluate.clean import larger_parts, largest_part
from training_backend.evaluate.published_scores import dice_pictures, dice_volumes
from training_backend.evaluate.sliding import Tiling, importance, predict_probabilities, with_flips
from training_backend.nn.heads import VolumeHead, authors_names
from training_backend.nn.medcoss import MedcossEncoder, MedcossSettings
from training_backend.nn.medcoss_downstream import SentenceHead, dice_bce
from training_backend.nn.unetr_published import PublishedUnetr
from training_backend.tasks.classification import ClassificationConfig, classification_loss, soft_target

ENCODER = ("fused_encoder.", "token_embed.", "video_embed.", "cls_token")


def settings(config: dict[str, Any]) -> MedcossSettings:
    """Takes the sizes of a case out of `config`; the unused table is in no network of a task."""
    return replace(medcoss_networks.settings(config), unused_rows=0)


def needed(published: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """`published` without the patches and positions of the other kind of images, which a task never looks at."""
    other = "_3D." if getattr(network.encoder, "planar", False) else "_2D."
    flat = () if other == "_3D." else ("video_embed.embeddings.",)
    return {name: value for name, value in published.items() if other not in name and not name.startswith(flat)}


def loaded(case: Case, network: nn.Module) -> nn.Module:
    """`network` in the mode of the case, with its weights; names must be the same on both sides."""
    weights = needed(case.weights(), network)
    own = {f"encoder.{name}" if name.startswith(ENCODER) else name: tensor for name, tensor in weights.items()}
    network.load_state_dict(own)
    assert authors_names(network.state_dict()).keys() == weights.keys()
    assert case.entry["config"]["mode"] == "eval"
    return network.eval()


def finish(case: Case, config: dict[str, Any], network: nn.Module, loss: Tensor) -> None:
    """Gradients of `loss`, and no setting left."""
    assert not config, f"settings that the suite does not understand: {sorted(config)}"
    loss.backward()
    found = authors_names({name: p.grad for name, p in network.named_parameters()})
    for name in [name for name in case.arrays if name.startswith("grad__")]:
        case.compare(name, found[name.removeprefix("grad__")])


def check_loss(case: Case, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the class, and the accuracy."""
    task = ClassificationConfig(kind="multiclass", classes=logits.shape[1])
    loss = classification_loss(logits, soft_target(labels, task), task)
    case.compare("loss", loss)
    case.compare("acc", (logits.argmax(1) == labels).double().mean())
    return loss


def check_sentences(case: Case) -> None:
    config = case.config
    encoder = MedcossEncoder(settings(config), {"text"})
    classes = config.pop("num_classes")
    network = loaded(case, SentenceHead(encoder, classes))
    config.pop("mode")
    ids, mask, labels = (case.tensor(name) for name in ("input_ids", "attention_mask", "labels"))
    logits = network(ids, mask)
    case.compare("logits", logits.log_softmax(1))
    case.compare("prob", logits.softmax(1))
    alone = torch.cat([network(ids[i : i + 1], mask[i : i + 1]) for i in range(len(ids))])
    case.compare("prob_batch1", alone.softmax(1))
    fixed = MedcossEncoder(replace(encoder.settings, text_mask="fixed"), {"text"})
    fixed.load_state_dict(encoder.state_dict())
    network.encoder = fixed.eval()  # without the mixed-up padding a batch gives what single texts give
    torch.testing.assert_close(network(ids, mask), alone, atol=case.entry["tolerance"]["atol"], rtol=0)
    network.encoder = encoder
    finish(case, config, network, check_loss(case, logits, labels))


def check_classes(case: Case) -> None:
    config = case.config
    image, labels = as_volume(case.tensor("image")), case.tensor("labels")
    encoder = MedcossEncoder(settings(config), {"2d" if image.shape[2] == 1 else "3d"})
    classes, name = config.pop("num_classes"), config.pop("task")
    hidden: Sequence[int] = (encoder.width,) if name == "RICORD" else ()
    network = loaded(case, VolumeHead(encoder, classes, "patches", hidden))
    config.pop("mode")
    case.compare("pooled_after_fc_norm", network.features(image))
    logits = network(image)
    case.compare("logits", logits)
    case.compare("prob", logits.softmax(1))
    finish(case, config, network, check_loss(case, logits, labels))


def check_segmentation(case: Case) -> None:
    config = case.config
    image = as_volume(case.tensor("image"))
    flat = image.shape[2] == 1
    encoder = MedcossEncoder(settings(config), {"2d" if flat else "3d"}, class_token=False)
    network = loaded(case, PublishedUnetr(encoder, config.pop("num_classes"), feature_size=config.pop("F")))
    config.pop("mode"), config.pop("task")
    taps = [int(name.removeprefix("hidden")) for name in case.arrays if name.startswith("hidden")]
    assert taps == [*network.taps, encoder.depth - 1]
    for tap, tokens in zip(taps, encoder.encode(image, hidden=taps).hidden, strict=True):
        case.compare(f"hidden{tap}", tokens)
    (logits,) = network(image)
    found = logits.squeeze(2) if flat else logits
    case.compare("logits", found)
    targets = case.tensor("labels").to(torch.int8)
    dice, entropy = dice_bce(found, targets)
    case.compare("dice_loss", dice)
    case.compare("bce_loss", entropy)
    case.compare("total", dice + entropy)
    partly = targets.clone()
    partly[0, -1] = -1
    for name, term in zip(("dice_loss_ignored", "bce_loss_ignored"), dice_bce(found, partly), strict=True):
        expected = case.arrays[name]  # not a number where nothing is left, for which we give 0
        torch.testing.assert_close(
            term.detach().double(),
            torch.tensor(np.nan_to_num(expected)).double(),
            atol=case.entry["tolerance"]["atol"],
            rtol=0,
        )
    finish(case, config, network, dice + entropy)


def check_windows(case: Case) -> None:
    config = case.config
    tile, sigma = [1, 1, *config.pop("tile")][-3:], config.pop("sigma_scale")
    image = as_volume(case.tensor("image"))
    kernel, slope = case.tensor("conv_w"), case.tensor("coord_w")
    flat = kernel.ndim == 4
    assert kernel.shape[0] == config.pop("classes")
    assert config.pop("net").startswith("logits = conv(x,w,pad 1) + sum_i coord_w[i]*linspace(-1,1,size_i)")

    def probabilities(windows: Tensor) -> Tensor:
        seen = windows.squeeze(2) if flat else windows
        logits = (F.conv2d if flat else F.conv3d)(seen, kernel, padding=1)
        for axis, weight in enumerate(slope, start=2):
            size = logits.shape[axis]
            shape = [-1 if each == axis else 1 for each in range(logits.ndim)]
            logits = logits + weight * torch.linspace(-1, 1, size).view(shape)
        return as_volume(logits.sigmoid())

    tiling = Tiling(tuple(tile), config.pop("overlap"), 2, blend="nnunet", sigma=sigma, fill=-1.0, pad_end=True)
    assert not config, f"settings that the suite does not understand: {sorted(config)}"
    weight = importance(tiling.window, tiling.blend, tiling.sigma)
    case.compare("gaussian", weight[0] if flat else weight)
    found = predict_probabilities(with_flips(probabilities, (1, 2) if flat else (0, 1, 2)), image, tiling)
    case.compare("prob", (found[:, 0] if flat else found)[None].double())


def check_scores(case: Case) -> None:
    found, truth = case.arrays["pred"] > 0, case.arrays["ref"] > 0
    nothing = np.zeros_like(found)
    case.compare("dice_3d", dice_volumes(found, truth))
    of_slices = [dice_pictures(*pair) for pair in zip(found, truth, strict=True)]  # which one is not told
    case.compare("dice_2d", min(of_slices, key=lambda score: abs(score - case.arrays["dice_2d"])))
    case.compare("dice_3d_empty", dice_volumes(nothing, nothing))
    case.compare("dice_2d_empty", dice_pictures(nothing, nothing))
    case.compare("organ_largest", largest_part(found).astype(np.uint8))
    case.compare("tumour_gt50", larger_parts(found, 50).astype(np.uint8))


CHECKS: dict[str, Check] = {
    r"ds_pubmed": check_sentences,
    r"ds_(chestxr|nch|ricord)": check_classes,
    r"ds_(qata|glas|la|lits|vs)": check_segmentation,
    r"sliding_(2d|3d)": check_windows,
    r"metrics": check_scores,
}
"""By a pattern of the name of a case."""

TASKS = {
    "pubmed": ("text", 5, "sentences"),
    "chestxr": ("2d", 3, "classes"),
    "nch": ("2d", 9, "classes"),
    "ricord": ("3d", 2, "classes"),
    "qata": ("2d", 1, "segmentation"),
    "glas": ("2d", 1, "segmentation"),
    "la": ("3d", 1, "segmentation"),
    "lits": ("3d", 2, "segmentation"),
    "vs": ("3d", 1, "segmentation"),
}
"""What the network of a task reads and gives."""


def check_keys(task: str, published: dict[str, list[int]]) -> None:
    """Names and shapes of the whole network of a task are those of the authors' file, as far as it looks at them."""
    if task not in TASKS:
        pytest.fail(f"the suite does not know the task {task!r}")
    kind, outputs, head = TASKS[task]
    with torch.device("meta"):
        encoder = MedcossEncoder(MedcossSettings(), {kind}, class_token=head == "classes")
        if head == "sentences":
            network: nn.Module = SentenceHead(encoder, outputs)
        elif head == "classes":
            network = VolumeHead(encoder, outputs, "patches", (encoder.width,) if task == "ricord" else ())
        else:
            network = PublishedUnetr(encoder, outputs)
    found = {name: list(tensor.shape) for name, tensor in authors_names(network.state_dict()).items()}
    assert found == needed(published, network)
