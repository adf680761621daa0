"""Devices, processes and precision; the only file that knows Lightning Fabric.

Gradients are summed over the processes once per optimiser step, explicitly, instead of wrapping the network: a method
may leave parameters untouched in a step and call any of the network's functions, micro-batches may be of unequal size,
and the sum over processes is the same sum as over the micro-batches of one process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psutil
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor, nn
from torch.optim import Optimizer

from training_backend.config import EngineConfig
from training_backend.errors import ConfigError, ResourceError

_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_BUCKET = 1 << 24
"""Gradient elements summed in one message."""


class Runtime:
    """What one process computes on, and how it agrees with the others.

    Attributes:
        device: of this process.
        rank, world: number of this process and count of all; rank 0 writes the run directory.
        precision: "fp32", "bf16" or "fp16".
    """

    def __init__(self, engine: EngineConfig) -> None:
        if engine.threads:
            torch.set_num_threads(engine.threads)
        accelerator, devices = _accelerator(engine.device)
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.precision = _precision(engine.precision, accelerator)
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        several = self.world > 1
        self._fabric = Fabric(
            accelerator=accelerator,
            devices=self.world if several else devices,
            strategy="ddp" if several else "auto",
            precision=_PRECISION[self.precision],
            plugins=[TorchElasticEnvironment() if several else LightningEnvironment()],
        )
        self._fabric.launch()
        self.rank = self._fabric.global_rank
        self.device: torch.device = self._fabric.device
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("highest" if self.precision == "fp32" else "high")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which a forward pass has the run's precision."""
        return self._fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`, scaled as the precision needs it."""
        self._fabric.backward(loss)

    def step(self, optimizer: Optimizer) -> None:
        """Apply the gradients as the precision asks: with fp16, not at all when scaling made them overflow."""
        self._fabric.strategy.optimizer_step(optimizer)

    def clip(self, network: nn.Module, optimizer: Optimizer, max_norm: float | None) -> Tensor:
        """Limit the gradient norm and answer what it was, a scalar; not finite when a gradient is not."""
        limit = float("inf") if max_norm is None else max_norm
        norm = self._fabric.clip_gradients(network, optimizer, max_norm=limit, error_if_nonfinite=False)
        return torch.as_tensor(norm, device=self.device)

    def skip(self) -> None:
        """Leave out the optimiser step of gradients that were clipped; a loss scale is lowered."""
        scaler = getattr(self._fabric.strategy.precision, "scaler", None)
        if scaler is not None:
            scaler.update()

    def sum_gradients(self, network: nn.Module) -> None:
        """Replace every gradient by its sum over all processes; one that only others have counts as zero here."""
        if self.world == 1:
            return
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        present = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=self.device)
        users = [parameter for parameter, count in zip(trained, self.total(present).tolist(), strict=True) if count]
        for bucket in _buckets(users):
            flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
            dist.all_reduce(flat)
            parts = torch.split(flat, [parameter.numel() for parameter in bucket])
            for parameter, summed in zip(bucket, parts, strict=True):
                parameter.grad = summed.view_as(parameter)

    def total(self, values: Tensor) -> Tensor:
        """Sum of `values` over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process."""
        if self.world == 1:
            return flag
        return bool(self.total(torch.tensor([float(flag)], device=self.device)).item())

    def from_main(self, value: Any) -> Any:
        """The main process's `value`, in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """All processes' `values`, one after another."""
        if self.world == 1:
            return list(values)
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, list(values))
        return [value for box in boxes for value in box]

    def scaler_state(self) -> dict[str, Any]:
        """State of the loss scaler; empty unless the precision is fp16."""
        return self._fabric.strategy.precision.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Inverse of `scaler_state`."""
        if state:
            self._fabric.strategy.precision.load_state_dict(state)

    def memory_mb(self) -> float:
        """Peak of the device memory, or what the process holds now on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return float(psutil.Process().memory_info().rss) / 2**20

    def free_memory(self) -> None:
        """Give cached device memory back, after a step that did not fit."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Leave the group of processes."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Runs of parameters of one type with at most `_BUCKET` elements, or a single larger one."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(other.numel() for other in bucket) + parameter.numel() > _BUCKET
        if bucket and (full or bucket[0].dtype != parameter.dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _accelerator(name: str) -> tuple[str, Any]:
    """Fabric's accelerator and devices for "auto", "cpu", "cuda" or "cuda:N"."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return "cpu", 1
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdigit() or not number):
        raise ResourceError(f"The device must be auto, cpu, cuda or cuda:N, found {name!r}.")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found <= int(number or 0):
        hint = "Choose another device, or run: med3dssl doctor."
        raise ResourceError(f"The device {name} was asked for, but PyTorch finds {found} GPUs.", hint)
    return "cuda", [int(number)] if number else 1


def _precision(wanted: str, accelerator: str) -> str:
    if wanted == "fp16" and accelerator == "cpu":
        raise ConfigError("The precision fp16 needs a GPU, but the run is on the CPU.", "Choose auto, fp32 or bf16.")
    if wanted != "auto":
        return wanted
    if accelerator == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
