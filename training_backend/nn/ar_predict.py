"""What a next-patch network predicts: every patch from the true ones before it, or freely from a prefix on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training_backend.errors import ConfigError
from training_backend.nn.ar_layer import Memory
from training_backend.nn.ar_pretrain import NextPatch, statistics
from training_backend.nn.patch import Triple, patch_grid

Statistics = Literal["last", "mean"]


@dataclass(frozen=True)
class TeacherForced:
    """Predictions of one pass over true patches; maps are on our grid (d, h, w).

    Attributes:
        volume: [B, C, D, H, W] the prefix as it is, behind it each patch as predicted from the true ones before it.
            Where targets are normalised, each has the mean and deviation of the true patch, which no network predicts.
        error: [B, C, D, H, W] absolute difference to the input, 0 within the prefix.
        losses: [B, d, h, w] mean squared error of each patch as in training, NaN within the prefix.
        predicted: [B, d, h, w] bool, false within the prefix.
        numbers: [d, h, w] place of each patch in the sequence.
        slabs: [d, h, w] slab of each patch, from 0, of a view that is glued along z.
    """

    volume: Tensor
    error: Tensor
    losses: Tensor
    predicted: Tensor
    numbers: Tensor
    slabs: Tensor


@dataclass(frozen=True)
class Drawn:
    """One patch of a roll-out.

    Attributes:
        number: place of the patch in the sequence, from the prefix on.
        cell: (d, h, w) of the patch on our grid; its first voxel is ``cell * patch_size``.
        patch: [B, C, pz, py, px] its voxels.
        total: patches of the sequence.
    """

    number: int
    cell: Triple
    patch: Tensor
    total: int


@torch.no_grad()
def teacher_forced(network: NextPatch, volume: Tensor, prefix: int | Sequence[int]) -> TeacherForced:
    """Predictions of `volume` [B, C, D, H, W] behind the first `prefix` patches (of each view, or of all)."""
    layout, grid = network.model.layout, network.model.layout.raster_grid(volume)
    pixels = layout.to_sequence(layout.raster_patches(volume), grid).float()
    known = _prefixes(prefix, len(volume), pixels.shape[1]).to(volume.device)
    raw = network.predict(volume, known)
    behind = torch.arange(pixels.shape[1], device=volume.device) >= known[:, None]
    losses = (raw - network.target(pixels)).square().mean(dim=-1).masked_fill(~behind, float("nan"))
    shown = torch.where(behind[..., None], network.denormalise(raw, *statistics(pixels)), pixels)
    drawn = layout.raster_volume(layout.from_sequence(shown, grid), grid, volume.shape[1])
    return TeacherForced(
        volume=drawn,
        error=(drawn - volume.float()).abs(),
        losses=layout.map(losses, grid),
        predicted=layout.map(behind, grid),
        numbers=layout.numbers(grid),
        slabs=layout.slab_numbers(grid),
    )


@torch.no_grad()
def token_losses(network: NextPatch, volume: Tensor, prefix: int | Sequence[int]) -> Tensor:
    """Loss of each patch [B, d, h, w] on our grid, NaN within the prefix; arguments as `teacher_forced`."""
    layout, grid = network.model.layout, network.model.layout.raster_grid(volume)
    scored = network.score(volume, _prefixes(prefix, len(volume), grid[0] * grid[1] * grid[2]))
    losses = volume.new_full((len(volume), grid[0] * grid[1] * grid[2]), float("nan"), dtype=torch.float32)
    losses[scored.view.to(volume.device), scored.place.to(volume.device)] = scored.errors
    return layout.map(losses, grid)


def mean_losses(network: NextPatch, volume: Tensor, prefixes: Sequence[int]) -> Iterator[Tensor]:
    """How predictable each place is: mean of `token_losses` over `prefixes` so far, [B, d, h, w], after each of them.

    A patch that was within all prefixes so far is NaN.
    """
    total = count = None
    for prefix in prefixes:
        losses = token_losses(network, volume, prefix)
        seen = ~losses.isnan()
        total = losses.nan_to_num() if total is None else total + losses.nan_to_num()
        count = seen.float() if count is None else count + seen
        yield torch.where(count > 0, total / count.clamp(min=1), torch.nan)


@torch.no_grad()
def roll_out(network: NextPatch, volume: Tensor, prefix: int, source: Statistics = "last") -> Iterator[Drawn]:
    """Draw `volume` [B, C, D, H, W] anew behind its first `prefix` patches, each from the patches drawn before it.

    The prefix is computed once, together; then one token at a time is added to the keys and values of each layer. That
    equals running the whole sequence again for every patch, since no place behind the prefix is seen by an earlier one.
    Freely running on is not part of the published method.

    Args:
        network: in evaluation mode.
        volume: only its first `prefix` patches are looked at.
        prefix: patches given as context, 0 to L - 1.
        source: where targets are normalised, mean and deviation that the drawn patches get: those of the "last" patch
            of the prefix, or the "mean" over all of it.

    Raises:
        ConfigError: no such prefix, or none at all for a network that predicts normalised patches.
    """
    layout, grid = network.model.layout, network.model.layout.raster_grid(volume)
    length = grid[0] * grid[1] * grid[2]
    _prefixes(prefix, 1, length)
    if network.norm_pixel_loss and prefix == 0:
        raise ConfigError(
            "This network predicts patches without their brightness, which is taken from the patches given as context.",
            "Give at least one.",
        )
    pixels = layout.to_sequence(layout.raster_patches(volume), grid)[:, :prefix]
    mean, deviation = _borrowed(pixels, source)
    cells = _cells(layout.numbers(grid))
    memories = [Memory(1 + length) for _ in network.model.layers]
    x, positions = network.start(pixels, grid), network.positions(grid)
    for number in range(prefix, length):
        for layer, memory in zip(network.model.layers, memories, strict=True):
            x = layer(x, memory=memory)
        predicted = network.decoder_pred(network.model.norm(x[:, -1:])).float()
        patch = network.denormalise(predicted, mean, deviation)
        yield Drawn(number, cells[number], layout.raster_volume(patch, (1, 1, 1), volume.shape[1]), length)
        x = network.model.patchifier.embed(patch) + positions[number + 1]


def paste(volume: Tensor, drawn: Drawn) -> None:
    """Write a drawn patch into `volume` [B, C, D, H, W]."""
    box = [slice(k * n, (k + 1) * n) for k, n in zip(drawn.cell, drawn.patch.shape[2:], strict=True)]
    volume[(slice(None), slice(None), *box)] = drawn.patch.to(volume.dtype)


def patch_count(network: NextPatch, volume: Tensor) -> int:
    """Patches L of the sequence that `volume` [B, C, D, H, W] becomes."""
    d, h, w = patch_grid(tuple(volume.shape[2:]), network.patch_size)
    return d * h * w


def _prefixes(prefix: int | Sequence[int], views: int, length: int) -> Tensor:
    """Prefix of each view [B] on the CPU."""
    known = torch.tensor([prefix] * views if isinstance(prefix, int) else list(prefix))
    if len(known) != views or int(known.min()) < 0 or int(known.max()) >= length:
        raise ConfigError(
            f"The view is a sequence of {length} patches, of which 0 to {length - 1} can be given as context, "
            f"found {prefix}."
        )
    return known


def _borrowed(pixels: Tensor, source: Statistics) -> tuple[Tensor, Tensor]:
    """Mean and deviation [B, 1, 1] for patches that nobody knows, from those of the prefix [B, n, p]."""
    if not pixels.shape[1]:
        zero = pixels.new_zeros(len(pixels), 1, 1)
        return zero, zero + 1
    if source == "last":
        return statistics(pixels[:, -1:])
    mean, deviation = statistics(pixels)
    return mean.mean(dim=1, keepdim=True), deviation.square().mean(dim=1, keepdim=True).sqrt()


def _cells(numbers: Tensor) -> list[Triple]:
    """Cell (d, h, w) of each place of the sequence."""
    cells: list[Triple] = [(0, 0, 0)] * numbers.numel()
    for d, plane in enumerate(numbers.tolist()):
        for h, row in enumerate(plane):
            for w, number in enumerate(row):
                cells[number] = (d, h, w)
    return cells
