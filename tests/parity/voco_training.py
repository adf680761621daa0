"""One step of pre-training with each of VoCo's heads against the reference.

Crops are so small in these cases that the deepest map has two voxels, whose instance norm turns the last bit of the
input into visible differences: the reference's own code, run on another processor or release of PyTorch, misses its
stored numbers by more than they allow, and ours, which has its bits (`tests/nn/test_voco_swin.py`), by as much. So each
case is computed for inputs that differ in their last bit too, and a number may miss by as much as these do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from tests.parity.cases import Case, Check
from training_backend.methods.voco_stages import plain_network, pseudo_labels
from training_backend.nn.voco import Voco
from training_backend.nn.voco_losses import inter_loss, likeness, position_loss
from training_backend.weights.voco import canonical

DRAWS = 5
FACTOR = 1.5
"""The few draws do not reach the ends of what rounding can do."""
LAST_BITS = 2.0
"""Standard deviation of the changes, in units of the last bit; rounding on the way adds up to more than one."""
MOST_SPREAD = 0.1
"""Of the largest number of an array: more would allow anything."""


def check_self(case: Case) -> None:
    def step(jitter: Tensor) -> dict[str, Tensor]:
        network = _network(case)
        embeddings = network.embed(_crops(case) * jitter)
        values, loss = _contrast(case, network, embeddings)
        loss.backward()
        return {**values, **_gradients(network)}

    _compare(case, step)
    _check_trained(case, _network(case))


def check_omni(case: Case) -> None:
    dice_ce = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    truth, pseudo = (case.tensor(name).long() for name in ("omni_label_u8", "pseudo_label_u8"))
    classes = len(case.arrays["grad_out_conv"])

    def step(jitter: Tensor) -> dict[str, Tensor]:
        network = _network(case, decoder=True, classes=classes)
        embeddings, logits = network.omni(_crops(case) * jitter, frozen=True)
        values, contrast = _contrast(case, network, embeddings)
        unlabelled = logits[: len(case.arrays["img_u8"])]
        _, labelled = network.omni(_unit(case, "omni_u8"), frozen=False)
        segmentation = dice_ce(labelled, truth)
        loss = contrast + segmentation
        loss.backward()
        with torch.no_grad():
            held, options = network.state_dict(), {"window": (case.config["window"],) * 3}
            teacher = plain_network({"feature_size": case.config["feature_size"], **options}, classes).eval()
            teacher.load_state_dict({name: held[name] for name in teacher.state_dict()})
            found = pseudo_labels(teacher, _unit(case, "img_u8"))
        assert torch.equal(found, pseudo[:, 0])
        return {
            **values,
            **_gradients(network),
            "loss": loss[None],
            "semi_outputs_s2": unlabelled[..., ::2, ::2, ::2],
            "grad_out_conv": network.out.conv.conv.weight.grad,  # type: ignore[dict-item]
            "seg_loss": segmentation[None],
            "semi_loss": dice_ce(unlabelled, pseudo),
        }

    _compare(case, step)
    _check_trained(case, _network(case, decoder=True, classes=classes))


def check_2024(case: Case) -> None:
    def step(jitter: Tensor) -> dict[str, Tensor]:
        network = _network(case, whole_teacher=True)
        network.follow()
        _, student, teacher = network.project(_crops(case) * jitter, None)
        near, far, regular, _ = network.terms_2024(student, teacher, case.tensor("labels"))
        after = network.teacher.proj_head.layer3[0].weight  # type: ignore[union-attr, index]
        return {"pos": near, "neg": far, "base": regular[None], "teacher_l3_after": after}

    _compare(case, step)


def _network(case: Case, **options: object) -> Voco:
    config = case.config
    inputs, hidden, projected = config["projection"]
    network = Voco(
        case.arrays["img_u8"].shape[1],
        config["feature_size"],
        hidden=hidden,
        projected=projected,
        window=(config["window"],) * 3,
        **options,  # type: ignore[arg-type]
    )
    assert network.width == inputs
    state = {name: value.float() if value.is_floating_point() else value for name, value in case.weights().items()}
    network.load_state_dict({canonical(name): value for name, value in state.items()})
    return network.train()


def _unit(case: Case, name: str) -> Tensor:
    return case.tensor(name).float() / 255


def _crops(case: Case) -> Tensor:
    return torch.cat([_unit(case, "img_u8"), _unit(case, "crops_u8")])


def _contrast(case: Case, network: Voco, embeddings: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the case holds of the contrast, and its loss."""
    labels, keep = case.tensor("labels"), case.tensor("dropout_keep_rows")
    network.follow()
    student, teacher = network.heads(embeddings, keep)
    contrast = network.contrast(student, teacher, labels)
    volumes, crops, _ = labels.shape
    x_student, x_teacher = (rows[: volumes * crops].unflatten(0, (volumes, crops)) for rows in (student, teacher))
    b_student, b_teacher = (rows[volumes * crops :].unflatten(0, (volumes, -1)) for rows in (student, teacher))
    turned = b_student.roll(-1, 0), b_teacher.roll(-1, 0)
    inter = [inter_loss(*rows) for rows in zip(x_student, x_teacher, *turned, strict=True)]
    intra = [position_loss(label, seen) for label, seen in zip(labels, contrast.predicted, strict=True)]
    values = {
        "embeddings": embeddings,
        "student_out": student,
        "teacher_out": teacher,
        "intra_logits": contrast.predicted,
        "inter_pred_teacher": torch.stack([target for _, target, _ in inter]),
        "inter_pred_student": torch.stack([predicted for _, _, predicted in inter]),
        "intra_per_volume": torch.stack(intra),
        "inter_per_volume": torch.stack([loss for loss, _, _ in inter]),
        "reg_per_volume": torch.stack([likeness(rows) for rows in b_student]),
        "loss": contrast.loss[None],
        "teacher_layer3_weight_after": network.teacher.layer3[0].weight,  # type: ignore[union-attr, index]
    }
    return values, contrast.loss


def _gradients(network: Voco) -> dict[str, Tensor]:
    stage = network.swinViT.stage(0)
    found = [p.grad.double().square().sum() for p in network.parameters() if p.grad is not None]
    return {
        "grad_patch_embed": network.swinViT.patch_embed.proj.weight.grad,  # type: ignore[dict-item]
        "grad_student_l3": network.student.layer3[0].weight.grad,  # type: ignore[dict-item]
        "grad_relpos_l1b1": stage.blocks[1].attn.relative_position_bias_table.grad,  # type: ignore[dict-item, union-attr]
        "grad_norm_total": torch.stack(found).sum().sqrt(),
    }


def _check_trained(case: Case, network: Voco) -> None:
    """The teacher, and nothing else, is never trained."""
    fixed = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert len(fixed) == case.config["params_without_grad_count"]
    assert {name.rsplit(".", 2)[0] for name in fixed} == set(case.config["params_without_grad_prefixes"])


def _compare(case: Case, step: Callable[[Tensor], dict[str, Tensor]]) -> None:
    """Compare `step` of the stored input, allowing what the last bit of the input changes."""
    shape, random = _crops(case).shape, torch.Generator().manual_seed(0)
    draws = []
    for index in range(DRAWS):
        noise = LAST_BITS * torch.finfo(torch.float32).eps * torch.randn(shape, generator=random)
        values = step(1 + noise if index else torch.ones(shape))
        draws.append({name: value.detach().double().numpy() for name, value in values.items()})
    given = case.entry["tolerance"]
    for name, value in draws[0].items():
        spread = max(float(np.abs(draw[name] - value).max()) for draw in draws)
        assert spread <= MOST_SPREAD * float(np.abs(value).max()), f"{name} depends on rounding alone"
        relative = given.get("loss", given["rtol"]) if "loss" in name or "per_volume" in name else given["rtol"]
        case.compare(name, value, atol=given["atol"] + FACTOR * spread, rtol=relative)


CHECKS: dict[str, Check] = {
    r"^Self-supervised/models/voco_head\.py:VoCoHead": check_self,
    r"^Omni-supervised/models/voco_head\.py:VoCoHead": check_omni,
    r"^VoCo/models/voco_head\.py:VoCoHead": check_2024,
}
