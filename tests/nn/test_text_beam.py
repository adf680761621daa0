"""Beam search against a search of all texts, and its rules."""

from __future__ import annotations

import itertools

import pytest
import torch

from training_backend.nn.report_decoder import ReportWriter, WriterSizes
from training_backend.nn.text_beam import Beam, search

WORDS = 4


class Sums:
    """A language model whose next word depends on all words before."""

    def __init__(self, seed: int, numbers: torch.Tensor) -> None:
        self.seed, self.numbers = seed, numbers

    def chosen(self, rows: torch.Tensor) -> Sums:
        return Sums(self.seed, self.numbers[rows])


def step(last: torch.Tensor, state: Sums) -> tuple[torch.Tensor, Sums]:
    numbers = (state.numbers * 7 + last + 1) % 1009
    tables = [torch.randn(WORDS, generator=torch.Generator().manual_seed(state.seed + int(n))) for n in numbers]
    return (2 * torch.stack(tables)).log_softmax(-1), Sums(state.seed, numbers)


def score(words: tuple[int, ...], seed: int, start: int) -> float:
    state, last, total = Sums(seed, torch.tensor([start])), 0, 0.0
    for word in words:
        table, state = step(torch.tensor([last]), state)
        total += float(table[0, word])
        last = word
    return total


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_of_all_texts(seed: int) -> None:
    longest = 4
    found = search(step, Sums(1000 * seed, torch.tensor([3, 5])), 2, Beam(200, longest))
    for row, start in zip(found.tolist(), (3, 5)):
        texts = {
            (*words[: words.index(0)], 0) if 0 in words else words
            for words in itertools.product(range(WORDS), repeat=longest)
        }
        best = max(texts, key=lambda words: score(words, 1000 * seed, start))
        assert row == [*best, *[0] * (longest - len(best))]


def test_texts_do_not_disturb_each_other() -> None:
    both = search(step, Sums(7, torch.tensor([3, 5])), 2, Beam(3, 6))
    alone = [search(step, Sums(7, torch.tensor([start])), 1, Beam(3, 6))[0] for start in (3, 5)]
    assert torch.equal(both, torch.stack(alone))


def test_three_words_in_a_row_come_once() -> None:
    def always(last: torch.Tensor, state: Sums) -> tuple[torch.Tensor, Sums]:
        return torch.tensor([[-9.0, -0.1, -4.0, -5.0]]).expand(len(last), -1), state

    start = Sums(0, torch.tensor([0]))
    assert search(always, start, 1, Beam(1, 8))[0].tolist() == [1] * 8
    blocked = search(always, start, 1, Beam(1, 8, block_trigrams=True))[0].tolist()
    assert blocked == [1, 1, 1, 2, 1, 1, 3, 1]


def test_one_word_after_another_is_the_same_as_all_at_once() -> None:
    torch.manual_seed(0)
    sizes = WriterSizes(words=9, vision=6, width=16, hidden=16, layers=2, heads=2, memory_heads=2, slots=4, labels=3)
    model = ReportWriter(sizes, report_memory=False).eval()
    tokens = torch.randn(2, 5, 6)
    ids = model.write(tokens, tokens.mean(1), Beam(1, 7))
    whole = torch.cat([torch.zeros(2, 1, dtype=torch.long), ids], dim=1)
    with torch.no_grad():
        likeliest = model(tokens, tokens.mean(1), whole).log_probs.argmax(-1)
    for row, words in zip(likeliest, ids):
        length = int((words != 0).sum())
        assert torch.equal(row[:length], words[:length])
