"""VoCo: find where in a slab a crop was taken, by its likeness to a grid of base crops (CVPR 2024; TPAMI version)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import MethodConfig, RunConfig, ui
from training_backend.data.position import Sampling
from training_backend.errors import ConfigError
from training_backend.methods import voco_stages as stages
from training_backend.methods.base import Batch, Card, Encoder, Method, PreviewArray, Snapshot, StepOutput
from training_backend.methods.voco_compare import COMPARISONS
from training_backend.methods.voco_settings import PRESETS, REGIONS, SCALES, SIZES, implied
from training_backend.methods.voco_views import VIEWS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.data.streams import Stream

logger = logging.getLogger(__name__)

MUCH_PADDING = 0.5
"""Share of a slab outside of the scan that is worth a warning."""


class VocoConfig(MethodConfig):
    """Settings of contextual position prediction."""

    name: str = Field("voco", json_schema_extra=ui(hidden=True))
    stage: Literal["self", "omni", "semi"] = "self"
    """self: contrast without labels. omni: a decoder learns from labelled crops besides, and from half time on by the
    labels that the network of half time gives to the others. semi: the same decoder without the contrast. VoComni's
    supervised stage is segmentation: a recipe of Fine-tune."""
    size: Literal["tiny", "small", "B", "L", "H"] = "B"
    """Encoder: 6, 24, 48 (B, 53 M parameters), 96 (L, 212 M) or 192 (H, 847 M) channels at full resolution."""
    region: Literal["custom", "abdomen", "chest", "headneck"] = "custom"
    """Published settings of the scans: abdomen and headneck -175 to 250 HU at 1.5 mm, chest -1000 to 500 HU at
    1.25 x 1.25 x 5 mm; headneck resizes the whole body to a slab. custom: as the data settings say."""
    cells: int = Field(3, ge=2)
    """Base crops along each side of a slab: 3 in version 2, 4 in 2024."""
    crop: int = Field(64, ge=8)
    """Voxels of a crop along y and x; a multiple of 32 unless crops are resized."""
    depth: int | None = Field(None, ge=8, json_schema_extra=ui(advanced=True))
    """Voxels of a slab and its crops along z; empty takes `crop`."""
    resized: int | None = Field(None, ge=32, json_schema_extra=ui(advanced=True))
    """Voxels that crops are interpolated to along every axis (64 in 2024); empty keeps them."""
    crops: int = Field(2, ge=1)
    """Random crops of a volume in a step."""
    gather: bool = Field(False, json_schema_extra=ui(advanced=True))
    """With several processes: norm projections and compare volumes over all of them, as if one held them all. off: each
    process compares its own, as published."""
    version: Literal["2", "2024"] = Field("2", json_schema_extra=ui(advanced=True))
    """2: student and teacher share the encoder, and volumes are compared with each other. 2024: the teacher is an
    encoder of its own."""
    flip: float = Field(0.2, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Probability of a flip along each axis, per crop."""
    rotate: float = Field(0.2, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Probability of quarter turns in the plane, per crop."""
    shift: float = Field(0.5, ge=0, le=1, json_schema_extra=ui(advanced=True))
    """Probability that up to 0.1 is added to or taken from the intensities, per crop."""
    drop_rows: float = Field(0.2, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Probability that the student sees nothing of a crop."""
    momentum: float = Field(0.9, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Part of the teacher that stays when it follows the student, once a step."""
    hidden: int = Field(1024, ge=2, json_schema_extra=ui(advanced=True))
    """Width inside the projections (2048 in 2024)."""
    projected: int = Field(1024, ge=2, json_schema_extra=ui(advanced=True))
    """Width of a projection (2048 in 2024)."""
    merging: Literal["legacy", "fixed"] = Field("legacy", json_schema_extra=ui(advanced=True))
    """Order in which eight voxels are merged. legacy: that of the published weights, which takes two of them twice.
    fixed: each once; for networks that start from nothing."""
    axes: Literal["xyz", "zyx"] = Field("xyz", json_schema_extra=ui(advanced=True))
    """Frame of the network. xyz: (x, y, z) growing to the right, anterior, superior, as published. zyx: as stored."""
    window: int = Field(7, ge=2, json_schema_extra=ui(advanced=True))
    """Side of the attention windows."""
    feature_size: int | None = Field(None, ge=3, json_schema_extra=ui(advanced=True))
    """Channels at full resolution, a multiple of 3; empty takes those of `size`."""
    drop_path: float = Field(0.0, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Stochastic depth of the transformer's last block; useful when fine-tuning."""
    decoder_classes: int = Field(0, ge=0, json_schema_extra=ui(advanced=True))
    """Classes of the decoder, background included; 0 stands for the 21 of VoComni, and for no decoder in stage self."""
    in_channels: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Channels of a volume; empty takes as many as `data.contrasts` names, at least one."""


def build(run: RunConfig) -> nn.Module:
    """Network with fresh weights, which knows how its crops are taken; in stage semi a plain SwinUNETR."""
    from training_backend.nn.voco import Voco

    config, classes = _config(run), _classes(run)
    stages.check_stage(config.stage, config.version, classes)
    _check_gather(config)
    _check_gradients(run)
    if config.stage == "semi":
        return stages.plain_network(_encoder_settings(run), classes)
    sampling = _sampling(config)
    _check(run, config, sampling)
    network = Voco(
        **_encoder_settings(run),
        hidden=config.hidden,
        projected=config.projected,
        drop_rows=config.drop_rows,
        momentum=config.momentum,
        whole_teacher=config.version == "2024",
        decoder=classes > 0,
        classes=classes,
    )
    network.sampling, network.gather = sampling, config.gather
    network.spacing_mm = None if config.region == "custom" else REGIONS[config.region].spacing_mm
    return network


def build_encoder(run: RunConfig) -> Encoder:
    """The encoder alone."""
    from training_backend.nn.swin_unetr import SwinUnetr

    return SwinUnetr(**_encoder_settings(run))


def streams(run: RunConfig) -> dict[str, Stream]:
    """Labelled crops, in the stages that learn from them."""
    config, classes = _config(run), _classes(run)
    stages.check_stage(config.stage, config.version, classes)
    return stages.labelled_streams(run, config.stage, classes, (config.depth or config.crop, config.crop, config.crop))


def snapshot(run: RunConfig) -> Snapshot | None:
    """The teacher of half time, in the stages that have one: the encoder and its decoder."""
    stage = _config(run).stage
    if stage == "self":
        return None

    def teacher(config: RunConfig) -> nn.Module:
        return stages.plain_network(_encoder_settings(config), _classes(config))

    return Snapshot(stages.HALF, teacher, awaited=stage == "semi")


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Sum of the position, inter-volume and likeness losses; crops, changes and dropped rows come from `generator`.

    In training the teacher moves first, once a step however many parts the step has. Scalars: the three losses, the
    share of crops whose most overlapping cell is found, the mean absolute error of the overlap, and the share of the
    slabs outside of the scans.

    Batches with labelled crops, or with a teacher of half time, add its loss (see `voco_stages`). In validation there
    is no such teacher, so the loss of both halves of a run means the same.
    """
    if not hasattr(network, "sampling"):
        return stages.semi_step(network, batch)
    found = _contrast_step(network, batch, generator)
    if not batch.streams:
        return found
    loss, scalars, counts = stages.labelled_loss(network, batch)
    return StepOutput(found.loss + loss, {**found.scalars, **scalars}, {**found.counts, **counts})


def _contrast_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """The losses of crops without labels."""
    assert network.sampling is not None  # networks without it are made for inference
    _warn(network, batch)
    crops, labels, keep = _drawn(network, batch, generator)
    if network.training and network.begins:
        network.follow()  # type: ignore[operator]
    pseudo: Tensor | float = 0.0
    told: dict[str, Tensor] = {}
    if keep is None:
        _, student, teacher = network.project(crops, keep)  # type: ignore[operator]
    else:
        if (labeller := batch.extra.get("snapshot")) is None:
            embeddings = network.embed(crops)  # type: ignore[operator]
        else:
            number = labels.shape[0] * labels.shape[1]
            embeddings, logits = network.omni(crops, frozen=True, decoded=number)  # type: ignore[operator]
            pseudo, told = stages.pseudo_loss(logits, stages.pseudo_labels(labeller, crops[:number]))
        if network.gather and network.training:
            embeddings, labels, keep = network.together(embeddings, labels, keep)  # type: ignore[operator]
        student, teacher = network.heads(embeddings, keep)  # type: ignore[operator]
    found = network.contrast(student, teacher, labels)  # type: ignore[operator]
    right = found.predicted.argmax(dim=-1) == labels.argmax(dim=-1)
    return StepOutput(
        loss=found.loss + pseudo,
        scalars={
            **told,
            "intra": found.intra,
            "inter": found.inter,
            "reg": found.regular,
            "position_accuracy": right.float().mean(),
            "position_error": (found.predicted - labels).abs().mean(),
            "padding": 0.0 if batch.padding is None else batch.padding.float().mean(),
        },
    )


def _drawn(network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """Crops and then bases of the batch's slabs, their overlaps, and which of them the student sees, if not all."""
    from training_backend.data.position import sample
    from training_backend.nn.axes import turned

    slabs = turned(batch.volume, network.axes)  # type: ignore[arg-type]
    crops, labels, _ = sample(slabs, network.sampling, generator, changed=network.training)  # type: ignore[arg-type]
    keep = None if network.whole_teacher else network.draw_rows(len(crops), generator)  # type: ignore[operator]
    return crops, labels, keep


def preview(
    network: nn.Module, volume: Tensor, options: Mapping[str, Any], generator: torch.Generator
) -> list[PreviewArray]:
    """The slab, its cells, random crops, and for each crop the true and the predicted overlap with the cells.

    Args:
        network: made by `build`.
        volume: one slab [1, C, D, H, W], normalised.
        options: `seed` of the places (default: from `generator`).
        generator: on the CPU; not used when `seed` is given.
    """
    import torch

    from training_backend.data.position import sample
    from training_backend.nn.axes import turned, turned_back

    if not hasattr(network, "sampling"):
        image = PreviewArray("original", volume[0, 0].float().cpu().numpy(), "image")
        return [image, stages.segmented(network, volume)]
    if options.get("seed") is not None:
        generator = torch.Generator().manual_seed(int(options["seed"]))
    sampling: Sampling = network.sampling  # type: ignore[assignment]
    axes: Any = network.axes
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        slab = turned(volume, axes)
        crops, labels, (starts,) = sample(slab, sampling, generator, changed=False)
        _, student, teacher = network.project(crops, None)  # type: ignore[operator]
        predicted = network.contrast(student, teacher, labels).predicted  # type: ignore[operator]
    network.train(was_training)

    def on_grid(cells: Tensor) -> Any:
        """Numbers [K] of the cells as an array (1, n, n) along (z, y, x)."""
        flat = cells.float().cpu().reshape(sampling.cells, sampling.cells)
        shaped = flat[:, :, None] if axes == "xyz" else flat[None]
        return turned_back(shaped[None, None], axes)[0, 0].contiguous().numpy()

    boxes = torch.zeros(slab.shape[2:], dtype=torch.uint8)
    for number, (first, second) in enumerate(starts.tolist(), 1):
        plane = [axis - 1 for axis in sampling.plane]
        boxes.narrow(plane[0], first, sampling.crop).narrow(plane[1], second, sampling.crop).fill_(number)
    names = {number: f"crop {number}" for number in range(1, len(starts) + 1)}
    cell = (sampling.depth, sampling.crop, sampling.crop)
    numbers = on_grid(torch.arange(1, sampling.cells**2 + 1)).astype("uint8")
    shown = [
        PreviewArray("original", volume[0, 0].float().cpu().numpy(), "image"),
        PreviewArray("cells", numbers, "labels", cell, classes={int(k): f"cell {k}" for k in numbers.flatten()}),
        PreviewArray("crops", turned_back(boxes[None, None], axes)[0, 0].contiguous().numpy(), "labels", classes=names),
    ]
    for number, (true, seen) in enumerate(zip(labels[0], predicted[0], strict=True), 1):
        shown.append(PreviewArray(f"crop {number} overlap", on_grid(true), "heatmap", cell, (0.0, 1.0)))
        shown.append(PreviewArray(f"crop {number} prediction", on_grid(seen), "heatmap", cell, (0.0, 1.0)))
    if hasattr(network, "out"):
        shown.append(stages.segmented(network, volume))
    return shown


def _config(run: RunConfig) -> VocoConfig:
    return VocoConfig.model_validate(run.method.model_dump())


def _classes(run: RunConfig) -> int:
    config = _config(run)
    return stages.classes_of(config.stage, config.decoder_classes)


def _encoder_settings(run: RunConfig) -> dict[str, Any]:
    config = _config(run)
    return {
        "in_channels": run.channels(config.in_channels),
        "feature_size": config.feature_size or SIZES[config.size],
        "window": (config.window,) * 3,
        "merging": config.merging,
        "drop_path": config.drop_path,
        "axes": config.axes,
    }


def _sampling(config: VocoConfig) -> Sampling:
    return Sampling(
        cells=config.cells,
        crop=config.crop,
        depth=config.depth or config.crop,
        crops=config.crops,
        plane=(1, 2) if config.axes == "xyz" else (2, 3),
        resized=config.resized,
        flip=config.flip,
        rotate=config.rotate,
        shift=config.shift,
    )


def _check(run: RunConfig, config: VocoConfig, sampling: Sampling) -> None:
    """Refuse crops that the network cannot take, and data settings that are not what the method says."""
    from training_backend.nn.patch import check_halved

    size = (config.resized,) * 3 if config.resized else (sampling.depth, sampling.crop, sampling.crop)
    check_halved(size, "SwinUNETR")
    slab = sampling.slab
    if tuple(run.data.size) != slab:
        raise ConfigError(
            f"A slab of {config.cells} x {config.cells} crops of {config.crop} voxels has {' x '.join(map(str, slab))} "
            f"voxels, but data.size is {' x '.join(map(str, run.data.size))}.",
            f"Set data.size to {slab}, or change method.cells, method.crop or method.depth.",
        )
    if config.region == "custom":
        return
    wanted = REGIONS[config.region]
    intensity = run.data.intensity
    if (intensity.profile, intensity.low, intensity.high) != ("window", *wanted.window):
        raise ConfigError(
            f"method.region {config.region} stands for the window {wanted.window[0]:g} to {wanted.window[1]:g} HU, but "
            f"data.intensity is {intensity.profile} {intensity.low} to {intensity.high}.",
            "Set data.intensity to that window, or method.region to custom.",
        )


def _check_gather(config: VocoConfig) -> None:
    """Refuse to gather where no volumes are compared with each other."""
    if config.gather and (config.version == "2024" or config.stage == "semi"):
        what = "version 2024" if config.version == "2024" else "stage semi"
        raise ConfigError(
            f"method.gather compares the volumes of all processes, but {what} compares none with each other.",
            "Set method.gather to False.",
        )


def _check_gradients(run: RunConfig) -> None:
    """Refuse gradients of zero in place of none, by which the teacher knows that a step begins."""
    if run.kind == "pretrain" and run.optim.zero_gradients:
        raise ConfigError(
            "optim.zero_gradients is for networks that leave parts out in turn, which VoCo's never does.",
            "Set optim.zero_gradients to False.",
        )


def _warn(network: Any, batch: Batch) -> None:
    """Say once what makes learning poorer than it looks: a single volume, much padding, another spacing."""
    from training_backend.nn.gather import processes

    others = network.gather and network.training and processes() > 1
    if len(batch.volume) == 1 and not network.whole_teacher and not others:
        _once(
            network,
            "A step sees a single volume at a time, so volumes are compared with themselves and nothing is learnt from "
            "their likeness; use an optim.batch_size and an engine.micro_batch of at least 2.",
        )
    if batch.padding is not None:
        share, index = batch.padding.float().mean(dim=(1, 2, 3)).max(dim=0)
        if float(share) > MUCH_PADDING:
            size = " x ".join(map(str, network.sampling.slab))
            _once(
                network,
                f"{batch.case_ids[int(index)]} fills {1 - float(share):.0%} of a slab of {size} voxels, so its border "
                "tells most positions; use smaller crops, finer voxels, or data.view volume, which resizes scans.",
            )
    spacing = batch.extra.get("spacing_mm")
    if network.spacing_mm is not None and spacing:
        wrong = [
            one for one in spacing if any(abs(a / b - 1) > 0.1 for a, b in zip(one, network.spacing_mm, strict=True))
        ]
        if wrong:
            _once(
                network,
                f"The region asks for voxels of {network.spacing_mm} mm along (z, y, x), but there are some of "
                f"{tuple(round(value, 2) for value in wrong[0])} mm; ingest the dataset with that spacing.",
            )


def _once(network: Any, sentence: str) -> None:
    key = sentence.split(" ")[-4:]
    if key not in network.told:
        network.told.append(key)
        logger.warning("%s", sentence)


METHOD = Method(
    name="voco",
    config=VocoConfig,
    card=Card(
        title="VoCo / Large-Scale-Medical",
        summary="Learns where in the body a crop lies, by its likeness to a grid of base crops.",
        paper="Wu et al., Large-Scale 3D Medical Image Pre-training with Geometric Context Priors, arXiv 2410.09890; "
        "CVPR 2024, 22873-22882",
        url="https://github.com/Luffy03/Large-Scale-Medical",
        weights_licence="",
    ),
    presets=PRESETS,
    implied=implied,
    build=build,
    training_step=training_step,
    preview=preview,
    encoder=lambda network: network,  # type: ignore[arg-type, return-value]
    build_encoder=build_encoder,
    family="voco",
    views=(*VIEWS, *COMPARISONS),
    streams=streams,
    snapshot=snapshot,
    gathers=lambda run: _config(run).gather,
    scales=SCALES,
)
