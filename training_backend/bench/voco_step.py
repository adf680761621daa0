"""Time and memory of one pre-training step of `voco`, beside a plain step written as the reference does it.

The plain step has MONAI's Swin transformer with the merging order of the published weights: a mask of all windows made
anew in every stage of every forward pass, and attention whose weights are all written down. Volumes are compared one by
one, the teacher follows parameter by parameter, and AdamW steps one tensor at a time. Both sides start from the same
weights, and see the same crops and the same dropped rows. Each runs in fresh child processes, in turn, so that both
meet the same load of the machine; processor time is told too, since it does not count waiting for other programs.
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

    from training_backend.data.position import Sampling
    from training_backend.nn.swin import SwinTransformer
    from training_backend.nn.voco import Voco

Side = Literal["ours", "plain", "plain recomputed", "ours recomputed", "bf16", "idle"]

CELLS = 3
RECORDED = {"feature_size": 12, "crops": 2, "plain_s": 55.9, "plain_mb": 10642, "recomputed_s": 87.5, "mb": 8192}
"""Of the authors' code, recorded elsewhere on two loaded cores with one thread: a hint, not a comparison."""


def main(
    feature_size: int = 6,
    crops: int = 1,
    volumes: int = 1,
    side: int = 64,
    steps: int = 2,
    rounds: int = 1,
    threads: int = 1,
    device: str = "cpu",
    recomputed: bool = True,
    half: bool = False,
) -> dict[str, object]:
    """Seconds per step and peak memory of ours and of the plain step, and their ratios.

    Args:
        feature_size: channels at full resolution; 12 is what was recorded of the authors' code, 48 is B.
        crops: random crops of a volume, beside its nine base crops.
        volumes: per step.
        side: voxels of a crop along each axis.
        steps: timed steps of one process, after one that is not.
        rounds: processes per side; the median of all steps counts, and the largest memory.
        threads: of one process.
        device: cpu or cuda.
        recomputed: also measure both sides computing blocks again in the backward pass, as the authors do.
        half: also measure ours in bf16.
    """
    sides = ["plain", "ours", *(["plain recomputed", "ours recomputed"] if recomputed else []), *["bf16"] * half]
    rows: dict[str, list[dict[str, Any]]] = {one: [] for one in sides}
    for _ in range(rounds):
        for one in sides:
            rows[one].append(child(__name__, one, feature_size, crops, volumes, side, steps, threads, device))
    table: dict[str, object] = {"as it is": summary({"plain": rows["plain"], "ours": rows["ours"]})}
    if recomputed:
        pair = {"plain": rows["plain recomputed"], "ours": rows["ours recomputed"]}
        table["blocks recomputed"] = summary(pair)
    if half:
        table["ours in bf16"] = summary({"plain": rows["plain"], "ours": rows["bf16"]})
    idle = child(__name__, "idle", feature_size, crops, volumes, side, 1, 1, device)["mb"]
    return {"threads": threads, "device": device, "idle_mb": idle, **table, "recorded": RECORDED}


def measure(
    kind: Side, feature_size: int, crops: int, volumes: int, side: int, steps: int, threads: int, device: str
) -> None:
    """Body of a child: what it measured and the peak memory (MB), to standard output as JSON."""
    import torch

    torch.set_num_threads(threads)
    row: dict[str, Any] = {}
    if kind != "idle":
        network = made(feature_size, crops, side).to(device)
        slabs = phantom_slabs(volumes, side).to(device)
        if kind.startswith("plain"):
            one = plain(network, recomputed=kind.endswith("recomputed")).to(device)
            row = timed(network, _step(one, network.sampling, _plain_optimizer(one)), slabs, steps)  # type: ignore[arg-type]
        else:
            if kind.endswith("recomputed"):
                _recompute(network)
            row = timed(network, _step(network, network.sampling, _optimizer(network), kind == "bf16"), slabs, steps)  # type: ignore[arg-type]
    sys.stdout.write(json.dumps({**row, "mb": peak_mb(device if kind != "idle" else "cpu")}))


def phantom_slabs(volumes: int, side: int) -> Tensor:
    """Generated chests as slabs [B, 1, X, Y, Z] within 0 and 1; crops of mere noise would all look alike."""
    import torch

    from training_backend.data.phantoms import thorax_ct
    from training_backend.nn.axes import turned

    found = [thorax_ct(seed, (side, CELLS * side, CELLS * side)).volume.array for seed in range(volumes)]
    slabs = torch.stack([torch.from_numpy(one.astype("float32")) for one in found])[:, None]
    return turned(((slabs + 175) / 425).clamp(0, 1), "xyz").contiguous()


def made(feature_size: int, crops: int, side: int, hidden: int = 1024) -> Voco:
    """Our network with fixed fresh weights, whose arrays have the axes of the reference."""
    import torch

    from training_backend.data.position import Sampling
    from training_backend.nn.voco import Voco

    torch.manual_seed(0)
    network = Voco(1, feature_size, hidden=hidden, projected=hidden)
    network.sampling = Sampling(cells=CELLS, crop=side, depth=side, crops=crops)
    return network.train()


def plain(network: Voco, *, recomputed: bool = False) -> nn.Module:
    """The straight way of the same network, with a copy of its weights."""
    import copy

    from torch import nn

    body = plain_swin(network.swinViT, (3, 6, 12, 24), recomputed=recomputed)
    result: Any = nn.Module()
    result.swinViT = body
    for name in ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10", "student", "teacher"):
        setattr(result, name, copy.deepcopy(getattr(network, name)))
    result.rows = network.drop_rows
    straight: nn.Module = result.train()
    return straight


def plain_swin(network: SwinTransformer, heads: tuple[int, ...], *, recomputed: bool = False) -> nn.Module:
    """MONAI's Swin transformer with the merging order of the published weights, and a copy of those of `network`."""
    import torch
    from monai.networks.nets import swin_unetr

    from training_backend.nn.swin import MERGED

    swin_unetr.rearrange = _rearranged  # MONAI wants einops for this

    class LegacyMerging(swin_unetr.PatchMerging):
        """The merging order of the published weights."""

        def forward(self, x: Tensor) -> Tensor:
            parts = [x[:, i::2, j::2, k::2] for i, j, k in MERGED["legacy"]]
            merged: Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
            return merged

    state = network.state_dict()
    features, channels = state["patch_embed.proj.weight"].shape[:2]
    body: nn.Module = swin_unetr.SwinTransformer(
        channels,
        features,
        tuple(network.stage(0).blocks[0].attn.window),  # type: ignore[union-attr, arg-type]
        (2, 2, 2),
        network.depths,
        heads,
        downsample=LegacyMerging,
        use_checkpoint=recomputed,
        use_v2=any(name.startswith("layers1c") for name in state),
    )
    body.load_state_dict(state)
    return body


def _rearranged(x: Tensor, pattern: str) -> Tensor:
    """`x` with its axes in the order of a pattern such as "n c d h w -> n d h w c"."""
    before, after = (side.split() for side in pattern.split("->"))
    return x.permute([before.index(axis) for axis in after])


def plain_loss(network: Any, crops: Tensor, keep: Tensor, labels: Tensor) -> Tensor:
    """The loss of a step on the straight way, as the pseudo-code of the paper has it.

    Args:
        network: of `plain`.
        crops: [B N + B K, 1, ...], all random crops, then all bases.
        keep: [B N + B K] rows that the student sees.
        labels: [B, N, K].
    """
    import torch

    maps = network.swinViT(crops)
    blocks = (network.encoder1, network.encoder2, network.encoder3, network.encoder4, network.encoder10)
    seen = (crops, maps[0], maps[1], maps[2], maps[4])
    pooled = [block(x).mean(dim=(2, 3, 4)) for block, x in zip(blocks, seen, strict=True)]
    embeddings = torch.cat(pooled, dim=1)
    student = network.student(embeddings * (keep.to(embeddings) / (1 - network.rows))[:, None])
    with torch.no_grad():
        own = network.student.parameters()
        for theirs, mine in zip(network.teacher.parameters(), own, strict=True):
            theirs.data = 0.9 * theirs.data + 0.1 * mine.data
        teacher = network.teacher(embeddings)
    return _plain_terms(student, teacher, labels)


def _plain_terms(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    import torch
    import torch.nn.functional as F

    def assign(x: Tensor, bases: Tensor) -> Tensor:
        return torch.stack([F.relu(F.cosine_similarity(one[None], bases, dim=1)) for one in x])

    def distance(target: Tensor, found: Tensor) -> Tensor:
        near = (-target * torch.log(1 - (target - found).abs() + 1e-6)).sum() / (target.sum() + 1e-6)
        empty = (target == 0).float()
        return near + (-empty * torch.log(1 - found + 1e-6)).sum() / (empty.sum() + 1e-6)

    count, crops, cells = labels.shape
    split = count * crops
    total = student.new_zeros(())
    for index, label in enumerate(labels):
        other = (index + 1) % count
        rows = slice(index * crops, (index + 1) * crops)
        bases, others = (slice(split + one * cells, split + (one + 1) * cells) for one in (index, other))
        total = total + distance(label, assign(student[rows], teacher[bases]))
        total = total + distance(assign(teacher[rows], teacher[others]), assign(student[rows], student[others]))
        pairs = [
            F.relu(F.cosine_similarity(student[bases][i], student[bases][j].detach(), dim=0)) ** 2
            for i in range(cells)
            for j in range(i + 1, cells)
        ]
        total = total + torch.stack(pairs).mean()
    return total / count


def our_loss(network: Voco, crops: Tensor, keep: Tensor, labels: Tensor) -> Tensor:
    """The loss of a step by the product's network, which lets the teacher follow first."""
    network.follow()
    _, student, teacher = network.project(crops, keep)
    return network.contrast(student, teacher, labels).loss


def _step(
    network: Any, sampling: Sampling, optimizer: torch.optim.Optimizer, half: bool = False
) -> Callable[[Tensor, int], float]:
    import torch

    from training_backend.data.position import sample
    from training_backend.nn.voco import Voco

    loss_of: Callable[..., Tensor] = our_loss if isinstance(network, Voco) else plain_loss

    def step(slabs: Tensor, index: int) -> float:
        generator = torch.Generator().manual_seed(index)
        crops, labels, _ = sample(slabs, sampling, generator, changed=True)
        keep = (torch.rand(len(crops), generator=generator) >= 0.2).to(crops.device)
        with torch.autocast(slabs.device.type, torch.bfloat16, enabled=half):
            loss = loss_of(network, crops, keep, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _optimizer(network: Voco) -> torch.optim.Optimizer:
    from training_backend.config import OptimConfig
    from training_backend.engine.optim import make_optimizer

    settings = OptimConfig(lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999), decay_all=True, amsgrad=True)
    return make_optimizer(network, settings)


def _plain_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01, amsgrad=True, foreach=False)


def _recompute(network: Voco) -> None:
    from training_backend.config import EngineConfig
    from training_backend.engine.memory import tune_blocks

    tune_blocks(network, EngineConfig(activation_checkpointing=True))
