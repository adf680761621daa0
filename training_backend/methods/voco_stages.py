"""Stages of VoCo that learn from labels too: the views they see besides, their teacher of half time, and losses.

omni: the contrast of crops, and a decoder that learns from labelled crops; semi: the decoder alone, so that the network
is a plain SwinUNETR. In both the network of half time then labels the unlabelled crops for the rest of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from training_backend.config import LabelledConfig, RunConfig
from training_backend.errors import ConfigError, DataError
from training_backend.methods.base import Batch, PreviewArray, StepOutput
from training_backend.methods.voco_settings import VOCOMNI

if TYPE_CHECKING:
    from torch import Tensor, nn

    from training_backend.data.manifest import CaseRecord
    from training_backend.data.streams import Stream

LABELLED = "labelled"
"""Name of the stream of labelled crops."""
HALF = 0.5
"""Share of the steps after which the network of that moment labels the unlabelled crops."""


def classes_of(stage: str, given: int) -> int:
    """Classes of the decoder, background included; 0 without one."""
    return given or (0 if stage == "self" else len(VOCOMNI))


def labelled_streams(run: RunConfig, stage: str, classes: int, crop: tuple[int, int, int]) -> dict[str, Stream]:
    """Labelled crops as large as those of the contrast (omni) or as the unlabelled ones (semi)."""
    from training_backend.data.streams import Stream

    if stage == "self":
        return {}
    labelled = run.data.labelled or LabelledConfig()
    if run.data.view == "sequence":
        raise ConfigError("Stages with labels learn from crops, not from sequences.", "Set data.view to crop.")
    data: dict[str, Any] = {
        "dataset": labelled.dataset or run.data.dataset,
        "train_cases": labelled.cases,
        "crops_per_volume": labelled.crops_per_volume,
        "foreground": labelled.foreground,
        "augment": labelled.augment.model_dump(),
        "labelled": None,
    }
    if stage == "omni":
        data |= {"view": "crop", "size": crop}
    config = run.updated({"data": data})

    def check(cases: Sequence[CaseRecord]) -> None:
        check_classes(cases, classes)

    return {LABELLED: Stream(config, "labels", labelled.per_view, check)}


def check_classes(cases: Sequence[CaseRecord], classes: int) -> None:
    """Refuse cases with label values that the decoder has no class for."""
    for case in cases:
        largest = max((int(value) for value in case.store.get("label", {}).get("values", {})), default=0)
        if largest >= classes:
            raise ConfigError(
                f"The decoder has {classes} classes, for label values 0 to {classes - 1}, but the labelled case "
                f"{case.id} has {largest}.",
                f"Set method.decoder_classes to {largest + 1} or more, or leave the case out.",
            )


def check_stage(stage: str, version: str, classes: int) -> None:
    """Refuse settings that no stage with labels can have."""
    if stage != "self" and version == "2024":
        raise ConfigError(
            f"The stage {stage} belongs to version 2, whose teacher shares the encoder; method.version is 2024.",
            "Set method.version to 2, or method.stage to self.",
        )
    if stage != "self" and classes < 2:
        raise ConfigError(
            f"The decoder has {classes} class; background and one more are needed.",
            "Set method.decoder_classes to the largest label value plus 1, or to 0 for the 21 of VoComni.",
        )


def plain_network(settings: Mapping[str, Any], classes: int) -> nn.Module:
    """SwinUNETR with fresh weights, named as published."""
    from training_backend.nn.swin_unetr import SwinUnetr

    return SwinUnetr(**settings, decoder=True, classes=classes)


def semi_step(network: nn.Module, batch: Batch) -> StepOutput:
    """Loss of the labelled crops and, once there is a teacher, of the unlabelled ones by its labels."""
    losses, scalars, counts = labelled_loss(network, batch)
    if (teacher := batch.extra.get("snapshot")) is not None:
        logits = network.logits(batch.volume)  # type: ignore[operator]
        pseudo, told = pseudo_loss(logits, pseudo_labels(teacher, batch.volume, turn=True))
        losses, scalars = losses + pseudo, {**scalars, **told}
    return StepOutput(losses, scalars, counts)


def labelled_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
    """Dice without background plus cross-entropy of the labelled crops, its two parts, and how many crops they had.

    In a part of a step that has no labelled crop, because none could be read, the loss is 0 and no part is told.
    """
    from training_backend.nn.axes import turned, turned_back
    from training_backend.nn.dice import UNLABELLED, annotated_classes, dice_ce

    labelled = batch.streams.get(LABELLED)
    if labelled is None:
        return 0.0 * next(p for p in network.parameters() if p.requires_grad).sum(), {}, {}
    if labelled.labels is None:
        raise DataError(f"The cases {', '.join(labelled.case_ids)} have no labels.", "Leave them out.")
    labels = labelled.labels
    if labelled.padding is not None:
        labels = labels.masked_fill(labelled.padding, UNLABELLED)
    axes: Any = network.axes
    if hasattr(network, "sampling"):
        logits = turned_back(network.omni(turned(labelled.volume, axes), frozen=False)[1], axes)  # type: ignore[operator]
    else:
        logits = network.logits(labelled.volume)  # type: ignore[operator]
    known = annotated_classes(labelled.extra.get("annotated"), logits.shape[1])
    known = None if known is None else known.to(logits.device)
    dice, entropy = dice_ce(logits, labels, background=False, annotated=known)
    scalars = {"dice_loss": dice.detach(), "cross_entropy": entropy.detach()}
    return dice + entropy, scalars, dict.fromkeys(scalars, float(len(labels)))


def pseudo_labels(teacher: nn.Module, volume: Tensor, *, turn: bool = False) -> Tensor:
    """Class [B, ...] of every voxel of `volume` [B, C, ...] in the eyes of the teacher.

    Args:
        teacher: in evaluation mode.
        volume: in the frame of the network, or with `turn` along (z, y, x).
        turn: see `volume`.
    """
    import torch

    with torch.no_grad():
        logits: Tensor = teacher.logits(volume) if turn else teacher(volume)  # type: ignore[operator]
        return logits.argmax(dim=1)


def pseudo_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Dice without background plus cross-entropy of `logits` [B, K, ...] by the teacher's labels [B, ...].

    Scalars: the loss, and the share of voxels that network and teacher see alike.
    """
    from training_backend.nn.dice import dice_ce

    dice, entropy = dice_ce(logits, labels, background=False)
    alike = (logits.detach().argmax(dim=1) == labels).float().mean()
    return dice + entropy, {"pseudo_loss": (dice + entropy).detach(), "pseudo_agreement": alike}


def segmented(network: nn.Module, volume: Tensor) -> PreviewArray:
    """What the decoder sees in `volume` [1, C, D, H, W]."""
    import torch

    was_training = network.training
    network.eval()
    with torch.no_grad():
        logits = network.logits(volume)[0]  # type: ignore[operator]
    network.train(was_training)
    classes, labels = len(logits), logits.argmax(dim=0)
    names = dict(enumerate(VOCOMNI)) if classes == len(VOCOMNI) else {k: f"class {k}" for k in range(classes)}
    return PreviewArray("segmentation", labels.cpu().numpy().astype("uint8"), "labels", classes=names)
