"""Classes of texts, such as the part that a sentence plays in an abstract; no scan is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from training_backend.config import ui
from training_backend.methods.base import Batch, StepOutput
from training_backend.tasks.base import Progress, Task
from training_backend.tasks.classification import (
    AnswersConfig,
    answers,
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
    from training_backend.methods.medcoss import words_of
    from training_backend.nn.medcoss_downstream import SentenceHead

    config = answers(run)
    if run.data.view != "text":
        raise ConfigError(f"Texts are classified, but data.view is {run.data.view}.", "Set data.view to text.")
    if "text" not in getattr(encoder, "encodes", ()):
        raise ConfigError(
            f"Texts are classified, but the encoder of method {run.method.name} reads none.",
            "Choose the method medcoss.",
        )
    network = SentenceHead(cast("Any", encoder), config.classes, config.freeze_encoder)
    network.task = config  # type: ignore[assignment]
    network.words = words_of(run)  # type: ignore[assignment]
    return network


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Loss of the texts of a batch, whose `target` is [B] or [B, K]."""
    from training_backend.errors import DataError

    config: AnswersConfig = network.task  # type: ignore[assignment]
    if batch.target is None:
        raise DataError("Classification needs a target for each text, but some have none.", "Add a Label column.")
    logits = _logits(cast("SentenceHead", network), batch.extra["texts"])
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

    reader = cast("SentenceHead", network)
    alone = reader.encoder.settings.text_mask == "compatible"
    parts = [[text] for text in texts] if alone else [list(texts)]
    with torch.inference_mode():
        logits = torch.cat([_logits(reader, part) for part in parts]).float()
    return probabilities(run, logits)


def contained(network: nn.Module, run: RunConfig) -> RunConfig:
    """`run` with the tokenizer, so that the weights are all that is needed."""
    from training_backend.methods import medcoss

    return medcoss.contained(network, run)


def _logits(network: SentenceHead, texts: Sequence[str]) -> Tensor:
    words: Words = network.words  # type: ignore[assignment]
    logits: Tensor = network(*words.rows(texts, next(network.parameters()).device))
    return logits


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
    check=check_targets,
    contained=contained,
    predict_texts=predict_texts,
)
