"""What a downstream task is to the rest of the project: head, loss, metrics and prediction on any encoder.

A task's file imports torch only inside its functions, so the viewer can read its config model and presets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from training_backend.config import RunConfig, TaskConfig
    from training_backend.methods.base import Batch, Encoder, StepOutput


Progress = Callable[[float], bool]
"""Told the share done (0..1); answers whether to go on."""


class Cancelled(Exception):
    """Raised inside long work after its progress function answered False."""


@dataclass(frozen=True)
class CaseResult:
    """Prediction and truth of one case: label volumes (z, y, x), or class probabilities / values [K] and target [K]."""

    case_id: str
    prediction: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Task:
    """A downstream task.

    Attributes:
        name: registered name, e.g. "segmentation".
        config: the task's settings model, a `TaskConfig` whose `name` defaults to `name`.
        title: what the form shows.
        needs: "labels" (voxel labels) or "target" (one value or class per case).
        presets: preset name to nested overrides of a `RunConfig`.
        build: network = encoder plus head.
        training_step: loss of a batch; randomness only from the generator (on the CPU).
        predict: probabilities or values of one whole case [1, C, D, H, W]: [K, D, H, W] per voxel or [K] per case; K is
            the number of classes, background included. Calls the progress function with a share in 0..1 and stops
            with `Cancelled` when it returns False.
        evaluate: metrics over whole cases; the key "score" is what model selection maximises.
        layer_id: depth of a parameter for layer-wise decay; the head has the largest.
    """

    name: str
    config: type[TaskConfig]
    title: str
    needs: str
    presets: Mapping[str, Mapping[str, Any]]
    build: Callable[[RunConfig, Encoder], nn.Module]
    training_step: Callable[[nn.Module, Batch, torch.Generator], StepOutput]
    predict: Callable[[nn.Module, RunConfig, Tensor, Progress | None], Tensor]
    evaluate: Callable[[RunConfig, Sequence[CaseResult]], dict[str, float]]
    layer_id: Callable[[nn.Module, str], int]
