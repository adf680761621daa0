"""Readers of texts for classification: a text model with outputs, and phrases that speak for or against a class."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.data.text import Level, sentences

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder
    from training_backend.nn.text_encoder import Tokeniser

LONGEST_PHRASE = 2
"""Words of a phrase."""
SPEED = 20.0
"""A phrase counts so many times what its parameter says, so that learning rates of networks suit phrases too."""
START = -4.0
"""Logit of a class in a sentence of unknown phrases before training."""
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W_]+)*")


class TextReader(nn.Module, ABC):
    """Outputs K of texts; subclasses give `logits`.

    Attributes:
        encoder: of scans, which belongs to the run and reads nothing; it is no part of the module.
    """

    encoder: Encoder

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.__dict__["encoder"] = encoder  # kept out of the parameters, as no text goes through it

    @abstractmethod
    def logits(self, texts: Sequence[str]) -> Tensor:
        """Logits [B, K] of texts."""


class ModelReader(TextReader):
    """A linear layer on the vector that a text model has for the first token of a text.

    Args:
        encoder: see `TextReader`.
        text: model of ``transformers``.
        tokeniser: of the model.
        outputs: numbers K per text.
        freeze: keep the text model as it is.
    """

    def __init__(
        self, encoder: Encoder, text: nn.Module, tokeniser: Tokeniser, outputs: int, freeze: bool = False
    ) -> None:
        super().__init__(encoder)
        settings: Any = text.config
        self.text_transformer, self.tokeniser, self.freeze = text, tokeniser, freeze
        self.head = nn.Linear(int(settings.hidden_size), outputs)
        pooler = getattr(text, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)  # nothing reads it
        if freeze:
            text.requires_grad_(False)

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Logits [B, K] of texts; what a text has beyond the tokeniser's limit is not read."""
        ids, mask = self.tokeniser.batch(texts, self.head.weight.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            states: Tensor = self.text_transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        found: Tensor = self.head(states[:, 0])
        return found

    def train(self, mode: bool = True) -> ModelReader:
        """As usual, except that a frozen text model stays in evaluation mode."""
        super().train(mode)
        self.text_transformer.train(mode and not self.freeze)
        return self


class PhraseReader(TextReader):
    """A class is in a text where at least one of its sentences says so, by the phrases that it is made of.

    Each sentence has a probability of each class: a sigmoid of a sum over its known phrases, each with a weight per
    class, divided by the root of their number. The text has the class unless all sentences fail to have it: one minus
    the product of their complements.

    Args:
        encoder: see `TextReader`.
        phrases: known ones, as `known_phrases` finds them.
        outputs: numbers K per text.
        level: what counts as a sentence.
    """

    def __init__(self, encoder: Encoder, phrases: Sequence[str], outputs: int, level: Level = "sentence") -> None:
        super().__init__(encoder)
        self.phrases, self.level = tuple(phrases), level
        self._numbers = {phrase: number for number, phrase in enumerate(self.phrases)}
        self._read: dict[str, list[list[int]]] = {}
        self.weight = nn.Parameter(torch.zeros(len(self.phrases), outputs))
        self.bias = nn.Parameter(torch.full((outputs,), START / SPEED))

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Logits [B, K] of texts."""
        single, text = self.sentence_logits(texts)
        absent = torch.zeros(len(texts), single.shape[1], device=single.device)
        absent = absent.index_add(0, text, F.logsigmoid(-single)).clamp(max=-1e-6)  # log probability of no sentence
        return torch.log(-torch.expm1(absent)) - absent

    def sentence_logits(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Logits [S, K] of all sentences, and the number of the text [S] that each is of; a blank text has one."""
        numbers: list[int] = []
        starts, weights, text = [], [], []
        for index, one in enumerate(texts):
            for known in self._known(one) or [[]]:
                starts.append(len(numbers))
                numbers += known
                weights += [max(1, len(known)) ** -0.5] * len(known)
                text.append(index)
        place = self.weight.device
        sums = F.embedding_bag(
            torch.tensor(numbers, dtype=torch.long, device=place),
            self.weight.float(),
            torch.tensor(starts, device=place),
            mode="sum",
            per_sample_weights=torch.tensor(weights, dtype=torch.float32, device=place),
        )
        return SPEED * (sums + self.bias.float()), torch.tensor(text, device=place)

    def _known(self, text: str) -> list[list[int]]:
        """Numbers of the known phrases of each sentence."""
        if text not in self._read:
            self._read[text] = [
                [self._numbers[phrase] for phrase in dict.fromkeys(phrases_of(one)) if phrase in self._numbers]
                for one in sentences(text, self.level)
            ]
        return self._read[text]


def phrases_of(sentence: str) -> list[str]:
    """Runs of one and two lower-case words of a sentence; numbers are none."""
    words = [word.lower() for word in _WORD.findall(sentence)]
    return [
        " ".join(words[first : first + length])
        for length in range(1, LONGEST_PHRASE + 1)
        for first in range(len(words) - length + 1)
    ]


def known_phrases(texts: Iterable[str], least: int, level: Level = "sentence") -> tuple[str, ...]:
    """Phrases that at least `least` of `texts` have, sorted."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({phrase for one in sentences(text, level) for phrase in phrases_of(one)})
    return tuple(sorted(phrase for phrase, count in counts.items() if count >= least))
