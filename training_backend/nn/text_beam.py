"""Beam search over words, for one text after another or many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

END = 0
"""Number of the word that begins and ends a text, and pads it."""
BARRED = -1000.0
"""Added to the score of a beam that ended, so that it is never continued while another one is left."""


class State(Protocol):
    """What a language model remembers of the words so far; one row per beam."""

    def chosen(self, rows: Tensor) -> Any:
        """The memory of `rows` [N], which may repeat."""
        ...


Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""Log-probabilities [N, V] of the next word and the new state, for the last words [N] and the state before."""


@dataclass(frozen=True)
class Beam:
    """Settings of the search.

    Attributes:
        size: beams kept per text; 1 is greedy.
        longest: words after which a text ends.
        block_trigrams: never write three words in a row that the text has already.
    """

    size: int = 3
    longest: int = 150
    block_trigrams: bool = False


def search(step: Step, state: Any, texts: int, beam: Beam, device: torch.device | str = "cpu") -> Tensor:
    """The words of the best beam of each text, [texts, longest], padded with `END`.

    Beams compete by the sum of their log-probabilities, short ones and long ones alike, as published.

    Args:
        step: language model.
        state: of the model before the first word, `texts` rows.
        texts: number of texts.
        beam: settings.
        device: of the model.
    """
    scores, state = step(torch.full((texts,), END, device=device), state)
    words = torch.zeros((texts, 1, 0), dtype=torch.long, device=device)
    totals = torch.zeros((texts, 1), device=device)
    best = torch.full((texts,), -torch.inf, device=device)
    found = torch.full((texts, beam.longest), END, dtype=torch.long, device=device)
    for place in range(beam.longest):
        parents, following, totals = _continued(scores, words, totals, beam)
        words = torch.cat([words.gather(1, parents[..., None].expand(-1, -1, place)), following[..., None]], dim=2)
        ended = following == END
        if place == beam.longest - 1:
            ended = torch.ones_like(ended)
        top, which = totals.masked_fill(~ended, -torch.inf).max(dim=1)
        better = top > best
        best = torch.where(better, top, best)
        found[better, : place + 1] = words[better, which[better]]
        found[better, place + 1 :] = END
        totals = totals + BARRED * ended
        if bool((totals.amax(dim=1) <= best).all()):
            break  # every word lowers a score, so none of the open beams can win any more
        rows = (torch.arange(texts, device=device)[:, None] * scores.shape[0] // texts + parents).flatten()
        scores, state = step(following.flatten(), state.chosen(rows))
    return found


def _continued(scores: Tensor, words: Tensor, totals: Tensor, beam: Beam) -> tuple[Tensor, Tensor, Tensor]:
    """Best continuations of each text: the beam continued [texts, K], its next word and its score."""
    texts, beams = totals.shape
    table = scores.view(texts, beams, -1).float()
    if beam.block_trigrams:
        table = _without_trigrams(table, words)
    size = table.shape[2]
    totals, places = (totals[..., None] + table).flatten(1).topk(min(beam.size, beams * size), dim=1)
    return places // size, places % size, totals


def _without_trigrams(table: Tensor, words: Tensor) -> Tensor:
    """`table` [texts, K, V] where words that would repeat three words of their text are all but impossible."""
    length = words.shape[2]
    if length < 3:
        return table
    pairs = torch.stack([words[..., :-2], words[..., 1:-1]], dim=-1)
    repeats = (pairs == words[..., None, -2:]).all(-1)
    blocked = torch.zeros_like(table, dtype=torch.bool)
    third = words[..., 2:].masked_fill(~repeats, END)
    blocked.scatter_(2, third, True)
    blocked[..., END] = False  # a text may end at any place
    return table + BARRED * blocked
