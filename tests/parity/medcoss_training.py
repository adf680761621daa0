"""Steps of a stage with rehearsal against the reference's own loop, through the step of the engine."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.parity.cases import Case, Check
from tests.parity.medcoss_networks import as_volume, settings, teacher_of, whole
from training_backend.config import EngineConfig, OptimConfig
from training_backend.data.views import StepViews
from training_backend.engine.optim import make_optimizer
from training_backend.engine.runtime import Runtime
from training_backend.engine.state import Progress, TrainState
from training_backend.engine.step import optimise
from training_backend.engine.work import Work
from training_backend.methods.base import StepOutput
from training_backend.nn.medcoss import MedcossEncoder, MedcossNetwork
from training_backend.nn.medcoss_distil import ImageDraws, TextDraws, distil_images, distil_text


class _Given(Work):
    """Work whose batches are those of the case."""

    def to_batch(self, views: StepViews) -> Any:
        return SimpleNamespace(case_ids=views.case_ids, step=views.step)


def check_trace(case: Case) -> None:
    config, entry = case.config, case.config
    steps, order, current = config.pop("steps"), config.pop("order"), config.pop("current")
    optim = _optim(config, len(order))
    assert config.pop("draws") == _draw_names(case)
    no_decay = config.pop("no_decay")
    sizes = replace(settings(config), drop_path=0.0, random_row=False)
    assert not config, f"settings that the suite does not understand: {sorted(config)}"
    network, teacher = whole(case, sizes), teacher_of(case, sizes)
    optimizer = make_optimizer(network, optim)
    assert sorted(optimizer.param_groups[0]["names"]) == sorted(no_decay)
    not_needed: Any = None
    work = _Given(
        config=cast(Any, SimpleNamespace(seed=0, optim=optim)),
        runtime=Runtime(EngineConfig(device="cpu")),
        dataset=not_needed,
        loader=not_needed,
        state=TrainState(network, optimizer, None, Progress(micro_batch=optim.batch_size)),
        loss=lambda network, batch, _: StepOutput(_loss(case, network, teacher, batch.step, order, current)),  # type: ignore[arg-type, attr-defined]
        method=not_needed,
        task=None,
        total_steps=optim.max_steps or 0,
        steps_per_epoch=len(order),
    )
    outcomes = []
    for step in range(steps):
        outcomes.append(optimise(work, _views(step, optim.batch_size)))
        work.state.progress.step += 1
    case.compare("lrs", [outcome.lr for outcome in outcomes], atol=1e-12)
    case.compare("losses", [outcome.loss for outcome in outcomes])
    _compare_weights(case, network, entry["D"], entry["DD"])


def _optim(config: dict[str, Any], steps_per_epoch: int) -> OptimConfig:
    args = config.pop("args")
    assert args.pop("accum_iter") == args.pop("mix_up") == 1
    assert args.pop("task_modality") == "3D_CT"
    config["mask_ratio"] = args.pop("mask_ratio")
    epochs = args.pop("epochs")
    return OptimConfig(
        epochs=epochs,
        max_steps=epochs * steps_per_epoch,
        batch_size=3,
        lr=args.pop("lr"),
        min_lr=args.pop("min_lr"),
        warmup=args.pop("warmup_epochs") / epochs,
        warmup_start="zero",
        weight_decay=config.pop("weight_decay"),
        betas=config.pop("betas"),
        zero_gradients=not config.pop("zero_grad_set_to_none"),
        **args,
    )


def _draw_names(case: Case) -> list[str]:
    """What the arrays hold of random numbers, as the settings list them."""
    names = sorted(name for name in case.arrays if name.startswith("s") and "_draw" in name)
    return [f"{name}:{tuple(case.arrays[name].shape)}" for name in names]


def _loss(
    case: Case, network: MedcossNetwork, teacher: MedcossEncoder, step: int, order: list[str], current: str
) -> Tensor:
    """Loss of a step, with the random numbers of the reference in the order in which they were drawn."""
    place = step % len(order)
    drawn = [case.tensor(name) for name in sorted(case.arrays) if name.startswith(f"s{step}_draw")]
    if order[place] == "1D_text":
        ids, attention = case.tensor(f"b{place}_ids"), case.tensor(f"b{place}_att")
        assert case.arrays[f"b{place}_labels"].shape == ids.shape  # a buffer does not look at them
        return distil_text(network, teacher, ids, attention, TextDraws(*drawn))
    volume = as_volume(case.tensor(f"b{place}_image"))
    if order[place] == current:
        (noise,) = drawn
        return network.image_loss(volume, noise)
    mixed, share, noise = drawn
    return distil_images(network, teacher, volume, ImageDraws(mixed, share.reshape(-1, 1, 1, 1, 1), noise))


def _views(step: int, count: int) -> StepViews:
    """Views of a step whose content is that of the case."""
    one = (1.0, 1.0, 1.0)
    names = [str(index) for index in range(count)]
    return StepViews(step, torch.zeros(count), None, None, None, [()] * count, [one] * count, [()] * count, names)  # type: ignore[list-item]


def _compare_weights(case: Case, network: nn.Module, width: int, decoder_width: int) -> None:
    """Final weights but for the key part of attention biases, whose true gradient is zero."""
    final = load_file(case.folder / case.entry["parts"]["final"])
    found = network.state_dict()
    assert found.keys() == final.keys()
    for name, expected in final.items():
        kept = torch.ones(len(expected), dtype=torch.bool)
        if name.endswith("self_attn.in_proj_bias"):
            kept[width : 2 * width] = False
        elif name.endswith("attn.qkv.bias"):
            kept[decoder_width : 2 * decoder_width] = False
        given = case.entry["tolerance"]
        torch.testing.assert_close(
            found[name][kept], expected[kept], **given, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


CHECKS: dict[str, Check] = {r"engine_trace(_.+)?": check_trace}
"""By a pattern of the name of a case."""
