"""Functions run by several processes of one group at a time, as the workers of a run are."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def in_processes(number: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)`` answers in each of `number` processes; a module's function, for it is sent.

    The group is not made: whoever needs one makes it, from the environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (number, port, folder, function, arguments), nprocs=number)
    return [torch.load(folder / f"answer-{rank}.pt", weights_only=False) for rank in range(number)]


def _process(rank: int, number: int, port: int, folder: Path, function: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    torch.save(function(rank, *arguments), folder / f"answer-{rank}.pt")
