"""Weights for nnU-Net v2: files that its trainers can start from.

nnU-Net reads ``network_weights`` of a file and asks for every tensor of its own network but the last convolutions
(``seg_layers``), under all names that it stores each of them by. Two kinds of networks go there: its own plain U-Net,
and VoCo's SwinUNETR for the trainers of VoCo's authors, which take what they find.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training_backend.errors import WeightsError
from training_backend.files import atomic

if TYPE_CHECKING:
    from torch import Tensor

PLAIN = "encoder.stages.0.0.convs.0.conv.weight"
"""Tensor that tells a plain U-Net."""
SWIN = "swinViT.patch_embed.proj.weight"
"""Tensor that tells VoCo's SwinUNETR."""
HEAD = "decoder.seg_layers."
SUFFIXES = (".pth", ".pt")


@dataclass(frozen=True)
class NnunetWeights:
    """A file for nnU-Net.

    Attributes:
        path: of the file.
        network: "PlainConvUNet" or "SwinUNETR".
        tensors: different ones in it.
        channels: of the scans that its first convolution takes.
        features: channels of the stages, for plain U-Nets.
        trainer: what reads it.
    """

    path: Path
    network: str
    tensors: int
    channels: int
    features: tuple[int, ...]
    trainer: str

    def __str__(self) -> str:
        """Sentences on what it is and how to use it."""
        stages = f" with stages of {', '.join(map(str, self.features))} channels" if self.features else ""
        what = f"{self.network}{stages}, {self.tensors} tensors, for scans of {self.channels} channel(s)"
        return f"Wrote {self.path}: {what}. {self.trainer}"


def export_nnunet(source: str | Path, output: Path, *, channels: int | None = None) -> NnunetWeights:
    """Write `source` as nnU-Net v2 reads it.

    Args:
        source: checkpoint of a plain U-Net or of VoCo, run directory or model folder.
        output: .pth file; replaced if it is there.
        channels: of the scans in nnU-Net, where they are not those of the weights; the first convolutions are spread
            so that a scan repeated over all channels gets the features that it got before.

    Raises:
        WeightsError: a network that nnU-Net has no trainer for, or an ending that it does not read.
    """
    import torch

    output = Path(output)
    if output.suffix.lower() not in SUFFIXES:
        raise WeightsError(f"nnU-Net reads {' and '.join(SUFFIXES)}, not {output.suffix or 'no suffix'}.")
    tensors = _tensors(source)
    if PLAIN in tensors:
        written, found = _plain(tensors, channels, output)
    elif SWIN in tensors:
        written, found = _swin(tensors, channels, output)
    else:
        raise WeightsError(
            "nnU-Net's trainers know its own plain U-Net and VoCo's SwinUNETR; these weights are of another network "
            f"({', '.join(sorted(tensors)[:2])}, ...).",
            "Fine-tune them here, or export weights of VoCo or VoComni.",
        )
    stream = io.BytesIO()
    torch.save({"network_weights": written}, stream)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as file:
        file.write(stream.getbuffer())
    return found


def plain_sizes(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], int]:
    """Channels of the stages, and convolutions of a stage, of a plain U-Net."""
    stages = [re.fullmatch(r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.conv\.weight", name) for name in tensors]
    found = {(int(match[1]), int(match[2])) for match in stages if match}
    count, convolutions = 1 + max(stage for stage, _ in found), 1 + max(unit for _, unit in found)
    widths = [tensors[f"encoder.stages.{stage}.0.convs.0.conv.weight"].shape[0] for stage in range(count)]
    return tuple(int(width) for width in widths), convolutions


def _tensors(source: str | Path) -> dict[str, Tensor]:
    """Weights by the names of a network on its own, whatever file or folder they come from."""
    from training_backend.weights.safe_load import load_tensors
    from training_backend.weights.source import locate

    path = locate(source)
    checkpoint = load_tensors(path)
    whole = {checkpoint.prefix + name: tensor for name, tensor in checkpoint.tensors.items()}
    for name in (PLAIN, SWIN):
        starts = [key.removesuffix(name) for key in whole if key.endswith(name) and "decoder." not in key]
        if starts:
            start = min(starts, key=len)
            return {key.removeprefix(start): tensor for key, tensor in whole.items() if key.startswith(start)}
    return whole


def _plain(
    tensors: Mapping[str, Tensor], channels: int | None, output: Path
) -> tuple[dict[str, Tensor], NnunetWeights]:
    from training_backend.nn.plain_unet import PlainUnet, with_aliases, without_aliases

    own = without_aliases(tensors)
    features, convolutions = plain_sizes(own)
    own[PLAIN] = _spread(own[PLAIN], channels)
    classes = next((tensor.shape[0] for name, tensor in own.items() if name.startswith(HEAD)), 2)
    wanted = PlainUnet(own[PLAIN].shape[1], classes, features, convolutions).state_dict()
    lacking = [
        name
        for name, tensor in wanted.items()
        if not name.startswith(HEAD) and (name not in own or own[name].shape != tensor.shape)
    ]
    if lacking:
        raise WeightsError(
            f"A plain U-Net of {len(features)} stages needs {lacking[0]} and {len(lacking) - 1} more tensors that are "
            "not in the file, or not of its size.",
            "nnU-Net starts only from a whole network, decoder included.",
        )
    kept = {name: own[name] for name in own if name in wanted or name.startswith(HEAD)}
    how = "Start nnU-Net with: nnUNetv2_train ... -pretrained_weights FILE, with plans of the same stages."
    found = NnunetWeights(output, "PlainConvUNet", len(kept), own[PLAIN].shape[1], features, how)
    return with_aliases(kept), found


def _swin(tensors: Mapping[str, Tensor], channels: int | None, output: Path) -> tuple[dict[str, Tensor], NnunetWeights]:
    kept = {name: tensor for name, tensor in tensors.items() if re.match(r"(swinViT|encoder\d+|decoder\d|out)\.", name)}
    for name in (SWIN, "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"):
        if name in kept:
            kept[name] = _spread(kept[name], channels)
    how = "VoCo's nnUNetTrainer_swin_pre reads it; nnU-Net's own trainers have no such network."
    return kept, NnunetWeights(output, "SwinUNETR", len(kept), kept[SWIN].shape[1], (), how)


def _spread(kernel: Tensor, channels: int | None) -> Tensor:
    from training_backend.weights.families import spread_channels

    if channels is None or channels == kernel.shape[1]:
        return kernel
    spread = spread_channels(kernel, (kernel.shape[0], channels, *kernel.shape[2:]))
    assert spread is not None  # only the channels differ
    return spread.contiguous()
