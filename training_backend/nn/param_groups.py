"""Parameter groups for AdamW: which parameters decay, and how much slower early layers learn."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import nn


def decay_groups(module: nn.Module, weight_decay: float = 0.05) -> list[dict[str, Any]]:
    """Two groups, without and with decay, of the trainable parameters.

    Vectors, scalars and biases do not decay; class and mask tokens (three axes) do. Each group is a dictionary with
    `params`, their `names`, `weight_decay` and `lr_scale`.
    """
    return layer_decay_groups(module, lambda name: 0, 0, 1.0, weight_decay, no_decay_names=())


def layer_decay_groups(
    module: nn.Module,
    layer_id: Callable[[str], int],
    num_layers: int,
    decay: float,
    weight_decay: float = 0.05,
    no_decay_names: Collection[str] = ("cls_token", "pos_embed", "pos_embed_learn", "embed_tokens"),
) -> list[dict[str, Any]]:
    """Groups whose learning rate falls by `decay` for every layer below the head (BEiT's layer-wise decay).

    Args:
        module: network; frozen parameters are left out.
        layer_id: depth of a parameter by name, from 0 to `num_layers`.
        num_layers: depth of the head, which gets `lr_scale` 1.
        decay: factor per layer; a parameter gets ``decay ** (num_layers - depth)``.
        weight_decay: decay of matrices.
        no_decay_names: further parameters without decay, by any part of the name.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = name in no_decay_names or not set(name.split(".")).isdisjoint(no_decay_names)
        decays = not (parameter.ndim <= 1 or name.endswith(".bias") or exempt)
        depth = layer_id(name)
        settings = {"weight_decay": weight_decay if decays else 0.0, "lr_scale": decay ** (num_layers - depth)}
        group = groups.setdefault((depth, decays), {"params": [], "names": [], **settings})
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]
