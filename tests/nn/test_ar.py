"""The encoder of AR-SSL4M: positions, tokens on our grid, attention, layer depths, initial weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training_backend.errors import ConfigError, GeometryError, WeightsError
from training_backend.nn.ar import ArEncoder, resized, sincos3d
from training_backend.nn.ar_layer import Memory, SelfAttention
from training_backend.nn.ar_sequence import Layout, visible
from training_backend.nn.patch import patchify

SMALL: dict[str, Any] = {"width": 24, "depth": 3, "heads": 3, "mlp_width": 48}


def encoder(size: tuple = (8, 12, 16), patch: tuple = (4, 4, 4), **changes: Any) -> ArEncoder:
    torch.manual_seed(0)
    return ArEncoder(size, patch, **(SMALL | changes)).eval()


def volume(size: tuple = (8, 12, 16), views: int = 2, channels: int = 1) -> torch.Tensor:
    return torch.rand(views, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize("order", ["interleaved", "slab-major"])
@pytest.mark.parametrize("channels", [1, 2])
def test_volumes_survive_the_way_into_a_sequence_and_back(axes: str, order: str, channels: int) -> None:
    layout = Layout((2, 3, 4), axes, order, slabs=2)
    given = volume((8, 9, 16), channels=channels)
    grid = layout.raster_grid(given)
    sequence = layout.to_sequence(layout.raster_patches(given), grid)
    back = layout.raster_volume(layout.from_sequence(sequence, grid), grid, channels)
    assert torch.equal(back, given)


def test_the_frame_of_the_reference_is_right_anterior_superior_with_z_fastest() -> None:
    layout = Layout((1, 1, 1))
    places = torch.arange(2 * 3 * 4).view(1, 1, 2, 3, 4)  # (z, y, x) growing to S, P and L
    sequence = layout.raster_patches(places)[0, :, 0].view(4, 3, 2)
    for x in range(4):
        for y in range(3):
            for z in range(2):
                assert sequence[x, y, z] == places[0, 0, z, 2 - y, 3 - x]


def test_slabs_glued_along_z_take_turns_unless_the_order_is_slab_major() -> None:
    given = torch.arange(8.0)[:, None, None].expand(8, 2, 2)[None, None] // 2  # four slabs of two slices
    for order, expected in (("interleaved", [0, 1, 2, 3] * 1), ("slab-major", [0, 0, 0, 0])):
        layout = Layout((2, 1, 1), "xyz", order, slabs=4)
        grid = layout.raster_grid(given)
        slabs = layout.to_sequence(layout.raster_patches(given), grid)[0, :4, 0]
        assert slabs.tolist() == expected
        numbers = layout.numbers(grid)
        assert sorted(numbers.flatten().tolist()) == list(range(16))
        assert torch.equal(layout.slab_numbers(grid), torch.arange(4)[:, None, None].expand(4, 2, 2))
    assert layout.numbers(grid)[0].max() == 3, "the first slab comes first"


def test_slab_major_needs_whole_patches_in_every_slab() -> None:
    with pytest.raises(GeometryError, match="4 slabs of whole patches"):
        Layout((2, 2, 2), order="slab-major").sequence((2, 2, 6))


def test_visible_equals_its_definition() -> None:
    mask = visible(torch.tensor([0, 2, 4]), 6)
    assert mask.shape == (3, 1, 6, 6)
    for view, prefix in enumerate((0, 2, 4)):
        for i in range(6):
            for j in range(6):
                assert mask[view, 0, i, j] == (j <= i or j <= prefix)


def test_patch_tokens_come_in_our_raster_order_whatever_the_frame() -> None:
    given = volume()
    for axes in ("xyz", "zyx"):
        model = encoder(axes=axes)
        changed = given.clone()
        changed[:, :, 4:8, 8:12, 0:4] += 1.0  # the patch (1, 2, 0)
        with torch.no_grad():
            model.layers = torch.nn.ModuleList()
            before, after = model.encode(given), model.encode(changed)
        assert before.grid == (2, 3, 4)
        moved = (before.tokens != after.tokens).any(-1)[0].view(before.grid)
        assert moved.nonzero().tolist() == [[1, 2, 0]]


def test_both_frames_agree_on_turned_volumes_with_anisotropic_patches() -> None:
    ours = encoder((4, 6, 16), (2, 3, 4))
    theirs = encoder((16, 6, 4), (4, 3, 2), axes="zyx")
    theirs.load_state_dict(ours.state_dict())
    given = volume((4, 6, 16))
    turned = given.permute(0, 1, 4, 3, 2).flip(2, 3)
    a, b = ours.encode(given, hidden=(1,)), theirs.encode(turned, hidden=(1,))
    assert (a.grid, b.grid) == ((2, 2, 4), (4, 2, 2))
    back = b.tokens.unflatten(1, b.grid).flip(1, 2).transpose(1, 3).flatten(1, 3)
    torch.testing.assert_close(a.tokens, back)
    torch.testing.assert_close(a.summary, b.summary)


def test_hidden_are_taken_before_the_final_norm() -> None:
    model, given = encoder(), volume()
    out = model.encode(given, hidden=(0, 2))
    assert torch.equal(out.hidden[1], out.tokens)
    x = model.layers[0](model.embed(given)[0])
    torch.testing.assert_close(out.hidden[0], model.layout.to_ours(x[:, 1:], (4, 3, 2)).flatten(1, 3))
    assert model.norm(out.tokens).std() > 0
    assert not torch.allclose(model.norm(out.tokens), out.tokens)


def test_every_token_sees_every_other() -> None:
    model, given = encoder(), volume(views=1)
    changed = given.clone()
    changed[..., -1] += 1
    first, second = model.encode(given), model.encode(changed)
    assert ((first.tokens - second.tokens).abs().amax(-1) > 1e-6).all()
    assert ((first.summary - second.summary).abs() > 1e-7).any()


def test_sincos_codes_follow_their_definition() -> None:
    model = encoder((4, 8, 12), axes="zyx", width=36, heads=2)
    table = model.positions((1, 2, 3))
    assert table.shape == (7, 36)
    assert (table[0] == 0).all()
    token, place = table[1 + 1 * 3 + 2], (0, 1, 2)
    for axis, part in enumerate(token.split(12)):
        for i in range(6):
            angle = place[axis] * 10000 ** (-i / 6)
            assert part[i].item() == pytest.approx(np.sin(angle), abs=1e-6)
            assert part[6 + i].item() == pytest.approx(np.cos(angle), abs=1e-6)


def test_absolute_positions_do_not_depend_on_the_training_grid_and_rescaled_ones_span_it() -> None:
    small, large = encoder((8, 8, 8)), encoder((16, 16, 16))
    assert torch.equal(small.positions((2, 2, 2)), large.positions((2, 2, 2)))
    spread = encoder((16, 16, 16), scaling="rescaled")
    assert torch.equal(spread.positions((4, 4, 4)), large.positions((4, 4, 4)))
    expected = sincos3d(24, (2, 2, 2), [np.array([0.5, 2.5], np.float32)] * 3)
    torch.testing.assert_close(spread.positions((2, 2, 2)), expected)


def test_learnt_positions_are_interpolated_to_other_grids() -> None:
    model = encoder((8, 8, 8), positions="learnable", axes="zyx")
    with torch.no_grad():
        ramp = torch.stack(torch.meshgrid(*[torch.arange(2.0)] * 3, indexing="ij"), -1).flatten(0, 2)
        model.pos_embed[1:, :3] = ramp
    table = model.positions((4, 2, 2))
    torch.testing.assert_close(table[0], model.pos_embed[0])
    along = table[1:].unflatten(0, (4, 2, 2))
    torch.testing.assert_close(along[:, 0, 0, 0].detach(), torch.tensor([0.0, 0.25, 0.75, 1.0]))
    torch.testing.assert_close(along[0, :, 0, 1].detach(), torch.tensor([0.0, 1.0]))
    assert model.encode(volume((16, 8, 8))).tokens.shape == (2, 16, 24)
    assert torch.equal(model.positions((2, 2, 2)), model.pos_embed)
    with pytest.raises(WeightsError, match="does not fit a grid"):
        resized(model.pos_embed, (3, 2, 2), (2, 2, 2))


def test_learnt_positions_have_the_published_names_and_rows() -> None:
    downstream, pretraining = (encoder(positions="learnable", pretraining=flag) for flag in (False, True))
    assert downstream.state_dict()["pos_embed"].shape == (1 + 24, 24)
    assert downstream.state_dict()["pos_embed"].abs().max() <= 0.02
    assert pretraining.state_dict()["pos_embed_learn"].shape == (2 + 24, 24)
    assert pretraining.positions((4, 3, 2)).shape == (25, 24)
    assert torch.equal(pretraining.end_position(), pretraining.pos_embed_learn[-1])
    assert not encoder().state_dict().keys() & {"pos_embed", "pos_embed_learn"}


@pytest.mark.parametrize("grid_size", [(16, 12, 8), (4, 4, 4), (20, 12, 16)])
def test_other_grids_than_that_of_training_are_encoded(grid_size: tuple) -> None:
    for changes in ({}, {"scaling": "rescaled"}, {"positions": "learnable"}):
        out = encoder(**changes).encode(volume(grid_size))
        assert out.grid == tuple(n // 4 for n in grid_size)
        assert torch.isfinite(out.tokens).all()


def test_attention_of_the_start_token_is_that_of_its_definition() -> None:
    model, given = encoder(), volume()
    found = model.attention(given, 1)
    assert found.shape == (2, 3, 2, 3, 4)
    x = model.layers[1].input_layernorm(model.layers[0](model.embed(given)[0]))
    attention = model.layers[1].self_attn
    q, k = (project(x).unflatten(-1, (3, 8)).transpose(1, 2) for project in (attention.q_proj, attention.k_proj))
    whole = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1)
    expected = model.layout.to_ours(whole[:, :, 0, 1:].transpose(1, 2), (4, 3, 2)).movedim(-1, 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("order", ["interleaved", "slab-major"])
def test_attention_of_a_token_sees_what_its_mode_lets_it_see(order: str) -> None:
    model, given = encoder(order=order, slabs=2), volume(views=1)
    numbers = model.layout.numbers((4, 3, 2))
    token = 7
    place = int(numbers.flatten()[token])
    everything = model.token_attention(given, 2, token)
    assert everything.shape == (3, 2, 3, 4)
    assert (everything > 0).all()
    assert (everything.sum((1, 2, 3)) < 1).all()
    causal = model.token_attention(given, 2, token, "causal")
    assert torch.equal(causal[0] > 0, numbers <= place)
    prefix = model.token_attention(given, 2, token, "prefix", prefix=20)
    assert torch.equal(prefix[0] > 0, numbers < max(place + 1, 20))
    torch.testing.assert_close(encoder(order="interleaved").token_attention(given, 2, token), everything)


def test_a_memory_of_earlier_places_changes_nothing() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(12, 3), torch.randn(2, 5, 12)
    whole = attention(x, causal=True)
    memory = Memory(5)
    parts = [attention(x[:, k : k + 1], memory=memory) for k in range(5)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_layers_have_the_published_depths() -> None:
    model = encoder(positions="learnable")
    depths = {name: model.layer_id(name) for name in model.state_dict()}
    assert {name for name, depth in depths.items() if depth == 0} == {
        "embed_tokens.weight",
        "patchifier.proj.weight",
        "patchifier.proj.bias",
        "pos_embed",
    }
    assert depths["layers.2.mlp.linear1.bias"] == 3
    assert depths["norm.weight"] == model.layer_id("anything.else") == 4
    assert encoder(pretraining=True, positions="learnable").layer_id("pos_embed_learn") == 0


def test_initial_weights_are_spread_as_published() -> None:
    torch.manual_seed(0)
    published = ArEncoder((32, 32, 32), (16, 16, 16), depth=1, pretraining=True).state_dict()
    fresh = ArEncoder((32, 32, 32), (16, 16, 16), depth=1).state_dict()
    expected = {
        "patchifier.proj.weight": 0.0203,
        "layers.0.self_attn.q_proj.weight": 0.0361,
        "layers.0.self_attn.o_proj.weight": 0.0361,
        "layers.0.mlp.linear1.weight": 0.0228,
        "layers.0.mlp.linear2.weight": 0.0228,
    }
    for name, spread in expected.items():
        assert published[name].std().item() == pytest.approx(spread, rel=0.02), name
    assert fresh["patchifier.proj.weight"].std().item() == pytest.approx(0.0090, rel=0.02)
    assert published["embed_tokens.weight"].std().item() == pytest.approx(1.0, rel=0.05)
    for name in ("self_attn.o_proj.bias", "mlp.linear1.bias", "mlp.linear2.bias", "input_layernorm.bias"):
        assert (published[f"layers.0.{name}"] == 0).all()


def test_embedding_equals_the_stored_convolution() -> None:
    model, given = encoder(axes="zyx", patch=(2, 3, 4), size=(8, 12, 16)), volume()
    expected = F.conv3d(given, model.patchifier.proj.weight, model.patchifier.proj.bias, stride=(2, 3, 4))
    found = model.patchifier.embed(patchify(given, (2, 3, 4)))
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2))


def test_impossible_widths_and_sizes_get_a_sentence() -> None:
    with pytest.raises(ConfigError, match="multiple of 6"):
        encoder(width=32, heads=2)
    with pytest.raises(GeometryError, match="multiples of the patch size"):
        encoder(size=(8, 12, 18))
