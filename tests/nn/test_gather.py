"""Rows of all processes and their gradient, in real processes; what happens when one of them cannot take part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.rank_kit import in_processes
from training_backend.errors import ConfigError
from training_backend.nn.gather import PeerStopped, gathered, processes

ROWS, WIDTH = 3, 2


def given(rank: int) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(rank)).requires_grad_()


def loss_of(rows: Tensor) -> Tensor:
    """Every row is compared with every other one."""
    return (rows @ rows.T).square().sum()


def visit(rank: int) -> dict[str, Any]:
    dist.init_process_group("gloo")
    rows = given(rank)
    everyone = gathered(rows)
    (loss_of(everyone) / processes()).backward()
    answer: dict[str, Any] = {"rows": everyone.detach(), "gradient": rows.grad}
    try:
        gathered(torch.zeros(1 + rank, WIDTH))
    except ConfigError as error:
        answer["unequal"] = str(error)
    answer["forward"] = _stopped(rank, lambda: gathered(torch.zeros(1, WIDTH)))
    half = gathered(given(rank)).sum()
    answer["backward"] = _stopped(rank, half.backward)
    answer["after"] = gathered(torch.full((1, 1), float(rank)))  # the group still works
    dist.destroy_process_group()
    return answer


def _stopped(rank: int, step: Any) -> bool:
    """The last process says that it cannot go on, as the engine does; whether the others are told."""
    if rank == 1:
        dist.all_reduce(torch.ones(1))
        return True
    with pytest.raises(PeerStopped):
        step()
    return True


def test_rows_of_all_processes_and_their_gradient(tmp_path: Path) -> None:
    answers = in_processes(2, tmp_path, visit)
    alone = torch.cat([given(0), given(1)]).detach().requires_grad_()
    loss_of(alone).backward()
    assert alone.grad is not None
    for rank, answer in enumerate(answers):
        assert torch.equal(answer["rows"], alone)
        torch.testing.assert_close(answer["gradient"], alone.grad[rank * ROWS : (rank + 1) * ROWS])
        assert "have 1, 2 each" in answer["unequal"]
        assert answer["forward"]
        assert answer["backward"]
        assert torch.equal(answer["after"], torch.tensor([[0.0], [1.0]]))


def test_a_single_process_has_all_rows() -> None:
    rows = given(0)
    assert gathered(rows) is rows
