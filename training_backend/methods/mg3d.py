"""MG-3D: scans and their reports explain each other, by words, by sentences and as wholes (arXiv 2412.05876)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import MethodConfig, RunConfig, ui
from training_backend.config.text import TextConfig
from training_backend.data.text import Level, sentences
from training_backend.errors import ConfigError, DataError
from training_backend.methods.base import Batch, Card, Encoder, Method, PreviewArray, StepOutput
from training_backend.methods.mg3d_settings import PRESETS, SIZES
from training_backend.methods.mg3d_views import VIEWS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.data.manifest import CaseRecord
    from training_backend.nn.mg3d import Mg3d
    from training_backend.nn.mg3d_encoders import VisionEncoder
    from training_backend.nn.reports import Reports

logger = logging.getLogger(__name__)

NETWORK = "MG-3D"
"""In sentences about sizes of volumes."""
BLOCK = 16
"""Voxels along each axis of a block that is hidden or kept."""
FASTER = 5.0
"""Learning rate of heads and projections, in those of the rest."""


class Mg3dConfig(MethodConfig):
    """Settings of pre-training with reports."""

    name: str = Field("mg3d", json_schema_extra=ui(hidden=True))
    encoder: Literal["swin", "unet", "nnunet"] = "swin"
    """swin: 3D Swin transformer. unet: encoder of Models Genesis' U-Net. nnunet: encoder of nnU-Net, which the authors
    name but do not give."""
    size: Literal["tiny", "small", "B", "L"] = "B"
    """Channels of the first map of swin and unet: 6, 24, 48 (B, 8 M parameters) or 96 (L, 34 M)."""
    text: TextConfig = TextConfig()
    level: Level = "sentence"
    """What of a report counts as a sentence; clause cuts at commas, semicolons and colons too, as published."""
    one_piece: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Where a line of a report has several sentences (or clauses), read one of them, drawn anew in each step. For
    tables whose lines are sentences, such as those of the authors, who draw once; other reports would lose most of
    their words."""
    routing: Literal["sentences", "words"] = Field("sentences", json_schema_extra=ui(advanced=True))
    """What helps to draw hidden blocks. sentences: as the paper describes. words: as the published code does, where the
    name of a branch is misspelt."""
    gating: Literal["auto", "means", "learnt"] = Field("auto", json_schema_extra=ui(advanced=True))
    """How gates between scan and report are reduced. means: as published for swin. learnt: by learnt sums and pools, as
    published for unet. auto: as published; nnunet like swin."""
    mask_ratio: float = Field(0.5, gt=0, lt=1)
    """Share of hidden blocks of 16 x 16 x 16 voxels, the same blocks for all volumes of a step."""
    word_ratio: float = Field(0.15, gt=0, lt=1)
    """Share of hidden tokens of a report."""
    align_weight: float = Field(0.1, ge=0, json_schema_extra=ui(advanced=True))
    """Weight of the alignment of scans and reports, and of the comparison of patients."""
    all_padding: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Fill reports up to the longest that is read, and let the padding take part in gates, as published. Off is faster:
    words alone take part."""
    gather: bool = Field(True, json_schema_extra=ui(advanced=True))
    """Compare with the cases of all processes."""
    merging: Literal["legacy", "fixed"] = Field("legacy", json_schema_extra=ui(advanced=True))
    """Order in which eight voxels are merged. legacy: that of the published weights, which takes two of them twice.
    fixed: each once; for networks that start from nothing."""
    window: int = Field(7, ge=2, json_schema_extra=ui(advanced=True))
    """Side of the attention windows of swin."""
    heads: tuple[int, int, int, int] = Field((3, 6, 12, 24), json_schema_extra=ui(advanced=True))
    """Attention heads of the stages of swin."""
    feature_size: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Channels of the first map of swin and unet; empty takes those of `size`."""
    features: tuple[int, ...] = Field((32, 64, 128, 256, 320, 320), json_schema_extra=ui(advanced=True))
    """Channels of the six stages of nnunet."""
    drop_path: float = Field(0.0, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Stochastic depth of the last block of swin; useful when fine-tuning."""
    in_channels: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Channels of a volume; empty takes as many as `data.contrasts` names, at least one."""


def build(run: RunConfig) -> nn.Module:
    """Network with fresh weights; the text model comes from its source, from its own settings, or is a small one.

    Raises:
        ConfigError: views that the encoder cannot halve five times, or that are flipped.
        WeightsError: the source of the text model cannot be used.
    """
    from training_backend.data.reports import training_reports
    from training_backend.nn.mg3d import Mg3d
    from training_backend.nn.mg3d_encoders import TOKEN
    from training_backend.nn.patch import check_halved
    from training_backend.nn.text_encoder import text_model

    config = _config(run)
    check_halved(run.data.size, NETWORK)
    if any(run.data.augment.flip):
        raise ConfigError(
            "Reports tell left from right and front from back, but data.augment.flip mirrors volumes.",
            "Set data.augment.flip to 0 0 0.",
        )
    ready = bool(config.text.source or config.text.architecture)
    language, tokeniser = text_model(config.text, () if ready else training_reports(run))
    assert tokeniser.mask >= 0  # says what is missing where there is none
    d, h, w = (side // TOKEN for side in run.data.size)
    gating = config.gating if config.gating != "auto" else "learnt" if config.encoder == "unet" else "means"
    network = Mg3d(
        _vision(run, int(language.config.hidden_size)),  # type: ignore[union-attr, arg-type]
        language,
        (d, h, w),
        routing=config.routing,
        gating=gating,
        freeze_text=config.text.freeze and bool(config.text.source),  # a small one of our own has to learn
        all_padding=config.all_padding,
    )
    network.tokeniser, network.settings = tokeniser, config
    return network


def build_encoder(run: RunConfig) -> Encoder:
    """The image encoder alone."""
    return _vision(run, 0)


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Sum of the losses of words, sentences, voxels and wholes; hidden words and blocks come from `generator`.

    Scalars: "words" (cross entropy of hidden words), "word_accuracy", "sentences" (their reconstruction), "voxels",
    "cross" and "aggregated" (contrasts), and "patients" where at least two are compared.

    Raises:
        DataError: a volume without a report, or a report without a sentence.
    """
    found: Mg3d = network  # type: ignore[assignment]
    reports = _read(found, batch, generator)
    hidden = _hidden(found, batch.volume, generator)
    grid = token_grid(batch.volume)
    said, tokens = found.read(reports), found.look(batch.volume)
    words = found.words(said, reports, tokens, grid)
    voxels = found.voxels(batch.volume, hidden, found.settings.mask_ratio, said, reports, grid)
    wholes = found.wholes(tokens, said, reports, grid, gather=found.training and found.settings.gather)
    if found.training and not wholes.pairs and not found.told:
        found.told = True
        logger.warning(
            "A step sees the report of a single patient at a time, so patients are not compared and scans are not told "
            "apart by their reports; use an optim.batch_size and an engine.micro_batch of at least 2."
        )
    scalars = {
        "words": words.words,
        "word_accuracy": words.accuracy,
        "sentences": words.sentences,
        "voxels": voxels.loss,
        "cross": wholes.cross,
        "aggregated": wholes.aggregated,
        **({"patients": wholes.patients} if wholes.pairs else {}),
    }
    loss = words.words + words.sentences + voxels.loss + found.settings.align_weight * wholes.loss
    return StepOutput(loss=loss, scalars=scalars)


def preview(
    network: nn.Module, volume: Tensor, options: Mapping[str, Any], generator: torch.Generator
) -> list[PreviewArray]:
    """Original, masked view, what the network draws in hidden blocks with the help of the report, error and mask.

    Args:
        network: made by `build`.
        volume: one view [1, C, D, H, W], normalised.
        options: `report` (without it nothing is drawn), `mask_ratio` (default: that of training), `seed` (default:
            from `generator`).
        generator: on the CPU; not used when `seed` is given.
    """
    import torch

    found: Mg3d = network  # type: ignore[assignment]
    if options.get("seed") is not None:
        generator = torch.Generator().manual_seed(int(options["seed"]))
    hidden = _hidden(found, volume, generator, options.get("mask_ratio"))
    image = volume[0, 0].float().cpu()
    masked = image.masked_fill(hidden.cpu(), 0.0)
    limits = (float(image.min()), max(float(image.max()), float(image.min()) + 1e-6))
    pictures = [
        PreviewArray("original", image.numpy(), "image", limits=limits),
        PreviewArray("masked", masked.numpy(), "image", limits=limits),
    ]
    if sentences(str(options.get("report", ""))):
        was_training = found.training
        found.eval()
        batch = Batch(volume, ["preview"], extra={"texts": [str(options["report"])]})
        with torch.inference_mode():
            reports = _read(found, batch, generator)
            drawn = found.voxels(volume, hidden, 0.5, found.read(reports), reports, token_grid(volume)).drawn[0, 0]
        found.train(was_training)
        drawn = drawn.float().cpu()
        error = (drawn - image).abs() * hidden.cpu()
        whole = torch.where(hidden.cpu(), drawn, image)
        pictures.append(PreviewArray("reconstruction", whole.numpy(), "image", limits=limits))
        pictures.append(PreviewArray("error", error.numpy(), "error", limits=(0.0, float(error.max()) or 1.0)))
    blocks = hidden[::BLOCK, ::BLOCK, ::BLOCK].cpu().numpy().astype("uint8")
    voxels = (BLOCK, BLOCK, BLOCK)
    pictures.append(PreviewArray("mask", blocks, "mask", voxels=voxels, classes={0: "visible", 1: "hidden"}))
    return pictures


def check(run: RunConfig, cases: Sequence[CaseRecord]) -> None:
    """Refuse reports without a sentence, before the first of them ends a run.

    Raises:
        DataError: names the cases.
    """
    level = _config(run).level
    empty = [case.id for case in cases if not sentences(case.report, level)]
    if empty:
        raise DataError(
            f"The reports of {len(empty)} cases have no sentence: {', '.join(empty[:4])}.",
            "Correct them, or exclude the cases in the Data tab.",
        )


def contained(network: nn.Module, run: RunConfig) -> RunConfig:
    """`run` with settings and vocabulary of the text model, so that weights are all that is needed."""
    from training_backend.nn.text_encoder import architecture

    found: Mg3d = network  # type: ignore[assignment]
    text = {"architecture": architecture(found.language_encoder), "tokeniser": found.tokeniser.to_json()}
    return run.updated({"method": {"text": text}})


def rate(parameter: str) -> float:
    """Learning rate of a parameter, in those of the rest: heads and projections learn faster, as published."""
    parts = ("mlm_head.", "mim_swin_unter_head.", "itc_agg_head.", "multi_modal_")
    return FASTER if parameter.startswith(parts) else 1.0


def _read(network: Mg3d, batch: Batch, generator: torch.Generator) -> Reports:
    from training_backend.nn.reports import read_reports

    texts = batch.extra.get("texts")
    if texts is None or len(texts) != len(batch.volume):
        raise DataError(
            "MG-3D learns from volumes with reports, but the views come without.", "Choose a dataset with reports."
        )
    config: Mg3dConfig = network.settings
    reports = read_reports(
        [_read_of(text, config, generator) for text in texts],
        network.tokeniser,
        generator,
        hidden=config.word_ratio,
        padded=config.all_padding,
    )
    silent = [case for case, there in zip(batch.case_ids, reports.present.any(1).tolist(), strict=True) if not there]
    if silent:
        raise DataError(f"The report of {silent[0]} has no sentence.", "Correct it, or exclude the case.")
    return reports.to(batch.volume.device)


def _read_of(text: str, config: Mg3dConfig, generator: torch.Generator) -> list[str]:
    """Sentences of a report that a step reads."""
    import torch

    if not config.one_piece:
        return sentences(text, config.level)
    lines = [sentences(line, config.level) for line in text.splitlines()]
    return [line[int(torch.randint(len(line), (1,), generator=generator))] for line in lines if line]


def _hidden(network: Mg3d, volume: Tensor, generator: torch.Generator, ratio: float | None = None) -> Tensor:
    from training_backend.nn.mg3d_heads import block_mask
    from training_backend.nn.patch import check_halved

    check_halved(volume.shape[2:], NETWORK)
    share = network.settings.mask_ratio if ratio is None else ratio
    return block_mask(volume.shape[2:], BLOCK, share, generator).to(volume.device)


def token_grid(volume: Tensor) -> tuple[int, int, int]:
    """Tokens of `volume` [B, C, D, H, W] along (d, h, w)."""
    from training_backend.nn.mg3d_encoders import TOKEN

    d, h, w = (side // TOKEN for side in volume.shape[2:])
    return (d, h, w)


def _vision(run: RunConfig, hidden: int) -> VisionEncoder:
    """Image encoder whose pre-training tokens have `hidden` channels; 0 for one without them."""
    from training_backend.nn.mg3d_encoders import GenesisVision, PlainVision, SwinVision

    config = _config(run)
    channels, features = run.channels(config.in_channels), config.feature_size or SIZES[config.size]
    width = config.features[-1] if config.encoder == "nnunet" else 16 * features
    project = hidden if hidden and width != hidden else 0
    if config.encoder == "nnunet":
        return PlainVision(channels, config.features, project)
    if config.encoder == "swin":
        return SwinVision(
            channels,
            features,
            window=(config.window,) * 3,
            heads=config.heads,
            merging=config.merging,
            drop_path=config.drop_path,
            project=project,
        )
    if project:
        raise ConfigError(
            f"The tokens of the U-Net have {width} channels, the text model has {hidden}; they must be as wide.",
            f"Set method.feature_size to {hidden // 16}, or choose a text model of {width} channels.",
        )
    return GenesisVision(channels, features)


def _config(run: RunConfig) -> Mg3dConfig:
    return Mg3dConfig.model_validate(run.method.model_dump())


METHOD = Method(
    name="mg3d",
    config=Mg3dConfig,
    card=Card(
        title="MG-3D",
        summary="Learns from volumes with radiology reports: words, sentences and whole scans explain each other.",
        paper="MG-3D: Multi-Grained Knowledge-Enhanced 3D Medical Vision-Language Pre-training, arXiv 2412.05876",
        url="https://arxiv.org/abs/2412.05876",
        weights_licence="",
    ),
    presets=PRESETS,
    build=build,
    training_step=training_step,
    preview=preview,
    encoder=lambda network: network.vision_encoder,  # type: ignore[arg-type, return-value]
    build_encoder=build_encoder,
    family="mg3d",
    views=VIEWS,
    needs="text",
    check=check,
    rate=rate,
    gathers=lambda run: _config(run).gather,
    contained=contained,
)
