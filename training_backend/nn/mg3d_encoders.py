"""The image encoders that MG-3D pre-trains: a 3D Swin transformer, Models Genesis' U-Net, and nnU-Net's encoder.

All see volumes along (z, y, x) and end in one token per 32 x 32 x 32 voxels. Names are those of the published files
without their prefix ``vision_encoder.``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.errors import ConfigError
from training_backend.nn.output import EncoderOutput
from training_backend.nn.patch import HALVED, Triple, patch_grid
from training_backend.nn.plain_unet import PlainEncoder
from training_backend.nn.swin import Merging, SwinTransformer, channel_norm

TOKEN = HALVED
"""Voxels along each axis of a token."""
STAGES = 4
"""Stages of the Swin transformer and of the U-Net."""
NNUNET_FEATURES = (32, 64, 128, 256, 320, 320)
"""Channels of nnU-Net's encoder; strides 1 to 32."""


class VisionEncoder(nn.Module, ABC):
    """What the three encoders share; subclasses give `maps`.

    Attributes:
        width: channels E of a token.
        depth: number of blocks that features can be taken of.
    """

    patch_size: Triple = (TOKEN, TOKEN, TOKEN)
    width: int
    depth: int
    in_channels: int
    strides: tuple[int, ...] = ()
    """Voxels along each axis of a position of each map."""
    any_size: bool = False
    """Whether volumes need not be padded to whole tokens: the transformer pads its own maps, as published."""

    @abstractmethod
    def maps(self, volume: Tensor) -> list[Tensor]:
        """Maps [B, C, d, h, w] of `volume` [B, C, D, H, W] from fine to coarse; the last has a place per token."""

    def shown(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """The maps as decoders see them."""
        return tuple(maps)

    def pretrained(self, volume: Tensor) -> Tensor:
        """Tokens [B, L, E] as pre-training sees them, in raster order (d, h, w)."""
        return self.shown(self.maps(volume))[-1].flatten(2).transpose(1, 2)

    def encode(self, volume: Tensor, hidden: Sequence[int] = ()) -> EncoderOutput:
        """Features of `volume` [B, C, D, H, W], whose sides are multiples of 32 voxels unless it takes any size.

        Tokens are the last map as it is, without norm, as published for classification. The pyramid holds all maps,
        those of the transformer with the channels of each voxel standardised, as published for segmentation. `hidden`
        blocks give the map of their stage averaged (or repeated) to tokens.
        """
        grid = self.grid(volume)
        maps = self.maps(volume)
        kept = tuple(_tokens(maps[self._stage(block)], grid) for block in hidden)
        return EncoderOutput(_tokens(maps[-1], grid), grid, hidden=kept, pyramid=self.shown(maps))

    def attention(self, volume: Tensor, block: int) -> Tensor:
        """Size [B, 1, d, h, w] of the features of a block's map, averaged to tokens; convolutions have no attention."""
        grid = self.grid(volume)
        size = self.maps(volume)[self._stage(block)].norm(dim=1, keepdim=True)
        shares = F.adaptive_avg_pool3d(size, grid)
        return shares / shares.sum(dim=(2, 3, 4), keepdim=True).clamp_min(1e-12)

    def grid(self, volume: Tensor) -> Triple:
        """Tokens of `volume` along (d, h, w), or a `GeometryError` for a size that the encoder cannot take."""
        if not self.any_size:
            return patch_grid(tuple(volume.shape[2:]), self.patch_size)
        d, h, w = (-(-side // TOKEN) for side in volume.shape[2:])
        return (d, h, w)

    @abstractmethod
    def layer_id(self, parameter: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 embeddings, i + 1 block i, depth + 1 anything later."""

    def _stage(self, block: int) -> int:
        """Number of the map that a block belongs to."""
        return block


class SwinVision(VisionEncoder, SwinTransformer):
    """Swin transformer with one map per stage and one of the patches; strides 2 to 32, channels F to 16F.

    Args:
        in_channels: channels of the volume.
        feature_size: channels F: 48 (B) or 96 (L).
        window: sides of the attention windows.
        heads: of the four stages.
        merging: order of merged voxels; "legacy" for published weights.
        drop_path: stochastic depth of the last block.
        project: width of pre-training tokens after three linear layers, as Swin-L has them; 0 leaves them out.

    Raises:
        ConfigError: heads that do not divide the channels.
    """

    embedded_maps = (4,)
    """Map of the pyramid whose channels make the width."""
    strides = (2, 4, 8, 16, 32)
    any_size = True

    def __init__(
        self,
        in_channels: int = 1,
        feature_size: int = 48,
        *,
        window: Triple = (7, 7, 7),
        heads: Sequence[int] = (3, 6, 12, 24),
        merging: Merging = "legacy",
        drop_path: float = 0.0,
        project: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            feature_size,
            window=window,
            heads=heads,
            merging=merging,
            convolutions=False,
            drop_path=drop_path,
        )
        self.in_channels, self.feature_size = in_channels, feature_size
        self.width, self.depth = feature_size << STAGES, 2 * STAGES
        self.proj_head = ProjectionHead(self.width, project) if project else None

    def maps(self, volume: Tensor) -> list[Tensor]:
        """Maps of strides 2, 4, 8, 16, 32 as they are."""
        return self(volume, normalised=False)  # type: ignore[no-any-return]

    def shown(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """The maps with the channels of each voxel standardised."""
        return tuple(channel_norm(each) for each in maps)

    def pretrained(self, volume: Tensor) -> Tensor:
        """Tokens [B, L, E] of the standardised last map, projected where the published network does."""
        tokens = channel_norm(self.maps(volume)[-1]).flatten(2).transpose(1, 2)
        return tokens if self.proj_head is None else self.proj_head(tokens)

    def attention(self, volume: Tensor, block: int) -> Tensor:
        """Attention [B, heads, d, h, w] that each place of a token gets from the others of its windows at `block`."""
        grid = self.grid(volume)
        chosen, rest = divmod(block, 2)
        x = self.patch_embed(volume)
        for index in range(chosen):
            x = self.stage(index)(x)
        x, blocks = x.permute(0, 2, 3, 4, 1), self.stage(chosen).blocks
        if rest:
            x = blocks[0](x)
        received: Tensor = blocks[rest].attn.received(blocks[rest].norm1(x))  # type: ignore[operator, union-attr]
        return F.adaptive_avg_pool3d(received, grid)

    def layer_id(self, parameter: str) -> int:
        """0 the patch embedding, 1 to 8 the blocks (merging with the second of its stage), 9 the projection."""
        parts = parameter.split(".")
        if parts[0] == "patch_embed":
            return 0
        if not parts[0].startswith("layers"):
            return self.depth + 1
        first = 2 * (int(parts[0].removeprefix("layers")) - 1)
        return first + (int(parts[3]) + 1 if parts[2] == "blocks" else 2)

    def _stage(self, block: int) -> int:
        return block // 2 + 1


class ProjectionHead(nn.Module):
    """Three linear layers of tokens, each place of a volume standardised between them over batch and channels.

    The published network gives tokens [B, L, E] to a batch norm, which takes their places for channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = (inputs, outputs, outputs)
        for number, width in enumerate(widths, 1):
            self.add_module(f"layer{number}", nn.Sequential(nn.Linear(width, outputs)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, outputs] of `tokens` [B, L, inputs]."""
        for number in (1, 2):
            tokens = F.relu(F.batch_norm(getattr(self, f"layer{number}")(tokens), None, None, training=True))
        out: Tensor = self.layer3(tokens)  # type: ignore[operator]
        return out


class GenesisVision(VisionEncoder):
    """Encoder of Models Genesis' U-Net: two convolutions a stage, and tokens by average; channels 2F to 16F.

    Batch norms take the statistics of the batch at hand in evaluation too, as published.

    Args:
        in_channels: channels of the volume.
        feature_size: channels F of the first convolution: 48 as published.
    """

    embedded_maps = (4,)
    strides = (1, 2, 4, 8, 32)

    def __init__(self, in_channels: int = 1, feature_size: int = 48) -> None:
        super().__init__()
        self.in_channels, self.feature_size = in_channels, feature_size
        self.width, self.depth = feature_size << STAGES, STAGES
        before = in_channels
        for stage in range(STAGES):
            inner = feature_size << stage
            self.add_module(f"down_tr{64 << stage}", _GenesisStage(before, inner, 2 * inner))
            before = 2 * inner

    def maps(self, volume: Tensor) -> list[Tensor]:
        """Maps of strides 1, 2, 4 and 8, and the last one averaged over 4 x 4 x 4 places."""
        x, found = volume, []
        for stage in range(STAGES):
            x = getattr(self, f"down_tr{64 << stage}")(F.max_pool3d(x, 2) if stage else x)
            found.append(x)
        return [*found, F.avg_pool3d(x, 4)]

    def layer_id(self, parameter: str) -> int:
        """1 to 4 the stages."""
        number = parameter.split(".")[0].removeprefix("down_tr")
        return (int(number) // 64).bit_length() if number.isdigit() else self.depth + 1


class _GenesisStage(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(_GenesisUnit(inputs, inner), _GenesisUnit(inner, outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ops(x)
        return out


class _GenesisUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(outputs, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))


class PlainVision(VisionEncoder):
    """Encoder of nnU-Net, whose code and weights the authors name but do not give; as nnU-Net itself has it.

    Args:
        in_channels: channels of the volume.
        features: channels of the six stages, whose strides are 1 to 32.
        project: width of pre-training tokens by a linear layer where the last stage has other channels; 0 leaves it
            out.
    """

    embedded_maps = (5,)
    strides = (1, 2, 4, 8, 16, 32)

    def __init__(self, in_channels: int = 1, features: Sequence[int] = NNUNET_FEATURES, project: int = 0) -> None:
        super().__init__()
        if len(features) != len(self.strides):
            raise ConfigError(f"nnU-Net's encoder has {len(self.strides)} stages here, not {len(features)}.")
        self.in_channels, self.width, self.depth = in_channels, features[-1], len(features)
        self.encoder = PlainEncoder(in_channels, features, 2)
        self.proj_head = nn.Linear(self.width, project) if project else None

    def maps(self, volume: Tensor) -> list[Tensor]:
        """Maps of strides 1 to 32; of a single token's voxels with zeros beside them, as one place has no norm."""
        alone = max(volume.shape[2:]) == TOKEN
        maps: list[Tensor] = self.encoder(F.pad(volume, (0, TOKEN)) if alone else volume)
        return [each[..., : each.shape[-2]] for each in maps] if alone else maps

    def pretrained(self, volume: Tensor) -> Tensor:
        """Tokens [B, L, E] of the last map."""
        tokens = super().pretrained(volume)
        return tokens if self.proj_head is None else self.proj_head(tokens)

    def layer_id(self, parameter: str) -> int:
        """1 to 6 the stages."""
        parts = parameter.split(".")
        return int(parts[2]) + 1 if parts[:2] == ["encoder", "stages"] else self.depth + 1


def _tokens(features: Tensor, grid: Triple) -> Tensor:
    """Tokens [B, L, C] of a map, averaged or repeated to `grid`."""
    if tuple(features.shape[2:]) != tuple(grid):
        features = F.adaptive_avg_pool3d(features, grid)
    return features.flatten(2).transpose(1, 2)
