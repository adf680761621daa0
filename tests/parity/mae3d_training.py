"""Parameter groups, schedules, and whole training traces of 3D-MAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW

from tests.parity.cases import Case
from tests.parity.mae3d_networks import autoencoder, classifier
from training_backend.engine.schedule import lr_at_epoch
from training_backend.evaluate.classification_metrics import reference_metrics
from training_backend.nn import heads
from training_backend.nn.param_groups import decay_groups, layer_decay_groups
from training_backend.tasks.classification import ClassificationConfig, classification_loss, soft_target

LAYER_DECAY, WEIGHT_DECAY = 0.75, 0.05


def check_optim(case: Case) -> None:
    decay, weight_decay = case.entry.get("layer_decay", LAYER_DECAY), case.entry.get("wd", WEIGHT_DECAY)
    network = classifier(case.config)
    groups = _layer_groups(network, decay, weight_decay)
    ours = {
        key: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for key in heads.authors_names(dict.fromkeys(group["names"]))
    }
    names = case.arrays["lrd_names"].tolist()
    assert sorted(names) == sorted(ours)
    case.compare("lrd_scale", [ours[name][0] for name in names])
    case.compare("lrd_wd", [ours[name][1] for name in names])
    _check_pretrain_groups(case)
    for name in case.arrays:
        if name.startswith("sched") and name.endswith("_cfg"):
            settings = case.arrays[name].tolist()
            prefix = name.removesuffix("cfg")
            rates = [lr_at_epoch(epoch, *settings) for epoch in case.arrays[f"{prefix}epoch"].tolist()]
            case.compare(f"{prefix}lr", [[rate, rate * 0.5] for rate in rates], atol=1e-15)


def _check_pretrain_groups(case: Case) -> None:
    without, with_decay = case.arrays["pretrain_no_decay"].tolist(), case.arrays["pretrain_decay"].tolist()
    depth, decoder_depth = (
        len({name.split(".")[1] for name in without if name.startswith(prefix)})
        for prefix in ("blocks.", "decoder_blocks.")
    )
    config = case.config | {"depth": depth, "decoder_depth": decoder_depth}
    config |= {"decoder_embed_dim": 32, "decoder_num_heads": 2}  # the names do not depend on widths
    network = autoencoder({k: v for k, v in config.items() if k not in ("num_classes", "global_pool")})
    low, high = decay_groups(network, float(case.arrays["pretrain_wd"][1]))
    assert (low["names"], high["names"]) == (without, with_decay)
    case.compare("pretrain_wd", [low["weight_decay"], high["weight_decay"]])


def check_trace(case: Case) -> None:
    config = case.config
    if "variant" in config:
        _check_finetune(case, config)
    else:
        _check_pretrain(case, config)


def _check_pretrain(case: Case, config: dict[str, Any]) -> None:
    """The loss is divided by the accumulation; the rate changes, and the optimiser steps, once per window."""
    network = autoencoder(config["model"])
    network.load_state_dict(case.weights())
    optimizer = AdamW(decay_groups(network, config["wd"]), lr=config["lr"], betas=tuple(config["betas"]))
    volumes, noise = case.tensor("volumes"), case.tensor("noise")
    accumulate, micro_steps, epochs, batch = case.arrays["cfg"].tolist()
    ratio, losses, rates = config["mask_ratio"], [], []
    for epoch in range(epochs):
        optimizer.zero_grad()
        for k in range(micro_steps):
            if k % accumulate == 0:
                _set_rate(optimizer, config, epoch + k / micro_steps)
            loss = network(volumes[k * batch : (k + 1) * batch], noise[epoch * micro_steps + k], ratio)
            (loss / accumulate).backward()
            losses.append(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
            if (k + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    case.compare("lrs", rates, rtol=1e-6, atol=1e-12)
    _compare_end(case, losses, network.state_dict())


def _check_finetune(case: Case, config: dict[str, Any]) -> None:
    """Published quirks: "epoch" sums gradients over a window; "iter" steps always and clears once per window."""
    assert config["loss"] == "BCEWithLogits"
    network = classifier(config["model"])
    network.load_state_dict(heads.own_names(case.weights()))
    groups = _layer_groups(network, config["layer_decay"], config["wd"])
    optimizer = AdamW(groups, lr=config["lr"], betas=tuple(config["betas"]))
    volumes, labels = case.tensor("volumes"), case.tensor("labels")
    accumulate, micro_steps, epochs, batch = case.arrays["cfg"].tolist()
    clears, steps = _windows(config["variant"], accumulate)
    task, losses = ClassificationConfig(), []
    network.train()
    for epoch in range(epochs):
        for k in range(micro_steps):
            if clears(epoch * micro_steps + k, k):
                optimizer.zero_grad()
                _set_rate(optimizer, config, epoch + k / micro_steps)
            part = slice(k * batch, (k + 1) * batch)
            loss = classification_loss(network(volumes[part]), soft_target(labels[part], task), task)
            loss.backward()
            losses.append(loss.item())
            if steps(k):
                if config["clip_grad"]:
                    nn.utils.clip_grad_norm_(network.parameters(), config["clip_grad"])
                optimizer.step()
    _compare_end(case, losses, heads.authors_names(network.state_dict()))
    with torch.no_grad():
        result = reference_metrics(network.eval()(volumes).numpy(), labels[:, None].numpy(), "bce")
    for name in ("loss", "accuracy", "f1", "auc"):
        case.compare(f"eval_{name}", result[name], rtol=case.entry["tolerance"]["loss_rtol"])


def _windows(variant: str, accumulate: int) -> tuple[Callable[[int, int], bool], Callable[[int], bool]]:
    """When gradients are cleared and the rate is set (by step of the run, of the epoch), and when is stepped."""
    if variant == "iter":
        return lambda step, k: step % accumulate == 0, lambda k: True
    assert variant == "epoch"
    return lambda step, k: k % accumulate == 0, lambda k: (k + 1) % accumulate == 0


def _layer_groups(network: nn.Module, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    depth = network.encoder.depth + 1
    return layer_decay_groups(network, lambda name: heads.layer_id(network, name), depth, decay, weight_decay)


def _set_rate(optimizer: AdamW, config: dict[str, Any], epoch: float) -> None:
    rate = lr_at_epoch(epoch, config["lr"], config["min_lr"], config["warmup_epochs"], config["epochs"])
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def _compare_end(case: Case, losses: list[float], state: dict[str, torch.Tensor]) -> None:
    tolerance = case.entry["tolerance"]
    case.compare("losses", np.asarray(losses), rtol=tolerance["loss_rtol"])
    for name in case.arrays:
        if name.startswith("final/"):
            case.compare(name, state[name.removeprefix("final/")], atol=tolerance["weights_atol"])
