"""Classes of texts: the part that a sentence plays in an abstract, findings of a report; no scan is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from training_backend.config import ui
from training_backend.config.text import TextConfig
from training_backend.data.text import Level
from training_backend.methods.base import Batch, StepOutput
from training_backend.tasks.base import Progress, Task
from training_backend.tasks.classification import (
    AnswersConfig,
    check_targets,
    classification_loss,
    evaluate,
    layer_id,
    probabilities,
    soft_target,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.config import RunConfig
    from training_backend.data.manifest import CaseRecord
    from training_backend.methods.base import Encoder
    from training_backend.nn.medcoss_downstream import SentenceHead
    from training_backend.nn.medcoss_words import Words


class TextClassificationConfig(AnswersConfig):
    """Settings of the classification of texts."""

    name: str = Field("text_classification", json_schema_extra=ui(hidden=True))
    kind: Literal["binary", "multilabel", "multiclass"] = "multiclass"
    """binary: one yes or no. multilabel: several, independent. multiclass: exactly one of several classes."""
    classes: int = Field(2, ge=1)
    """Outputs: 1 for binary, the number of labels for multilabel, of classes for multiclass."""
    reader: Literal["encoder", "text", "weights", "phrases"] = "encoder"
    """What reads a text. encoder: that of the method, which must be medcoss. text: a text model (`text`), whatever the
    method. weights: the text model in the weights that the run starts from, those of MG-3D, of which `text.source` (a
    folder, a hub name, or the run itself) gives vocabulary and settings alone. phrases: runs of one and two words,
    where one sentence that says so is enough for a class; learns from a few hundred reports, and knows nothing else."""
    text: TextConfig = Field(TextConfig(longest=512), json_schema_extra=ui(advanced=True))
    """With the readers text and weights: which one."""
    level: Level = Field("sentence", json_schema_extra=ui(advanced=True))
    """With phrases: what counts as a sentence."""
    least_count: int = Field(3, ge=1, json_schema_extra=ui(advanced=True))
    """With phrases: those that fewer training texts have are not learnt, which keeps names out too."""
    phrases: tuple[str, ...] = Field((), json_schema_extra=ui(hidden=True))
    """Known phrases; taken from the training texts when empty, and kept with the model."""


_TEXTS: Mapping[str, Any] = {"view": "text", "size": (1, 1, 1), "augment": {"flip": (0.0, 0.0, 0.0)}}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "data": _TEXTS,
        "optim": {"epochs": 1000, "max_steps": 200, "batch_size": 16, "lr": 1e-3},
    },
    "small": {
        "data": _TEXTS,
        "optim": {"epochs": 10, "batch_size": 64, "lr": 2e-4, "betas": (0.9, 0.999)},
    },
    "base": {
        "data": _TEXTS,
        "optim": {"epochs": 10, "batch_size": 64, "lr": 2e-4, "betas": (0.9, 0.999)},
    },
    "published": {
        "data": _TEXTS,
        "optim": {"epochs": 5, "batch_size": 64, "lr": 2e-4, "weight_decay": 1e-4, "betas": (0.9, 0.999)},
    },
}


def build(run: RunConfig, encoder: Encoder) -> nn.Module:
    """Encoder of texts with a classifier, and the words that it knows.

    Raises:
        ConfigError: the encoder reads no texts, or there are no words to be known.
    """
    from training_backend.errors import ConfigError

    config = _config(run)
    if run.data.view != "text":
        raise ConfigError(f"Texts are classified, but data.view is {run.data.view}.", "Set data.view to text.")
    network = _sentence_head(run, encoder) if config.reader == "encoder" else _reader(run, encoder)
    network.task = config  # type: ignore[assignment]
    return network


def _sentence_head(run: RunConfig, encoder: Encoder) -> nn.Module:
    from training_backend.errors import ConfigError
    from training_backend.methods.medcoss import words_of
    from training_backend.nn.medcoss_downstream import SentenceHead

    if "text" not in getattr(encoder, "encodes", ()):
        raise ConfigError(
            f"Texts are classified, but the encoder of method {run.method.name} reads none.",
            "Choose the method medcoss, or set task.reader to text or phrases.",
        )
    network = SentenceHead(cast("Any", encoder), _config(run).classes, _config(run).freeze_encoder)
    network.words = words_of(run)  # type: ignore[assignment]
    return network


def _reader(run: RunConfig, encoder: Encoder) -> nn.Module:
    from training_backend.data.reports import training_reports
    from training_backend.errors import DataError
    from training_backend.nn.text_encoder import text_model
    from training_backend.nn.text_readers import ModelReader, PhraseReader, known_phrases

    config = _config(run)
    if config.reader == "weights":
        return _reader_of_weights(run, encoder)
    if config.reader == "text":
        ready = bool(config.text.source or config.text.architecture)
        text, tokeniser = text_model(config.text, () if ready else training_reports(run))
        return ModelReader(
            encoder, text, tokeniser, config.classes, freeze=config.text.freeze and bool(config.text.source)
        )
    phrases = config.phrases or known_phrases(training_reports(run), config.least_count, config.level)
    if not phrases:
        raise DataError(
            f"No phrase is in {config.least_count} training texts, so there is nothing to learn.",
            "Add texts to the dataset, or lower task.least_count.",
        )
    return PhraseReader(encoder, phrases, config.classes, config.level)


def _reader_of_weights(run: RunConfig, encoder: Encoder) -> nn.Module:
    """A text model without its weights, which come with those that the run starts from."""
    from training_backend.errors import ConfigError
    from training_backend.nn.text_encoder import described, text_model
    from training_backend.nn.text_readers import ModelReader

    config = _config(run)
    if not (config.text.source or config.text.architecture):
        raise ConfigError(
            "Weights hold no vocabulary and settings of their text model.",
            "Name them with task.text.source: a folder, StanfordAIMI/RadBERT as published, or the run itself.",
        )
    text, tokeniser = text_model(described(config.text))
    network = ModelReader(encoder, text, tokeniser, config.classes, freeze=config.text.freeze)
    network.__dict__["text_of_weights"] = text  # a second name, not a second part
    return network


def check(run: RunConfig, cases: Sequence[CaseRecord]) -> None:
    """Refuse targets that the task has no place for, and a text model that no weights bring."""
    from training_backend.errors import ConfigError

    check_targets(run, cases)
    if _config(run).reader == "weights" and not run.weights:
        raise ConfigError(
            "The text model is to be that of the weights, but the run starts from none.",
            "Give --weights, or set task.reader to text or phrases.",
        )


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Loss of the texts of a batch, whose `target` is [B] or [B, K]."""
    from training_backend.errors import DataError

    config: AnswersConfig = network.task  # type: ignore[assignment]
    if batch.target is None:
        raise DataError("Classification needs a target for each text, but some have none.", "Add a Label column.")
    logits = _logits(network, batch.extra["texts"])
    return StepOutput(loss=classification_loss(logits, soft_target(batch.target, config), config))


def predict(network: nn.Module, run: RunConfig, volume: Tensor, progress: Progress | None = None) -> Tensor:
    """Refuses: there is nothing to be read in a scan."""
    from training_backend.errors import DataError

    raise DataError("This model classifies texts and looks at no scan.", "Give it a CSV with a column Text.")


def predict_texts(network: nn.Module, run: RunConfig, texts: Sequence[str]) -> Tensor:
    """Probabilities [B, K] of texts: sigmoids (K = 1 for binary), or a softmax for multiclass.

    Each text is answered as if it were alone, also by an encoder that mixes up the padding of a batch as published.
    """
    import torch

    encoder = cast("SentenceHead", network).encoder
    alone = _config(run).reader == "encoder" and encoder.settings.text_mask == "compatible"
    parts = [[text] for text in texts] if alone else [list(texts)]
    with torch.inference_mode():
        logits = torch.cat([_logits(network, part) for part in parts]).float()
    return probabilities(run, logits)


def contained(network: nn.Module, run: RunConfig) -> RunConfig:
    """`run` with the tokenizer or the known phrases, so that the weights are all that is needed."""
    from training_backend.methods import medcoss

    reader: Any = network
    if _config(run).reader == "phrases":
        return run.updated({"task": {"phrases": reader.phrases}})
    if _config(run).reader in ("text", "weights"):
        from training_backend.nn.text_encoder import architecture

        text = {"architecture": architecture(reader.text_transformer), "tokeniser": reader.tokeniser.to_json()}
        return run.updated({"task": {"text": text}})
    return medcoss.contained(network, run)


def _logits(network: nn.Module, texts: Sequence[str]) -> Tensor:
    reader: Any = network
    if reader.task.reader != "encoder":
        found: Tensor = reader.logits(texts)
        return found
    words: Words = reader.words
    logits: Tensor = reader(*words.rows(texts, next(network.parameters()).device))
    return logits


def _config(run: RunConfig) -> TextClassificationConfig:
    assert isinstance(run.task, TextClassificationConfig)
    return run.task


TASK = Task(
    name="text_classification",
    config=TextClassificationConfig,
    title="Classification of texts",
    needs="target",
    presets=PRESETS,
    build=build,
    training_step=training_step,
    predict=predict,
    evaluate=evaluate,
    layer_id=layer_id,
    check=check,
    contained=contained,
    predict_texts=predict_texts,
)
