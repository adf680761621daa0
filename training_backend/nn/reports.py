"""Reports as tokens that know their sentence, with some words hidden: what MG-3D reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from training_backend.nn.text_encoder import Tokeniser

IGNORED = -100
"""Label of tokens that need not be guessed."""
AS_MASK, AS_OTHER = 0.8, 0.1
"""Shares of the hidden tokens that become the mask token, and another token at random; the rest stays as it is."""


@dataclass(frozen=True)
class Reports:
    """Tokens of B reports.

    Attributes:
        ids: [B, T] token numbers, with marks at both ends of a report.
        masked: [B, T] the same with some words hidden.
        labels: [B, T] numbers of the hidden tokens, `IGNORED` elsewhere.
        mask: [B, T] 1 where there is a token.
        sentence: [B, T] number of the sentence that a token belongs to, from 1; 0 for marks and padding.
        alone: [B, S, n] each sentence as a text of its own, with marks.
        alone_mask: [B, S, n] 1 where there is a token; none for sentences that a report lacks.
    """

    ids: Tensor
    masked: Tensor
    labels: Tensor
    mask: Tensor
    sentence: Tensor
    alone: Tensor
    alone_mask: Tensor

    @property
    def present(self) -> Tensor:
        """[B, S], true for the sentences that a report has."""
        return self.alone_mask.any(-1)

    def to(self, device: torch.device | str) -> Reports:
        """The same on `device`."""
        return Reports(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def read_reports(
    reports: Sequence[Sequence[str]],
    tokeniser: Tokeniser,
    generator: torch.Generator,
    *,
    hidden: float = 0.15,
    padded: bool = False,
) -> Reports:
    """Tokens of reports, in lower case as published.

    Sentences are read one by one and joined, so each token is known to belong to one, however words are cut into
    tokens. What a report has beyond the tokeniser's limit is left out; a sentence that it cuts through loses its end.

    Args:
        reports: sentences of each.
        tokeniser: of the text model.
        generator: on the CPU; decides which words are hidden, and as what.
        hidden: share of hidden tokens; whole words, at least one in a report.
        padded: fill all reports up to the tokeniser's limit, not up to the longest one.
    """
    read = [_sentences(report, tokeniser) for report in reports]
    before, after = tokeniser.ends
    longest = max((sum(len(ids) for ids, _ in one) for one in read), default=0) + len(before) + len(after)
    width = tokeniser.longest if padded else max(longest, 1)
    ids = torch.full((len(reports), width), tokeniser.pad)
    mask, sentence = torch.zeros_like(ids), torch.zeros_like(ids)
    words = torch.full_like(ids, -1)
    most = max((len(one) for one in read), default=0) or 1
    widest = max((len(i) for one in read for i, _ in one), default=0) + len(before) + len(after)
    alone = torch.full((len(reports), most, widest), tokeniser.pad)
    alone_mask = torch.zeros_like(alone)
    for row, one in enumerate(read):
        place, word = len(before), 0
        for number, (tokens, parts) in enumerate(one):
            end = place + len(tokens)
            ids[row, place:end] = torch.tensor(tokens)
            words[row, place:end] = torch.tensor(parts) + word
            sentence[row, place:end] = number + 1
            word, place = word + max(parts) + 1, end
            single = [*before, *tokens, *after]
            alone[row, number, : len(single)] = torch.tensor(single)
            alone_mask[row, number, : len(single)] = 1
        ids[row, : len(before)] = torch.tensor(before, dtype=torch.long)
        ids[row, place : place + len(after)] = torch.tensor(after, dtype=torch.long)
        mask[row, : place + len(after)] = 1
    masked, labels = hide_words(ids, words, tokeniser, generator, hidden)
    return Reports(ids, masked, labels, mask, sentence, alone, alone_mask)


def hide_words(
    ids: Tensor, words: Tensor, tokeniser: Tokeniser, generator: torch.Generator, share: float
) -> tuple[Tensor, Tensor]:
    """Token numbers [B, T] with whole words hidden, and their labels.

    Words are taken in random order as long as the hidden tokens stay within `share` of all tokens with a word, at least
    one word in a report.

    Args:
        ids: [B, T].
        words: [B, T] number of the word of a token within its report, -1 where there is none.
        tokeniser: gives the mask token and the size of the vocabulary.
        generator: on the CPU.
        share: of hidden tokens.
    """
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    for row, numbers in enumerate(words):
        sizes = torch.bincount(numbers[numbers >= 0]).tolist()
        budget = max(1, round(share * sum(sizes)))
        for word in torch.randperm(len(sizes), generator=generator).tolist():
            fits = sizes[word] <= budget or not chosen[row].any()
            if sizes[word] and fits:
                chosen[row] |= numbers == word
                budget -= sizes[word]
            if budget <= 0:
                break
    draw = torch.rand(ids.shape, generator=generator)
    other = torch.randint(tokeniser.size, ids.shape, generator=generator)
    masked = torch.where(chosen & (draw < AS_MASK), tokeniser.mask, ids)
    masked = torch.where(chosen & (draw >= AS_MASK) & (draw < AS_MASK + AS_OTHER), other, masked)
    return masked, torch.where(chosen, ids, IGNORED)


def _sentences(report: Sequence[str], tokeniser: Tokeniser) -> list[tuple[list[int], list[int]]]:
    """Tokens and words of each sentence that the limit leaves."""
    before, after = tokeniser.ends
    room = whole = tokeniser.longest - len(before) - len(after)
    found, total = [], 0
    for sentence in report:
        tokens, words = tokeniser.pieces(sentence.lower())
        total += len(tokens)
        if tokens[:room]:
            found.append((tokens[:room], words[:room]))
        room -= len(tokens[:room])
    if total > whole:
        tokeniser.say_cut(total + len(before) + len(after))
    return found
