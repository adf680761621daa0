"""Written reports of whole volumes: visual tokens, a transformer with a memory, beam search (M2KT, LAMRG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from training_backend.config import TaskConfig, ui
from training_backend.data.text import UNKNOWN, Words, readable, vocabulary, words
from training_backend.methods.base import Batch, StepOutput
from training_backend.tasks.base import CaseResult, Progress, Task, Told
from training_backend.tasks.text_match import VOLUMES
from training_backend.tasks.text_views import WRITTEN

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from training_backend.config import RunConfig
    from training_backend.data.manifest import CaseRecord
    from training_backend.methods.base import Encoder


class ReportConfig(TaskConfig):
    """Settings of report generation."""

    name: str = Field("report_generation", json_schema_extra=ui(hidden=True))
    longest: int = Field(150, ge=3)
    """Words of a report, those at its two ends included; what is longer is cut when training."""
    least_count: int = Field(3, ge=1)
    """Words that the training reports have less often are not learnt, which keeps names out too."""
    beams: int = Field(3, ge=1)
    """Texts followed at the same time when writing; 1 takes the likeliest word each time."""
    block_trigrams: bool = True
    """Never write the same three words in a row twice in a report."""
    freeze_encoder: bool = False
    """Train the writer alone."""
    pool: int = Field(3, ge=1, json_schema_extra=ui(advanced=True))
    """Visual tokens along each axis of the volume."""
    maps: Literal["joined", "tokens", "convolved"] = Field("joined", json_schema_extra=ui(advanced=True))
    """What visual tokens are made of. joined: the maps that the encoder names. tokens: its patch tokens without norm.
    convolved: the volume and the first three maps of MG-3D's transformer after a convolution block each, and its last
    map, as its authors have it."""
    norm: Literal["auto", "positions", "channels", "none"] = Field("auto", json_schema_extra=ui(advanced=True))
    """Norm of the visual tokens. positions: each channel over the tokens, as published. channels: each token over its
    channels. auto: positions for encoders with a pyramid, channels for others."""
    width: int = Field(512, ge=8, json_schema_extra=ui(advanced=True))
    """Channels of a word."""
    hidden: int = Field(512, ge=8, json_schema_extra=ui(advanced=True))
    """Channels inside feed-forward layers."""
    layers: int = Field(1, ge=1, json_schema_extra=ui(advanced=True))
    """Layers of encoder and decoder."""
    heads: int = Field(8, ge=1, json_schema_extra=ui(advanced=True))
    """Attention heads."""
    slots: int = Field(60, ge=1, json_schema_extra=ui(advanced=True))
    """Slots of the memory."""
    queries: int = Field(14, ge=1, json_schema_extra=ui(advanced=True))
    """Queries to the memory, one per label."""
    dropout: float = Field(0.1, ge=0, lt=1, json_schema_extra=ui(advanced=True))
    """Dropout of the writer."""
    report_memory: bool = Field(False, json_schema_extra=ui(advanced=True))
    """In training, update the memory by the very report that is to be written, as published. No scan has one when it
    is predicted, so off suits the use better."""
    label_weight: float = Field(0.0, ge=0, json_schema_extra=ui(advanced=True))
    """Weight of learning the labels of each case with the queries (published: 0.1 or off); the dataset needs a label
    per query."""
    ranking_weight: float = Field(0.0, ge=0, json_schema_extra=ui(advanced=True))
    """Weight of telling the report of a scan from that of the next scan of the batch, and the scan likewise (published:
    0.1 or off); needs `report_memory`, which reads reports."""
    vocabulary: tuple[str, ...] = Field((), json_schema_extra=ui(hidden=True))
    """Known words; taken from the training reports when empty, and kept with the model."""

    @model_validator(mode="after")
    def _divisible(self) -> ReportConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads")
        if self.ranking_weight and not self.report_memory:
            raise ValueError("ranking_weight compares scans with their reports, which are read with report_memory only")
        return self


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "task": {"width": 128, "hidden": 256, "heads": 4, "slots": 16, "longest": 64, "least_count": 2},
        "data": VOLUMES["tiny"],
        "optim": {"epochs": 1000, "max_steps": 300, "batch_size": 8, "lr": 1e-3},
    },
    "small": {
        "data": VOLUMES["small"],
        "optim": {"epochs": 60, "batch_size": 8, "lr": 3e-4},
    },
    "base": {
        "data": VOLUMES["base"],
        "optim": {"epochs": 60, "batch_size": 8, "lr": 2e-4},
    },
    "published": {
        "task": {"report_memory": True, "block_trigrams": False},
        "data": VOLUMES["ctrg"],
        "optim": {
            "epochs": 30,
            "batch_size": 4,
            "lr": 1e-4,
            "warmup": 0.0,
            "weight_decay": 5e-5,
            "betas": (0.9, 0.999),
            "amsgrad": True,
            "layer_decay": 0.5,
        },
    },
}


def build(run: RunConfig, encoder: Encoder) -> nn.Module:
    """Encoder, visual tokens and writer; the vocabulary is the configuration's, or that of the training reports."""
    from training_backend.errors import ConfigError
    from training_backend.nn.report_decoder import ReportNetwork, WriterSizes
    from training_backend.nn.visual_tokens import VisualTokens

    config = _config(run)
    if any(run.data.augment.flip):
        raise ConfigError(
            "Reports tell left from right and front from back, but data.augment.flip mirrors volumes.",
            "Set data.augment.flip to 0 0 0.",
        )
    table = Words(config.vocabulary or _learnt(run))
    visual = VisualTokens(encoder, config.pool, config.norm, maps=config.maps)
    sizes = WriterSizes(
        words=len(table),
        vision=visual.width,
        width=config.width,
        hidden=config.hidden,
        layers=config.layers,
        heads=config.heads,
        memory_heads=config.heads,
        slots=config.slots,
        labels=config.queries,
        dropout=config.dropout,
    )
    network = ReportNetwork(encoder, visual, sizes, config.report_memory, config.freeze_encoder)  # type: ignore[arg-type]
    network.task = config  # type: ignore[assignment]
    network.words = table  # type: ignore[assignment]
    return network


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Mean negative log-probability of the words of a batch's reports; weighed, that of its labels and the ranking."""
    import torch
    import torch.nn.functional as F

    from training_backend.nn.report_decoder import ranking_loss, words_loss

    config: ReportConfig = network.task  # type: ignore[assignment]
    rows = [network.words.encode(text, config.longest) for text in _texts(batch)]  # type: ignore[union-attr, operator]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=batch.volume.device)
    written = network(batch.volume, ids)
    loss = words_loss(written.log_probs, ids)
    scalars = {"words": loss.detach()}
    if config.label_weight:
        target = _labels(batch, config.queries)
        logits = [found for found in (written.visual_labels, written.text_labels) if found is not None]
        labels = sum(
            (F.binary_cross_entropy_with_logits(found.float(), target) for found in logits), loss.new_zeros(())
        )
        loss = loss + config.label_weight * labels
        scalars["labels"] = labels.detach()
    if config.ranking_weight and written.text is not None:
        ranking = ranking_loss(written.image.float(), written.text.float())
        loss = loss + config.ranking_weight * ranking
        scalars["ranking"] = ranking.detach()
    return StepOutput(loss=loss, scalars=scalars)


def predict(network: nn.Module, run: RunConfig, volume: Tensor, progress: Progress | None = None) -> Tensor:
    """Numbers [T] of the words of the report of one case [1, C, D, H, W], padded with 0."""
    import torch

    from training_backend.nn.text_beam import Beam
    from training_backend.tasks.base import Cancelled

    if progress is not None and not progress(0.0):
        raise Cancelled
    config = _config(run)
    beam = Beam(config.beams, config.longest, config.block_trigrams)
    with torch.inference_mode():
        ids: Tensor = network.write(volume, beam)[0].float()  # type: ignore[operator]
    if progress is not None:
        progress(1.0)
    return ids


def truth(network: nn.Module, run: RunConfig, case: CaseRecord) -> npt.NDArray[Any]:
    """Report of a case."""
    import numpy as np

    return np.asarray(case.report)


def evaluate(run: RunConfig, results: Sequence[CaseResult]) -> dict[str, float]:
    """BLEU, ROUGE-L, METEOR and CIDEr with 95 % bootstrap intervals; "score" is BLEU-4, as published."""
    from training_backend.evaluate.text_metrics import report_metrics

    table = Words(_config(run).vocabulary or _learnt(run))
    written = [table.decode(result.prediction.astype(int).tolist()).split() for result in results]
    return report_metrics(written, [words(str(result.truth)) for result in results])


def told(run: RunConfig, output: npt.NDArray[Any]) -> Told:
    """The report as prose."""
    text = Words(_config(run).vocabulary or _learnt(run)).decode(output.astype(int).tolist())
    return Told(text=readable(text) or "(The model wrote nothing.)")


def contained(network: nn.Module, run: RunConfig) -> RunConfig:
    """`run` with the vocabulary of `network`."""
    return run.updated({"task": {"vocabulary": network.words.known}})  # type: ignore[union-attr]


def layer_id(network: nn.Module, parameter: str) -> int:
    """0 for the whole encoder and 1 for the writer: optim.layer_decay is the encoder's share of the learning rate."""
    return int(not parameter.startswith("encoder."))


def _learnt(run: RunConfig) -> tuple[str, ...]:
    from training_backend.data.reports import training_reports
    from training_backend.errors import DataError

    found = vocabulary(training_reports(run), _config(run).least_count)
    if not found:
        raise DataError(
            f"No word is {_config(run).least_count} times in the training reports, so there is nothing to learn.",
            "Add reports to the dataset, or lower task.least_count.",
        )
    return tuple(sorted({*found, UNKNOWN}))


def _texts(batch: Batch) -> list[str]:
    from training_backend.errors import DataError

    texts = batch.extra.get("texts")
    if not texts:
        raise DataError("This task needs a report for each case, but the batch has none.", "Add a Report column.")
    return list(texts)


def _labels(batch: Batch, queries: int) -> Tensor:
    from training_backend.errors import DataError

    found = 0 if batch.target is None else batch.target.reshape(len(batch.volume), -1).shape[1]
    if batch.target is None or found != queries:
        raise DataError(
            f"The labels of {queries} queries are to be learnt, but the dataset has {found} per case.",
            "Set task.queries to the number of labels, or task.label_weight to 0.",
        )
    return batch.target.reshape(len(batch.volume), -1).float()


def _config(run: RunConfig) -> ReportConfig:
    assert isinstance(run.task, ReportConfig)
    return run.task


def check(run: RunConfig, cases: Sequence[CaseRecord]) -> None:
    """Say in the log how many reports are longer than what is learnt."""
    import logging

    most = _config(run).longest - 2
    lengths = [len(words(case.report)) for case in cases]
    longer = [length for length in lengths if length > most]
    if longer:
        logging.getLogger(__name__).warning(
            "%d of %d reports have more than %d words (the longest %d); their ends are not learnt. Raise task.longest.",
            len(longer),
            len(lengths),
            most,
            max(longer),
        )


TASK = Task(
    name="report_generation",
    config=ReportConfig,
    title="Reports of whole volumes",
    needs="text",
    presets=PRESETS,
    build=build,
    training_step=training_step,
    predict=predict,
    evaluate=evaluate,
    layer_id=layer_id,
    truth=truth,
    told=told,
    contained=contained,
    check=check,
    views=(WRITTEN,),
)
