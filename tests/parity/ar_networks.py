"""Pre-training networks, optimisation and full-size keys of AR-SSL4M against the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.parity.ar_downstream import compare
from tests.parity.cases import Case, Check
from training_backend.config import OptimConfig
from training_backend.config.registry import method as find_method
from training_backend.config.registry import task as find_task
from training_backend.engine.optim import make_optimizer
from training_backend.engine.schedule import learning_rate, lr_at_epoch
from training_backend.nn.ar import END, START, ArEncoder
from training_backend.nn.ar_pretrain import NextPatch
from training_backend.weights.ar import authored, canonical, describe


def network(config: dict[str, Any], attention: str = "prefix") -> NextPatch:
    """Our network of the settings of a case, in the frame of the reference; an unknown setting is a failure."""
    config = dict(config)
    assert config.pop("num_key_value_heads") == config["num_attention_heads"]
    model = ArEncoder(
        tuple(config.pop("img_size")),
        tuple(config.pop("patch_size")),
        width=config.pop("hidden_size"),
        depth=config.pop("num_hidden_layers"),
        heads=config.pop("num_attention_heads"),
        mlp_width=config.pop("intermediate_size"),
        positions=config.pop("pos_type"),
        axes="zyx",
        pretraining=True,
    )
    assert attention in ("prefix", "causal")
    built = NextPatch(model, config.pop("norm_pixel_loss"), attention == "causal")
    assert not config, f"settings that the suite does not understand: {sorted(config)}"
    return built


def check_pretrain(case: Case) -> None:
    net = network(case.config, case.entry["attention_type"])
    net.load_state_dict(case.weights())
    size, length = case.config["img_size"], case.entry["num_tokens"]
    volume = case.tensor("input_image").view(case.entry["batch"], 1, *size)
    assert torch.equal(torch.cat(list(case.tensor("slabs").unbind(1)), dim=-1), volume[:, 0])
    prefix = case.tensor("prefix_length")
    assert prefix.tolist() == [0] * len(prefix) or not net.causal
    _check_sequence(case, net, volume, prefix, length)
    _check_pass(case, net, volume, prefix)
    loss = net(volume, prefix)
    compare(case, "loss", loss)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert sorted(gradients) == sorted(name.removeprefix("grad/") for name in case.arrays if name.startswith("grad/"))
    for name, gradient in gradients.items():
        compare(case, f"grad/{name}", gradient)


def _check_sequence(case: Case, net: NextPatch, volume: torch.Tensor, prefix: torch.Tensor, length: int) -> None:
    """Special tokens, who sees whom, and which patches are scored."""
    assert case.arrays["input_ids"].tolist() == [[START, *[3] * length, END]] * len(volume)
    trace = net.trace(volume, prefix)
    case.compare("attention_mask", trace.mask.flatten(1), atol=0)
    scored = net.score(volume, prefix)
    counted = torch.zeros(len(volume), length + 2, dtype=torch.bool)
    counted[:, -1] = True  # the end token, whose prediction the reference drops later
    counted[scored.view, scored.place + 1] = True
    case.compare("prefix_mask", counted, atol=0)


def _check_pass(case: Case, net: NextPatch, volume: torch.Tensor, prefix: torch.Tensor) -> None:
    """Everything that the published pass computes; what training and prediction leave out does not show."""
    with torch.no_grad():
        trace, predicted = net.trace(volume, prefix), net.predict(volume, prefix)
    learnt = "model.pos_embed_learn" in net.state_dict()
    like = "logits"
    compare(case, "patch_embed", trace.patches, like)
    compare(case, "pos_embed", trace.positions if learnt else trace.positions[1:-1], like)
    compare(case, "layer0_out", trace.layers[0], like)
    compare(case, "layerlast_out", trace.layers[-1], like)
    compare(case, "final_hidden", trace.hidden, like)
    compare(case, "logits", trace.logits, like)
    case.compare("patch_targets_raw", trace.targets, atol=0)
    np.testing.assert_allclose(predicted, case.arrays["logits"][:, :-2], atol=2e-5, rtol=1e-4)


def check_steps(case: Case) -> None:
    """The optimiser and the schedule as the engine makes them, over several steps."""
    told, plan = case.entry["optimizer"], case.entry["schedule"]
    per_epoch = plan["steps_per_epoch"]
    optim = OptimConfig(
        lr=told["lr"], min_lr=plan["min_lr"], weight_decay=told["weight_decay"], betas=told["betas"], decay_all=True
    )
    net = network(case.config).train()
    net.load_state_dict(load_file(case.folder / f"{case.name}.safetensors"))
    optimizer = make_optimizer(net, optim)
    assert {group["eps"] for group in optimizer.param_groups} == {told["eps"]}
    losses, rates = [], []
    for step, (volume, prefix) in enumerate(zip(case.tensor("volumes"), case.tensor("prefix_length"), strict=True)):
        rate = lr_at_epoch(step / per_epoch, told["lr"], plan["min_lr"], plan["warmup_epochs"], plan["num_epochs"])
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = net(volume[:, None], prefix)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        rates.append(rate)
    compare(case, "losses", losses)
    compare(case, "lrs", rates)
    _compare_after(net, load_file(case.folder / f"{case.name}_after.safetensors"), case.entry["tolerance"]["after"])


def _compare_after(net: NextPatch, expected: dict[str, torch.Tensor], tolerance: str) -> None:
    assert "atol 1e-4" in tolerance
    assert ">=99.9%" in tolerance
    state = net.state_dict()
    assert state.keys() == expected.keys()
    near = torch.cat([(state[name] - expected[name]).abs().flatten() <= 1e-4 for name in expected])
    assert near.double().mean() >= 0.999


def check_keys(path: Path) -> None:
    """The importer rebuilds a published network from names and shapes alone, and names its tensors as published."""
    shapes: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        described = describe({canonical(name): torch.empty(shape) for name, shape in shapes.items()}, {}, {})
        config = described.config
        chosen = find_method("ar")
        if config.task is None:
            built = chosen.build(config)
        else:
            built = find_task(config.task.name).build(config, chosen.build_encoder(config))
    tensors = {canonical(name): tensor for name, tensor in built.state_dict().items()}
    stored = authored(tensors, described.kind, config)
    assert stored is not None
    assert {name: list(tensor.shape) for name, tensor in stored[1].items()} == shapes


def check_schedule(folder: Path, value: Any) -> None:
    rates = [lr_at_epoch(point, value["lr"], 0.0, value["warmup"], value["epochs"]) for point in value["points"]]
    np.testing.assert_allclose(rates, value["values"], rtol=1e-7, atol=1e-18)
    if value["warmup"] == 0:  # the engine counts steps and learns in the first one of a warm-up
        steps = 10_000
        optim = OptimConfig(lr=value["lr"], warmup=0.0)
        for point, rate in zip(value["points"], value["values"], strict=True):
            found = learning_rate(round(point * steps), round(value["epochs"] * steps), optim)
            assert found == pytest.approx(rate, rel=1e-6)


CHECKS: dict[str, Check] = {r"pretrain/model\.py:ReconModel$": check_pretrain, r"^ReconModel \+ .*AdamW": check_steps}
LISTS: dict[str, Callable[[Path, Any], None]] = {r"lr_pretrain.*": check_schedule}
