"""What a downstream task is to the rest of the project: head, loss, metrics and prediction on any encoder.

A task's file imports torch only inside its functions, so the viewer can read its config model and presets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from training_backend.config import RunConfig, TaskConfig
    from training_backend.data.manifest import CaseRecord
    from training_backend.methods.base import Batch, Encoder, ModelView, StepOutput


Progress = Callable[[float], bool]
"""Told the share done (0..1); answers whether to go on."""


class Cancelled(Exception):
    """Raised inside long work after its progress function answered False."""


@dataclass(frozen=True)
class CaseResult:
    """Prediction and truth of one case: label volumes (z, y, x), or class probabilities / values [K] and target [K].

    Reports are the numbers of their words, and the true report is a text of its own kind of array. `annotated` are the
    classes that were looked for, None for all.
    """

    case_id: str
    prediction: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    spacing_mm: tuple[float, float, float]
    annotated: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Told:
    """What a model says about a whole case: values by name, and text."""

    values: Mapping[str, float] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Task:
    """A downstream task.

    Attributes:
        name: registered name, e.g. "segmentation".
        config: the task's settings model, a `TaskConfig` whose `name` defaults to `name`.
        title: what the form shows.
        needs: "labels" (voxel labels), "target" (one value or class per case) or "text" (a report; batches have it as
            `extra["texts"]`).
        presets: preset name to nested overrides of a `RunConfig`.
        build: network = encoder plus head.
        training_step: loss of a batch; randomness only from the generator (on the CPU).
        predict: probabilities or values of one whole case [1, C, D, H, W]: [K, D, H, W] per voxel or [K] per case; K is
            the number of classes, background included. Calls the progress function with a share in 0..1 and stops
            with `Cancelled` when it returns False.
        evaluate: metrics over whole cases; the key "score" is what model selection maximises.
        layer_id: depth of a parameter for layer-wise decay; the head has the largest.
        check: refuses, with a `Med3dError`, cases to train or validate on that do not fit the run; None takes all.
        truth: what `evaluate` compares a case's prediction with, where that is not the target of the case.
        told: what a prediction [K] says to a reader; None names the values.
        contained: the run's settings with all that the network was built from besides, so that its weights are enough.
        views: what can be shown of its networks besides what their methods show.
        predict_texts: probabilities or values [B, K] of texts, for tasks that look at no scan; None for all others.
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
    check: Callable[[RunConfig, Sequence[CaseRecord]], None] | None = None
    truth: Callable[[nn.Module, RunConfig, CaseRecord], npt.NDArray[Any]] | None = None
    told: Callable[[RunConfig, npt.NDArray[Any]], Told] | None = None
    contained: Callable[[nn.Module, RunConfig], RunConfig] | None = None
    predict_texts: Callable[[nn.Module, RunConfig, Sequence[str]], Tensor] | None = None
    views: tuple[ModelView, ...] = ()
