"""Whole-word masking of texts: pieces of one word are hidden together (BERT; Devlin et al., NAACL 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training_backend.errors import ConfigError
from training_backend.nn.text_encoder import MASK, PAD, START, STOP

NOT_ASKED = -100
"""Label of tokens that are not to be guessed."""
MOST = 512
"""Tokens of a text that are chosen at most."""
_PIECE = "##"
"""Begins a token that goes on with the word before."""


@dataclass(frozen=True)
class WordMasking:
    """How tokens are chosen and what stands in their place.

    Attributes:
        words: tokens of the vocabulary.
        mask: number of the token that hides others.
        marks: numbers of the tokens at both ends of a text, which are never chosen.
        pad: number that fills a row. Padding takes part in the lot, as published, so that of a short text about the
            same share of words is hidden as of a long one; what falls on it is dropped.
        pieces: numbers of tokens that go on with the word before.
        probability: share of the positions of a row that are chosen.
        hidden: share of the chosen tokens that the mask token replaces.
        replaced: share of the rest that a random token replaces; all others stay.
    """

    words: int
    mask: int
    marks: frozenset[int]
    pad: int
    pieces: frozenset[int] = frozenset()
    probability: float = 0.15
    hidden: float = 0.8
    replaced: float = 0.5

    @classmethod
    def of(cls, vocabulary: Mapping[str, int], probability: float = 0.15) -> WordMasking:
        """For the tokens of `vocabulary` by text, or a `ConfigError` if it has no mask token."""
        if MASK not in vocabulary:
            raise ConfigError(
                f"The tokenizer has no token {MASK}, so words cannot be hidden.",
                "Choose the tokenizer of a BERT model.",
            )
        marks = frozenset(vocabulary[name] for name in (START, STOP) if name in vocabulary)
        pieces = frozenset(number for word, number in vocabulary.items() if word.startswith(_PIECE))
        words = max(vocabulary.values()) + 1
        return cls(words, vocabulary[MASK], marks, vocabulary.get(PAD, 0), pieces, probability)

    def __call__(self, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token numbers and labels [B, T] of `ids` [B, T], both on its device; `generator` is on the CPU.

        A label is the true number of a chosen token, -100 elsewhere.
        """
        rows = ids.tolist()
        chosen = torch.zeros(ids.shape, dtype=torch.bool)
        for place, row in enumerate(rows):
            chosen[place, self._chosen(row, generator)] = True
        given = ids.cpu()
        for number in (*self.marks, self.pad):
            chosen &= given != number
        labels = given.masked_fill(~chosen, NOT_ASKED)
        hide = chosen & (torch.rand(ids.shape, generator=generator) < self.hidden)
        swap = chosen & ~hide & (torch.rand(ids.shape, generator=generator) < self.replaced)
        other = torch.randint(self.words, ids.shape, generator=generator)
        masked = torch.where(swap, other, given.masked_fill(hide, self.mask))
        return masked.to(ids.device), labels.to(ids.device)

    def _chosen(self, row: Sequence[int], generator: torch.Generator) -> list[int]:
        """Positions of whole words, in random order as many as fit into the share of the row."""
        found = self._words(row)
        budget = min(MOST, max(1, round(len(row) * self.probability)))
        chosen: list[int] = []
        for index in torch.randperm(len(found), generator=generator).tolist():
            if len(chosen) >= budget:
                break
            if len(chosen) + len(found[index]) <= budget:
                chosen += found[index]
        return chosen

    def _words(self, row: Sequence[int]) -> list[list[int]]:
        """Positions of the pieces of each word of a row; every pad is a word."""
        found: list[list[int]] = []
        for position, number in enumerate(row):
            if number in self.marks:
                continue
            if found and number in self.pieces:
                found[-1].append(position)
            else:
                found.append([position])
        return found
