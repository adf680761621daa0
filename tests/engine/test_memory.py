from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training_backend.config import EngineConfig
from training_backend.engine.memory import does_not_fit, is_out_of_memory, repeated_blocks, tune_blocks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.drop(torch.tanh(self.linear(x)))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.mixed = nn.ModuleList([nn.Linear(8, 8), nn.LayerNorm(8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.mixed[1](self.mixed[0](x))


def gradients(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(3)
    network.zero_grad()
    network(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


def test_only_lists_of_like_modules_are_blocks():
    network = Network()
    assert list(repeated_blocks(network)) == list(network.blocks)


def test_recomputed_blocks_give_the_same_gradients_and_keep_their_names():
    torch.manual_seed(0)
    plain = Network()
    recomputed = copy.deepcopy(plain)
    tune_blocks(recomputed, EngineConfig(activation_checkpointing=True))
    x = torch.randn(4, 8)
    pairs = zip(gradients(plain, x), gradients(recomputed, x), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (plain.blocks[0].calls, recomputed.blocks[0].calls) == (1, 2)
    assert list(plain.state_dict()) == list(recomputed.state_dict())
    with torch.no_grad():
        recomputed.eval()(x)
    assert recomputed.blocks[0].calls == 3


def test_compile_is_asked_of_each_block_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(self))
    network = Network()
    tune_blocks(network, EngineConfig(compile=True))
    assert asked == list(network.blocks)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_sentence_has_the_numbers():
    text = str(does_not_fit(torch.device("cpu"), 304_000_000, (256, 256, 256)))
    assert "256 × 256 × 256" in text
    assert "304.0 M parameters take 4.5 GB" in text
