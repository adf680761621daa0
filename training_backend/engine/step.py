"""One optimiser step: micro-batches are accumulated to the global batch, whatever fits into the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training_backend.engine import seeds
from training_backend.engine.batch_norm import by_running_statistics, parts
from training_backend.engine.memory import does_not_fit, is_out_of_memory
from training_backend.engine.optim import set_learning_rate
from training_backend.nn.gather import PeerStopped
from training_backend.tasks.base import Cancelled

if TYPE_CHECKING:
    from training_backend.data.loader import StepViews
    from training_backend.engine.work import Work


@dataclass
class Outcome:
    """What came of a step.

    Attributes:
        finite: whether the weights were updated; False when loss or gradient is not a finite number.
        suspects: cases of the micro-batches whose loss is not finite, or of all when only a gradient is not.
        scalars: further values of the method or task, mean over the views (or what `StepOutput.counts` says) of this
            process.
        views: views that could be read, over all processes; with none the weights stay as they are.
        shrunk: whether memory ran out and the micro-batch was halved.
    """

    loss: float
    grad_norm: float
    lr: float
    finite: bool
    scalars: Mapping[str, float] = field(default_factory=dict)
    suspects: Sequence[str] = ()
    views: int = 0
    shrunk: bool = False


def optimise(work: Work, views: StepViews, abandon: Callable[[], bool] = lambda: False) -> Outcome:
    """Accumulate the gradients of `views` and apply them.

    Raises:
        ResourceError: not even a single view fits into the memory.
        Cancelled: `abandon` answered True between two micro-batches; nothing has changed.
    """
    shrunk = False
    state, due = work.state, work.snapshot_step
    if due is not None and state.snapshot is None and state.progress.step >= due:
        state.take_snapshot(_snapshot_weights(work))
    views = _evened(work, views)
    moving = _moving(state.network)
    before = [tensor.detach().clone() for tensor in moving]
    while True:
        try:
            sums = _accumulate(work, views, abandon)
            failed = work.runtime.any(sums is None)
        except PeerStopped:  # all processes know already
            sums, failed = None, True
        except Cancelled:
            _restore(moving, before)
            raise
        if not failed:
            break
        _restore(moving, before)
        _halve(work, views)
        shrunk = True
    outcome = _apply(work, sums or _Sums(), views)
    outcome.shrunk = shrunk
    return outcome


def _snapshot_weights(work: Work) -> Mapping[str, Tensor]:
    """Tensors by name: of the network as it is, or of the weights that the method names."""
    network = work.state.network
    if not work.snapshot_weights:
        return network.state_dict()
    from training_backend.weights.transfer import init_from

    other = work.method.build(work.config)
    init_from(other, work.snapshot_weights, work.config)
    return other.state_dict()


def _moving(network: nn.Module) -> list[Tensor]:
    """What forward passes change by themselves: statistics of batch norms, and what the network calls its `moving`."""
    norms = (module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [*(buffer for norm in norms for buffer in norm.buffers()), *getattr(network, "moving", ())]


def _restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def _evened(work: Work, views: StepViews) -> StepViews:
    """As many views in every process where they look at each other's: one that nobody could read costs all of them."""
    return views[: min(work.runtime.gather([len(views)]))] if work.gathers else views


@dataclass
class _Sums:
    """Weighted sums over the micro-batches of this process; tensors stay on the device until the step ends."""

    everyone: int = 0
    losses: list[Tensor] = field(default_factory=list)
    cases: list[Sequence[str]] = field(default_factory=list)
    scalars: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)


def _accumulate(work: Work, views: StepViews, abandon: Callable[[], bool]) -> _Sums | None:
    """Gradients of all micro-batches; None when the memory did not suffice."""
    runtime, state = work.runtime, work.state
    micro = state.progress.micro_batch
    sums = _Sums(int(runtime.total(torch.tensor([float(len(views))], device=runtime.device)).item()))
    state.optimizer.zero_grad(set_to_none=True)
    if work.config.optim.zero_gradients:  # a function of the optimiser's state, so that it survives a resume
        for parameter in state.optimizer.state:
            parameter.grad = torch.zeros_like(parameter)
    state.network.train()
    try:
        for part in parts(state.network, len(views), micro):
            if runtime.world == 1 and abandon():
                raise Cancelled
            with by_running_statistics(state.network, part.stop - part.start):
                _micro_step(work, views[part], part.start, sums)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return sums


def _micro_step(work: Work, part: StepViews, start: int, sums: _Sums) -> None:
    runtime, progress = work.runtime, work.state.progress
    slot = runtime.rank * work.views_per_process + start
    generator = seeds.generator(work.config.seed, seeds.STEP, progress.step, slot)
    batch = work.to_batch(part)
    with runtime.autocast():
        output = work.loss(work.state.network, batch, generator)
    share = len(part) / sums.everyone
    runtime.backward(output.loss * share)
    sums.losses.append(output.loss.detach().float() * share)
    sums.cases.append(list(batch.case_ids))
    for name, value in output.scalars.items():
        count = output.counts.get(name, len(part))
        added = torch.as_tensor(value, device=runtime.device).detach().float() * count
        sums.scalars[name] = sums.scalars[name] + added if name in sums.scalars else added
        sums.counts[name] = sums.counts.get(name, 0.0) + count


def _apply(work: Work, sums: _Sums, views: StepViews) -> Outcome:
    """Sum over processes, clip, and update the weights unless something is not finite."""
    runtime, state, optim = work.runtime, work.state, work.config.optim
    runtime.sum_gradients(state.network)
    norm = runtime.clip(state.network, state.optimizer, optim.clip_grad)
    loss = torch.stack(sums.losses).sum() if sums.losses else torch.zeros((), device=runtime.device)
    loss = runtime.total(loss)
    read = torch.stack([loss, norm.float(), *sums.scalars.values()]).tolist()  # the step's only wait for the device
    total, grad_norm = read[:2]
    overflow = runtime.precision == "fp16" and not math.isfinite(grad_norm)  # the loss scale is too large: normal
    finite = math.isfinite(total) and (math.isfinite(grad_norm) or overflow)
    rate = set_learning_rate(
        state.optimizer, state.progress.step, work.total_steps, optim, state.progress.guard.lr_factor
    )
    suspects: list[str] = []
    if finite and sums.everyone:
        runtime.step(state.optimizer)
        if state.ema is not None:
            state.ema.update_parameters(state.network)
    elif not finite:
        runtime.skip()
        suspects = runtime.gather(_suspects(sums))
    state.optimizer.zero_grad(set_to_none=True)
    scalars = {name: value / max(sums.counts[name], 1) for name, value in zip(sums.scalars, read[2:], strict=True)}
    return Outcome(total, grad_norm, rate, finite, scalars, suspects, sums.everyone)


def _suspects(sums: _Sums) -> list[str]:
    bad = [not math.isfinite(loss.item()) for loss in sums.losses]
    chosen = [cases for cases, wrong in zip(sums.cases, bad, strict=True) if wrong or not any(bad)]
    return [case for cases in chosen for case in cases]


def _halve(work: Work, views: StepViews) -> None:
    progress, runtime = work.state.progress, work.runtime
    work.state.optimizer.zero_grad(set_to_none=True)
    runtime.free_memory()
    fits_none = runtime.any(progress.micro_batch <= 1)
    if fits_none:
        parameters = sum(parameter.numel() for parameter in work.state.network.parameters())
        raise does_not_fit(runtime.device, parameters, work.config.data.size)
    progress.micro_batch = math.ceil(min(progress.micro_batch, len(views)) / 2)
