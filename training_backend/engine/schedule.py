"""Learning rates as functions of the step alone, so that a resumed run continues them exactly."""

from __future__ import annotations

import math

from training_backend.config import OptimConfig


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total_steps`: linear warm-up, then the chosen shape.

    Where `optim.warmup_start` does not say otherwise, the first step already learns. The peak is reached at the end of
    the warm-up. With `optim.lr_per_epoch` all steps of an epoch have the rate of its first.
    """
    if optim.lr_per_epoch:
        length = total_steps / optim.epochs
        step = math.ceil(math.floor(step / length + 1e-9) * length - 1e-9)
    warmup = round(optim.warmup * total_steps)
    if step < warmup:
        if optim.warmup_start == "zero_to_peak":
            return optim.lr * step / max(warmup - 1, 1)
        return optim.lr * (step + (optim.warmup_start == "step")) / warmup
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    shapes = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "poly": (1 - done) ** 0.9, "linear": 1 - done}
    shapes["step"] = optim.step_factor ** math.floor((step - warmup) * optim.epochs / total_steps + 1e-9)
    shape = shapes.get(optim.schedule, 1.0)
    return optim.min_lr + (optim.lr - optim.min_lr) * shape


def lr_at_epoch(epoch: float, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Learning rate of the published recipe at a fractional epoch: linear warm-up from 0, then half a cosine."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    done = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * done))
