"""The encoder of AR-SSL4M, with the parameter names of the published checkpoints.

Wang et al., "Autoregressive Sequence Modeling for 3D Medical Image Representation", AAAI 2025. After pre-training it
runs bidirectionally: the start token stays, the end token goes, every token sees every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.errors import ConfigError, WeightsError
from training_backend.nn.ar_layer import NORM_EPS, Layer, initialise
from training_backend.nn.ar_sequence import Layout, Order, visible
from training_backend.nn.axes import Axes
from training_backend.nn.output import EncoderOutput
from training_backend.nn.patch import PatchEmbed, Triple
from training_backend.nn.position import sincos_1d

START, END = 1, 2
"""Rows of the embedding; rows 0 and 3 are stored and never used, as published."""

Positions = Literal["sincos3d", "learnable"]
Scaling = Literal["absolute", "rescaled"]
Mode = Literal["bidirectional", "prefix", "causal"]


class ArEncoder(nn.Module):
    """Transformer over patches of a volume, with a start token.

    `encode` gives tokens, start token (`summary`) and `hidden` **before** the final norm, as every encoder here does.
    The published heads want ``encoder.norm(out.tokens)``; the taps H[3], H[6] and H[9] of the published UNETR are
    ``hidden=(3, 6, 9)`` as they come. Tokens are in raster order (d, h, w) of the volume as given.

    Args:
        size: voxels along (z, y, x) that the positions are made for; others are accepted too.
        patch_size: voxels of a patch along (z, y, x).
        in_channels: channels of the volume; the published encoder has one.
        width: channels E of a token.
        depth: number of layers.
        heads: attention heads.
        mlp_width: channels inside the MLPs.
        positions: "sincos3d" has no parameters; "learnable" is a table, interpolated to other grids.
        scaling: what "sincos3d" does on another grid than that of `size`: count patches from 0 ("absolute", as
            published), or spread the grid over the extent of the training grid ("rescaled").
        axes: frame of the network, see `Layout`.
        order: of the sequence in pre-training; the encoder itself does not depend on it.
        slabs: that pre-training views are glued from.
        pretraining: hold the positions of the end token too, under the name that they have in pre-training files.
    """

    def __init__(
        self,
        size: Triple,
        patch_size: Triple,
        in_channels: int = 1,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_width: int = 3072,
        positions: Positions = "sincos3d",
        scaling: Scaling = "absolute",
        axes: Axes = "xyz",
        order: Order = "interleaved",
        slabs: int = 4,
        pretraining: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.in_channels, self.patch_size = width, depth, in_channels, patch_size
        self.layout = Layout(patch_size, axes, order, slabs)
        self.grid = self.layout.raster_grid(torch.empty(1, 1, *size, device="meta"))
        self.scaling, self.pretraining = scaling, pretraining
        self.embed_tokens = nn.Embedding(4, width)
        self.patchifier = PatchEmbed(in_channels, width, self.layout.kernel)
        self.layers = nn.ModuleList(Layer(width, heads, mlp_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        initialise(self)
        if pretraining:
            nn.init.xavier_uniform_(self.patchifier.proj.weight.view(width, -1))
        self.table_name = ("pos_embed_learn" if pretraining else "pos_embed") if positions == "learnable" else ""
        if self.table_name:
            self.register_parameter(self.table_name, _table(int(np.prod(self.grid)), width, pretraining))
        elif width % 6:
            raise ConfigError(f"sincos3d positions need a width that is a multiple of 6, found {width}.")
        self._codes: dict[tuple[Triple, torch.device], Tensor] = {}

    has_summary = True
    """`encode` gives a summary: the start token."""

    def encode(self, volume: Tensor, hidden: Sequence[int] = ()) -> EncoderOutput:
        """Features of `volume` [B, C, D, H, W]; `hidden` are indices of layers whose tokens are wanted too."""
        x, grid = self.embed(volume)
        kept = {}
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in hidden:
                kept[index] = self._ours(x, grid)
        taps = tuple(kept[index] for index in hidden)
        return EncoderOutput(self._ours(x, grid), self.layout.our_grid(grid), summary=x[:, 0], hidden=taps)

    def embed(self, volume: Tensor) -> tuple[Tensor, Triple]:
        """Input [B, 1 + L, E] of the first layer in the raster of the reference, start token first, and its grid."""
        grid = self.layout.raster_grid(volume)
        positions = self.positions(grid)
        tokens = self.patchifier.embed(self.layout.raster_patches(volume)) + positions[1:]
        return torch.cat([self.special(START, positions[0], tokens), tokens], dim=1), grid

    def special(self, row: int, position: Tensor, like: Tensor) -> Tensor:
        """Start or end token [B, 1, E], of the type of the tokens `like` [B, L, E]."""
        number = torch.full((), row, device=position.device)
        token: Tensor = self.embed_tokens(number) + position
        return token.to(like.dtype).expand(len(like), 1, -1)

    def positions(self, grid: Triple) -> Tensor:
        """Position table [1 + L, E] for a `grid` of the reference, the start token's first, without the end token's.

        sincos3d: D / 3 channels per axis, [sines, cosines], zero for the start token.
        """
        if self.table_name:
            table = getattr(self, self.table_name)
            return resized(table[: len(table) - self.pretraining], self.grid, grid)
        device = self.embed_tokens.weight.device
        if (grid, device) not in self._codes:
            self._codes[grid, device] = sincos3d(self.width, grid, self._coordinates(grid)).to(device)
        return self._codes[grid, device]

    def end_position(self) -> Tensor:
        """Position [E] of the end token, zero for sincos3d."""
        if self.table_name and self.pretraining:
            last: Tensor = getattr(self, self.table_name)[-1]
            return last
        return self.embed_tokens.weight.new_zeros(self.width)

    @torch.no_grad()
    def attention(self, volume: Tensor, block: int) -> Tensor:
        """Attention [B, heads, d, h, w] of the start token to the patches in layer number `block`."""
        x, grid = self.embed(volume)
        for earlier in self.layers[:block]:
            x = earlier(x)
        weights = self.layers[block].attention(x, 0)[..., 1:]  # type: ignore[operator]
        return self.layout.to_ours(weights.transpose(1, 2), grid).movedim(-1, 1)

    @torch.no_grad()
    def token_attention(
        self, volume: Tensor, block: int, token_index: int, mode: Mode = "bidirectional", prefix: int = 0
    ) -> Tensor:
        """Attention [heads, d, h, w] that one patch pays to all patches in layer number `block`; only its row is made.

        What it pays to the start token is missing from the sum of 1.

        Args:
            volume: one view [1, C, D, H, W].
            block: index of the layer.
            token_index: number of the patch in raster order (d, h, w) of the volume.
            mode: "bidirectional" as in fine-tuning; "causal" or "prefix" as in pre-training.
            prefix: patches of the sequence given as context, for mode "prefix".
        """
        grid = self.layout.raster_grid(volume)
        x = self.embed(volume)[0]
        x = torch.cat([x[:, :1], self.layout.to_sequence(x[:, 1:], grid)], dim=1)
        place = int(self.layout.numbers(grid).flatten()[token_index]) + 1
        mask = None
        if mode != "bidirectional":
            known = torch.tensor([prefix if mode == "prefix" else 0], device=x.device)
            mask = visible(known, x.shape[1])
        for earlier in self.layers[:block]:
            x = earlier(x, mask)
        seen = None if mask is None else mask[:, 0, place]
        weights = self.layers[block].attention(x, place, seen)[0, :, 1:]  # type: ignore[operator]
        return self.layout.map(weights, grid)

    def layer_id(self, parameter: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 embeddings, i + 1 layer i, depth + 1 anything later."""
        first, _, rest = parameter.partition(".")
        if first in ("embed_tokens", "patchifier", "pos_embed", "pos_embed_learn"):
            return 0
        return int(rest.partition(".")[0]) + 1 if first == "layers" else self.depth + 1

    def _ours(self, x: Tensor, grid: Triple) -> Tensor:
        """Patch tokens [B, L, E] in our raster order of all tokens in that of the reference."""
        return self.layout.to_ours(x[:, 1:], grid).flatten(1, 3)

    def _coordinates(self, grid: Triple) -> list[np.ndarray]:
        """Where each patch of an axis stands, counted in patches of the training grid when they are rescaled."""
        steps = [np.arange(n, dtype=np.float32) for n in grid]
        if self.scaling == "absolute":
            return steps
        return [(k + 0.5) * (own / n) - 0.5 for k, n, own in zip(steps, grid, self.grid, strict=True)]


def sincos3d(width: int, grid: Triple, coordinates: Sequence[np.ndarray]) -> Tensor:
    """Codes [1 + L, E] of patches whose axes stand at `coordinates`; the first row, of the start token, is zero."""
    axes = np.meshgrid(*coordinates, indexing="ij")
    codes = [sincos_1d(width // 3, axis.ravel()) for axis in axes]
    table = np.zeros((1 + int(np.prod(grid)), width), np.float32)
    table[1:] = np.concatenate(codes, axis=1)
    return torch.from_numpy(table)


def resized(table: Tensor, old: Triple, new: Triple) -> Tensor:
    """Learnt table [1 + L', E] for the grid `new`, trilinearly interpolated from one [1 + L, E]; row 0 stays."""
    if len(table) != 1 + old[0] * old[1] * old[2]:
        raise WeightsError(f"A position table of {len(table) - 1} patches does not fit a grid of {old}.")
    if old == new:
        return table
    volume = table[1:].float().unflatten(0, old).permute(3, 0, 1, 2).unsqueeze(0)
    moved = F.interpolate(volume, size=new, mode="trilinear", align_corners=False)
    return torch.cat([table[:1], moved[0].flatten(1).transpose(0, 1).to(table.dtype)])


def _table(patches: int, width: int, pretraining: bool) -> nn.Parameter:
    """Learnable positions of the start token, the patches and, for `pretraining`, the end token, as published."""
    bound = 2.0 if pretraining else 0.02
    table = torch.empty(1 + patches + pretraining, width)
    return nn.Parameter(nn.init.trunc_normal_(table, std=0.02, a=-bound, b=bound))
