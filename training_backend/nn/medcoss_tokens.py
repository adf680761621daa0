"""Tokens of reports, 2-D images and volumes, as the shared encoder of MedCoSS takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from training_backend.errors import ConfigError, GeometryError
from training_backend.nn.mae import Masking, take_rows
from training_backend.nn.medcoss_layers import NORM_EPS
from training_backend.nn.patch import Triple, embed_patches, patch_grid, patchify
from training_backend.nn.position import resize_rows

if TYPE_CHECKING:
    from training_backend.nn.medcoss import MedcossSettings

Kind = Literal["text", "2d", "3d"]
"""What the encoder reads: reports, 2-D images (views of one slice) or volumes."""

COLOURS = 3
"""Channels of a 2-D image; a grey one is repeated."""
MASKED = -1e4
"""Added to the attention to tokens that must not be seen."""


class Rows(nn.Module):
    """A learnt position table, ``position_embeddings`` in the published files."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(rows, width)


class TextTokens(nn.Module):
    """Words plus positions plus one constant row, normed."""

    def __init__(self, vocabulary: int, rows: int, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, width)
        self.embeddings_pos = Rows(rows, width)
        self.embeddings_token_type = nn.Embedding(2, width)
        self.embeddings_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, ids: Tensor) -> Tensor:
        """Tokens [B, T, E] of token numbers [B, T], or a `ConfigError` if these are too many or unknown."""
        table = self.embeddings_pos.position_embeddings.weight
        if ids.shape[1] > len(table):
            raise ConfigError(
                f"A text of {ids.shape[1]} tokens is longer than the {len(table)} positions of the text encoder.",
                "Choose a smaller length of texts.",
            )
        positions = table[: ids.shape[1]] + self.embeddings_token_type.weight[0]
        tokens: Tensor = self.embeddings_norm(self.embeddings(ids) + positions)
        return tokens


class Positions(nn.Module):
    """Learnt rows for places in the image, and for moments in a film, of which an image has one."""

    def __init__(self, rows: int, frames: int, width: int) -> None:
        super().__init__()
        self.spatial_pos_embed = nn.Embedding(rows, width)
        self.temporal_pos_embed = nn.Embedding(frames, width)


class ImageTokens(nn.Module):
    """Patches of 2-D images, of volumes, or of both, plus positions, normed.

    Args:
        settings: sizes.
        kinds: what can be read; only these parts are built.
    """

    def __init__(self, settings: MedcossSettings, kinds: tuple[Kind, ...]) -> None:
        super().__init__()
        self.settings = settings
        width, frames = settings.width, settings.frames
        if "2d" in kinds:
            patch = settings.patch_2d[1:]
            self.embeddings = nn.Conv2d(COLOURS, width, kernel_size=patch, stride=patch)
            self.embeddings_st_pos_2D = Positions(settings.rows_2d, frames, width)
        if "3d" in kinds:
            volume_patch = settings.patch_3d
            self.embeddings_3D = nn.Conv3d(settings.channels_3d, width, kernel_size=volume_patch, stride=volume_patch)
            self.embeddings_st_pos_3D = Positions(settings.rows_3d, frames, width)
        self.embeddings_norm = nn.LayerNorm(width, eps=NORM_EPS)
        if settings.unused_rows:  # in the authors' pre-training files, and never looked at
            self.embeddings_pos = Rows(settings.unused_rows, width)
            self.embeddings_type = nn.Embedding(1, width)

    def forward(self, volume: Tensor, kind: Kind, masking: Masking | None = None, row: int = 0) -> Tensor:
        """Tokens [B, n, E] of `volume` [B, C, D, H, W]: of the visible patches in their order, or of all in raster.

        `row` is that of the table of moments.
        """
        patch = self.settings.patch(kind)
        pixels = patchify(with_colours(volume, kind), patch)
        rows = self.positions(kind, patch_grid(tuple(volume.shape[2:]), patch)) + self._table(kind, "temporal")[row]
        embedding = self.embeddings if kind == "2d" else self.embeddings_3D
        if masking is None:
            tokens = embed_patches(embedding, pixels) + rows
        else:
            tokens = embed_patches(embedding, take_rows(pixels, masking.visible)) + rows[masking.visible]
        normed: Tensor = self.embeddings_norm(tokens)
        return normed

    def positions(self, kind: Kind, grid: Triple) -> Tensor:
        """Rows [L, E] of the places of `grid`.

        Pre-training fills the first rows of the table only, one per patch of its own grid. By default these are
        interpolated to other grids; flat positions take the first rows one after the other whatever the grid, as
        published, most of which may never have been trained.
        """
        table, needed = self._table(kind, "spatial"), grid[0] * grid[1] * grid[2]
        if self.settings.positions == "interpolate":
            trained = self.settings.grid(kind)
            return resize_rows(table[: trained[0] * trained[1] * trained[2]], trained, grid)
        if needed > len(table):
            raise GeometryError(
                f"An image of {grid[0]} x {grid[1]} x {grid[2]} patches needs {needed} positions, the encoder has "
                f"{len(table)}.",
                "Choose smaller views, or let positions be interpolated.",
            )
        return table[:needed]

    def _table(self, kind: Kind, what: Literal["spatial", "temporal"]) -> Tensor:
        tables = self.embeddings_st_pos_2D if kind == "2d" else self.embeddings_st_pos_3D
        return (tables.spatial_pos_embed if what == "spatial" else tables.temporal_pos_embed).weight


def with_colours(volume: Tensor, kind: Kind) -> Tensor:
    """`volume` [B, C, D, H, W] with the channels that patches are cut from: a grey 2-D image is repeated."""
    return volume.expand(-1, COLOURS, -1, -1, -1) if kind == "2d" and volume.shape[1] == 1 else volume


def text_mask(attention: Tensor, heads: int, *, compatible: bool = False) -> Tensor:
    """What is added to attention scores of a text: each word sees itself and earlier ones, and no padding.

    Args:
        attention: [B, T], 1 where there is a token.
        heads: attention heads.
        compatible: as published, which mixes up samples: head h of sample b gets the padding of sample
            (b * heads + h) mod B.

    Returns:
        [B, 1, T, T], or [B, heads, T, T] if `compatible`: rows are queries, columns keys.
    """
    batch, length = attention.shape
    causal = torch.ones(length, length, device=attention.device).tril()
    added = (1.0 - causal * attention[:, None, :]) * MASKED
    if not compatible:
        return added[:, None]
    return added.repeat(heads, 1, 1).reshape(batch, heads, length, length)
