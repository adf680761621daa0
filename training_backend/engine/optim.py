"""AdamW over groups of parameters, and the learning rate of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from training_backend.config import OptimConfig
from training_backend.engine.schedule import learning_rate
from training_backend.nn.param_groups import decay_groups, layer_decay_groups


def make_optimizer(
    network: nn.Module,
    optim: OptimConfig,
    layer_id: Callable[[str], int] | None = None,
    precision: str = "fp32",
    rate: Callable[[str], float] | None = None,
) -> Optimizer:
    """AdamW in fused kernels, with slower learning in early layers when `optim.layer_decay` is below 1.

    Args:
        network: already on its device.
        optim: rates and decays.
        layer_id: depth of a parameter by name; the deepest one found learns at the full rate.
        precision: "fp16" keeps gradients scaled until they are clipped, which the fused kernel does not support.
        rate: learning rate of a parameter by name, in those of the others.
    """
    if layer_id is not None and optim.layer_decay < 1:
        depth = max(layer_id(name) for name, parameter in network.named_parameters() if parameter.requires_grad)
        groups = layer_decay_groups(network, layer_id, depth, optim.layer_decay, optim.weight_decay)
    else:
        groups = decay_groups(network, optim.weight_decay)
    if rate is not None:
        groups = [part for group in groups for part in _by_rate(group, rate)]
    if optim.decay_all:
        groups = [{**group, "weight_decay": optim.weight_decay} for group in groups]
    return AdamW(groups, lr=optim.lr, betas=optim.betas, amsgrad=optim.amsgrad, fused=(precision != "fp16") or None)


def set_learning_rate(optimizer: Optimizer, step: int, total_steps: int, optim: OptimConfig, factor: float) -> float:
    """Give every group the learning rate of `step` times its own scale; answers the unscaled one."""
    rate = learning_rate(step, total_steps, optim) * factor
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    return rate


def _by_rate(group: dict[str, Any], rate: Callable[[str], float]) -> Iterator[dict[str, Any]]:
    """The parts of a group whose parameters have the same rate."""
    rates = [rate(name) for name in group["names"]]
    for each in sorted(set(rates)):
        chosen = [index for index, found in enumerate(rates) if found == each]
        parts = {key: [group[key][index] for index in chosen] for key in ("params", "names")}
        yield {**group, **parts, "lr_scale": group["lr_scale"] * each}
