"""Classes of whole volumes: yes or no, several labels at once, or one of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from training_backend.config import TaskConfig, ui
from training_backend.methods.base import Batch, StepOutput
from training_backend.tasks.base import CaseResult, Progress, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.config import RunConfig
    from training_backend.data.manifest import CaseRecord
    from training_backend.methods.base import Encoder


class AnswersConfig(TaskConfig):
    """What is asked about a case, and how answers are learnt and judged."""

    kind: Literal["binary", "multilabel", "multiclass"] = "binary"
    """binary: one yes or no. multilabel: several, independent. multiclass: exactly one of several classes."""
    classes: int = Field(1, ge=1)
    """Outputs: 1 for binary, the number of labels for multilabel, of classes for multiclass."""
    class_names: tuple[str, ...] = ()
    """Names of the outputs; empty numbers them."""
    freeze_encoder: bool = False
    """Train the head alone (linear probe)."""
    class_weights: tuple[float, ...] = Field((), json_schema_extra=ui(advanced=True))
    """Weight of the positive cases of each label, or of each class in multiclass; empty is 1."""
    balanced: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Multiclass: every class of a batch counts the same, however many of its cases are in it."""
    smoothing: float = Field(0.0, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Label smoothing."""
    choose: Literal["auc", "sum"] = Field("auc", json_schema_extra=ui(advanced=True))
    """What the best model has most of: AUC, or the sum of AUC (multiclass: of pairs of classes), accuracy and F1."""

    @model_validator(mode="after")
    def _consistent(self) -> AnswersConfig:
        if (self.kind == "binary") != (self.classes == 1):
            raise ValueError("binary has exactly 1 output; multilabel and multiclass have at least 2")
        for field in ("class_weights", "class_names"):
            if getattr(self, field) and len(getattr(self, field)) != self.classes:
                raise ValueError(f"{field} needs {self.classes} entries, or none")
        if self.balanced and (self.kind != "multiclass" or self.class_weights):
            raise ValueError("balanced needs kind multiclass and no class_weights")
        return self


class ClassificationConfig(AnswersConfig):
    """Settings of classification."""

    name: str = Field("classification", json_schema_extra=ui(hidden=True))
    pooling: Literal["global", "class", "tokens", "patches", "projected", "decoder"] = "global"
    """global: class token and mean of all patches. class: class token after the encoder's final norm. tokens: the mean
    of what a linear layer without bias says of every patch, which gives a map of evidence for each class. patches: the
    normed mean of all patches without the class token, as MedCoSS's authors classify. projected: the same of patches
    that three more layers project, as MG-3D's authors classify LUNA16 and STOIC2021 with Swin-L. decoder: the
    mean of the map that SwinUNETR's decoder makes, as VoCo's authors classify CC-CCII; for encoders with a pyramid."""
    repeat_depth: bool = Field(False, json_schema_extra=ui(advanced=True))
    """With pooling over a decoder: put each volume behind itself along z, as published for scans of few slices."""
    hidden: tuple[int, ...] = Field((), json_schema_extra=ui(advanced=True))
    """Widths of hidden layers of the head; empty is a linear head. They end in a batch norm, with patches in a layer
    norm."""
    mixup: float = Field(0.0, ge=0, json_schema_extra=ui(advanced=True))
    """Blend pairs of volumes and their labels with a share drawn from Beta(mixup, mixup); 0 is off."""

    @model_validator(mode="after")
    def _consistent_head(self) -> ClassificationConfig:
        if self.pooling == "tokens" and self.hidden:
            raise ValueError("pooling over tokens has a linear head; leave hidden empty")
        if self.pooling == "decoder" and self.hidden:
            raise ValueError("pooling over a decoder has a linear head; leave hidden empty")
        if self.repeat_depth and self.pooling != "decoder":
            raise ValueError("repeat_depth needs pooling over a decoder")
        return self


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "data": {"view": "volume", "size": (48, 48, 48), "crops_per_volume": 1, "augment": {"noise": 0.1}},
        "optim": {"epochs": 1000, "max_steps": 200, "batch_size": 4, "lr": 5e-4, "layer_decay": 0.75},
    },
    "small": {
        "data": {"view": "volume", "size": (96, 96, 96), "crops_per_volume": 1},
        "optim": {"epochs": 100, "batch_size": 8, "lr": 5e-4, "layer_decay": 0.75, "betas": (0.9, 0.999)},
    },
    "base": {
        "data": {"view": "volume", "size": (128, 128, 128), "crops_per_volume": 1},
        "optim": {"epochs": 100, "batch_size": 12, "lr": 2e-4, "layer_decay": 0.75, "betas": (0.9, 0.999)},
        "engine": {"micro_batch": 4},
    },
    "published": {
        "data": {
            "view": "volume",
            "size": (256, 256, 256),
            "keep_aspect": False,
            "crops_per_volume": 1,
            "intensity": {"profile": "window", "low": -1200.0, "high": 800.0},
            "augment": {"flip": (0.0, 0.0, 0.0), "noise": 0.1, "smooth": 0.2, "contrast": 0.15},
        },
        "optim": {
            "epochs": 200,
            "batch_size": 12,
            "lr": 1e-4,
            "min_lr": 1e-6,
            "warmup": 0.025,
            "weight_decay": 0.05,
            "betas": (0.9, 0.999),
            "layer_decay": 0.75,
        },
        "engine": {"micro_batch": 3},
    },
}
"""Published: batch 3 accumulated 4 times; warm-up 5 of 200 epochs."""


def check_targets(run: RunConfig, cases: Sequence[CaseRecord]) -> None:
    """Refuse cases whose target the task has no place for.

    Raises:
        ConfigError: a class number beyond `task.classes`, another number of labels, or a label that is neither yes nor
            no.
    """
    from training_backend.errors import ConfigError

    task = answers(run)
    for case in cases:
        values = case.target or ()
        if task.kind == "multiclass" and len(values) == 1:
            if not (0 <= values[0] < task.classes and values[0] == int(values[0])):
                raise ConfigError(
                    f"The task has {task.classes} classes, numbered 0 to {task.classes - 1}, but case {case.id} is of "
                    f"class {values[0]:g}.",
                    "Count classes from 0 and set task.classes.",
                )
        elif values and len(values) != task.classes:
            raise ConfigError(
                f"The task has {task.classes} labels per case, but case {case.id} has {len(values)}.",
                "Set task.classes.",
            )
        elif not all(0 <= value <= 1 for value in values):
            wrong = next(value for value in values if not 0 <= value <= 1)
            raise ConfigError(
                f"A label is 0 for no or 1 for yes, but case {case.id} has {wrong:g}.",
                "For several classes of which one holds, choose the kind multiclass.",
            )


def build(run: RunConfig, encoder: Encoder) -> nn.Module:
    """Encoder with a classification head."""
    from training_backend.nn.heads import VolumeHead

    config = _config(run)
    if config.pooling == "decoder":
        from training_backend.nn.pyramid_decoder import DecodedMean

        network: nn.Module = DecodedMean(encoder, config.classes, config.freeze_encoder, config.repeat_depth)
    else:
        network = VolumeHead(encoder, config.classes, config.pooling, config.hidden, config.freeze_encoder)
    network.task = config  # type: ignore[assignment]
    return network


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Loss of a batch whose `target` is [B] or [B, K]; mixup is drawn from `generator`."""
    config: ClassificationConfig = network.task  # type: ignore[assignment]
    _check_size(network, len(batch.volume))
    target = soft_target(_target(batch), config)
    volume = batch.volume
    if config.mixup and len(volume) > 1:
        volume, target = mixed(volume, target, config.mixup, generator)
    logits = network(volume)
    return StepOutput(loss=classification_loss(logits, target, config))


def classification_loss(logits: Tensor, target: Tensor, config: AnswersConfig) -> Tensor:
    """Binary cross entropy with positive weights, or cross entropy with class weights or balanced over classes.

    Balanced is the mean over all K classes of the mean loss of the cases of each; a class without a case counts 0.

    Args:
        logits: [B, K].
        target: [B, K] probabilities, as `soft_target` gives.
        config: kind and class weights; smoothing is already in the target.
    """
    import torch.nn.functional as F

    weights = logits.new_tensor(config.class_weights, dtype=target.dtype) if config.class_weights else None
    if config.balanced:
        losses = F.cross_entropy(logits.float(), target, reduction="none")
        return (target * losses[:, None] / target.sum(0).clamp_min(1e-12)).sum() / config.classes
    if config.kind == "multiclass":
        return F.cross_entropy(logits.float(), target, weight=weights)
    return F.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=weights)


def soft_target(target: Tensor, config: AnswersConfig) -> Tensor:
    """`target` [B] or [B, K] as probabilities [B, K] with label smoothing; multiclass targets are class numbers."""
    import torch.nn.functional as F

    from training_backend.errors import DataError

    flat = target.reshape(len(target), -1)
    if config.kind == "multiclass":
        if flat.shape[1] == 1:
            if flat.min() < 0 or flat.max() >= config.classes:
                raise DataError(
                    f"The task has {config.classes} classes, but a case has class number {int(flat.max())}.",
                    "Count classes from 0 and set task.classes.",
                )
            flat = F.one_hot(flat[:, 0].long(), config.classes)
        return flat.float() * (1 - config.smoothing) + config.smoothing / config.classes
    if flat.shape[1] != config.classes:
        raise DataError(
            f"The task has {config.classes} labels per case, but the dataset has {flat.shape[1]}.", "Set task.classes."
        )
    return flat.float() * (1 - config.smoothing) + config.smoothing / 2


def mixed(volume: Tensor, target: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Volumes and targets blended with those of another case of the batch, all with one share."""
    import numpy as np
    import torch

    seed = int(torch.randint(2**31, (1,), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    partner = torch.randperm(len(volume), generator=generator).to(volume.device)
    return volume.lerp(volume[partner], 1 - share), target.lerp(target[partner], 1 - share)


def evidence(network: nn.Module, volume: Tensor) -> Tensor:
    """What each token of `volume` [1, C, D, H, W] adds to each output: [K, d, h, w]; only heads with tokens pooling."""
    import torch

    with torch.inference_mode():
        found: Tensor = network.evidence(volume)[0].float()  # type: ignore[operator]
    return found


def predict(network: nn.Module, run: RunConfig, volume: Tensor, progress: Progress | None = None) -> Tensor:
    """Probabilities [K] of one case [1, C, D, H, W]: sigmoids (K = 1 for binary), or a softmax for multiclass."""
    import torch

    from training_backend.tasks.base import Cancelled

    if progress is not None and not progress(0.0):
        raise Cancelled
    with torch.inference_mode():
        logits: Tensor = network(volume)[0].float()
    if progress is not None:
        progress(1.0)
    return probabilities(run, logits)


def probabilities(run: RunConfig, logits: Tensor) -> Tensor:
    """Softmax of `logits` [..., K] for multiclass, else sigmoids."""
    return logits.softmax(-1) if answers(run).kind == "multiclass" else logits.sigmoid()


def evaluate(run: RunConfig, results: Sequence[CaseResult]) -> dict[str, float]:
    """Metrics with 95 % bootstrap intervals; "score" is what the task chooses by.

    Of AUC it is the balanced accuracy while there is none.
    """
    import numpy as np

    from training_backend.evaluate.classification_metrics import classification_report

    config = answers(run)
    found = np.stack([np.asarray(result.prediction, float).ravel() for result in results])
    truth = np.stack([np.asarray(result.truth, float).ravel() for result in results])
    report = classification_report(found, truth, config.kind, names=config.class_names)
    if config.choose == "sum":
        report["score"] = report.get("auc_pairs", report.get("auc", 0.0)) + report["accuracy"] + report.get("f1", 0.0)
    return report


def layer_id(network: nn.Module, parameter: str) -> int:
    """Depth of a parameter; the head has the largest."""
    from training_backend.nn import heads

    return heads.layer_id(network, parameter)


def _check_size(network: nn.Module, views: int) -> None:
    """Batch norm in training compares volumes; the engine sees to it that there are always two."""
    from torch import nn

    from training_backend.errors import ConfigError

    if views < 2 and any(isinstance(layer, nn.BatchNorm1d) and layer.training for layer in network.modules()):
        raise ConfigError(
            "A head with hidden layers has batch normalisation and needs at least 2 volumes at a time, but got 1.",
            "Raise optim.batch_size, or leave task.hidden empty.",
        )


def _target(batch: Batch) -> Tensor:
    from training_backend.errors import DataError

    if batch.target is None:
        raise DataError(
            "Classification needs a target for each case, but this dataset has none.", "Add a Label column."
        )
    return batch.target


def answers(run: RunConfig) -> AnswersConfig:
    """What a run of a task of classes asks."""
    assert isinstance(run.task, AnswersConfig)
    return run.task


def _config(run: RunConfig) -> ClassificationConfig:
    assert isinstance(run.task, ClassificationConfig)
    return run.task


TASK = Task(
    name="classification",
    config=ClassificationConfig,
    title="Classification of whole volumes",
    needs="target",
    presets=PRESETS,
    build=build,
    training_step=training_step,
    predict=predict,
    evaluate=evaluate,
    layer_id=layer_id,
    check=check_targets,
)
