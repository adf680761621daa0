"""SwinUNETR (Hatamizadeh et al. 2022), version 2, with the parameter names of the published VoCo weights.

Convolution blocks are MONAI's. With `decoder` off it is the backbone that VoCo pre-trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetOutBlock, UnetrUpBlock
from torch import Tensor, nn

from training_backend.nn.axes import Axes, turned, turned_back
from training_backend.nn.output import EncoderOutput
from training_backend.nn.patch import HALVED, Triple, check_halved, patch_grid
from training_backend.nn.swin import Merging, SwinTransformer, residual_block

TOKEN = 16
"""Voxels along each axis of a token of `SwinUnetr.encode`."""
COARSEST = HALVED
"""Voxels along each axis of a position of the coarsest map."""
STRIDES = {"enc0": 1, "enc1": 2, "enc2": 4, "enc3": 8, "skip": 16, "dec4": 32}
"""Voxels along each axis of a position of each map."""
STAGES = ("enc1", "enc2", "enc3", "skip")
"""Maps that stand for the stages of the transformer."""


@dataclass(frozen=True)
class Maps:
    """Features of a volume, [B, C, d, h, w]; strides 1, 2, 4, 8 (after a convolution block each), 16 and 32.

    Channels are F, F, 2F, 4F, 8F and 16F. `skip` is the transformer's own map, which only the decoder uses.
    """

    enc0: Tensor
    enc1: Tensor
    enc2: Tensor
    enc3: Tensor
    skip: Tensor
    dec4: Tensor

    @property
    def embedded(self) -> tuple[Tensor, ...]:
        """The five maps whose means are VoCo's embedding, in its order."""
        return (self.enc0, self.enc1, self.enc2, self.enc3, self.dec4)

    def embedding(self) -> Tensor:
        """Means of the five maps over the volume, joined: [B, 24F]."""
        return torch.cat([features.mean(dim=(2, 3, 4)) for features in self.embedded], dim=1)

    def pooled(self, size: int = 3) -> Tensor:
        """The five maps averaged to `size` positions per axis and joined: [B, 24F, size, size, size]."""
        return torch.cat([F.adaptive_avg_pool3d(features, size) for features in self.embedded], dim=1)

    def first(self, number: int | None) -> Maps:
        """The maps of the first `number` volumes, or of all."""
        return self if number is None else Maps(**{name: getattr(self, name)[:number] for name in STRIDES})

    def frozen(self) -> Maps:
        """The five maps cut off from the gradient; the transformer's own map stays, as published."""
        enc0, enc1, enc2, enc3, dec4 = (features.detach() for features in self.embedded)
        return Maps(enc0, enc1, enc2, enc3, self.skip, dec4)


class SwinUnetr(nn.Module):
    """Transformer, skip blocks, and the decoder where it is wanted.

    Args:
        in_channels: channels of the volume.
        feature_size: channels F of the finest maps; divisible by the heads of the first stage.
        window: sides of the attention windows.
        heads: attention heads of the four stages.
        merging: order of merged voxels; "legacy" for published weights.
        convolutions: version 2, with a residual convolution block before each stage.
        drop_path: stochastic depth of the transformer's last block.
        decoder: build the decoder.
        classes: channels of the logits; 0 leaves the last convolution out.
        axes: frame that `encode` and `logits` turn volumes into. The other functions take volumes in that frame.

    Raises:
        ConfigError: heads that do not divide the channels.
    """

    embedded_maps = (0, 1, 2, 3, 5)
    """Maps of the pyramid of `encode` whose channels make the width: those of VoCo's embedding."""

    def __init__(
        self,
        in_channels: int = 1,
        feature_size: int = 48,
        *,
        window: Triple = (7, 7, 7),
        heads: Sequence[int] = (3, 6, 12, 24),
        merging: Merging = "legacy",
        convolutions: bool = True,
        drop_path: float = 0.0,
        decoder: bool = False,
        classes: int = 0,
        axes: Axes = "xyz",
    ) -> None:
        super().__init__()
        self.in_channels, self.feature_size, self.axes, self.merging = in_channels, feature_size, axes, merging
        self.patch_size: Triple = (TOKEN, TOKEN, TOKEN)
        self.width, self.depth = 24 * feature_size, 2 * len(heads)
        f = feature_size
        self.swinViT = SwinTransformer(
            in_channels,
            f,
            window=window,
            heads=heads,
            merging=merging,
            convolutions=convolutions,
            drop_path=drop_path,
        )
        self.encoder1 = residual_block(in_channels, f)
        self.encoder2 = residual_block(f, f)
        self.encoder3 = residual_block(2 * f, 2 * f)
        self.encoder4 = residual_block(4 * f, 4 * f)
        self.encoder10 = residual_block(16 * f, 16 * f)
        if decoder:
            for level, (coarse, fine) in enumerate(
                ((f, f), (2 * f, f), (4 * f, 2 * f), (8 * f, 4 * f), (16 * f, 8 * f))
            ):
                up = UnetrUpBlock(3, coarse, fine, 3, 2, norm_name="instance", res_block=True)
                self.add_module(f"decoder{level + 1}", up)
        if classes:
            self.out = UnetOutBlock(3, f, classes)

    def maps(self, volume: Tensor) -> Maps:
        """Features of `volume` [B, C, D, H, W] in the network's frame, whose sides are multiples of 32 voxels."""
        check_halved(volume.shape[2:], "SwinUNETR")
        hidden = [x.contiguous() for x in self.swinViT(volume)]
        return Maps(
            self.encoder1(volume),
            self.encoder2(hidden[0]),
            self.encoder3(hidden[1]),
            self.encoder4(hidden[2]),
            hidden[3],
            self.encoder10(hidden[4]),
        )

    def decode(self, maps: Maps) -> Tensor:
        """Output [B, F, D, H, W] of the decoder."""
        x = maps.dec4
        for level, skip in ((5, maps.skip), (4, maps.enc3), (3, maps.enc2), (2, maps.enc1), (1, maps.enc0)):
            x = getattr(self, f"decoder{level}")(x, skip)
        return x

    def forward(self, volume: Tensor) -> Tensor:
        """Logits [B, K, D, H, W] of `volume` [B, C, D, H, W], both in the network's frame."""
        logits: Tensor = self.out(self.decode(self.maps(volume)))
        return logits

    def logits(self, volume: Tensor) -> Tensor:
        """Logits [B, K, D, H, W] of `volume` [B, C, D, H, W] of any size, both along (z, y, x)."""
        d, h, w = volume.shape[2:]
        return turned_back(self(turned(_whole(volume), self.axes)), self.axes)[:, :, :d, :h, :w]

    def encode(self, volume: Tensor, hidden: Sequence[int] = ()) -> EncoderOutput:
        """Features of `volume` [B, C, D, H, W] along (z, y, x), whose sides are multiples of 16 voxels.

        A token joins the five embedded maps, averaged or repeated to a grid of 16 voxels, so the mean of all tokens is
        VoCo's embedding. The pyramid holds all six maps. `hidden` blocks give the map of their stage on that grid.
        """
        grid = patch_grid(tuple(volume.shape[2:]), self.patch_size)
        maps = self.maps(turned(_whole(volume), self.axes))
        tokens = {name: self._tokens(getattr(maps, name), stride, grid) for name, stride in STRIDES.items()}
        joined = torch.cat([tokens[name] for name in STRIDES if name != "skip"], dim=2)
        kept = tuple(tokens[STAGES[block // 2]] for block in hidden)
        pyramid = tuple(
            _cut(turned_back(getattr(maps, name), self.axes), [-(-side // stride) for side in volume.shape[2:]])
            for name, stride in STRIDES.items()
        )
        return EncoderOutput(joined, grid, hidden=kept, pyramid=pyramid)

    def attention(self, volume: Tensor, block: int) -> Tensor:
        """Attention [B, heads, d, h, w] that each place of a token gets from the others of its windows at `block`.

        There is no class token, and windows see only their own voxels: the mean over a window stands for it.
        """
        grid = patch_grid(tuple(volume.shape[2:]), self.patch_size)
        chosen, rest = divmod(block, 2)
        x = self.swinViT.patch_embed(turned(_whole(volume), self.axes))
        for index in range(chosen):
            x = self.swinViT.stage(index)(self.swinViT.before(index, x))
        x = self.swinViT.before(chosen, x).permute(0, 2, 3, 4, 1)
        blocks = self.swinViT.stage(chosen).blocks
        if rest:
            x = blocks[0](x)
        received = blocks[rest].attn.received(blocks[rest].norm1(x))  # type: ignore[operator, union-attr]
        return self._tokens(received, 2 << chosen, grid).transpose(1, 2).unflatten(2, grid)

    def layer_id(self, parameter: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 embeddings, i + 1 block i, depth + 1 anything later."""
        parts = parameter.split(".")
        if parts[0] != "swinViT":
            return self.depth + 1
        if parts[1] == "patch_embed":
            return 0
        stage = 2 * (int(parts[1].removeprefix("layers").removesuffix("c")) - 1)
        if parts[1].endswith("c"):
            return stage + 1
        return stage + (int(parts[4]) + 1 if parts[3] == "blocks" else 2)

    def _tokens(self, features: Tensor, stride: int, grid: Triple) -> Tensor:
        """Tokens [B, L, C] in raster order (d, h, w) of a map in the network's frame, averaged or repeated."""
        features = turned_back(features, self.axes)
        if stride < TOKEN:
            features = F.avg_pool3d(features, TOKEN // stride)
        elif stride > TOKEN:
            features = F.interpolate(features, scale_factor=stride // TOKEN, mode="nearest")
        return _cut(features, grid).flatten(2).transpose(1, 2)


def _whole(volume: Tensor) -> Tensor:
    """`volume` with zeros at its end up to sides that `check_halved` accepts."""
    sides = [max(1, -(-side // COARSEST)) * COARSEST for side in volume.shape[2:]]
    if all(side == COARSEST for side in sides):
        sides[2] = 2 * COARSEST
    d, h, w = (wanted - found for wanted, found in zip(sides, volume.shape[2:], strict=True))
    return F.pad(volume, (0, w, 0, h, 0, d)) if d or h or w else volume


def _cut(features: Tensor, size: Sequence[int]) -> Tensor:
    d, h, w = size
    return features[:, :, :d, :h, :w]
