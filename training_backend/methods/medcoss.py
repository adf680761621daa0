"""MedCoSS: one encoder taught stage after stage, over reports, images and volumes, without forgetting (CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig
from training_backend.errors import ConfigError
from training_backend.methods.base import Batch, Card, Method, PreviewArray, Snapshot, StepOutput
from training_backend.methods.medcoss_settings import build as build_network
from training_backend.methods.medcoss_settings import build_encoder, network_settings, reads
from training_backend.methods.medcoss_stage import PRESETS, TOKENIZER, MedcossConfig, implied
from training_backend.methods.medcoss_views import VIEWS as SHOWN

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.data.rehearsal import Buffer
    from training_backend.data.streams import Stream
    from training_backend.nn.medcoss_words import Words

VIEWS = {"text": ("text",), "2d": ("resized", "crop", "volume"), "3d": ("crop", "volume")}
"""Views that a kind can be learnt from, the usual one first."""


def build(run: RunConfig) -> nn.Module:
    """Network with fresh weights and, where it reads reports, their words."""
    config = _config(run)
    _check(run, config)
    network = build_network(run)
    network.starts_whole = config.decoder == "carried"  # type: ignore[assignment]
    network.teacher_mode = config.rehearsal.teacher_mode  # type: ignore[assignment]
    network.mix = config.rehearsal.mix  # type: ignore[assignment]
    network.words = words_of(run) if "text" in network.encodes else None  # type: ignore[assignment]
    return network


def words_of(run: RunConfig) -> Words | None:
    """The words that reports of a run are made of: of its card, its source, or its reports; None without any."""
    from training_backend.nn.medcoss_words import Words

    config = _config(run)
    backend = _tokenizer(run, config)
    return None if backend is None else Words(backend, config.text.longest, config.vocabulary, config.text.masked)


def streams(run: RunConfig) -> dict[str, Stream]:
    """The buffers of earlier modalities, whose batches take turns with those of the stage's own."""
    from training_backend.data.rehearsal import INFO
    from training_backend.data.streams import Stream

    config = _config(run)
    found: dict[str, Stream] = {}
    for buffer in _buffers(config):
        _check_buffer(buffer, config, found)
        dataset = buffer.open()
        assert buffer.folder is not None
        data = {**buffer.data, "dataset": dataset.folder, "only": buffer.folder / INFO}
        data |= {"train_cases": None, "labelled": None, "order": run.data.order}
        found[buffer.modality] = Stream(run.updated({"data": data}), None, check=buffer.check, interleaved=True)
    return found


def snapshot(run: RunConfig) -> Snapshot | None:
    """The encoder that the stage starts from, which shows how features of earlier modalities were."""
    rehearsal = _config(run).rehearsal
    return Snapshot(0.0, _teacher, rehearsal.teacher) if rehearsal.buffers else None


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Loss of masked patches or words; for samples of a buffer, the distance from the teacher's features.

    A batch is of one modality. All that is drawn comes from `generator`: for a buffer which samples are mixed and how
    much, then what is hidden; for the own modality what is hidden, then the row of moments. Scalars: the loss under
    its name ("reconstruction", "words", or "distillation MODALITY"), and how many hidden words are guessed.
    """
    rehearsed = batch.extra.get("rehearsal")
    if rehearsed is not None:
        loss = _distil(network, batch, generator)
        return StepOutput(loss, {f"distillation {rehearsed}": loss.detach()})
    if network.learns == "text":
        return _guess_words(network, batch, generator)
    noise = network.draw_noise(batch.volume, generator)  # type: ignore[operator]
    row = network.draw_row(generator)  # type: ignore[operator]
    loss = network.image_loss(batch.volume, noise, row, batch.padding)  # type: ignore[operator]
    return StepOutput(loss, {"reconstruction": loss.detach()})


def preview(
    network: nn.Module, volume: Tensor, options: Mapping[str, Any], generator: torch.Generator
) -> list[PreviewArray]:
    """Original, masked view, reconstruction and errors of one view [1, C, D, H, W], of images in their colours.

    Args:
        network: made by `build`.
        volume: one view, normalised.
        options: `mask_ratio` (default: that of training), `seed` (default: from `generator`), `full` (show the
            prediction of visible patches too, instead of the input).
        generator: on the CPU; not used when `seed` is given.
    """
    from training_backend.methods.medcoss_pictures import reconstruction

    if network.learns == "text":
        return []
    return reconstruction(network, volume, options, generator)


def contained(network: nn.Module, run: RunConfig) -> RunConfig:
    """`run` with the words of its reports and the kinds that its teacher reads written into it."""
    words: Any = network.words
    changes: dict[str, Any] = {"rehearsal": {"kinds": _rehearsed(_config(run))}}
    if words is not None:
        changes["text"] = {"tokeniser": words.to_json()}
    return run.updated({"method": changes})


def _teacher(run: RunConfig) -> nn.Module:
    from training_backend.nn.medcoss import MedcossEncoder

    return MedcossEncoder(network_settings(run), _rehearsed(_config(run)))  # type: ignore[arg-type]


def _rehearsed(config: MedcossConfig) -> tuple[str, ...]:
    """Kinds of the buffers, which a card tells where they are not."""
    return config.rehearsal.kinds or tuple(dict.fromkeys(buffer.kind for buffer in _buffers(config)))


def _tokenizer(run: RunConfig, config: MedcossConfig) -> Any:
    """Tokenizer of a card, a source, a buffer of reports, or of the training reports; None without any of them."""
    from tokenizers import Tokenizer

    from training_backend.nn.text_encoder import bert_tokenizer, word_tokenizer

    if config.text.tokeniser:
        return Tokenizer.from_str(config.text.tokeniser)
    if config.text.source:
        return bert_tokenizer(config.text.source)
    for folder in config.rehearsal.buffers:
        for path in (folder / TOKENIZER, folder / "buffer" / TOKENIZER):
            if path.is_file():
                return Tokenizer.from_file(str(path))
    if reads(run) != "text" or run.data.dataset == Path():
        return None
    from training_backend.data.choice import choose_cases
    from training_backend.data.dataset import Dataset

    cases, _ = choose_cases(Dataset.open(run.data.dataset), run, "text", "train")
    return word_tokenizer([case.report for case in cases], config.text.least_count)


def _guess_words(network: Any, batch: Batch, generator: torch.Generator) -> StepOutput:
    ids, labels, mask = network.words.masked(batch.extra["texts"], generator, batch.volume.device)
    loss = network.text_loss(ids, labels, mask)
    asked = float((labels >= 0).sum())
    return StepOutput(loss, {"words": loss.detach()}, {"loss": asked, "words": asked})


def _distil(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    from training_backend.nn import medcoss_distil as distil

    teacher = batch.extra["snapshot"]
    teacher.train(network.training and network.teacher_mode == "train")
    if "texts" in batch.extra:
        ids, mask = network.words.rows(batch.extra["texts"], batch.volume.device)
        draws = distil.TextDraws.draw(ids, generator) if network.mix else None
        return distil.distil_text(network, teacher, ids, mask, draws)
    drawn = distil.ImageDraws.draw(network, teacher, batch.volume, generator, network.mix)
    return distil.distil_images(network, teacher, batch.volume, drawn)


def _buffers(config: MedcossConfig) -> list[Buffer]:
    from training_backend.data.rehearsal import load

    return [load(folder) for folder in config.rehearsal.buffers]


def _check(run: RunConfig, config: MedcossConfig) -> None:
    """Refuse views that the kind of modality cannot be learnt from."""
    view, size = run.data.view, run.data.size
    if run.task is not None:
        return
    if view not in VIEWS[config.kind]:
        raise ConfigError(
            f"A stage of kind {config.kind} learns from views of kind {' or '.join(VIEWS[config.kind])}, but data.view "
            f"is {view}.",
            f"Set data.view to {VIEWS[config.kind][0]}, or method.kind to what the dataset holds.",
        )
    if config.kind == "2d" and size[0] != 1:
        raise ConfigError(
            f"Images have one slice, but data.size is {' x '.join(map(str, size))}.", "Set its first number to 1."
        )
    if config.kind == "3d" and size[0] == 1:
        raise ConfigError(
            "A stage of volumes cannot learn from views of one slice.", "Set method.kind to 2d, or a deeper data.size."
        )


def _check_buffer(buffer: Buffer, config: MedcossConfig, found: Mapping[str, Stream]) -> None:
    if buffer.modality == config.modality:
        raise ConfigError(
            f"The buffer {buffer.folder} is of {buffer.modality}, which is what this stage teaches.",
            "Give the stage's modality another name, or leave the buffer out.",
        )
    if buffer.modality in found:
        raise ConfigError(f"Two buffers are of {buffer.modality}.", "Give each modality one buffer.")
    if buffer.kind not in {config.kind, *config.encodes}:
        raise ConfigError(
            f"The buffer of {buffer.modality} holds {buffer.kind}, which the network of this stage does not read.",
            f"Add {buffer.kind} to method.encodes.",
        )


def _config(run: RunConfig) -> MedcossConfig:
    return MedcossConfig.model_validate(run.method.model_dump())


METHOD = Method(
    name="medcoss",
    config=MedcossConfig,
    card=Card(
        title="MedCoSS",
        summary="Teaches one encoder modality after modality, and keeps what it learnt by rehearsing a few samples.",
        paper="Ye et al., Continual Self-supervised Learning: Towards Universal Multi-modal Medical Data "
        "Representation Learning, CVPR 2024, 11114-11124, arXiv 2311.17597",
        url="https://github.com/yeerwen/MedCoSS",
        weights_licence="",
    ),
    presets=PRESETS,
    implied=implied,
    build=build,
    training_step=training_step,
    preview=preview,
    encoder=lambda network: network,  # type: ignore[arg-type, return-value]
    build_encoder=build_encoder,  # type: ignore[arg-type]
    family="medcoss",
    streams=streams,
    snapshot=snapshot,
    views=SHOWN,
    contained=contained,
)
