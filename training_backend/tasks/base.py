"""What a downstream task is to the rest of the project: head, loss, metrics and prediction on any encoder.

A task's file imports torch only inside its functions, so the viewer can read its config model and presets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.config import RunConfig, TaskConfig
    from training_backend.methods.base import Batch, Encoder, StepOutput


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
        forward: raw output (logits or values) of a batch of volumes [B, C, D, H, W].
        evaluate: metrics of whole cases, from (case id, prediction, truth) triples; the key "score" is what model
            selection maximises.
        layer_id: depth of a parameter for layer-wise decay; the head has the largest.
    """

    name: str
    config: type[TaskConfig]
    title: str
    needs: str
    presets: Mapping[str, Mapping[str, Any]]
    build: Callable[[RunConfig, Encoder], nn.Module]
    training_step: Callable[[nn.Module, Batch, torch.Generator], StepOutput]
    forward: Callable[[nn.Module, Tensor], Tensor]
    evaluate: Callable[[RunConfig, Sequence[tuple[str, Any, Any]]], dict[str, float]]
