"""Segmentation: a class for every voxel, learnt with Dice plus cross-entropy."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from training_backend.config import RunConfig, TaskConfig, ui
from training_backend.methods.base import Batch, Encoder, StepOutput
from training_backend.tasks.base import CaseResult, Progress, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.data.manifest import CaseRecord
    from training_backend.evaluate.sliding import Predictor, Tiling

log = logging.getLogger(__name__)

MOST_CLASSES = 255
"""Background included: label values end at 254, since 255 marks unlabelled voxels."""


class SegmentationConfig(TaskConfig):
    """Settings of segmentation."""

    name: str = Field("segmentation", json_schema_extra=ui(hidden=True))
    classes: tuple[str, ...] = ()
    """Names by label value, background first; empty takes the class table of the dataset."""
    decoder: Literal["lean", "unetr", "swinunetr"] = "lean"
    """lean: a light U-Net that receives the encoder's features. unetr: the decoder of UNETR as published, for
    encoders that give tokens. swinunetr: that of SwinUNETR as published, for the transformers of VoCo and MG-3D;
    VoCo's weights with a decoder start it too."""
    channels: tuple[int, ...] = Field((16, 32, 64, 128), json_schema_extra=ui(advanced=True))
    """Lean decoder: channels of the convolutional levels, fine to coarse."""
    stem_stride: Literal[1, 2] = Field(1, json_schema_extra=ui(advanced=True))
    """Lean decoder: voxels per axis of the finest level; 1 keeps every voxel, 2 is about six times faster."""
    feature_size: int = Field(16, ge=1, json_schema_extra=ui(advanced=True))
    """UNETR decoder: channels of the finest level; each coarser one has twice as many."""
    loss: Literal["dice_ce", "dice_ce_squared", "dice_ce_foreground", "dice_bce"] = Field(
        "dice_ce", json_schema_extra=ui(advanced=True)
    )
    """dice_ce: Dice plus cross-entropy. dice_ce_squared: the same with squared predictions in Dice's denominator, where
    a class that a view does not hold costs its full share, as UNETR and AR-SSL4M train. dice_ce_foreground: dice_ce
    without the background in Dice, as VoCo is fine-tuned. dice_bce: a yes or no for each of `outputs`, learnt with Dice
    plus binary cross-entropy, as MedCoSS is fine-tuned; what a case was not annotated for does not count."""
    outputs: tuple[str, ...] = Field((), json_schema_extra=ui(advanced=True))
    """With dice_bce: regions or classes that the network tells apart, containing ones before contained ones; empty
    takes every class but the background."""
    freeze: Literal["none", "encoder"] = "none"
    """encoder: train only what is new, with the encoder as it came from pre-training."""
    deep_supervision: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Lean decoder: also apply the loss to coarser levels."""
    overlap: float = Field(0.5, ge=0, le=0.9, json_schema_extra=ui(advanced=True))
    """Overlap of neighbouring windows in prediction."""
    blend: Literal["gaussian", "constant", "nnunet"] = Field("gaussian", json_schema_extra=ui(advanced=True))
    """Weight of a window's voxels in prediction: less towards its border, or the same everywhere. nnunet: less towards
    the border without a lower bound, as nnU-Net's first version and MedCoSS."""
    sigma: float = Field(0.125, gt=0, json_schema_extra=ui(advanced=True))
    """Width of that weight as a share of the window; MedCoSS takes 0.25 for pictures."""
    pad_end: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Pad scans that are smaller than a window at their end only, in place of around."""
    fill: float | None = Field(None, json_schema_extra=ui(advanced=True))
    """Network input that such scans are padded with in prediction; empty takes the darkest value, as in training."""
    test_flips: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Predict the mean over all flips: eight times slower; never where left and right are different classes."""

    regions: tuple[str, ...] = Field((), json_schema_extra=ui(advanced=True))
    """Unions of classes that are scored besides, as "NAME = CLASS + CLASS", by name or label value; the best model is
    then chosen by their mean Dice, as in BraTS."""
    largest: tuple[str, ...] = Field((), json_schema_extra=ui(advanced=True))
    """Classes or regions of which predictions keep the largest connected part; the rest becomes background."""
    smallest: dict[str, int] = Field({}, json_schema_extra=ui(advanced=True))
    """Classes or regions with the voxels up to which a connected part is too small: it becomes what the region around
    it is besides, else background."""

    @field_validator("channels")
    @classmethod
    def _at_least_two_levels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) < 2 or min(value) < 1:
            raise ValueError("give at least two levels of at least one channel")
        return value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) == 1 or len(value) > MOST_CLASSES or len(set(value)) < len(value):
            raise ValueError(f"give 2 to {MOST_CLASSES} different names, background first")
        return value

    @model_validator(mode="after")
    def _regions_of_classes(self) -> SegmentationConfig:
        from training_backend.config.regions import read_regions

        known = read_regions(self.regions, self.classes)
        if self.outputs and self.loss != "dice_bce":
            raise ValueError("outputs are told apart with the loss dice_bce only")
        for name in (*self.outputs, *self.largest, *self.smallest):
            if self.classes and name not in known and name not in self.classes:
                raise ValueError(f"{name!r} is neither a class nor a region; there are {', '.join(self.classes)}")
        return self


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "task": {"stem_stride": 2},
        "data": {"crops_per_volume": 2, "augment": {"flip": (0.0, 0.0, 0.0)}},
        "optim": {
            "epochs": 1000,
            "max_steps": 250,
            "batch_size": 4,
            "lr": 3e-3,
            "layer_decay": 0.75,
            "betas": (0.9, 0.99),
            "schedule": "poly",
            "clip_grad": 1.0,
            "ema": 0.98,
        },
        "engine": {"val_steps": 50},
    },
    "small": {
        "data": {
            "size": (96, 96, 96),
            "augment": {"flip": (0.0, 0.0, 0.0), "rotate": 0.2, "scale": 0.2, "noise": 0.15, "contrast": 0.15},
        },
        "optim": {"epochs": 300, "batch_size": 2, "lr": 1e-3, "layer_decay": 0.75, "clip_grad": 1.0, "ema": 0.999},
    },
    "base": {
        "data": {
            "size": (128, 128, 128),
            "augment": {"flip": (0.0, 0.0, 0.0), "rotate": 0.2, "scale": 0.2, "noise": 0.15, "contrast": 0.15},
        },
        "optim": {"epochs": 500, "batch_size": 4, "lr": 1e-3, "layer_decay": 0.75, "clip_grad": 1.0, "ema": 0.999},
    },
    "published": {
        "task": {"channels": (16, 32, 64, 128, 256)},
        "data": {
            "view": "crop",
            "size": (96, 96, 96),
            "keep_aspect": True,
            "crops_per_volume": 2,
            "augment": {"flip": (0.0, 0.0, 0.0), "noise": 0.1, "smooth": 0.2, "contrast": 0.15},
        },
        "optim": {
            "epochs": 200,
            "batch_size": 12,
            "lr": 1e-4,
            "min_lr": 1e-6,
            "warmup": 0.025,
            "layer_decay": 0.75,
            "betas": (0.9, 0.999),
        },
        "engine": {"micro_batch": 3},
    },
}
"""Mirroring is off by default, since it turns a left organ into a right one. The authors ship no segmentation:
"published" is their recipe of fine-tuning (optimiser, layer decay, augmentation) with crops in place of whole volumes.
"""


LOSSES: Mapping[str, Mapping[str, Any]] = {
    "dice_ce": {},
    "dice_ce_squared": {"squared": True, "smooth": 1e-6},
    "dice_ce_foreground": {"background": False},
}
"""Options of `nn.dice.dice_ce` by the name of the loss."""


def class_names(config: RunConfig) -> tuple[str, ...]:
    """Names by label value, background first: those of the configuration, or of the dataset's class table."""
    from training_backend.data.dataset import Dataset
    from training_backend.errors import ConfigError

    names = settings(config).classes
    if names:
        return names
    info = Dataset.open(config.data.dataset).info
    table = {entry.index: entry.name for entry in info.classes}
    largest = max(table, default=0)
    if not 0 < largest < MOST_CLASSES:
        raise ConfigError(
            f"Segmentation needs label values from 1 to {MOST_CLASSES - 1}, but those of {info.name} end at {largest}.",
            "Use a dataset with labels, or relabel its masks.",
        )
    table = {0: "background"} | table
    found = [table.get(index, f"unused {index}") for index in range(largest + 1)]
    return tuple(f"{name} {index}" if found.count(name) > 1 else name for index, name in enumerate(found))


def check_labels(config: RunConfig, cases: Iterable[CaseRecord]) -> None:
    """Refuse cases whose stored label values have no class in the run.

    Raises:
        ConfigError: a label value without a class.
    """
    from training_backend.errors import ConfigError

    count = len(class_names(config))
    for case in cases:
        largest = max((int(value) for value in case.store.get("label", {}).get("values", {})), default=0)
        if largest >= count:
            raise ConfigError(
                f"The task has {count} classes, for label values 0 to {count - 1}, but case {case.id} has {largest}.",
                "Name every class in task.classes, or leave it empty to take those of the dataset.",
            )


def value_sets(config: RunConfig, names: Sequence[str]) -> dict[str, frozenset[int]]:
    """Label values of classes and regions by their name.

    Raises:
        ConfigError: a name that is neither.
    """
    from training_backend.config.regions import read_regions
    from training_backend.errors import ConfigError

    classes = class_names(config)
    known = {name: frozenset({value}) for value, name in enumerate(classes)}
    known |= {name: frozenset(values) for name, values in read_regions(settings(config).regions, classes).items()}
    for name in names:
        if name not in known:
            raise ConfigError(f"{name!r} is neither a class nor a region.", f"There are {', '.join(known)}.")
    return {name: known[name] for name in names}


def output_sets(config: RunConfig) -> tuple[frozenset[int], ...]:
    """Label values of each output of a network that is trained with dice_bce; empty for others.

    Raises:
        ConfigError: outputs that do not stand for all classes, each for one.
    """
    from training_backend.errors import ConfigError
    from training_backend.nn.medcoss_downstream import own_classes

    task, classes = settings(config), class_names(config)
    if task.loss != "dice_bce":
        return ()
    sets = tuple(value_sets(config, task.outputs or classes[1:]).values())
    try:
        own = own_classes(sets)
    except ValueError as error:
        raise ConfigError(f"task.outputs cannot be told apart: {error}.", "Order them, or leave them empty.") from error
    if sorted(own) != list(range(1, len(classes))):
        raise ConfigError(
            f"The {len(sets)} outputs of the task stand for {len(set(own))} of {len(classes) - 1} classes.",
            "Name one output for each class in task.outputs, or leave them empty.",
        )
    return sets


def settings(config: RunConfig) -> SegmentationConfig:
    """The task's part of a run's configuration."""
    return SegmentationConfig.model_validate(config.task.model_dump() if config.task else {})


def build(config: RunConfig, encoder: Encoder) -> nn.Module:
    """Encoder plus decoder with fresh weights."""
    task, sets = settings(config), output_sets(config)
    classes = len(sets) or len(class_names(config))
    if task.decoder == "unetr":
        from training_backend.nn.unetr_published import PublishedUnetr

        network: nn.Module = PublishedUnetr(
            encoder, classes, feature_size=task.feature_size, freeze=task.freeze == "encoder"
        )
    elif task.decoder == "swinunetr":
        from training_backend.nn.swin_vision_segmenter import swin_decoder

        network = swin_decoder(encoder, classes, freeze=task.freeze == "encoder")
        _say_padding(config.data.size)
    else:
        from training_backend.nn.unetr import Unetr

        network = Unetr(
            encoder,
            classes,
            channels=task.channels,
            stem_stride=task.stem_stride,
            freeze=task.freeze == "encoder",
            deep_supervision=task.deep_supervision,
        )
    network.task, network.sets = task, sets  # type: ignore[assignment]
    return network


def _say_padding(size: tuple[int, int, int]) -> None:
    """Tell that views are padded, where the coarsest map of the network does not divide them."""
    from training_backend.nn.swin_unetr import COARSEST

    if any(n % COARSEST for n in size):
        shown, full = (" x ".join(map(str, n)) for n in (size, [-(-n // COARSEST) * COARSEST for n in size]))
        log.warning(
            "Views of %s voxels are padded to %s, since this network halves them five times; choose multiples of %d in "
            "data.size to spare the memory.",
            shown,
            full,
            COARSEST,
        )


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Dice plus cross-entropy; coarser outputs count half as much per level.

    Voxels outside the scan do not count, nor classes that nobody looked for in a case (`CaseRecord.annotated`).
    """
    from training_backend.errors import DataError
    from training_backend.nn.dice import UNLABELLED

    if batch.labels is None:
        raise DataError(f"Segmentation needs labels, but {', '.join(batch.case_ids)} have none.", "Leave them out.")
    labels = batch.labels if batch.padding is None else batch.labels.masked_fill(batch.padding, UNLABELLED)
    outputs = network(batch.volume)
    looked_for = batch.extra.get("annotated")
    pairs = [_terms(network, logits, _at_size(labels, logits.shape[2:]), looked_for) for logits in outputs]
    dice, entropy = pairs[0]
    total, weight = dice + entropy, 1.0
    for level, (coarse_dice, coarse_entropy) in enumerate(pairs[1:], start=1):
        total = total + 0.5**level * (coarse_dice + coarse_entropy)
        weight += 0.5**level
    return StepOutput(loss=total / weight, scalars={"dice_loss": dice.detach(), "cross_entropy": entropy.detach()})


def _terms(
    network: nn.Module, logits: Tensor, labels: Tensor, looked_for: Sequence[Sequence[int] | None] | None
) -> tuple[Tensor, Tensor]:
    """The two terms of the task's loss; `looked_for` are the classes that were annotated in each sample."""
    from training_backend.nn.dice import annotated_classes, dice_ce
    from training_backend.nn.medcoss_downstream import dice_bce, set_targets

    task: SegmentationConfig = network.task  # type: ignore[assignment]
    if task.loss == "dice_bce":
        return dice_bce(logits, set_targets(labels, network.sets, looked_for))  # type: ignore[arg-type]
    annotated = annotated_classes(looked_for, logits.shape[1])
    annotated = None if annotated is None else annotated.to(logits.device)
    return dice_ce(logits, labels, annotated=annotated, **LOSSES[task.loss])


def predict(network: nn.Module, config: RunConfig, volume: Tensor, progress: Progress | None = None) -> Tensor:
    """Probabilities [K, D, H, W] on the CPU of a whole case [1, C, D, H, W], by a sliding window of the view's size."""
    from training_backend.evaluate.sliding import predict_probabilities

    found = predict_probabilities(predictor(network, config), volume, tiling(config, volume), progress)
    return cleaned(found, config)


def cleaned(found: Tensor, config: RunConfig) -> Tensor:
    """Probabilities [K, D, H, W] or labels [D, H, W] without the parts that the task says are none; may be `found`."""
    from training_backend.evaluate.clean import clean_labels, clean_probabilities

    task = settings(config)
    if not task.largest and not task.smallest:
        return found
    regions = [text.partition("=")[0].strip() for text in task.regions]
    rules = {
        "largest": list(value_sets(config, task.largest).values()),
        "smallest": [(values, task.smallest[name]) for name, values in value_sets(config, [*task.smallest]).items()],
        "around": list(value_sets(config, regions).values()),
    }
    return clean_probabilities(found, **rules) if found.ndim == 4 else clean_labels(found, **rules)  # type: ignore[arg-type]


def predictor(network: nn.Module, config: RunConfig) -> Predictor:
    """Probabilities [B, K, d, h, w] of windows on any device, or with dice_bce sigmoids [B, C, d, h, w] of the outputs.

    The network is put into evaluation mode.
    """
    import torch

    from training_backend.evaluate.sliding import with_flips

    network.eval()
    task, device = settings(config), next(network.parameters()).device

    def probabilities(windows: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(windows.to(device))[0].float()
            return logits.sigmoid() if task.loss == "dice_bce" else logits.softmax(dim=1)

    axes = [axis for axis, size in enumerate(config.data.size) if size > 1]
    return with_flips(probabilities, axes) if task.test_flips else probabilities


def tiling(config: RunConfig, volume: Tensor, *, batch: int = 1) -> Tiling:
    """Windows of the size of a training view; one window for runs on whole volumes."""
    from functools import partial

    from training_backend.evaluate.sliding import Tiling
    from training_backend.nn.medcoss_downstream import class_scores

    d, h, w = config.data.size if config.data.view == "crop" else volume.shape[2:]
    task = settings(config)
    fill = 0.0 if config.data.intensity.profile == "zscore_nonzero" else None  # zeros are what is outside there
    sets = output_sets(config)
    return Tiling(
        (d, h, w),
        task.overlap,
        batch,
        blend=task.blend,
        fill=fill if task.fill is None else task.fill,
        sigma=task.sigma,
        pad_end=task.pad_end,
        finish=partial(class_scores, sets=sets) if sets else None,
    )


def evaluate(config: RunConfig, results: Sequence[CaseResult]) -> dict[str, float]:
    """Mean Dice over cases per class and region ("dice_NAME"), over classes ("dice") and over regions ("regions").

    The score is the mean over regions where there are any, else over classes. What neither truth nor prediction of a
    case contain does not count for that case.
    """
    import math

    from training_backend.config.regions import read_regions
    from training_backend.evaluate.segmentation_metrics import bootstrap_mean, dice_per_class, dice_per_region

    names = class_names(config)
    cases = [_known(dice_per_class(r.prediction, r.truth, range(1, len(names))), r) for r in results]
    means = {name: bootstrap_mean([c[index] for c in cases], draws=1).mean for index, name in enumerate(names) if index}
    found = {"dice": _mean(means.values())}
    if regions := read_regions(settings(config).regions, names):
        shares = [_known(dice_per_region(r.prediction, r.truth, regions), r, regions) for r in results]
        unions = {name: bootstrap_mean([share[name] for share in shares], draws=1).mean for name in regions}
        means, found["regions"] = {**means, **unions}, _mean(unions.values())
    score = {"score": found.get("regions", found["dice"])}
    return {**score, **found, **{f"dice_{n}": v for n, v in means.items() if not math.isnan(v)}}


def _known(scores: dict[Any, float], result: CaseResult, members: Mapping[Any, Collection[int]] | None = None) -> Any:
    """Scores by class or region, NaN for those that were not looked for; `members` are the classes of regions."""
    import math

    if result.annotated is None:
        return scores
    looked_for = set(result.annotated)
    return {
        name: score if looked_for.issuperset(members[name] if members else (name,)) else math.nan
        for name, score in scores.items()
    }


def _mean(values: Iterable[float]) -> float:
    """Mean of the numbers among `values`, or 0 where there is none."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else 0.0


def layer_id(network: nn.Module, parameter: str) -> int:
    """Depth of a parameter: that in the encoder, or one more than its last for everything new."""
    encoder: Encoder = network.encoder  # type: ignore[assignment]
    prefix, _, rest = parameter.partition("encoder.")
    return encoder.layer_id(rest) if not prefix else encoder.depth + 1


def _at_size(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels [B, d, h, w] at the centres of a coarser grid."""
    import torch

    for axis, (n, count) in enumerate(zip(labels.shape[1:], size, strict=True), start=1):
        if n != count:
            centres = ((torch.arange(count, device=labels.device) + 0.5) * (n / count)).long().clamp_max(n - 1)
            labels = labels.index_select(axis, centres)
    return labels


TASK = Task(
    name="segmentation",
    config=SegmentationConfig,
    title="Segmentation",
    needs="labels",
    presets=PRESETS,
    build=build,
    training_step=training_step,
    predict=predict,
    evaluate=evaluate,
    layer_id=layer_id,
    check=check_labels,
)
