"""Losses, positions, crops and learning rates of VoCo against the reference."""

from __future__ import annotations

import numpy as np
import torch

from tests.parity.cases import Case, Check
from training_backend.config import OptimConfig
from training_backend.data.position import base_starts, cut_plane, overlap
from training_backend.engine.schedule import learning_rate
from training_backend.nn.voco_losses import assign, inter_loss, likeness, position_loss, position_losses_2024


def check_losses(case: Case) -> None:
    numbers = [name[1:] for name in case.arrays if name.startswith("x")]
    assert numbers
    for n in numbers:
        crops, bases, target = (case.tensor(f"{name}{n}") for name in ("x", "b", "label"))
        teacher, others = case.tensor(f"y{n}"), case.tensor(f"b2_{n}")
        predicted = assign(crops, bases)
        case.compare(f"assign{n}", predicted)
        case.compare(f"ce{n}", position_loss(target, predicted))
        near, far = position_losses_2024(target, predicted)
        case.compare(f"ce_v1_pos{n}", near)
        case.compare(f"ce_v1_neg{n}", far)
        case.compare(f"reg{n}", likeness(bases)[None])
        case.compare(f"inter{n}", inter_loss(crops, teacher, bases, others)[0])


def check_transforms(case: Case) -> None:
    (check_labels if "meta" in case.arrays else check_crops)(case)


def check_labels(case: Case) -> None:
    rows = []
    for (seed, cells, roi, side, x, y), row in zip(case.arrays["meta"], case.arrays["labels"], strict=True):
        centre = np.random.RandomState(seed).randint(roi // 2, side - roi // 2, 2)
        assert (int(side), centre.tolist()) == (cells * roi, [x, y])
        ours = overlap([centre - roi // 2], int(cells), int(roi))[0]
        rows.append(np.pad(ours, (0, len(row) - len(ours))))
    case.compare("labels", np.stack(rows))
    for name in (name for name in case.arrays if name not in ("meta", "labels")):
        count = len(case.arrays[name])
        assert name == f"labels{count}", f"unknown array {name}"
        case.compare(name, overlap(_random_starts(11, count), 3, 64))


def check_crops(case: Case) -> None:
    """A slab of known voxels, cut at the reference's places into the reference's crops."""
    cells, roi = 3, 64
    side = cells * roi
    count = len(case.arrays["labels"])
    seed = int("".join(filter(str.isdigit, case.entry["description"].split("np.random.seed(")[1].split(")")[0])))
    starts = _random_starts(seed, count)
    case.compare("labels", overlap(starts, cells, roi))
    axes = np.meshgrid(*(np.arange(n) for n in (side, side, roi)), indexing="ij")
    values = sum(int(c) * axis for c, axis in zip(case.arrays["coef"], axes, strict=True)) % 251 / 250.0
    slab = torch.from_numpy(values.astype(np.float32))[None]
    for name, places in (("img", starts), ("base", base_starts(cells, roi))):
        crops = cut_plane(slab, places, roi, (1, 2))[:, 0]
        case.compare(f"{name}_corner", crops[:, :3, :3, :3])
        case.compare(f"{name}_mean", crops.double().mean(dim=(1, 2, 3)))


def check_rates(case: Case) -> None:
    warmup, total = (int(value) for value in case.arrays["warmup_total"])
    for name, peak, start in (
        ("pretrain_warmup_cosine", 1e-4, "zero"),
        ("finetune_linear_warmup_cosine", 3e-4, "zero_to_peak"),
    ):
        optim = OptimConfig(lr=peak, warmup=warmup / total, warmup_start=start)
        case.compare(name, [learning_rate(step, total, optim) for step in range(len(case.arrays[name]))])


def _random_starts(seed: int, count: int) -> np.ndarray:
    """First voxels [count, 2] as the reference draws them, at its sizes: of each crop first x, then y."""
    return np.random.RandomState(seed).randint(32, 160, (count, 2)) - 32


CHECKS: dict[str, Check] = {
    r"^voco_head\.py functions": check_losses,
    r"^voco_trans\.py": check_transforms,
    r"lr_scheduler\.py": check_rates,
}
