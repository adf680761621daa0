"""Numbers of whole volumes, such as an age or a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from training_backend.config import TaskConfig, ui
from training_backend.methods.base import Batch, StepOutput
from training_backend.tasks.base import CaseResult, Progress, Task
from training_backend.tasks.classification import PRESETS, layer_id

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.config import RunConfig
    from training_backend.methods.base import Encoder


class RegressionConfig(TaskConfig):
    """Settings of regression."""

    name: str = Field("regression", json_schema_extra=ui(hidden=True))
    values: int = Field(1, ge=1)
    """Numbers per case."""
    loss: Literal["mse", "huber"] = "mse"
    """mse: squared error, as published. huber: linear for large errors, so that outliers weigh less."""
    centre: float = 0.0
    """Value that an untrained head predicts, best the mean of the training targets."""
    scale: float = Field(1.0, gt=0)
    """Unit in which the head predicts, best the standard deviation of the training targets."""
    pooling: Literal["global", "class"] = "global"
    """global: class token and mean of all patches. class: class token after the encoder's final norm."""
    hidden: tuple[int, ...] = Field((), json_schema_extra=ui(advanced=True))
    """Widths of hidden layers of the head; empty is a linear head."""
    freeze_encoder: bool = False
    """Train the head alone (linear probe)."""


def build(run: RunConfig, encoder: Encoder) -> nn.Module:
    """Encoder with a regression head."""
    from training_backend.nn.heads import VolumeHead

    config = _config(run)
    network = VolumeHead(encoder, config.values, config.pooling, config.hidden, config.freeze_encoder)
    network.task = config  # type: ignore[assignment]
    return network


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Loss of a batch whose `target` is [B] or [B, K], in units of `scale`."""
    import torch.nn.functional as F

    from training_backend.errors import DataError

    config: RegressionConfig = network.task  # type: ignore[assignment]
    if batch.target is None or batch.target.numel() != len(batch.volume) * config.values:
        found = "none" if batch.target is None else batch.target.numel() // len(batch.volume)
        raise DataError(
            f"The task predicts {config.values} number(s) per case, but the dataset has {found}.",
            "Set task.values, or add targets to the dataset.",
        )
    wanted = (batch.target.float().reshape(-1, config.values) - config.centre) / config.scale
    predicted = network(batch.volume).float()
    loss = F.mse_loss(predicted, wanted) if config.loss == "mse" else F.huber_loss(predicted, wanted)
    return StepOutput(loss=loss, scalars={"mae": (predicted - wanted).abs().mean().detach() * config.scale})


def predict(network: nn.Module, run: RunConfig, volume: Tensor, progress: Progress | None = None) -> Tensor:
    """Values [K] of one case [1, C, D, H, W]."""
    import torch

    from training_backend.tasks.base import Cancelled

    if progress is not None and not progress(0.0):
        raise Cancelled
    config = _config(run)
    with torch.inference_mode():
        values: Tensor = network(volume)[0].float() * config.scale + config.centre
    if progress is not None:
        progress(1.0)
    return values


def evaluate(run: RunConfig, results: Sequence[CaseResult]) -> dict[str, float]:
    """Errors with 95 % bootstrap intervals; "score" is the negative mean absolute error."""
    import numpy as np

    from training_backend.evaluate.classification_metrics import regression_report

    predicted = np.stack([np.asarray(result.prediction, float).ravel() for result in results])
    return regression_report(predicted, np.stack([np.asarray(result.truth, float).ravel() for result in results]))


def _config(run: RunConfig) -> RegressionConfig:
    assert isinstance(run.task, RegressionConfig)
    return run.task


TASK = Task(
    name="regression",
    config=RegressionConfig,
    title="Regression of whole volumes",
    needs="target",
    presets=PRESETS,
    build=build,
    training_step=training_step,
    predict=predict,
    evaluate=evaluate,
    layer_id=layer_id,
)
