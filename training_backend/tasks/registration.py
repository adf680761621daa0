"""Deformable registration: a displacement for every voxel of a fixed scan, which says where it lies in a moving one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from training_backend.config import RunConfig, ui
from training_backend.config.pairs import PairTaskConfig
from training_backend.methods.base import Batch, Encoder, StepOutput
from training_backend.tasks.base import CaseResult, Progress, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn


class RegistrationConfig(PairTaskConfig):
    """Settings of registration."""

    name: str = Field("registration", json_schema_extra=ui(hidden=True))
    classes: tuple[str, ...] = ()
    """Names by label value, background first; empty takes the class table of the dataset."""
    similarity_weight: float = Field(1.0, ge=0)
    """Weight of the local correlation of the warped moving scan and the fixed one; the scans should look alike, so
    different contrasts need label maps instead."""
    smooth_weight: float = Field(1.0, ge=0)
    """Weight of the squared differences of neighbouring displacements."""
    dice_weight: float = Field(1.0, ge=0)
    """Weight of the Dice loss of warped label maps, where `use_labels` is on."""
    window: int = Field(9, ge=3, json_schema_extra=ui(unit="voxels", advanced=True))
    """Side of the boxes that the local correlation is computed in; odd."""
    decoder: Literal["lean", "swinunetr"] = Field("lean", json_schema_extra=ui(advanced=True))
    """lean: a light U-Net that receives the encoder's features. swinunetr: the decoder of SwinUNETR as published, for
    encoders with a pyramid of features, such as VoCo's."""
    channels: tuple[int, ...] = Field((16, 32, 64, 128), json_schema_extra=ui(advanced=True))
    """Lean decoder: channels of its levels, fine to coarse."""
    stem_stride: Literal[1, 2] = Field(1, json_schema_extra=ui(advanced=True))
    """Lean decoder: voxels per axis of the finest level; 2 learns a displacement for every second voxel, about six
    times faster."""
    freeze: Literal["none", "encoder"] = "none"
    """encoder: train only what is new, with the encoder as it came from pre-training."""

    @field_validator("channels")
    @classmethod
    def _at_least_two_levels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) < 2 or min(value) < 1:
            raise ValueError("give at least two levels of at least one channel")
        return value

    @model_validator(mode="after")
    def _learns_something(self) -> RegistrationConfig:
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, so that a box has a middle voxel (found {self.window})")
        if not self.similarity_weight and not (self.use_labels and self.dice_weight):
            raise ValueError("similarity_weight and dice_weight are both off, so nothing would pull the scans together")
        return self


_VIEW = {"view": "volume", "crops_per_volume": 1, "augment": {"flip": (0.0, 0.0, 0.0)}}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "task": {"stem_stride": 2, "channels": (8, 16, 32)},
        "data": {**_VIEW, "size": (48, 48, 48)},
        "optim": {"epochs": 1000, "max_steps": 150, "batch_size": 2, "lr": 1e-3, "weight_decay": 0.0},
        "engine": {"val_steps": 50},
    },
    "small": {
        "data": {**_VIEW, "size": (96, 96, 96)},
        "optim": {"epochs": 100, "batch_size": 2, "lr": 3e-4, "weight_decay": 0.0},
        "engine": {"micro_batch": 1},
    },
    "base": {
        "data": {**_VIEW, "size": (128, 160, 128)},
        "optim": {"epochs": 200, "batch_size": 2, "lr": 2e-4, "weight_decay": 0.0},
        "engine": {"micro_batch": 1},
    },
    "published": {
        "task": {"channels": (16, 32, 64, 128, 256)},
        "data": {**_VIEW, "size": (192, 224, 160)},
        "optim": {
            "epochs": 100,
            "batch_size": 1,
            "lr": 1e-4,
            "warmup": 0.0,
            "schedule": "poly",
            "weight_decay": 0.0,
            "betas": (0.9, 0.999),
        },
    },
}
"""Published: OASIS as VoCo's authors train it. One view per step, so that the two directions of a pair are two steps,
as there. For IXI name the atlas, set symmetric and use_labels off, 500 epochs and flips. Theirs is the
decoder "swinunetr"; the lean one takes any encoder."""

SIMILARITY, FOLDED = 0, 1
"""Places of these numbers in `measures`; Dice before and after follow, class by class."""


def label_names(config: RunConfig) -> tuple[str, ...]:
    """Names by label value, background first: those of the configuration, or of the dataset's class table."""
    from training_backend.data.dataset import Dataset

    task = settings(config)
    if task.classes or not task.use_labels:
        return task.classes
    if not (config.data.dataset / "dataset.json").is_file():
        return ()
    table = {entry.index: entry.name for entry in Dataset.open(config.data.dataset).info.classes}
    return tuple({0: "background", **table}.get(index, f"unused {index}") for index in range(max(table, default=0) + 1))


def settings(config: RunConfig) -> RegistrationConfig:
    """The task's part of a run's configuration."""
    return RegistrationConfig.model_validate(config.task.model_dump() if config.task else {})


def build(config: RunConfig, encoder: Encoder) -> nn.Module:
    """Network whose encoder sees both scans."""
    from training_backend.nn.registration_net import published_registration_net, registration_net

    task = settings(config)
    freeze = task.freeze == "encoder"
    if task.decoder == "swinunetr":
        network: nn.Module = published_registration_net(encoder, freeze=freeze)
    else:
        network = registration_net(encoder, channels=task.channels, stem_stride=task.stem_stride, freeze=freeze)
    network.task = task  # type: ignore[assignment]
    network.classes = len(label_names(config))  # type: ignore[assignment]
    return network


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Local correlation, smoothness, and Dice of warped label maps, each with its weight, of pairs [B, 2, D, H, W]."""
    import torch

    from training_backend.nn import registration as parts

    task: RegistrationConfig = network.task  # type: ignore[assignment]
    displacement = network(batch.volume)[0]
    with torch.autocast(batch.volume.device.type, enabled=False):  # sums over boxes need all digits
        displacement, pair = displacement.float(), batch.volume.float()
        moving, fixed = pair[:, :1], pair[:, 1:]
        similarity = parts.local_correlation(fixed, parts.warp(moving, displacement), task.window)
        smoothness = parts.roughness(displacement)
        loss = task.similarity_weight * similarity + task.smooth_weight * smoothness
        scalars = {"similarity": -similarity.detach(), "roughness": smoothness.detach()}
        if task.use_labels and task.dice_weight:
            overlap = _label_loss(network, batch, displacement)
            loss = loss + task.dice_weight * overlap
            scalars["dice_loss"] = overlap.detach()
    return StepOutput(loss=loss, scalars=scalars)


def _label_loss(network: nn.Module, batch: Batch, displacement: Tensor) -> Tensor:
    from training_backend.errors import DataError
    from training_backend.nn.registration import warped_dice

    classes = int(network.classes)  # type: ignore[arg-type]
    if batch.labels is None:
        raise DataError(
            f"Label maps were asked for, but {', '.join(batch.case_ids)} have none.", "Set task.use_labels to false."
        )
    largest = int(batch.labels.max())
    if largest >= classes:
        raise DataError(
            f"The task has {classes} classes, for label values 0 to {classes - 1}, but a label map has {largest}.",
            "Name every class in task.classes, or leave it empty to take those of the dataset.",
        )
    return warped_dice(batch.labels[:, 1:], batch.labels[:, :1], displacement, classes)


def predict(network: nn.Module, config: RunConfig, volume: Tensor, progress: Progress | None = None) -> Tensor:
    """Displacement [3, D, H, W] in voxels of one pair [1, 2, D, H, W]."""
    import torch

    from training_backend.tasks.base import Cancelled

    if progress is not None and not progress(0.0):
        raise Cancelled
    network.eval()
    with torch.inference_mode():
        found: Tensor = network(volume)[0][0].float()
    if progress is not None:
        progress(1.0)
    return found


def measures(
    displacement: npt.NDArray[np.float32],
    pair: npt.NDArray[np.float32],
    labels: Sequence[npt.NDArray[np.uint8]] | None,
    classes: int,
    window: int,
) -> npt.NDArray[np.float64]:
    """What a registration is judged by: [2 + 2K] numbers, K the classes without background.

    Args:
        displacement: [3, D, H, W] in voxels.
        pair: moving and fixed scan [2, D, H, W].
        labels: their label maps [D, H, W], or None.
        classes: background included; 0 without label maps.
        window: side of the boxes of the local correlation.

    Returns:
        Local correlation (1 at best), share of voxels where space folds, then Dice of each class before registration,
        then after it; not a number for a class that neither scan has.
    """
    import numpy as np
    import torch

    from training_backend.evaluate.segmentation_metrics import dice_per_class
    from training_backend.nn import registration as parts

    field, scans = torch.from_numpy(displacement)[None], torch.from_numpy(pair)[None]
    similarity = -parts.local_correlation(scans[:, 1:], parts.warp(scans[:, :1], field), window)
    folded = (parts.jacobian_determinant(field) <= 0).float().mean()
    numbers = [float(similarity), float(folded)]
    if labels is not None and classes > 1:
        moving, fixed = labels
        moved = parts.warp(torch.from_numpy(moving)[None, None].float(), field, nearest=True)[0, 0].numpy()
        for found in (moving, moved.astype(np.uint8)):
            dice = dice_per_class(found, fixed, range(1, classes))
            numbers += [dice[index] for index in range(1, classes)]
    return np.array(numbers)


def evaluate(config: RunConfig, results: Sequence[CaseResult]) -> dict[str, float]:
    """Means over pairs of what `measures` says; "score" is the mean Dice, or the similarity without label maps."""
    import math

    import numpy as np

    from training_backend.evaluate.segmentation_metrics import bootstrap_mean

    rows = np.stack([np.asarray(result.prediction, float) for result in results])
    means = {"similarity": float(rows[:, SIMILARITY].mean()), "folded": float(rows[:, FOLDED].mean())}
    names = label_names(config)[1:]
    if rows.shape[1] != 2 + 2 * len(names) or not names:
        return {"score": means["similarity"], **means}
    dice = {name: bootstrap_mean(rows[:, -len(names) :][:, k].tolist(), draws=1).mean for k, name in enumerate(names)}
    known = {name: value for name, value in dice.items() if not math.isnan(value)}
    before = float(np.nanmean(rows[:, 2 : 2 + len(names)])) if known else 0.0
    score = sum(known.values()) / len(known) if known else 0.0
    means |= {"dice": score, "dice_before": before, **{f"dice_{name}": value for name, value in known.items()}}
    return {"score": score, **means}


def layer_id(network: nn.Module, parameter: str) -> int:
    """Depth of a parameter: that in the encoder, or one more than its last for everything new."""
    encoder: Encoder = network.encoder  # type: ignore[assignment]
    prefix, _, rest = parameter.partition("encoder.")
    return encoder.layer_id(rest) if not prefix else encoder.depth + 1


TASK = Task(
    name="registration",
    config=RegistrationConfig,
    title="Registration of two scans",
    needs="pairs",
    presets=PRESETS,
    build=build,
    training_step=training_step,
    predict=predict,
    evaluate=evaluate,
    layer_id=layer_id,
)
