from __future__ import annotations

import pytest
import torch

from training_backend.errors import GeometryError
from training_backend.nn.patch import PatchEmbed, pad_to_patch, patch_grid, patchify, unpatchify


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("patch, grid", [((2, 2, 2), (3, 3, 3)), ((2, 3, 4), (1, 2, 3)), ((4, 1, 2), (2, 5, 1))])
def test_unpatchify_inverts_patchify(channels: int, patch: tuple, grid: tuple) -> None:
    volume = torch.rand(2, channels, *(p * g for p, g in zip(patch, grid)))
    tokens = patchify(volume, patch)
    assert tokens.shape == (2, grid[0] * grid[1] * grid[2], patch[0] * patch[1] * patch[2] * channels)
    assert torch.equal(unpatchify(tokens, patch, grid, channels), volume)


def test_tokens_are_in_raster_order_and_the_channel_is_the_fastest_element() -> None:
    volume = torch.arange(2 * 4 * 6 * 8).reshape(1, 2, 4, 6, 8).float()
    tokens = patchify(volume, (2, 3, 4))
    d, h, w, z, y, x, c = 1, 0, 1, 1, 2, 3, 1
    token, element = (d * 2 + h) * 2 + w, ((z * 3 + y) * 4 + x) * 2 + c
    assert tokens[0, token, element] == volume[0, c, d * 2 + z, h * 3 + y, w * 4 + x]


@pytest.mark.parametrize("channels", [1, 3])
def test_embedding_equals_the_convolution_that_is_stored(channels: int) -> None:
    embed = PatchEmbed(channels, 5, (2, 3, 4))
    volume = torch.rand(2, channels, 4, 6, 8)
    torch.testing.assert_close(embed(volume), embed.proj(volume).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("shape", [(16, 16, 12), (8, 16, 16)])
def test_volumes_that_are_no_whole_patches_get_a_sentence(shape: tuple) -> None:
    with pytest.raises(GeometryError, match="patches of"):
        patch_grid(shape, (16, 8, 8) if shape[0] < 16 else (8, 8, 8))


def test_wrong_number_of_patches_gets_a_sentence() -> None:
    with pytest.raises(GeometryError, match="needs 8 x 8 values"):
        unpatchify(torch.zeros(1, 7, 8), (2, 2, 2), (2, 2, 2))


def test_padding_is_appended_at_the_end_and_only_where_needed() -> None:
    volume = torch.rand(1, 1, 4, 5, 6)
    padded = pad_to_patch(volume, (4, 4, 4), value=-1.0)
    assert padded.shape[2:] == (4, 8, 8)
    assert torch.equal(padded[:, :, :4, :5, :6], volume)
    assert (padded[:, :, :, 5:] == -1).all()
    assert pad_to_patch(padded, (4, 4, 4)) is padded
