"""Reports as rows of token numbers for the networks of MedCoSS, some words of them hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training_backend.errors import ConfigError
from training_backend.nn.text_encoder import PAD, Tokeniser
from training_backend.nn.text_masking import WordMasking


class Words:
    """Rows of `longest` tokens, as the authors pad them, and what is hidden of these.

    Args:
        backend: a ``tokenizers.Tokenizer``.
        longest: tokens of a row.
        rows: words that the network has a row for.
        probability: share of the tokens that is hidden.
    """

    def __init__(self, backend: Any, longest: int, rows: int, probability: float = 0.15) -> None:
        known = backend.get_vocab_size()
        if known > rows:
            raise ConfigError(
                f"The tokenizer knows {known} tokens, but the network has rows for {rows} words.",
                "Raise method.vocabulary, which makes a new network, or method.text.least_count.",
            )
        self.longest = longest
        self.tokeniser = Tokeniser(backend, longest, int(backend.token_to_id(PAD) or 0))
        self.masking = WordMasking.of(backend.get_vocab(), probability)

    def rows(self, texts: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Token numbers and mask (1: a token) [B, T] of `texts`, always `longest` long."""
        ids, mask = self.tokeniser.batch(texts)
        short = self.longest - ids.shape[1]
        ids = torch.nn.functional.pad(ids, (0, short), value=self.tokeniser.pad)
        return ids.to(device), torch.nn.functional.pad(mask, (0, short)).to(device)

    def masked(
        self, texts: Sequence[str], generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token numbers with hidden words, true numbers (-100 where nothing is asked), and mask, each [B, T]."""
        ids, mask = self.rows(texts)
        hidden, labels = self.masking(ids, generator)
        return hidden.to(device), labels.to(device), mask.to(device)

    def to_json(self) -> str:
        """What ``tokenizers.Tokenizer.from_str`` needs to make it again."""
        return self.tokeniser.to_json()
