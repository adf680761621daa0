"""Time and memory of one pre-training step of `mae3d`, beside a plain step written as the reference does it.

Both run in fresh child processes, in turn, so that they meet the same load of the machine and their peak memory is
their own; processor time is given too, since it does not count waiting for other programs. The plain step embeds every
patch with a convolution, decodes and predicts every patch, compares all of them and masks the loss afterwards, and
steps PyTorch's default AdamW.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Side = Literal["ours", "plain", "idle"]

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "small": {"width": 384, "depth": 6, "heads": 6, "decoder_width": 192, "decoder_depth": 4, "decoder_heads": 6},
    "vitb96": {"width": 768, "depth": 12, "heads": 12, "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16},
}
"""96³ voxels, patches of 16³, three quarters hidden."""

SIZE = (96, 96, 96)
PATCH = (16, 16, 16)


def main(
    configurations: tuple[str, ...] = ("small", "vitb96"),
    batch: int = 2,
    steps: int = 5,
    rounds: int = 3,
    threads: int = 1,
    device: str = "cpu",
) -> dict[str, object]:
    """Seconds per step and peak memory of ours and of the plain step, and their ratios.

    Args:
        configurations: of `CONFIGURATIONS`.
        batch: volumes per step.
        steps: timed steps of one process, after one that is not.
        rounds: processes per side; the median of all steps counts, and the largest memory.
        threads: of one process.
        device: cpu or cuda.
    """
    table: dict[str, object] = {}
    for name in configurations:
        rows: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
        for _ in range(rounds):
            for side in ("plain", "ours"):
                rows[side].append(child(__name__, side, name, batch, steps, threads, device))
        table[name] = summary(rows)
    return {
        "batch": batch,
        "threads": threads,
        "device": device,
        "idle_mb": child(__name__, "idle", "small", 1, 1, 1, device)["mb"],
        **table,
    }


def summary(rows: dict[str, list[dict[str, Any]]]) -> dict[str, object]:
    """Medians and ratios of the children of the sides "ours" and "plain"."""
    wall, cpu = ({side: _median(rows[side], clock) for side in rows} for clock in ("wall_s", "cpu_s"))
    memory = {side: max(row["mb"] for row in rows[side]) for side in rows}
    return {
        "plain_s": wall["plain"],
        "ours_s": wall["ours"],
        "time_ratio": round(wall["ours"] / wall["plain"], 3),
        "plain_cpu_s": cpu["plain"],
        "ours_cpu_s": cpu["ours"],
        "cpu_time_ratio": round(cpu["ours"] / cpu["plain"], 3),
        "plain_mb": memory["plain"],
        "ours_mb": memory["ours"],
        "memory_ratio": round(memory["ours"] / memory["plain"], 3),
        "parameters": rows["ours"][0]["parameters"],
        "first_losses": [rows[side][0]["loss"] for side in ("plain", "ours")],
    }


def _median(rows: list[dict[str, Any]], clock: str) -> float:
    return round(statistics.median(value for row in rows for value in row[clock]), 4)


def child(module: str, *arguments: object) -> dict[str, Any]:
    """What ``measure(*arguments)`` of `module` writes, run in a fresh process."""
    code = f"from {module} import measure; measure(*{arguments!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(result.stdout)
    return row


def measure(side: Side, name: str, batch: int, steps: int, threads: int, device: str) -> None:
    """Body of a child: time `steps` steps and write them and the peak memory (MB) to standard output as JSON."""
    import torch

    torch.set_num_threads(threads)
    row: dict[str, Any] = {}
    if side != "idle":
        torch.manual_seed(0)
        network, step = (_ours if side == "ours" else _plain)(name, device)
        volume = torch.rand(batch, 1, *SIZE, generator=torch.Generator().manual_seed(1)).to(device)
        row = timed(network, step, volume, steps)
    sys.stdout.write(json.dumps({**row, "mb": peak_mb(device if side != "idle" else "cpu")}))


def timed(network: nn.Module, step: Callable[[Tensor, int], float], volume: Tensor, steps: int) -> dict[str, Any]:
    """Seconds of `steps` steps after one that is not timed, whose loss is told."""
    row: dict[str, Any] = {"wall_s": [], "cpu_s": [], "loss": step(volume, 0)}
    row["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    for index in range(1, steps + 1):
        start, used = time.perf_counter(), time.process_time()
        step(volume, index)
        row["wall_s"].append(time.perf_counter() - start)
        row["cpu_s"].append(time.process_time() - used)
    return row


def peak_mb(device: str) -> int:
    """Peak memory of this process so far: of the device, or resident on a CPU."""
    import torch

    on_gpu = device != "cpu"
    peak = torch.cuda.max_memory_allocated() >> 10 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1024)


def _noise(batch: int, tokens: int, index: int) -> Tensor:
    import torch

    return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(index))


def _ours(name: str, device: str) -> tuple[nn.Module, Callable[[Tensor, int], float]]:
    """The product's network and optimiser, as the engine drives them."""
    from training_backend.config import OptimConfig
    from training_backend.engine.optim import make_optimizer
    from training_backend.nn.mae import MaskedAutoencoder

    network = MaskedAutoencoder(SIZE, PATCH, 1, **CONFIGURATIONS[name]).to(device).train()
    optimizer = make_optimizer(network, OptimConfig(lr=1e-4))

    def step(volume: Tensor, index: int) -> float:
        loss = network(volume, _noise(len(volume), network.pos_embed.shape[1] - 1, index).to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return network, step


def _plain(name: str, device: str) -> tuple[nn.Module, Callable[[Tensor, int], float]]:
    import torch

    from training_backend.nn.mae import MaskedAutoencoder
    from training_backend.nn.param_groups import decay_groups

    network = MaskedAutoencoder(SIZE, PATCH, 1, **CONFIGURATIONS[name]).to(device).train()
    optimizer = torch.optim.AdamW(decay_groups(network, 0.05), lr=1e-4, betas=(0.9, 0.95))

    def step(volume: Tensor, index: int) -> float:
        optimizer.zero_grad()
        loss = _plain_loss(network, volume, _noise(len(volume), network.pos_embed.shape[1] - 1, index).to(device))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return network, step


def _plain_loss(network: Any, volume: Tensor, noise: Tensor, ratio: float = 0.75) -> Tensor:
    """Loss of a masked autoencoder on the straight way: everything is computed for every patch."""
    import torch

    from training_backend.nn.patch import patchify

    tokens = network.patch_embed.proj(volume).flatten(2).transpose(1, 2) + network.pos_embed[:, 1:]
    batch, length, width = tokens.shape
    keep = int(length * (1 - ratio))
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    visible = tokens.gather(1, shuffle[:, :keep, None].expand(-1, -1, width))
    mask = torch.ones(batch, length, device=volume.device)
    mask[:, :keep] = 0
    mask = mask.gather(1, restore)
    x = torch.cat([(network.cls_token + network.pos_embed[:, :1]).expand(batch, -1, -1), visible], dim=1)
    for block in network.blocks:
        x = block(x)
    x = network.decoder_embed(network.norm(x))
    hidden = network.mask_token.repeat(batch, length - keep, 1)
    patches = torch.cat([x[:, 1:], hidden], dim=1).gather(1, restore[:, :, None].expand(-1, -1, x.shape[2]))
    x = torch.cat([x[:, :1], patches], dim=1) + network.decoder_pos_embed
    for block in network.decoder_blocks:
        x = block(x)
    prediction = network.decoder_pred(network.decoder_norm(x))[:, 1:]
    error = ((prediction - patchify(volume, network.patch_size)) ** 2).mean(dim=-1)
    return (error * mask).sum() / mask.sum()
