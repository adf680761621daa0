"""What can be done to the transformer blocks of any network: every ``nn.ModuleList`` whose name ends in "blocks"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def transformer_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """All blocks of encoder and decoder."""
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and name.endswith("blocks"):
            yield from child


def checkpoint_blocks(module: nn.Module) -> None:
    """Recompute each block in the backward pass instead of storing what is inside it."""
    for block in transformer_blocks(module):
        block.forward = _recomputed(block.forward)  # type: ignore[method-assign]


def compile_blocks(module: nn.Module) -> None:
    """Compile each block by itself: equal blocks share one compilation."""
    for block in transformer_blocks(module):
        block.compile()


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False)

    return wrapped
