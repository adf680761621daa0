"""How a run optimises, computes, saves and reports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training_backend.config.model import ConfigModel, ui


class OptimConfig(ConfigModel):
    """AdamW and schedules that are functions of the step alone."""

    epochs: float = Field(100, gt=0)
    """Passes over the training cases."""
    max_steps: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Optimiser steps; set, it wins over `epochs`."""
    batch_size: int = Field(8, ge=1)
    """Views per optimiser step over all devices; micro-batches are accumulated to reach it."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    min_lr: float = Field(0.0, ge=0, json_schema_extra=ui(advanced=True))
    """Learning rate at the end."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of all steps spent raising the learning rate from zero."""
    warmup_start: Literal["step", "zero", "zero_to_peak"] = Field("step", json_schema_extra=ui(advanced=True))
    """Learning rate of the first of w warm-up steps. step: 1/w of the peak. zero: none, as in VoCo's pre-training.
    zero_to_peak: none, and the last of the w steps has the peak already, as in its fine-tuning."""
    schedule: Literal["cosine", "poly", "linear", "constant", "step"] = "cosine"
    """Shape after the warm-up; poly has exponent 0.9."""
    step_factor: float = Field(0.8, gt=0, le=1, json_schema_extra=ui(advanced=True))
    """Schedule step: what the rate is multiplied by after each epoch; 0.8 for the reports of VoCo."""
    lr_per_epoch: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Change the learning rate between epochs only, in place of every step."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay of matrices; biases and norms have none."""
    decay_all: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Let biases, norms and embeddings decay too, as AR-SSL4M's pre-training does."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Exponential decay rates of AdamW."""
    amsgrad: bool = Field(False, json_schema_extra=ui(advanced=True))
    """AdamW that remembers the largest squared gradients, as VoCo and CC-CCII are trained."""
    zero_gradients: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Let parameters that a step does not use decay and move on by momentum, once they have learnt: what gradients of
    zero in place of none did in the time of PyTorch 1, for networks of several modalities."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate per layer below the head (0.75 in TANGERINE's fine-tuning; 1 is off)."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest gradient norm; empty is off."""
    ema: float | None = Field(None, gt=0, lt=1, json_schema_extra=ui(advanced=True))
    """Decay per step of an averaged copy of the weights, used for evaluation; empty is off."""


class EngineConfig(ConfigModel):
    """Devices, precision, saving and reporting."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    devices: int = Field(1, ge=1)
    """Processes, one per device; several start through torchrun."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on the CPU."""
    micro_batch: int | None = Field(None, ge=1)
    """Views per forward pass; empty starts at the batch size and halves when memory runs out."""
    compile: bool = Field(False, json_schema_extra=ui(advanced=True))
    """torch.compile each transformer block."""
    activation_checkpointing: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Recompute blocks in the backward pass: less memory, about a quarter slower."""
    threads: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """CPU threads of one process; empty leaves PyTorch's choice."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Save every so many steps; empty saves by `checkpoint_minutes` only."""
    checkpoint_minutes: float = Field(10, gt=0, json_schema_extra=ui(advanced=True))
    """Save at least this often."""
    keep_last: int = Field(2, ge=1, json_schema_extra=ui(advanced=True))
    """Checkpoints kept besides the best one."""
    val_steps: int | None = Field(None, ge=1)
    """Validate every so many steps; empty validates once per epoch, at least twenty times a run at most."""
    preview_minutes: float = Field(1.0, ge=0)
    """Write pictures for the viewer at most this often; 0 only on request."""
    log_steps: int = Field(1, ge=1, json_schema_extra=ui(advanced=True))
    """Write metrics every so many steps."""
    early_stop: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Stop after so many validations without improvement; empty is off."""
