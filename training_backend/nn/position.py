"""Position tables of 3D vision transformers: the fixed sine-cosine code, and moving a table to another grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from training_backend.errors import WeightsError
from training_backend.nn.patch import Triple

FloatArray = npt.NDArray[np.float32]


def sincos_table(width: int, grid: Triple, *, reference_order: bool = False) -> Tensor:
    """Fixed position table [1, 1 + L, E] with a zero row for the class token.

    The channels are split in three, coding the position along d, h and w. Float32 throughout, as the published tables.

    Args:
        width: channels E.
        grid: patches along (d, h, w).
        reference_order: give tokens the codes in the order of the published code, which permutes positions on grids
            that are not cubic; on cubic grids both are the same.
    """
    d, h, w = grid
    if reference_order:
        axes = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (w, h, d)), indexing="ij"))
    else:
        axes = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (d, h, w)), indexing="ij"))
    codes = [sincos_1d(n, axis.ravel()) for n, axis in zip(_split(width), axes, strict=True)]
    table = np.zeros((1, 1 + d * h * w, width), dtype=np.float32)
    table[0, 1:] = np.concatenate(codes, axis=1)
    return torch.from_numpy(table)


def sincos_1d(width: int, positions: FloatArray) -> FloatArray:
    """Codes [N, width] of scalar `positions` [N]: sines, cosines, and one slow sine more where `width` is odd."""
    half = width // 2
    omega = 1.0 / np.float32(10000.0) ** (np.arange(half, dtype=np.float32) / np.float32(max(half, 1)))
    angles = positions.astype(np.float32)[:, None] * omega.astype(np.float32)[None]
    parts = [np.sin(angles), np.cos(angles)]
    if width % 2:
        parts.append(np.sin(positions.astype(np.float32) * np.float32(1e-4))[:, None])
    return np.concatenate(parts, axis=1).astype(np.float32)


def resize_table(table: Tensor, old_grid: Triple, new_grid: Triple) -> Tensor:
    """Position table [1, 1 + L', E] of `new_grid`, by trilinear interpolation of one [1, 1 + L, E] of `old_grid`.

    The class row is kept. A learnt or stored table must be moved so, not computed anew, for its tokens to keep meaning.
    """
    if old_grid == new_grid:
        return table
    return torch.cat([table[:, :1], resize_rows(table[0, 1:], old_grid, new_grid)[None]], dim=1)


def resize_rows(rows: Tensor, old_grid: Triple, new_grid: Triple) -> Tensor:
    """Rows [L', E] of the positions of `new_grid`, by trilinear interpolation of those [L, E] of `old_grid`."""
    if old_grid == new_grid:
        return rows
    volume = rows.reshape(1, *old_grid, rows.shape[-1]).permute(0, 4, 1, 2, 3)
    volume = F.interpolate(volume.float(), size=new_grid, mode="trilinear", align_corners=False).to(rows.dtype)
    return volume[0].flatten(1).transpose(0, 1)


def cubic_grid(tokens: int) -> Triple:
    """Grid (n, n, n) of a table with `tokens` patch rows, or a `WeightsError` if that is no cube."""
    side = round(tokens ** (1 / 3))
    if side**3 != tokens:
        raise WeightsError(
            f"A position table of {tokens} patches is not a cubic grid, and the file does not say which grid it is.",
            "Use weights saved with their configuration.",
        )
    return (side, side, side)


def _split(width: int) -> tuple[int, int, int]:
    base, rest = divmod(width, 3)
    return base, base + (rest == 2), base + (rest >= 1)
