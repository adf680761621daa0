"""Making a step fit: recomputed or compiled blocks, and what counts as running out of memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from training_backend.config import EngineConfig
from training_backend.errors import ResourceError

_PHRASES = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that device or main memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)


def does_not_fit(device: torch.device, parameters: int, view: tuple[int, ...]) -> ResourceError:
    """The error for a single view that does not fit, with the numbers that decide it."""
    states_gb = 16 * parameters / 2**30
    have = ""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        have = f" The device has {total / 2**30:.1f} GB, {free / 2**30:.1f} GB of it free now."
    voxels = " × ".join(str(size) for size in view)
    return ResourceError(
        f"One view of {voxels} voxels does not fit into the memory of {device}: weights, gradients and optimiser of "
        f"{parameters / 1e6:.1f} M parameters take {states_gb:.1f} GB before any view.{have}",
        "Use a smaller data.size, switch engine.activation_checkpointing on, or choose a smaller preset.",
    )


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Blocks of a network: the elements of every list of at least two modules of one class (transformer layers)."""
    for module in network.modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        alike = all(type(first) is type(second) for first, second in pairwise(module))
        if alike and next(module[0].parameters(), None) is not None:
            yield from module


def tune_blocks(network: nn.Module, engine: EngineConfig) -> None:
    """Recompute and compile each block as the settings ask; names and values of the weights stay as they are."""
    for block in repeated_blocks(network):
        if engine.activation_checkpointing:
            block.forward = functools.partial(_recomputed, block.forward)
        if engine.compile:
            block.compile()
    if engine.compile:
        logging.getLogger(__name__).info("Blocks are compiled at the first step; this takes a minute.")


def _recomputed(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    return checkpoint(forward, *arguments, use_reentrant=False, **keywords)
