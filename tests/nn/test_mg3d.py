"""MG-3D's passes beside plain loops, padding that changes nothing, and processes that see each other's cases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rank_kit import in_processes
from training_backend.config.text import TextConfig
from training_backend.errors import ConfigError, GeometryError
from training_backend.nn.gates import OneWayGate, SentenceGates, SentencePool, stretched
from training_backend.nn.mg3d import Mg3d
from training_backend.nn.mg3d_encoders import GenesisVision, PlainVision, SwinVision, VisionEncoder
from training_backend.nn.mg3d_heads import TokenPooler, VoxelHead, block_mask, patients_loss, voxel_loss
from training_backend.nn.patch import check_halved
from training_backend.nn.reports import Reports, read_reports
from training_backend.nn.text_encoder import Tokeniser, text_model

WORDS = ["no nodule in the left lung.", "the heart is large.", "a nodule in the right lung, 4 mm.", "no effusion."]
REPORTS = [WORDS[:3], WORDS[1:2], [WORDS[3], WORDS[0]]]


def text() -> tuple[nn.Module, Tokeniser]:
    torch.manual_seed(1)
    return text_model(TextConfig(width=32, heads=4, layers=1, longest=40), WORDS)


def network(**options: Any) -> Mg3d:
    language, tokeniser = text()
    torch.manual_seed(0)
    vision = SwinVision(1, 2, window=(3, 3, 3), heads=(1, 1, 2, 2))
    model = Mg3d(vision, language, (2, 1, 1), all_padding=False, **options)
    model.tokeniser = tokeniser
    return model.eval()


def reports(number: int = 3, seed: int = 0) -> Reports:
    return read_reports(REPORTS[:number], text()[1], torch.Generator().manual_seed(seed))


def volumes(number: int = 3) -> Tensor:
    return torch.rand(number, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))


def loops(gates: SentenceGates, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both outputs for single sets [I, E] and [S, E], as the published loops have them."""
    q1, k1, v1 = gates.query1(one), gates.key1(one), gates.value1(one)
    q2, k2, v2 = gates.query2(other), gates.key2(other), gates.value2(other)
    p1, p2 = ((q @ k.T / math.sqrt(one.shape[-1])).sigmoid() for q, k in ((q2, k1), (q1, k2)))
    first = torch.stack([torch.stack([p2[i, s] * v1[i] for s in range(len(other))]) for i in range(len(one))])
    second = torch.stack([torch.stack([p1[s, i] * v2[s] for i in range(len(one))]) for s in range(len(other))])
    return _reduced(first, gates, "fc2"), _reduced(second, gates, "fc1")


def _reduced(rows: Tensor, gates: SentenceGates, name: str) -> Tensor:
    """[N, E] of rows [N, M, E]."""
    by = getattr(gates, name, None)
    if isinstance(by, SentencePool):
        return by(rows)
    return rows.mean(1) if by is None else by(rows.transpose(1, 2))[..., 0]


@pytest.mark.parametrize(
    "options", [{}, {"first": "weigh"}, {"second": "weigh"}, {"first": "pool", "second": "weigh"}], ids=str
)
def test_gates_in_closed_form_are_the_published_loops(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    by_first = options.get("first") == "weigh"  # sums go over the tokens of the scan, on either side
    gates = SentenceGates(16, grid=(5, 1, 1) if by_first else (2, 3, 1), **options)
    one, other = torch.randn(2, 6, 16), torch.randn(2, 5, 16)
    first, p2, second, p1 = gates(one, other)
    assert (p2.shape, p1.shape) == ((2, 6, 5), (2, 5, 6))
    for index in range(2):
        expected = loops(gates, one[index], other[index])
        torch.testing.assert_close(first[index], expected[0])
        torch.testing.assert_close(second[index], expected[1])


@pytest.mark.parametrize("first", ["mean", "pool"])
def test_rows_that_are_not_there_change_no_gate(first: Any) -> None:
    torch.manual_seed(0)
    gates = SentenceGates(16, first=first)
    one, other = torch.randn(1, 6, 16), torch.randn(1, 5, 16)
    mask1, mask2 = torch.arange(6)[None] < 4, torch.arange(5)[None] < 3
    found = gates(one, other, mask1, mask2)
    expected = gates(one[:, :4], other[:, :3])
    torch.testing.assert_close(found[0][:, :4], expected[0])
    torch.testing.assert_close(found[2][:, :3], expected[2])


def test_pools_of_padded_sets_are_those_of_the_sets() -> None:
    torch.manual_seed(0)
    pool, rows = SentencePool(16), torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = pool(rows, mask)
    torch.testing.assert_close(found[0], pool(rows[:1])[0])
    torch.testing.assert_close(found[1], pool(rows[1:, :2])[0])


def test_one_way_gates_scale_sentences_by_a_number_each() -> None:
    torch.manual_seed(0)
    gate, rows, summary = OneWayGate(8), torch.randn(2, 3, 8), torch.randn(2, 8)
    found = gate.each(rows, summary)
    alone = torch.stack([gate(rows[:, k : k + 1], summary[:, None])[0][:, 0] for k in range(3)], dim=1)
    torch.testing.assert_close(found, alone)


def test_sums_over_tokens_keep_their_meaning_on_other_grids() -> None:
    torch.manual_seed(0)
    pooler = TokenPooler(8, (4, 3, 4))
    same = torch.randn(1, 1, 8)
    few, many = pooler(same.expand(-1, 48, -1), (4, 3, 4)), pooler(same.expand(-1, 512, -1), (8, 8, 8))
    torch.testing.assert_close(few, many)
    kernel = torch.randn(1, 48)
    assert stretched(kernel, (4, 3, 4), (4, 3, 4)) is kernel
    smooth = torch.linspace(0, 1, 4).view(4, 1, 1).expand(4, 3, 4).reshape(1, 48)
    finer = stretched(smooth, (4, 3, 4), (8, 3, 4)).view(8, 3, 4) * 2
    assert (finer[1:] >= finer[:-1]).all()  # along the axis that it rises on
    assert float((finer - finer[:, :1, :1]).abs().max()) < 1e-6


def test_tokens_know_their_sentence_and_whole_words_are_hidden() -> None:
    tokeniser = text()[1]
    read = reports()
    (start,), (stop,) = tokeniser.ends
    assert read.ids[:, 0].tolist() == [start] * 3
    for row, sentences in enumerate(REPORTS):
        length = int(read.mask[row].sum())
        assert read.ids[row, length - 1] == stop
        assert read.sentence[row, length:].tolist() == [0] * (read.ids.shape[1] - length)
        for number, sentence in enumerate(sentences, 1):
            tokens = read.ids[row][read.sentence[row] == number].tolist()
            assert tokens == tokeniser.pieces(sentence)[0]
            alone = read.alone[row, number - 1][read.alone_mask[row, number - 1] > 0].tolist()
            assert alone == [start, *tokens, stop]
    assert read.present.sum(1).tolist() == [3, 1, 2]
    hidden = read.labels >= 0
    assert torch.equal(read.labels[hidden], read.ids[hidden])
    assert torch.equal(read.masked[~hidden], read.ids[~hidden])
    assert not (hidden & (read.sentence == 0)).any()
    assert (hidden.sum(1) >= 1).all()


def test_what_is_hidden_comes_from_the_generator_alone_and_again_every_time() -> None:
    drawn = [reports(seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0].masked, drawn[1].masked)
    assert not torch.equal(drawn[0].labels, drawn[2].labels)
    tokeniser = text()[1]
    many = read_reports([WORDS * 2] * 100, tokeniser, torch.Generator().manual_seed(3))
    hidden = many.labels >= 0
    assert 0.1 < float(hidden.sum() / (many.sentence > 0).sum()) < 0.16
    assert 0.75 < float((many.masked == tokeniser.mask)[hidden].float().mean()) < 0.85
    assert 0.05 < float((many.masked == many.ids)[hidden].float().mean()) < 0.16


def test_words_of_several_tokens_are_hidden_whole() -> None:
    from training_backend.nn.reports import hide_words

    tokeniser = text()[1]
    ids = torch.arange(5, 17)[None].repeat(50, 1)
    words = torch.arange(4).repeat_interleave(3)[None].repeat(50, 1)
    _, labels = hide_words(ids, words, tokeniser, torch.Generator().manual_seed(0), 0.3)
    counts = (labels >= 0).view(50, 4, 3).sum(-1)
    assert set(counts.flatten().tolist()) == {0, 3}
    assert counts.sum(1).unique().tolist() == [3]  # 0.3 of 12 tokens are 4, so one word of 3


def test_long_reports_are_cut_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tokeniser = text()[1]
    tokeniser.longest = 12
    read = read_reports([WORDS, WORDS[1:2]], tokeniser, torch.Generator())
    assert read.ids.shape == (2, 12)
    assert read.ids[0, -1] == tokeniser.ends[1][0]
    assert read.present.sum(1).tolist() == [2, 1]
    assert "but 12 are read" in caplog.text
    assert "nodule" not in caplog.text
    padded = read_reports([WORDS[1:2]], tokeniser, torch.Generator(), padded=True)
    assert padded.ids.shape == (1, 12)


def test_cases_of_a_batch_do_not_depend_on_how_long_the_others_are() -> None:
    model, read = network(), reports()
    tokens = model.look(volumes())
    grid = (2, 1, 1)
    with torch.no_grad():
        said = model.read(read)
        whole = model.wholes(tokens, said, read, grid)
        words = model.words(said, read, tokens, grid)
        for row, sentences in enumerate(REPORTS):
            alone = read_reports([sentences], model.tokeniser, torch.Generator())
            length = alone.ids.shape[1]
            alone = Reports(alone.ids, read.masked[row : row + 1, :length], read.labels[row : row + 1, :length],
                            alone.mask, alone.sentence, alone.alone, alone.alone_mask)  # fmt: skip
            only = model.read(alone)
            one = model.wholes(tokens[row : row + 1], only, alone, grid)
            for name in ("seen", "own", "gathered"):
                torch.testing.assert_close(getattr(whole, name)[row], getattr(one, name)[0], atol=1e-5, rtol=1e-4)
            count = len(sentences)
            torch.testing.assert_close(whole.sentences[row, :count], one.sentences[0], atol=1e-5, rtol=1e-4)
            single = model.words(only, alone, tokens[row : row + 1], grid)
            torch.testing.assert_close(words.logits[row, :length], single.logits[0], atol=1e-5, rtol=1e-4)


def test_the_text_model_is_asked_once_and_says_what_single_calls_say() -> None:
    model, read = network(freeze_text=True), reports()
    calls = []
    model.language_encoder.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    said = model.read(read)
    assert len(calls) == 1
    assert not model.language_encoder.training
    for ids, found in ((read.masked, said.masked), (read.ids, said.whole)):
        states = model.language_encoder(input_ids=ids, attention_mask=read.mask).last_hidden_state
        torch.testing.assert_close(found, model._text(states))
    torch.testing.assert_close(said.embedded, model.language_encoder.embeddings(read.ids))
    assert not any(parameter.requires_grad for parameter in model.language_encoder.parameters())


def test_a_text_model_of_ours_learns_from_words_but_not_from_the_comparison_of_patients() -> None:
    model, read = network(freeze_text=False), reports()
    model.train()
    said, tokens = model.read(read), model.look(volumes())
    model.wholes(tokens, said, read, (2, 1, 1)).loss.backward()
    assert all(parameter.grad is None for parameter in model.language_encoder.parameters())
    said = model.read(read)
    model.words(said, read, model.look(volumes()), (2, 1, 1)).words.backward()
    assert any(parameter.grad is not None for parameter in model.language_encoder.parameters())


def test_patients_are_compared_as_pair_after_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(3, 4, 8, generator=generator), torch.randn(3, 4, 6, generator=generator)
    texts[1, 0] = texts[0, 1] * 2  # the same sentence
    present = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    sizes, total = present.sum(1).tolist(), torch.zeros(())
    for i, j in ((0, 1), (0, 2), (1, 2)):
        said = F.cosine_similarity(texts[i, : sizes[i], None], texts[j, None, : sizes[j]], dim=-1)
        seen = F.cosine_similarity(images[i, : sizes[i], None], images[j, None, : sizes[j]], dim=-1)
        same, other = (said >= 0.9).float(), (said <= 0.6).float()
        total += (seen * (same + other) - said * same).abs().mean()
    found, pairs = patients_loss(images, texts, present)
    assert pairs == 3
    torch.testing.assert_close(found, total / (3 + 1e-6))
    assert patients_loss(images[:1], texts[:1], present[:1]) == (0, 0)


def test_half_of_the_blocks_are_hidden_and_the_error_is_a_mean_over_all_voxels() -> None:
    mask = block_mask((64, 32, 96), 16, 0.5, torch.Generator().manual_seed(0))
    blocks = mask.view(4, 16, 2, 16, 6, 16).float().mean(dim=(1, 3, 5))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0}
    assert int(blocks.sum()) == 24
    drawn, volume = torch.zeros(2, 1, 64, 32, 96), torch.ones(2, 1, 64, 32, 96)
    torch.testing.assert_close(voxel_loss(drawn, volume, mask, 0.5), torch.tensor(1.0))


def test_voxels_are_drawn_from_hidden_blocks_never_from_what_they_hold() -> None:
    model, read = network(), reports()
    hidden = block_mask((64, 32, 32), 16, 0.5, torch.Generator().manual_seed(0))
    other = torch.where(hidden, torch.rand(3, 1, 64, 32, 32), volumes())
    with torch.no_grad():
        said = model.read(read)
        drawn = [model.voxels(volume, hidden, 0.5, said, read, (2, 1, 1)).drawn for volume in (volumes(), other)]
    assert torch.equal(drawn[0], drawn[1])
    assert VoxelHead(32, 2)(torch.rand(1, 4, 32), (2, 2, 1)).shape == (1, 2, 64, 64, 32)


ENCODERS = {
    "swin": lambda: SwinVision(2, 4, window=(3, 3, 3), heads=(1, 2, 2, 4), project=24),
    "unet": lambda: GenesisVision(2, 4),
    "nnunet": lambda: PlainVision(2, (4, 4, 8, 8, 8, 12), 24),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_give_tokens_maps_and_depths(name: str) -> None:
    encoder: VisionEncoder = ENCODERS[name]().eval()
    volume = torch.rand(2, 2, 64, 32, 96)
    with torch.no_grad():
        out = encoder.encode(volume, hidden=(0, encoder.depth - 1))
        assert out.grid == (2, 1, 3)
        assert out.tokens.shape == (2, 6, encoder.width)
        assert [tuple(each.shape[2:]) for each in out.pyramid] == [
            (64 // stride, 32 // stride, 96 // stride) for stride in encoder.strides
        ]
        assert out.hidden[1].shape[:2] == (2, 6)
        assert sum(out.pyramid[index].shape[1] for index in encoder.embedded_maps) == encoder.width
        assert encoder.pretrained(volume).shape == (2, 6, 24 if name != "unet" else encoder.width)
        assert encoder.attention(volume, encoder.depth - 1).shape[2:] == (2, 1, 3)
        assert encoder.encode(volume[:, :, :32, :32, :32]).tokens.shape == (2, 1, encoder.width)
    depths = {encoder.layer_id(parameter) for parameter, _ in encoder.named_parameters()}
    assert depths <= set(range(encoder.depth + 2))
    assert {1, encoder.depth} <= depths


def test_the_transformer_takes_sizes_that_are_no_multiples_as_published() -> None:
    encoder = ENCODERS["swin"]().eval()
    with torch.no_grad():
        assert encoder.encode(torch.rand(1, 2, 48, 40, 33)).grid == (2, 2, 2)
        with pytest.raises(GeometryError, match="patches of"):
            ENCODERS["unet"]().encode(torch.rand(1, 2, 48, 40, 33))


def test_the_projection_of_the_large_transformer_is_its_batch_norm_over_places() -> None:
    torch.manual_seed(0)
    head = SwinVision(1, 4, window=(3, 3, 3), heads=(1, 2, 2, 4), project=8).proj_head
    assert head is not None
    tokens, norm = torch.randn(3, 5, 64), nn.BatchNorm1d(5, affine=False, track_running_stats=False)
    x = F.relu(norm(head.layer1(tokens)))  # type: ignore[operator]
    x = F.relu(norm(head.layer2(x)))  # type: ignore[operator]
    torch.testing.assert_close(head(tokens), head.layer3(x))  # type: ignore[operator]


def test_norms_of_the_unet_are_the_same_in_training_and_evaluation() -> None:
    encoder, volume = GenesisVision(1, 2), torch.rand(2, 1, 32, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.train().maps(volume)[-1], encoder.eval().maps(volume)[-1])
    assert "down_tr64.ops.0.conv1.weight" in encoder.state_dict()
    assert "down_tr512.ops.1.bn1.bias" in encoder.state_dict()


def test_sizes_that_cannot_be_halved_get_a_sentence() -> None:
    check_halved((128, 96, 128), "MG-3D")
    with pytest.raises(ConfigError, match="MG-3D halves a volume five times and needs sides of multiples of 32"):
        check_halved((128, 96, 100), "MG-3D")
    with pytest.raises(ConfigError, match="would keep one position"):
        check_halved((32, 32, 32), "MG-3D")
    with pytest.raises(ConfigError, match="attention heads"):
        SwinVision(1, 4, heads=(3, 6, 12, 24))
    with pytest.raises(ConfigError, match="6 stages"):
        PlainVision(1, (4, 8))


def aligned(rank: int, number: int) -> tuple[Tensor, ...]:
    """Loss of the third pass of a process's share of the cases, and the gradients of all."""
    if number > 1:
        dist.init_process_group("gloo", rank=rank, world_size=number)
    model = network().double().train()
    share = len(REPORTS[:2]) // number
    own = slice(rank * share, (rank + 1) * share)
    read = read_reports(REPORTS[:2][own], model.tokeniser, torch.Generator().manual_seed(0))
    passed = model.wholes(model.look(volumes(2)[own].double()), model.read(read), read, (2, 1, 1), gather=True)
    (passed.loss / number).backward()
    summed = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if number > 1:
        for gradient in summed:
            dist.all_reduce(gradient)
        dist.destroy_process_group()
    return (passed.cross.detach(), passed.aggregated.detach(), passed.patients.detach(), *summed)


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Their reports have three sentences and one, so they do not even have as many rows."""
    alone = aligned(0, 1)
    assert float(alone[2]) > 0
    for found in in_processes(2, tmp_path, aligned, 2):
        assert len(found) == len(alone)
        for ours, theirs in zip(found, alone, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
