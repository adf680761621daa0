"""Networks of MedCoSS: what is built, what is seen, what is learnt, and what keeps it from forgetting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.errors import ConfigError, GeometryError
from training_backend.nn.medcoss import KINDS, MedcossEncoder, MedcossNetwork, MedcossSettings
from training_backend.nn.medcoss_distil import (
    ImageDraws,
    TextDraws,
    distil_images,
    distil_text,
    mix_images,
    mix_text,
)
from training_backend.nn.medcoss_layers import EncoderLayer, SelfAttention
from training_backend.nn.medcoss_tokens import Kind, text_mask
from training_backend.nn.patch import patchify, unpatchify

SMALL = MedcossSettings(
    width=24,
    depth=2,
    heads=4,
    mlp_dim=48,
    vocabulary=50,
    text_rows=16,
    patch_2d=(1, 4, 4),
    patch_3d=(2, 4, 4),
    size_2d=(1, 16, 16),
    size_3d=(4, 16, 16),
    rows_2d=64,
    rows_3d=128,
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
)
SHAPES: dict[Kind, tuple[int, ...]] = {"2d": (3, 3, 1, 16, 16), "3d": (3, 1, 4, 16, 16)}


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively(network: Any, seed: int = 0) -> Any:
    """`network` with random weights everywhere, so that no branch or table is negligible."""
    generator = random(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network.eval()


def stage(learns: Kind, encodes: tuple[Kind, ...] = (), **changes: Any) -> Any:
    return lively(MedcossNetwork(replace(SMALL, **changes), learns, encodes))


def image(kind: Kind, seed: int = 0) -> Tensor:
    return torch.randn(SHAPES[kind], generator=random(seed))


def text(lengths: tuple[int, ...] = (8, 3, 5), seed: int = 0) -> tuple[Tensor, Tensor]:
    attention = (torch.arange(8) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(1, 50, attention.shape, generator=random(seed)) * attention, attention


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_holds_only_what_it_needs_and_learns_the_same(kind: Kind) -> None:
    whole = lively(MedcossNetwork(SMALL, kind, KINDS, KINDS))
    lean = MedcossNetwork(SMALL, kind).eval()
    held = whole.state_dict()
    lean.load_state_dict({name: held[name] for name in lean.state_dict()})
    losses = []
    for network in (whole, lean):
        if kind == "text":
            ids, attention = text()
            loss = network.text_loss(ids, torch.where(attention > 0, ids, -100), attention)
        else:
            loss = network.image_loss(image(kind), network.draw_noise(image(kind), random()))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    unused = [name for name, parameter in lean.named_parameters() if parameter.grad is None]
    assert unused == []
    others = {"2d": ("_2D", "video_embed.embeddings."), "3d": ("_3D",), "text": ("token_embed", "mlm_head", "_1D")}
    for other in set(KINDS) - {kind}:
        assert not any(part in name for name in lean.state_dict() for part in others[other])


def test_an_image_stage_does_not_pay_for_words() -> None:
    with torch.device("meta"):
        whole = MedcossNetwork(MedcossSettings(), "3d", KINDS, KINDS)
        lean = MedcossNetwork(MedcossSettings(), "3d")
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (whole, lean)]
    assert counts[0] - counts[1] > 2 * 49411 * 768
    assert counts[1] < 0.62 * counts[0]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(masked: bool) -> None:
    ours, theirs = SelfAttention(24, 4), nn.MultiheadAttention(24, 4, batch_first=True)
    lively(ours)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    x, mask = torch.randn(3, 7, 24, generator=random()), None
    if masked:
        mask = text_mask(torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5]), 4, compatible=True)
    expected, weights = theirs(
        x, x, x, attn_mask=None if mask is None else mask.flatten(0, 1), average_attn_weights=False
    )
    torch.testing.assert_close(ours(x, mask), expected, atol=1e-5, rtol=0)
    if not masked:
        torch.testing.assert_close(ours.weights(x), weights, atol=1e-6, rtol=0)


def test_layers_start_nearly_as_the_identity_and_skip_branches_while_training() -> None:
    layer = EncoderLayer(24, 4, 48, drop_path=0.5)
    x = torch.randn(64, 5, 24, generator=random())
    change = layer.eval()(x) - x
    assert 0 < change.abs().max() < 0.05  # scaled by 0.001
    torch.manual_seed(0)
    with torch.no_grad():
        layer.gamma_2.zero_()
        layer.gamma_1.fill_(1.0)
    full, some = layer.eval()(x) - x, layer.train()(x) - x
    skipped = some.abs().amax(dim=(1, 2)) == 0
    assert 0.2 < skipped.float().mean() < 0.8
    torch.testing.assert_close(some[~skipped], 2 * full[~skipped], atol=1e-5, rtol=1e-4)  # the rest counts twice


def test_fresh_weights_are_as_published() -> None:
    torch.manual_seed(0)
    network = MedcossNetwork(replace(SMALL, width=96, rows_3d=512), "3d", KINDS, KINDS)
    state = network.state_dict()
    assert not state["decoder_pos_embed_2D"].any()
    assert not state["decoder_pos_embed_3D"].any()
    for name in ("cls_token", "mask_token", "decoder_pos_embed_1D.weight"):
        assert 0.01 < state[name].std() < 0.03, name
    for name in ("token_embed.embeddings.weight", "video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight"):
        assert 0.95 < state[name].std() < 1.05
    for name, tensor in state.items():
        if name.endswith("gamma_1"):
            assert (tensor == 1e-3).all()
        if name.endswith(("out_proj.weight", "linear1.weight", "in_proj_weight", "dense.weight")):
            rows, columns = tensor.shape
            assert tensor.abs().max() <= (6 / (rows + columns)) ** 0.5
            assert tensor.abs().max() > 0.9 * (6 / (rows + columns)) ** 0.5
        if name.endswith(("bias",)) and "embeddings" not in name:
            assert not tensor.any(), name


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_encoders_fit_what_tasks_ask_for(kind: Kind) -> None:
    encoder = lively(MedcossEncoder(SMALL, (kind,)))
    volume = image(kind)
    found = encoder.encode(volume, hidden=(1, 0))
    assert found.grid == ((1, 4, 4) if kind == "2d" else (2, 4, 4))
    length = found.grid[0] * 16
    assert found.tokens.shape == (3, length, 24)
    assert found.summary is not None
    assert torch.equal(found.hidden[0], found.tokens)
    assert not torch.equal(found.hidden[1], found.tokens)
    whole = encoder.encode_image(volume)
    torch.testing.assert_close(whole, torch.cat([found.summary[:, None], found.tokens], dim=1))
    paid = encoder.attention(volume, 1)
    assert paid.shape == (3, 4, *found.grid)
    assert (paid.sum(dim=(2, 3, 4)) < 1).all()  # the class token pays some to itself
    assert encoder.patch_size == (SMALL.patch_2d if kind == "2d" else SMALL.patch_3d)
    assert encoder.in_channels == SHAPES[kind][1]
    assert [encoder.layer_id(name) for name in ("cls_token", "fused_encoder.layers.1.gamma_1", "head.weight")] == [
        0,
        2,
        3,
    ]
    bare = MedcossEncoder(SMALL, (kind,), class_token=False).eval()
    bare.load_state_dict({name: tensor for name, tensor in encoder.state_dict().items() if name != "cls_token"})
    assert bare.encode(volume).summary is None
    torch.testing.assert_close(bare.attention(volume, 0).sum(dim=(2, 3, 4)), torch.ones(3, 4))


def test_grey_images_count_as_three_equal_colours() -> None:
    network = stage("2d")
    grey = image("2d")[:, :1]
    noise = network.draw_noise(grey, random())
    colours = grey.expand(-1, 3, -1, -1, -1)
    assert torch.equal(network.encode(grey).tokens, network.encode(colours).tokens)
    assert torch.equal(network.image_loss(grey, noise), network.image_loss(colours, noise))
    assert MedcossEncoder(SMALL, ("2d",), grey=True).in_channels == 1


def test_what_an_encoder_cannot_read_is_said() -> None:
    with pytest.raises(GeometryError, match="2-D images, but the view has 4 slices"):
        MedcossEncoder(SMALL, ("2d",)).encode(image("3d"))
    with pytest.raises(GeometryError, match="patches of"):
        MedcossEncoder(SMALL, ("3d",)).encode(image("2d")[:, :1])
    with pytest.raises(ConfigError, match="reports only"):
        MedcossEncoder(SMALL, ("text",)).encode(image("3d"))
    with pytest.raises(ConfigError, match="longer than the 16 positions"):
        MedcossEncoder(SMALL, ("text",)).encode_text(torch.ones(1, 17).long(), torch.ones(1, 17))
    with pytest.raises(ConfigError, match="more than the 8 positions"):
        MedcossEncoder(replace(SMALL, rows_3d=8), ("3d",))
    with pytest.raises(GeometryError, match="needs 256 positions"):
        MedcossEncoder(replace(SMALL, positions="flat"), ("2d",)).encode(torch.zeros(1, 3, 1, 64, 64))
    network, noise = stage("3d", ("2d",)), torch.rand(3, 16)
    with pytest.raises(ConfigError, match="no decoder for 2d images"):
        network.image_loss(image("2d"), noise)


def test_positions_follow_the_grid_unless_told_otherwise() -> None:
    flat, moved = stage("3d", positions="flat"), stage("3d")
    grid = SMALL.grid("3d")
    tables = [network.video_embed.positions("3d", grid) for network in (flat, moved)]
    assert torch.equal(*tables)  # the trained grid
    wide = (2, 4, 8)
    table = flat.video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight
    assert torch.equal(flat.video_embed.positions("3d", wide), table[:64])
    rows = moved.video_embed.positions("3d", wide).unflatten(0, wide)
    before = tables[1].unflatten(0, grid)
    torch.testing.assert_close(rows[:, :, 1], 0.75 * before[:, :, 0] + 0.25 * before[:, :, 1])
    constant = torch.ones_like(table)
    with torch.no_grad():
        table.copy_(constant)
        moved.video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight.copy_(constant)
    larger = torch.randn(1, 1, 4, 16, 32, generator=random())
    torch.testing.assert_close(flat.encode(larger).tokens, moved.encode(larger).tokens)


def test_a_moment_is_drawn_while_training_and_is_the_first_otherwise() -> None:
    network = stage("3d", drop_path=0.0)
    assert [network.draw_row(random(seed)) for seed in range(9)] == [0] * 9
    network.train()
    drawn = [network.draw_row(random(seed)) for seed in range(40)]
    assert set(drawn) == set(range(8))
    assert drawn == [network.draw_row(random(seed)) for seed in range(40)]
    volume = image("3d")
    assert not torch.allclose(network.encode_image(volume, row=0), network.encode_image(volume, row=5))
    fixed = stage("3d", random_row=False).train()
    assert {fixed.draw_row(random(seed)) for seed in range(9)} == {0}


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_the_loss_is_that_of_hidden_patches_normalised_one_by_one(kind: Kind) -> None:
    network, volume = stage(kind), image(kind)
    noise = network.draw_noise(volume, random())
    found = network.reconstruct(volume, noise)
    kept = int(noise.shape[1] * 0.25)
    assert (found.mask == 0).sum(1).tolist() == [kept] * 3
    assert torch.equal((noise.argsort(1).argsort(1) >= kept).float(), found.mask)
    pixels = patchify(volume, network.patch_size)
    target = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (found.prediction - target).square().mean(-1)
    expected = (error * found.mask).sum() / found.mask.sum()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(network.image_loss(volume, noise), expected)
    again = network.denormalise(target, volume)
    torch.testing.assert_close(again, pixels, atol=1e-4, rtol=1e-4)
    assert network.image_loss(volume, noise, mask_ratio=0.0) == 0
    assert network.encode_image(volume, noise).shape == (3, 1 + kept, 24)


def test_voxels_outside_the_scan_do_not_count() -> None:
    network, volume = stage("3d"), image("3d")
    noise, padding = network.draw_noise(volume, random()), torch.zeros(3, 4, 16, 16, dtype=torch.bool)
    whole = network.image_loss(volume, noise)
    torch.testing.assert_close(network.image_loss(volume, noise, padding=padding), whole)
    padding[:, 2:] = True
    part = network.image_loss(volume, noise, padding=padding)
    found = network.reconstruct(volume, noise)
    pixels = patchify(volume, network.patch_size)
    target = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
    inside = found.mask.clone()
    inside[:, 16:] = 0
    error = (found.prediction - target).square().mean(-1)
    torch.testing.assert_close(part, ((error * inside).sum(1) / inside.sum(1)).mean())


def test_transposed_slices_give_the_same_along_our_axes() -> None:
    network, volume = stage("3d", positions="flat"), torch.randn(2, 1, 4, 8, 16, generator=random())
    turned = MedcossNetwork(replace(SMALL, positions="flat", axes="zxy"), "3d").eval()
    turned.load_state_dict(network.state_dict())
    across, noise = volume.transpose(-1, -2), network.draw_noise(volume, random())
    ours, theirs = network.encode(volume, hidden=(0,)), turned.encode(across, hidden=(0,))
    assert (ours.grid, theirs.grid) == ((2, 2, 4), (2, 4, 2))
    for a, b in ((ours.tokens, theirs.tokens), (ours.hidden[0], theirs.hidden[0])):
        torch.testing.assert_close(a.unflatten(1, ours.grid), b.unflatten(1, theirs.grid).transpose(2, 3))
    torch.testing.assert_close(network.attention(volume, 1), turned.attention(across, 1).transpose(-1, -2))
    torch.testing.assert_close(network.image_loss(volume, noise), turned.image_loss(across, noise))
    drawn = network.reconstruct(volume, noise), turned.reconstruct(across, noise)
    pictures = [unpatchify(each.prediction, (2, 4, 4), each.grid) for each in drawn]
    torch.testing.assert_close(pictures[0], pictures[1].transpose(-1, -2))
    masks = [each.mask.unflatten(1, each.grid) for each in drawn]
    assert torch.equal(masks[0], masks[1].transpose(-1, -2))


def test_words_see_earlier_words_of_their_own_text_only() -> None:
    network = stage("text")
    ids, attention = text()
    together = network.encode_text(ids, attention)
    for row in range(3):
        alone = network.encode_text(ids[row : row + 1], attention[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    later = network.encode_text(changed, attention)
    torch.testing.assert_close(later[0, :5], together[0, :5])
    assert not torch.allclose(later[0, 5:], together[0, 5:])
    torch.testing.assert_close(later[1:], together[1:])


def test_the_published_mask_mixes_up_the_padding_of_samples() -> None:
    fixed, compatible = stage("text"), stage("text", text_mask="compatible")
    ids, attention = text()
    both = [network.encode_text(ids, attention) for network in (fixed, compatible)]
    assert (both[0] - both[1]).abs().max() > 0.01
    one = [network.encode_text(ids[1:2], attention[1:2]) for network in (fixed, compatible)]
    torch.testing.assert_close(*one)
    mask = text_mask(attention, 4, compatible=True)
    for sample in range(3):
        for head in range(4):
            expected = text_mask(attention, 4)[(sample * 4 + head) % 3, 0]
            assert torch.equal(mask[sample, head], expected)
    assert text_mask(attention, 4).unique().tolist() == [-1e4, 0.0]


def test_only_hidden_words_are_asked_for() -> None:
    network = stage("text")
    ids, attention = text()
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[2, 1] = 7, 9
    loss = network.text_loss(ids, labels, attention)
    logits = network.word_logits(network.encode_text(ids, attention))
    torch.testing.assert_close(loss, F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100))
    nothing = network.text_loss(ids, torch.full_like(ids, -100), attention)
    nothing.backward()
    assert nothing == 0


def test_texts_and_volumes_are_computed_in_half_precision_too() -> None:
    network = stage("3d", ("text",))
    ids, attention = text()
    expected = network.encode_text(ids, attention), network.encode(image("3d")).tokens
    with torch.autocast("cpu", torch.bfloat16):
        found = network.encode_text(ids, attention), network.encode(image("3d")).tokens
        loss = network.image_loss(image("3d"), network.draw_noise(image("3d"), random()))
    assert loss.dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.float(), b, atol=0.1, rtol=0.1)


def test_draws_come_in_the_published_order() -> None:
    network, teacher, volume = stage("3d"), stage("3d"), image("3d")
    found = ImageDraws.draw(network, teacher, volume, random())
    again = random()
    assert found.order is not None
    assert found.share is not None
    assert torch.equal(found.order, torch.randperm(3, generator=again))
    assert torch.equal(found.share.flatten(), torch.rand(3, generator=again))
    assert torch.equal(found.noise, torch.rand(3, 32, generator=again))
    assert (found.row, found.teacher_row) == (0, 0)
    plain = ImageDraws.draw(network, teacher, volume, random(), mix=False)
    assert (plain.order, plain.share) == (None, None)
    words = TextDraws.draw(text()[0], random())
    again = random()
    assert torch.equal(words.order, torch.randperm(3, generator=again))
    assert torch.equal(words.ratio, torch.rand(1, generator=again))
    assert torch.equal(words.uniform, torch.rand(3, 8, generator=again))


def test_mixtures_stay_within_the_batch() -> None:
    volume, order = image("3d"), torch.tensor([1, 2, 0])
    share = torch.tensor([1.0, 0.0, 0.25]).reshape(3, 1, 1, 1, 1)
    mixed = mix_images(volume, order, share)
    torch.testing.assert_close(mixed[0], volume[0])
    torch.testing.assert_close(mixed[1], volume[2])
    torch.testing.assert_close(mixed[2], 0.25 * volume[2] + 0.75 * volume[0])
    ids, attention = text()
    draws = TextDraws(order, torch.tensor([0.5]), torch.rand(3, 8, generator=random()))
    tokens, mask = mix_text(ids, attention, draws)
    own = draws.uniform < 0.5
    assert own.any()
    assert not own.all()
    assert torch.equal(tokens[own], ids[own])
    assert torch.equal(tokens[~own], ids[order][~own])
    assert torch.equal(mask[~own], attention[order][~own])


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_nothing_to_make_up_for(kind: Kind) -> None:
    student, teacher = stage(kind), lively(MedcossEncoder(SMALL, (kind,)))
    held = student.state_dict()
    teacher.load_state_dict({name: held[name] for name in teacher.state_dict()})

    def loss() -> Tensor:
        if kind == "text":
            ids, attention = text()
            return distil_text(student, teacher, ids, attention, TextDraws.draw(ids, random()))
        drawn = ImageDraws.draw(student, teacher, image(kind), random(3))
        return distil_images(student, teacher, image(kind), drawn)

    assert loss() == 0
    torch.manual_seed(0)
    teacher.train()  # as the authors leave it
    assert loss() > 0
    teacher.eval()
    with torch.no_grad():
        student.fused_encoder.layers[1].gamma_2.add_(0.1)
    found = loss()
    found.backward()
    assert found > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    trained = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert not any(name.startswith(("decoder", "mask_token", "mlm_head")) for name in trained)
    assert "fused_encoder.layers.0.gamma_1" in trained
