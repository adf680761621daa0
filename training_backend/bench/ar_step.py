"""Time and memory of one pre-training step of `ar`, and of drawing a view patch by patch, beside plain ways.

The plain step is what the reference describes: a mask [L + 2, L + 2] made on the CPU for every view and turned into
numbers that are added, attention whose weights are all written down, every layer and the head on every token, targets
of every patch, and PyTorch's AdamW one tensor at a time. Each side runs in fresh child processes, in turn, so that both
meet the same load of the machine; processor time is told too, since it does not count waiting for other programs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from training_backend.bench.step import child, peak_mb, summary, timed

if TYPE_CHECKING:
    from torch import Tensor

    from training_backend.nn.ar_pretrain import NextPatch

Side = Literal["ours", "plain", "bf16", "idle", "drawing"]

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "base64": {"side": 64, "batch": 2, "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
    "small64": {"side": 64, "batch": 4, "width": 384, "depth": 6, "heads": 6, "mlp_width": 1536},
    "base128": {"side": 128, "batch": 1, "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
}
"""Cubes of `side` voxels in patches of 16³."""
PATCH = 16
RECORDED = {
    "base64": {"seconds": 1.85, "fastest_s": 1.71, "mb": 2729},
    "small64": {"seconds": 1.27, "fastest_s": 1.21, "mb": 1473},
    "base128": {"seconds": 10.6, "mb": 2937},
}
"""Of the authors' code, recorded elsewhere on two loaded cores with one thread: a hint, not a comparison."""


def main(
    configurations: tuple[str, ...] = ("base64", "small64", "base128"),
    steps: int = 5,
    rounds: int = 2,
    threads: int = 1,
    device: str = "cpu",
    drawing: bool = True,
    prefix: int = 64,
    naive: int = 4,
) -> dict[str, object]:
    """Seconds per step and peak memory of ours and of the plain step, their ratios, and the speed of drawing.

    Both compute in fp32; "bf16" is ours in the precision in which the authors train, compared with plain fp32.

    Args:
        configurations: of `CONFIGURATIONS`.
        steps: timed steps of one process, after one that is not.
        rounds: processes per side; the median of all steps counts, and the largest memory.
        threads: of one process.
        device: cpu or cuda.
        drawing: draw a view of the last configuration too.
        prefix: patches given as context when drawing.
        naive: patches drawn by running the whole sequence again; each costs the same, so few are enough.
    """
    table: dict[str, object] = {}
    for name in configurations:
        rows: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": [], "bf16": []}
        for _ in range(rounds):
            for side in rows:
                rows[side].append(child(__name__, side, name, steps, threads, device))
        half = summary({"plain": rows["plain"], "ours": rows.pop("bf16")})
        told = {key: half[key] for key in ("ours_s", "ours_cpu_s", "time_ratio", "cpu_time_ratio", "ours_mb")}
        table[name] = {**summary(rows), "bf16": told, "recorded": RECORDED[name]}
    if drawing:
        table["drawing"] = child(__name__, "drawing", configurations[-1], prefix, threads, device, naive)
    return {
        "threads": threads,
        "device": device,
        "idle_mb": child(__name__, "idle", configurations[0], 1, 1, device)["mb"],
        **table,
    }


def measure(side: Side, name: str, steps: int, threads: int, device: str, naive: int = 0) -> None:
    """Body of a child: what it measured and the peak memory (MB), to standard output as JSON.

    For "drawing", `steps` is the prefix.
    """
    import torch

    torch.set_num_threads(threads)
    row: dict[str, Any] = {}
    if side == "drawing":
        row = _drawing(name, steps, naive, device)
    elif side != "idle":
        network = _network(name, device)
        volume = _volume(name, CONFIGURATIONS[name]["batch"], device)
        step = _plain(network) if side == "plain" else _ours(network, side == "bf16")
        row = timed(network, step, volume, steps)
    sys.stdout.write(json.dumps({**row, "mb": peak_mb(device if side != "idle" else "cpu")}))


def _network(name: str, device: str) -> NextPatch:
    import torch

    from training_backend.nn.ar import ArEncoder
    from training_backend.nn.ar_pretrain import NextPatch

    settings = {key: value for key, value in CONFIGURATIONS[name].items() if key not in ("side", "batch")}
    size = (CONFIGURATIONS[name]["side"],) * 3
    torch.manual_seed(0)
    return NextPatch(ArEncoder(size, (PATCH,) * 3, axes="zyx", pretraining=True, **settings)).to(device)


def _volume(name: str, batch: int, device: str) -> Tensor:
    import torch

    size = (CONFIGURATIONS[name]["side"],) * 3
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(1)).to(device)


def _prefix(volume: Tensor, index: int) -> Tensor:
    """Prefix lengths of step `index`, the same for both sides."""
    import torch

    length = (volume.shape[2] // PATCH) ** 3
    return torch.randint(length, (len(volume),), generator=torch.Generator().manual_seed(index))


def _ours(network: NextPatch, half: bool) -> Callable[[Tensor, int], float]:
    """The product's network and optimiser, as the engine drives them."""
    import torch

    from training_backend.config import OptimConfig
    from training_backend.engine.optim import make_optimizer

    network.train()
    optim = OptimConfig(lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999), decay_all=True)
    optimizer = make_optimizer(network, optim)

    def step(volume: Tensor, index: int) -> float:
        with torch.autocast(volume.device.type, torch.bfloat16, enabled=half):
            loss = network(volume, _prefix(volume, index))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _plain(network: NextPatch) -> Callable[[Tensor, int], float]:
    import torch

    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01, foreach=False)

    def step(volume: Tensor, index: int) -> float:
        prefix = _prefix(volume, index)
        masks = torch.stack([_mask(int(p), (volume.shape[2] // PATCH) ** 3 + 2) for p in prefix]).to(volume.device)
        loss = plain_loss(network, volume, prefix.to(volume.device), masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def _mask(prefix: int, places: int) -> Tensor:
    """Who sees whom in one view, [N, N] bool."""
    import torch

    mask = torch.tril(torch.ones(places, places, dtype=torch.bool))
    mask[:, : prefix + 1] = True
    return mask


def plain_loss(network: NextPatch, volume: Tensor, prefix: Tensor, masks: Tensor) -> Tensor:
    """Loss of next-patch prediction on the straight way, for a network with the axes of its arrays.

    Args:
        network: whose weights are used.
        volume: [B, 1, D, H, W].
        prefix: [B] patches given as context.
        masks: [B, N, N] bool, N = L + 2.
    """
    import torch

    from training_backend.nn.ar import END, START
    from training_backend.nn.patch import patchify

    model: Any = network.model
    patches = model.patchifier.proj(volume).flatten(2).transpose(1, 2)
    batch, length, _ = patches.shape
    grid = tuple(n // PATCH for n in volume.shape[2:])
    ends = model.embed_tokens(torch.tensor([START, END], device=volume.device)).expand(batch, -1, -1)
    x = torch.cat([ends[:, :1], patches + model.positions(grid)[1:], ends[:, 1:]], dim=1)
    added = (1.0 - masks[:, None].to(x.dtype)) * torch.finfo(x.dtype).min
    for layer in model.layers:
        x = _plain_layer(layer, x, added)
    logits = network.decoder_pred(model.norm(x)).float()[:, :-2]
    target = patchify(volume, (PATCH,) * 3)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    scored = torch.arange(length, device=volume.device) >= prefix[:, None]
    return ((logits - target) ** 2)[scored].mean()


def _plain_layer(layer: Any, x: Tensor, added: Tensor) -> Tensor:
    import torch.nn.functional as F

    attention = layer.self_attn
    y = layer.input_layernorm(x)
    q, k, v = (
        project(y).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + added).softmax(dim=-1)
    x = x + attention.o_proj((weights @ v).transpose(1, 2).flatten(2))
    hidden = F.gelu(layer.mlp.linear1(layer.post_attention_layernorm(x)))
    result: Tensor = x + layer.mlp.linear2(hidden)
    return result


def _drawing(name: str, prefix: int, naive: int, device: str) -> dict[str, Any]:
    """Seconds per patch of a roll-out, and of running the whole sequence again for each patch; largest difference."""
    import torch

    from training_backend.nn.ar_predict import paste, roll_out

    network, volume = _network(name, device).eval(), _volume(name, 1, device)
    known, again = volume.clone(), volume.clone()
    start, used = time.perf_counter(), time.process_time()
    drawn = list(roll_out(network, volume, prefix))
    wall, cpu = time.perf_counter() - start, time.process_time() - used
    for each in drawn:
        paste(known, each)
    start, used = time.perf_counter(), time.process_time()
    worst = 0.0
    for each in drawn[:naive]:
        patch = encoded_again(network, again, prefix, each.number)
        worst = max(worst, float((patch - each.patch).abs().max()))
        box = tuple(slice(k * PATCH, (k + 1) * PATCH) for k in each.cell)
        again[(slice(None), slice(None), *box)] = patch
    naive_wall, naive_cpu = ((time.perf_counter() - start) / naive, (time.process_time() - used) / naive)
    every = torch.tensor([wall, cpu]) / len(drawn)
    return {
        "patches": len(drawn),
        "seconds": round(wall, 2),
        "patch_s": round(float(every[0]), 4),
        "naive_patch_s": round(naive_wall, 3),
        "times_faster": round(naive_wall / float(every[0]), 1),
        "times_faster_cpu": round(naive_cpu / float(every[1]), 1),
        "largest_difference": worst,
        "same_prefix": bool(torch.equal(known[..., :PATCH, :PATCH, :PATCH], volume[..., :PATCH, :PATCH, :PATCH])),
    }


def encoded_again(network: NextPatch, volume: Tensor, prefix: int, number: int) -> Tensor:
    """Patch `number` [B, C, pz, py, px] as drawn after running the whole sequence of `volume`, with a mask, anew."""
    import torch

    from training_backend.nn.ar_pretrain import statistics

    layout, grid = network.model.layout, network.model.layout.raster_grid(volume)
    with torch.no_grad():
        predicted = network.trace(volume, torch.full((len(volume),), prefix)).logits[:, number : number + 1]
        pixels = layout.to_sequence(layout.raster_patches(volume), grid)
        patch = network.denormalise(predicted, *statistics(pixels[:, prefix - 1 : prefix]))
    return layout.raster_volume(patch, (1, 1, 1), volume.shape[1])
