"""What VoCo's networks show beside something else: base crops of two scans, and the teacher that labelled for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import ConfigModel
from training_backend.methods.base import Frame, ModelView, PreviewArray
from training_backend.methods.voco_settings import VOCOMNI
from training_backend.methods.voco_views import cells_picture, embedded, projected, slab_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.nn.voco import Voco

DIFFERENCES = {1: "only the teacher", 2: "only the student", 3: "another class"}
"""Kinds of differences: who of the two sees a class at all, or that both see one."""


class AcrossOptions(ConfigModel):
    """What is compared."""

    projection: Literal["student", "teacher"] = "student"
    """student: what the loss compares across volumes. teacher: what it is compared with."""


class TeacherOptions(ConfigModel):
    """Which classes are compared."""

    label: int = Field(0, ge=0)
    """Class to which the comparison is narrowed; 0 compares all."""


def likeness_across(
    network: Voco, volume: Tensor, options: AcrossOptions, _generator: torch.Generator, *, other: Tensor
) -> Iterator[Frame]:
    """Cosine of each base crop with those of another scan, and with those of its own, all projected together.

    What the inter-volume loss compares (Large-Scale-Medical, section on inter-volume contrast).
    """
    import torch
    import torch.nn.functional as F

    from training_backend.data.position import base_starts

    sampling, slab = slab_of(network, volume)
    _, second = slab_of(network, other)
    starts = base_starts(sampling.cells, sampling.crop)
    mine = embedded(network, slab, starts)
    yield Frame((), share=0.5)
    rows = projected(network, mine.joined(embedded(network, second, starts)))
    chosen = rows[0 if options.projection == "student" else 1].float()
    number = len(starts)
    parts = {"this scan": chosen[:number], "other scan": chosen[number:]}
    pictures = []
    for first, second_name in (("this scan", "other scan"), ("this scan",) * 2, ("other scan",) * 2):
        cosine = F.cosine_similarity(parts[first][:, None], parts[second_name][None], dim=2).cpu().numpy()
        named = f"{first} and {'itself' if first == second_name else second_name}"
        sides = (f"cell of {first}", f"cell of {second_name}")
        pictures.append(PreviewArray(named, cosine, "matrix", limits=(-1.0, 1.0), sides=sides))
    across = torch.from_numpy(pictures[0].array)
    same = torch.eye(number, dtype=torch.bool)
    found = int((across.argmax(dim=1) == torch.arange(number)).sum())
    text = (
        f"For {found} of {number} cells of this scan the most alike cell of the other one is that of the same number "
        f"(1 by chance). Likeness of cells with the same number {float(across[same].mean()):.2f}, of others "
        f"{float(across[~same].mean()):.2f}. Numbers mean the same place where both slabs lie at the same level."
    )
    yield Frame([cells_picture(network, sampling), cells_picture(network, sampling, other=True), *pictures], text)


def disagreement(
    network: Any, volume: Tensor, options: TeacherOptions, _generator: torch.Generator, *, teacher: nn.Module
) -> Iterator[Frame]:
    """Classes in the eyes of a network and of the teacher that labels for it from half time on, and where they differ.

    The share of a class is that of the voxels with differing labels among those that either gives that class.
    """
    import torch

    from training_backend.errors import ConfigError

    seen = {"student": network.logits(volume)[0].argmax(dim=0)}
    yield Frame((), share=0.5)
    logits = teacher.logits(volume)[0]  # type: ignore[operator]
    seen["teacher"], classes = logits.argmax(dim=0), len(logits)
    if options.label >= classes:
        raise ConfigError(f"The decoder has the classes 0 to {classes - 1}, so class {options.label} does not exist.")
    names = VOCOMNI if classes == len(VOCOMNI) else ("background", *(f"class {k}" for k in range(1, classes)))
    if options.label:
        seen = {name: torch.where(labels == options.label, labels, 0) for name, labels in seen.items()}
    student, taught = seen["student"], seen["teacher"]
    differing = student != taught
    kinds = torch.where(student == 0, 1, torch.where(taught == 0, 2, 3)) * differing
    tables = [{k: names[k] for k in labels.unique().tolist()} for labels in (student, taught)]
    pictures = [
        PreviewArray("original", volume[0, 0].float().cpu().numpy(), "image"),
        *(
            PreviewArray(name, labels.cpu().numpy().astype("uint8"), "labels", classes=table)
            for (name, labels), table in zip(seen.items(), tables, strict=True)
        ),
        PreviewArray("differences", kinds.cpu().numpy().astype("uint8"), "labels", classes=DIFFERENCES),
    ]
    yield Frame(pictures, _shares(student, taught, names))


def _shares(student: Tensor, teacher: Tensor, names: tuple[str, ...]) -> str:
    """How much of all voxels, and of each class, two label maps differ in; in words."""
    differing = student != teacher
    either = (student != 0) | (teacher != 0)
    if not either.any():
        return "Student and teacher see nothing but background here."
    told = []
    for label in range(1, len(names)):
        mine = (student == label) | (teacher == label)
        if mine.any():
            told.append(f"{names[label]} {float(differing[mine].float().mean()):.0%}")
    return (
        f"Student and teacher differ at {float(differing.float().mean()):.1%} of the voxels, which is "
        f"{float(differing[either].float().mean()):.0%} of those that either gives a class. Of the voxels that either "
        f"gives a class, by class: {', '.join(told)}."
    )


COMPARISONS = (
    ModelView(
        "likeness-across",
        "Base crops of two scans",
        "How alike each base crop is to those of another scan: what the comparison of volumes teaches. All of them are "
        "projected together.",
        AcrossOptions,
        likeness_across,
        other=True,
    ),
    ModelView(
        "teacher",
        "Teacher and student",
        "Where an omni- or semi-supervised network sees other classes than the network of half time, which labels for "
        "it from then on.",
        TeacherOptions,
        disagreement,
        teacher=True,
    ),
)
