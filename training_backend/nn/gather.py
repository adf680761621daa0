"""Rows of all processes, with their gradient: for losses that compare cases which lie in different processes.

Every exchange begins with one number per process, so that a process that cannot go on, because its memory ran out, is
told to the others in place of leaving them waiting: see `PeerStopped`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training_backend.errors import ConfigError


class PeerStopped(RuntimeError):
    """Another process gave up the part of the step that all had begun; all have agreed on it by now."""


def processes() -> int:
    """Processes that work together; 1 outside of a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(rows: Tensor) -> Tensor:
    """Rows [P N, ...] of P processes in their order, each of which gives `rows` [N, ...]; alone, `rows` itself.

    The gradient of a row is the sum of those that all processes have for it, so a loss that every process computes of
    all rows has to be divided by P before the gradients of the weights are summed.

    Raises:
        ConfigError: the processes do not have as many rows.
        PeerStopped: another process cannot take part.
    """
    if processes() == 1:
        return rows
    out: Tensor = _Gathered.apply(rows)
    return out


def agreed(device: torch.device) -> None:
    """Wait for all processes.

    Raises:
        PeerStopped: one of them said, by a sum of one number above 0, that it cannot go on.
    """
    failed = torch.zeros(1, device=device)
    dist.all_reduce(failed)
    if failed.item() > 0:
        raise PeerStopped


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        own = rows.detach().contiguous()
        everyone = own.new_empty(processes(), *own.shape)  # before the others are told that this process goes on
        agreed(own.device)
        _check_counts(len(own), own.device)
        dist.all_gather(list(everyone.unbind()), own)
        ctx.rows, ctx.kind = len(own), rows.dtype
        return everyone.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].float().contiguous()  # sums of half precision would lose what single processes add
        if summed is gradients[0]:
            summed = summed.clone()
        agreed(summed.device)
        dist.all_reduce(summed)
        first = dist.get_rank() * ctx.rows
        return summed[first : first + ctx.rows].to(ctx.kind)


def _check_counts(rows: int, device: torch.device) -> None:
    counts = torch.zeros(processes(), device=device, dtype=torch.int64)
    counts[dist.get_rank()] = rows
    dist.all_reduce(counts)
    found = counts.tolist()
    if len(set(found)) > 1:
        raise ConfigError(
            f"Rows of {len(found)} processes are to be compared, but they have {', '.join(map(str, found))} each.",
            "Give every process as many views: an optim.batch_size that the number of processes divides.",
        )
