"""Everything of a run that changes while it trains, and its way to a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training_backend.engine.checkpoint import Saved
from training_backend.engine.guard import Guard
from training_backend.errors import WeightsError


@dataclass
class Progress:
    """Where a run is, as JSON types; `step` counts finished optimiser steps, skipped ones included.

    Attributes:
        validated: step of the last validation.
        best_score, best_step, best_values: of the best validation; the score is a loss when pre-training.
        stale: validations since the best one.
        micro_batch: views per forward pass that fit so far; 0 before the first step.
        seconds: time spent training, over all resumes.
    """

    step: int = 0
    validated: int = 0
    best_score: float | None = None
    best_step: int | None = None
    best_values: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    micro_batch: int = 0
    seconds: float = 0.0
    guard: Guard = field(default_factory=Guard)


@dataclass
class TrainState:
    """Network, optimiser, averaged network and progress of a run.

    Attributes:
        snapshot: copy of a part of the network from an earlier step, once there is one.
        blank: makes that part anew, for the weights of a snapshot.
    """

    network: nn.Module
    optimizer: Optimizer
    ema: AveragedModel | None
    progress: Progress
    snapshot: nn.Module | None = None
    blank: Callable[[], nn.Module] | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and exported: the averaged one where there is one."""
        return self.network if self.ema is None else self.ema.module

    def saved(self, scaler: Mapping[str, Any]) -> Saved:
        """Contents of a checkpoint of this moment."""
        tensors = {"model": _on_cpu(self.network.state_dict()), "optimizer": _optimizer_tensors(self)}
        if self.ema is not None:
            tensors["ema"] = _on_cpu(self.ema.state_dict())
        if self.snapshot is not None:
            tensors["snapshot"] = _on_cpu(self.snapshot.state_dict())
        progress = {**vars(self.progress), "guard": self.progress.guard.to_dict()}
        return Saved(tensors, {"schema": 1, **progress, "scaler": dict(scaler)})

    def restore(self, saved: Saved) -> None:
        """Put a checkpoint's contents into network, optimiser, average and progress."""
        _load(self.network, saved.tensors["model"])
        if self.ema is not None:
            if "ema" in saved.tensors:
                _load(self.ema, saved.tensors["ema"])
            else:  # switched on between two sittings
                _load(self.ema.module, saved.tensors["model"])
        self.snapshot = None
        if "snapshot" in saved.tensors:
            self.take_snapshot(saved.tensors["snapshot"])
        _restore_optimizer(self, saved.tensors["optimizer"])
        known = {key: saved.state[key] for key in vars(self.progress) if key in saved.state}
        self.progress = Progress(**{**known, "guard": Guard(**saved.state["guard"])})

    def take_snapshot(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the snapshot of the weights `tensors`, of which there may be more than it has."""
        if self.blank is None:
            raise WeightsError(
                "The checkpoint of this run has a teacher, which the method of its settings does not.",
                "The settings were changed after the run began; clone the run instead.",
            )
        module = self.blank()
        _load(module, {name: tensors[name] for name in module.state_dict() if name in tensors})
        device = next(self.network.parameters()).device
        self.snapshot = module.requires_grad_(False).to(device).eval()


def averaged(network: nn.Module, decay: float | None) -> AveragedModel | None:
    """Exponential moving average of a network's parameters and buffers, or None without a `decay`."""
    if decay is None:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def load_evaluated(network: nn.Module, saved: Saved) -> None:
    """Put the weights that were validated (averaged where there are such) into `network`."""
    prefix = "module."
    ema = {
        key.removeprefix(prefix): value for key, value in saved.tensors.get("ema", {}).items() if key.startswith(prefix)
    }
    _load(network, ema or saved.tensors["model"])


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise WeightsError(
            "The checkpoint of this run does not fit the network that its settings describe.",
            "The settings were changed after the run began; clone the run instead.",
        ) from error


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, shared ones copied: safetensors stores each by itself."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        if copy.data_ptr() in seen:
            copy = copy.clone()
        seen.add(copy.data_ptr())
        result[name] = copy
    return result


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """The optimiser's tensors by "parameter:key"; its settings are functions of the configuration and the step."""
    named = {id(parameter): name for name, parameter in state.network.named_parameters()}
    tensors = {
        f"{named[id(parameter)]}:{key}": torch.as_tensor(value)
        for parameter, values in state.optimizer.state.items()
        for key, value in values.items()
    }
    return _on_cpu(tensors)


def _restore_optimizer(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    by_name: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(":")
        by_name.setdefault(parameter, {})[key] = tensor.clone()
    named = {id(parameter): name for name, parameter in state.network.named_parameters()}
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    restored = {index: by_name.get(named[id(parameter)], {}) for index, parameter in enumerate(parameters)}
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": {i: s for i, s in restored.items() if s}, "param_groups": groups})
