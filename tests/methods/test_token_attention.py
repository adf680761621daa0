"""Attention from a clicked voxel is the row of that voxel's patch, on the patches of the scan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method, methods
from training_backend.errors import ConfigError
from training_backend.methods.base import Frame
from training_backend.methods.shared_views import TOKEN_ATTENTION

SETTINGS: dict[str, dict[str, Any]] = {
    "mae3d": {"data": {"size": (8, 16, 12)}, "method": {"patch_size": (4, 4, 4), "depth": 3, "decoder_depth": 1}},
    "medcoss": {"method": {"modality": "3D_CT"}},
}
SIZES = {"mae3d": (8, 16, 12), "medcoss": (16, 48, 48)}


@pytest.fixture(params=sorted(SETTINGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def encoder(name: str) -> Any:
    torch.manual_seed(0)
    chosen = method(name)
    network: Any = chosen.build(pretrain_config(name, "tiny", Path("d"), SETTINGS[name])).eval()
    with torch.no_grad():  # fresh layers look at all alike
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return chosen.encoder(network)


def view_of(name: str) -> torch.Tensor:
    return torch.rand(1, 1, *SIZES[name], generator=torch.Generator().manual_seed(2))


def every_row(encoder: Any, name: str, volume: torch.Tensor, block: int) -> torch.Tensor:
    """Attention [heads, L, L] of all patches to all patches in raster order, from the layer's own projections."""
    if name == "medcoss":
        x, kind, grid = encoder._embedded(volume)
        weights = encoder.fused_encoder.attention(x, block)[0, :, 1:, 1:]
        keys = encoder._ours(weights.permute(2, 0, 1).flatten(1)[None], kind, grid)[0].unflatten(1, weights.shape[:2])
        queries = encoder._ours(keys.permute(2, 1, 0).flatten(1)[None], kind, grid)[0]
        return queries.unflatten(1, (len(weights), -1)).transpose(0, 1)
    x, _ = encoder.embed(volume)
    for earlier in encoder.blocks[:block]:
        x = earlier(x)
    layer = encoder.blocks[block]
    q, k, _ = layer.attn.qkv(layer.norm1(x))[0].unflatten(1, (3, layer.attn.heads, -1)).permute(1, 2, 0, 3)
    return (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1)[:, 1:, 1:]


def drawn(encoder: Any, name: str, **options: Any) -> Frame:
    with torch.inference_mode():
        found = TOKEN_ATTENTION.draw(
            encoder, view_of(name), TOKEN_ATTENTION.options(**options), torch.Generator().manual_seed(0)
        )
        return next(found)


def test_every_transformer_offers_it() -> None:
    offered = {name for name, one in methods().items() if any(view.name == "token-attention" for view in one.views)}
    assert offered == {"mae3d", "medcoss", "ar"}


@pytest.mark.parametrize(("block", "head"), [(1, 2), (0, 0)])
def test_the_row_of_the_clicked_patch_is_drawn(encoder: Any, name: str, block: int, head: int) -> None:
    volume, patch = view_of(name), encoder.patch_size
    grid = tuple(n // p for n, p in zip(SIZES[name], patch, strict=True))
    cell = (grid[0] - 1, 0, grid[2] // 2)
    point = tuple(k * p + p - 1 for k, p in zip(cell, patch, strict=True))
    frame = drawn(encoder, name, point=point, block=block, head=head)
    with torch.inference_mode():
        rows = every_row(encoder, name, volume, (block or encoder.depth) - 1)
    row = rows[:, int(np.ravel_multi_index(cell, grid))]
    wanted = (row.mean(dim=0) if head == 0 else row[head - 1]).reshape(grid).numpy() * math.prod(grid)
    [picture] = frame.pictures
    np.testing.assert_allclose(picture.array, wanted, rtol=1e-4, atol=1e-6)
    assert wanted.max() > 1.05 * wanted.min()
    assert tuple(picture.voxels) == tuple(patch)
    assert f"Block {block or encoder.depth}, {f'head {head}' if head else 'mean of'}" in frame.text
    assert "goes to the class token" in frame.text


def test_blocks_and_heads_that_do_not_exist_get_a_sentence(encoder: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"has {encoder.depth} blocks"):
        drawn(encoder, name, block=encoder.depth + 1)
    with pytest.raises(ConfigError, match="head 99 does not exist"):
        drawn(encoder, name, head=99)
