from __future__ import annotations

import copy

import pytest
import torch

from training_backend.errors import GeometryError
from training_backend.nn.vit import VitEncoder


def encoder(**changes: object) -> VitEncoder:
    torch.manual_seed(0)
    settings = {"size": (16, 16, 16), "patch_size": (8, 8, 8), "in_channels": 1, "width": 24, "depth": 3, "heads": 3}
    return VitEncoder(**(settings | changes)).eval()


def test_tokens_keep_their_place_on_grids_that_are_no_cubes() -> None:
    network = encoder(size=(16, 24, 32))
    volume = torch.zeros(1, 1, 16, 24, 32)
    changed = volume.clone()
    changed[0, 0, 8:, 16:, 8:16] = 1.0  # token (1, 2, 1)
    difference = (network.embed(changed)[0] - network.embed(volume)[0])[0, 1:].abs().sum(-1).reshape(2, 3, 4)
    assert (difference > 0).nonzero().tolist() == [[1, 2, 1]]


def test_output_has_what_tasks_need() -> None:
    network = encoder()
    out = network.encode(torch.rand(2, 1, 16, 24, 8), hidden=(2, 0))
    assert out.grid == (2, 3, 1)
    assert out.tokens.shape == (2, 6, 24)
    assert out.summary is not None
    assert out.summary.shape == (2, 24)
    assert torch.equal(out.hidden[0], out.tokens)
    assert not torch.equal(out.hidden[1], out.tokens)


def test_attention_is_the_softmax_row_of_the_class_token() -> None:
    network = encoder()
    volume = torch.rand(2, 1, 16, 16, 16)
    for index in range(network.depth):
        rows = network.attention(volume, index)
        x, _ = network.embed(volume)
        for block in network.blocks[:index]:
            x = block(x)
        block = network.blocks[index]
        q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        full = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        torch.testing.assert_close(rows, full[:, :, 0, 1:].unflatten(-1, (2, 2, 2)))


@pytest.mark.parametrize(
    "name, depth",
    [
        ("cls_token", 0),
        ("pos_embed", 0),
        ("patch_embed.proj.weight", 0),
        ("blocks.0.norm1.weight", 1),
        ("blocks.2.mlp.fc1.bias", 3),
        ("norm.weight", 4),
    ],
)
def test_layers_are_numbered_for_layer_wise_decay(name: str, depth: int) -> None:
    assert encoder().layer_id(name) == depth


def test_stochastic_depth_skips_whole_branches_in_training_only() -> None:
    network = encoder(drop_path=0.9, depth=8)
    volume = torch.rand(4, 1, 16, 16, 16)
    assert torch.equal(network.encode(volume).tokens, network.encode(volume).tokens)
    network.train()
    assert not torch.equal(network.encode(volume).tokens, network.encode(volume).tokens)
    assert network.blocks[0].drop_path == 0.0
    assert network.blocks[-1].drop_path == pytest.approx(0.9)


def test_the_same_weights_give_the_same_gradients_when_blocks_are_recomputed() -> None:
    from training_backend.config import EngineConfig
    from training_backend.engine.memory import tune_blocks

    plain = encoder().train()
    recomputed = copy.deepcopy(plain)
    tune_blocks(recomputed, EngineConfig(activation_checkpointing=True))
    volume = torch.rand(1, 1, 16, 16, 16)
    for network in (plain, recomputed):
        network.encode(volume).tokens.square().mean().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), recomputed.named_parameters()):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert torch.equal(a.grad, b.grad), name


def test_first_query_of_a_block_changes_only_what_is_left_out() -> None:
    block = encoder().blocks[0]
    x = torch.rand(2, 9, 24)
    torch.testing.assert_close(block(x, 4), block(x)[:, 4:])


def test_volume_smaller_than_a_patch_gets_a_sentence() -> None:
    with pytest.raises(GeometryError, match="multiples of the patch size"):
        encoder().encode(torch.zeros(1, 1, 4, 16, 16))
