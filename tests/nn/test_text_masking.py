"""Whole words are hidden, as many as the length of a row allows, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch

from training_backend.errors import ConfigError
from training_backend.nn.text_masking import WordMasking

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "pneu": 5, "##mo": 6, "##thorax": 7}
VOCABULARY |= {f"word{number}": number for number in range(8, 40)}
WORD = [5, 6, 7]
"""One word of three pieces."""


def row(words: int, length: int = 112) -> list[int]:
    filled = [2, *(number for _ in range(words) for number in (*WORD, 8, 9)), 3]
    return filled + [0] * (length - len(filled))


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_words_are_hidden_whole_within_the_budget() -> None:
    masking, ids = WordMasking.of(VOCABULARY), torch.tensor([row(22)] * 50)
    masked, labels = masking(ids, random())
    chosen = labels >= 0
    counts = chosen.sum(1)
    assert counts.max() == 17  # 15 % of 112
    assert counts.min() >= 15  # a word of three pieces may not fit any more
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    assert not chosen[(ids == 2) | (ids == 3)].any()
    first = (ids == 5).nonzero()
    assert chosen[ids == 5].any()
    for line, place in first.tolist():
        assert len(set(chosen[line, place : place + 3].tolist())) == 1


def test_tokens_become_masks_or_others_or_stay() -> None:
    masking, ids = WordMasking.of(VOCABULARY), torch.tensor([row(22)] * 300)
    masked, labels = masking(ids, random())
    chosen = labels >= 0
    hidden = (masked == 4)[chosen].float().mean()
    same = (masked == ids)[chosen].float().mean()
    assert abs(hidden - 0.8 - 0.1 / 40) < 0.02  # a random token may be the mask
    assert abs(same - 0.1 - 0.1 / 40) < 0.02
    assert masked.max() < 40
    assert len(masked[chosen & (masked != 4) & (masked != ids)].unique()) > 30


def test_padding_takes_part_in_the_lot_but_is_never_asked_for() -> None:
    masking = WordMasking.of(VOCABULARY)
    ids = torch.tensor([row(4)] * 400)  # 20 of 110 places
    masked, labels = masking(ids, random())
    assert torch.equal(masked[ids == 0], ids[ids == 0])
    assert (labels[ids == 0] == -100).all()
    share = (labels >= 0).sum() / (ids > 3).sum()
    assert 0.12 < share < 0.2


def test_the_same_generator_hides_the_same() -> None:
    masking, ids = WordMasking.of(VOCABULARY, 0.3), torch.tensor([row(10), row(20)])
    first, second, other = (masking(ids, random(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], other[1])
    assert (masking(ids[1:], random())[1] >= 0).sum() > 25


def test_a_short_row_asks_for_one_word_at_least() -> None:
    labels = WordMasking.of(VOCABULARY)(torch.tensor([[2, 8, 3]]), random())[1]
    assert labels.tolist() == [[-100, 8, -100]]


def test_a_tokenizer_without_mask_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no token \[MASK\]"):
        WordMasking.of({"a": 0, "b": 1})
