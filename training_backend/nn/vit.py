"""The 3D vision transformer encoder, with the parameter names of the published checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training_backend.nn.attention import NORM_EPS, Block
from training_backend.nn.output import EncoderOutput
from training_backend.nn.patch import PatchEmbed, Triple, patch_grid
from training_backend.nn.position import resize_table, sincos_table


class VitEncoder(nn.Module):
    """Vision transformer over patches of a volume, with a class token and a fixed position table.

    Volumes of other sizes than `size` are accepted: the stored table is interpolated to their grid.

    Args:
        size: voxels along (z, y, x) that the position table is made for.
        patch_size: voxels of a patch along (z, y, x).
        in_channels: channels of the volume.
        width: channels E of a token.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden channels of the MLPs per channel of a token.
        drop_path: stochastic depth of the last block; it grows linearly from 0 in the first.
        reference_positions: keep the published code's order of positions on grids that are not cubic.
    """

    def __init__(
        self,
        size: Triple,
        patch_size: Triple,
        in_channels: int = 1,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        reference_positions: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.in_channels, self.patch_size = width, depth, in_channels, patch_size
        self.grid = patch_grid(size, patch_size)
        self.patch_embed = PatchEmbed(in_channels, width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        table = sincos_table(width, self.grid, reference_order=reference_positions)
        self.pos_embed = fixed_table(table)
        rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def encode(self, volume: Tensor, hidden: Sequence[int] = ()) -> EncoderOutput:
        """Features of `volume` [B, C, D, H, W]; `hidden` are indices of blocks whose tokens are wanted too."""
        x, grid = self.embed(volume)
        kept = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in hidden:
                kept[index] = x[:, 1:]
        return EncoderOutput(x[:, 1:], grid, summary=x[:, 0], hidden=tuple(kept[index] for index in hidden))

    def attention(self, volume: Tensor, block: int) -> Tensor:
        """Attention [B, heads, d, h, w] of the class token to the patches in block number `block`."""
        x, grid = self.embed(volume)
        for earlier in self.blocks[:block]:
            x = earlier(x)
        weights: Tensor = self.blocks[block].attention(x)  # type: ignore[operator]
        return weights[..., 1:].unflatten(-1, grid)

    def token_attention(self, volume: Tensor, block: int, token_index: int) -> Tensor:
        """Attention [heads, d, h, w] that one patch pays to all patches in block number `block`; only its row is made.

        What it pays to the class token is missing from the sum of 1.

        Args:
            volume: one view [1, C, D, H, W].
            block: index of the block.
            token_index: number of the patch in raster order (d, h, w) of the volume.
        """
        x, grid = self.embed(volume)
        for earlier in self.blocks[:block]:
            x = earlier(x)
        weights: Tensor = self.blocks[block].attention(x, token_index + 1)  # type: ignore[operator]
        return weights[0, :, 1:].unflatten(-1, grid)

    def embed(self, volume: Tensor) -> tuple[Tensor, Triple]:
        """Input [B, 1 + L, E] of the first block, class token first, and the grid (d, h, w)."""
        grid = patch_grid(tuple(volume.shape[2:]), self.patch_size)
        positions = self.positions(grid)
        tokens = self.patch_embed(volume) + positions[:, 1:]
        first = (self.cls_token + positions[:, :1]).expand(len(volume), -1, -1)
        return torch.cat([first.to(tokens.dtype), tokens], dim=1), grid

    def positions(self, grid: Triple) -> Tensor:
        """Position table [1, 1 + L, E] for `grid`."""
        return resize_table(self.pos_embed, self.grid, grid)

    def layer_id(self, parameter: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 embeddings, i + 1 block i, depth + 1 anything later."""
        first, _, rest = parameter.partition(".")
        if first in ("cls_token", "pos_embed", "patch_embed"):
            return 0
        return int(rest.partition(".")[0]) + 1 if first == "blocks" else self.depth + 1


def fixed_table(table: Tensor) -> nn.Parameter:
    """`table` as a frozen parameter: saved with the weights like in the published files, never trained.

    It is made by a factory function so that ``torch.device("meta")`` holds for it.
    """
    parameter = nn.Parameter(torch.zeros(table.shape), requires_grad=False)
    with torch.no_grad():
        parameter.copy_(table)
    return parameter
