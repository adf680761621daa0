"""Time and memory of one step of a stage of `medcoss`, beside a plain step written as the reference does it.

The plain step holds one network for everything, the table of 49,411 words and both image decoders included, embeds all
patches and then drops the hidden ones, decodes and predicts every patch in raster order, and attends through PyTorch's
``MultiheadAttention``. Both sides start from the same weights and see the same volumes, noise and mixtures. Each runs
in fresh child processes, in turn, so that both meet the same load of the machine; processor time is told too, since it
does not count waiting for other programs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from training_backend.bench.step import child, peak_mb, summary, timed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training_backend.nn.medcoss import MedcossSettings

Side = Literal["ours", "plain", "idle"]
Step = Literal["masked", "distillation"]

SIZES: dict[str, dict[str, int]] = {
    "small": {"width": 384, "depth": 6, "heads": 6, "mlp_dim": 1536, "vocabulary": 5000}
    | {"decoder_width": 192, "decoder_depth": 4, "decoder_heads": 6},
    "base": {},
}
"""Settings of the networks; base is the published one."""
RECORDED = {
    "small masked": {"plain_s": 1.17, "plain_mb": 1436},
    "small distillation": {"plain_s": 0.52, "plain_mb": 1474},
    "base masked": {"plain_s": 2.86, "plain_mb": 3414},
    "base distillation": {"plain_s": 2.07, "plain_mb": 3564},
}
"""Of the authors' code, recorded elsewhere on two loaded cores with one thread: a hint, not a comparison."""


def main(
    sizes: tuple[str, ...] = ("base",), batch: int = 2, steps: int = 3, rounds: int = 1, threads: int = 1
) -> dict[str, object]:
    """Seconds per step and peak memory of ours and of the plain step on the CPU, and their ratios.

    Args:
        sizes: of the networks, small and base (published).
        batch: volumes of 16 x 192 x 192 voxels.
        steps: timed steps of one process, after one that is not.
        rounds: processes per side; the median of all steps counts, and the largest memory.
        threads: of one process.
    """
    table: dict[str, object] = {}
    for size in sizes:
        for step in ("masked", "distillation"):
            rows: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
            for _ in range(rounds):
                for side, found in rows.items():
                    found.append(child(__name__, side, step, size, batch, steps, threads))
            table[f"{size} {step}"] = summary(rows)
    idle = child(__name__, "idle", "masked", "small", 1, 1, threads)["mb"]
    return {"batch": batch, "threads": threads, "idle_mb": idle, **table, "recorded": RECORDED}


def measure(side: Side, step: Step, size: str, batch: int, steps: int, threads: int) -> None:
    """Body of a child: what it measured and the peak memory (MB), to standard output as JSON."""
    import torch

    from training_backend.nn.medcoss import MedcossSettings

    torch.set_num_threads(threads)
    row: dict[str, Any] = {}
    if side != "idle":
        settings = MedcossSettings(**SIZES[size])  # type: ignore[arg-type]
        volume = torch.rand(batch, 1, *settings.size_3d, generator=torch.Generator().manual_seed(1))
        network, run = (ours if side == "ours" else plain)(settings, step)
        row = timed(network, run, volume, steps)
    sys.stdout.write(json.dumps({**row, "mb": peak_mb("cpu")}))


def ours(settings: MedcossSettings, step: Step) -> tuple[nn.Module, Callable[[Tensor, int], float]]:
    """The product's network and optimiser, as the engine drives them."""
    import torch

    from training_backend.config import OptimConfig
    from training_backend.engine.optim import make_optimizer
    from training_backend.nn.medcoss import MedcossEncoder, MedcossNetwork
    from training_backend.nn.medcoss_distil import ImageDraws, distil_images

    network = MedcossNetwork(settings, "3d")
    _fill(network)
    optimizer = make_optimizer(network.train(), OptimConfig(lr=1e-4))
    teacher: MedcossEncoder | None = None
    if step == "distillation":
        teacher = MedcossEncoder(settings, ("3d",))
        _fill(teacher, 0.5)
        teacher.requires_grad_(False).eval()

    def loss_of(volume: Tensor, index: int) -> Tensor:
        torch.manual_seed(index)
        order, share, noise = draws(volume, settings, index)
        if teacher is None:
            return network.image_loss(volume, noise)
        return distil_images(network, teacher, volume, ImageDraws(order, share, noise))

    return network, _stepping(loss_of, optimizer)


def plain(settings: MedcossSettings, step: Step) -> tuple[nn.Module, Callable[[Tensor, int], float]]:
    """The straight way with the same weights."""
    import copy

    import torch

    from training_backend.nn.medcoss import KINDS, MedcossNetwork
    from training_backend.nn.param_groups import decay_groups

    network = straight(MedcossNetwork(settings, "3d", KINDS, KINDS)).train()
    _fill(network)
    optimizer = torch.optim.AdamW(decay_groups(network, 0.05), lr=1e-4, betas=(0.9, 0.95))
    teacher: nn.Module | None = None
    if step == "distillation":
        teacher = copy.deepcopy(network).requires_grad_(False).eval()
        for name in [name for name, _ in teacher.named_children() if name.startswith(("decoder", "mlm"))]:
            delattr(teacher, name)
        _fill(teacher, 0.5)

    def loss_of(volume: Tensor, index: int) -> Tensor:
        torch.manual_seed(index)
        order, share, noise = draws(volume, settings, index)
        if teacher is None:
            return plain_loss(network, volume, noise)
        mixed = share * volume + (1 - share) * volume[order]
        with torch.no_grad():
            wanted, _ = plain_features(teacher, mixed, noise)
        found, _ = plain_features(network, mixed, noise)
        return ((wanted - found) ** 2).mean()

    return network, _stepping(loss_of, optimizer)


def draws(volume: Tensor, settings: MedcossSettings, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which volumes are mixed [B], how much of each stays [B, 1, 1, 1, 1], and what hides patches [B, L]."""
    import torch

    generator = torch.Generator().manual_seed(index)
    d, h, w = settings.grid("3d")
    order = torch.randperm(len(volume), generator=generator)
    share = torch.rand(len(volume), 1, 1, 1, 1, generator=generator)
    return order, share, torch.rand(len(volume), d * h * w, generator=generator)


def straight(network: nn.Module) -> nn.Module:
    """`network` with PyTorch's own attention in the encoder, under the same names."""
    from torch import nn

    for layer in network.fused_encoder.layers:  # type: ignore[union-attr]
        ours: Any = layer.self_attn
        layer.self_attn = nn.MultiheadAttention(ours.out_proj.out_features, ours.heads, batch_first=True)
    return network


def plain_features(network: Any, volume: Tensor, noise: Tensor, ratio: float = 0.75) -> tuple[Tensor, Tensor]:
    """Output [B, 1 + visible, E] of the encoder, and the place [B, L] of each patch in visible + hidden."""
    import torch
    import torch.nn.functional as F

    def dropped(branch: Tensor, layer: Any) -> Tensor:
        if not network.training:
            return branch
        keep = 1 - layer.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep) / keep

    embed = network.video_embed
    positions = embed.embeddings_st_pos_3D
    tokens = embed.embeddings_3D(volume).flatten(2).transpose(1, 2)
    batch, length, width = tokens.shape
    tokens = embed.embeddings_norm(
        tokens + positions.spatial_pos_embed.weight[:length] + positions.temporal_pos_embed.weight[0]
    )
    shuffle = noise.argsort(dim=1)
    visible = tokens.gather(1, shuffle[:, : int(length * (1 - ratio)), None].expand(-1, -1, width))
    x = torch.cat([network.cls_token.expand(batch, -1, -1), visible], dim=1)
    for layer in network.fused_encoder.layers:
        seen = layer.norm1(x)
        x = x + layer.gamma_1 * dropped(layer.self_attn(seen, seen, seen)[0], layer)
        x = x + layer.gamma_2 * dropped(layer.linear2(F.gelu(layer.linear1(layer.norm2(x)))), layer)
    return x, shuffle.argsort(dim=1)


def plain_loss(network: Any, volume: Tensor, noise: Tensor) -> Tensor:
    """Loss of masked patches, with everything computed for every patch."""
    import torch

    from training_backend.nn.patch import patchify

    latent, restore = plain_features(network, volume, noise)
    x = network.decoder_embed(latent)
    batch, length = restore.shape
    hidden = network.mask_token.repeat(batch, length + 1 - x.shape[1], 1)
    patches = torch.cat([x[:, 1:], hidden], dim=1).gather(1, restore[:, :, None].expand(-1, -1, x.shape[2]))
    mask = (restore >= x.shape[1] - 1).float()
    x = torch.cat([x[:, :1], patches], dim=1) + network.decoder_pos_embed_3D
    for block in network.decoder_blocks:
        x = block(x)
    prediction = network.decoder_pred_3D(network.decoder_norm(x))[:, 1:]
    target = patchify(volume, network.settings.patch_3d)
    target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
    return (((prediction - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()


def _fill(network: nn.Module, shift: float = 0.0) -> None:
    """Weights that depend on nothing but their names, so that networks with other parts agree on those they share."""
    import zlib

    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.normal_(std=0.02, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
            if "gamma" in name:
                parameter.add_(0.1 + shift)


def _stepping(
    loss_of: Callable[[Tensor, int], Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[Tensor, int], float]:
    def step(volume: Tensor, index: int) -> float:
        loss = loss_of(volume, index)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
