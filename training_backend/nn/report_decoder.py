"""Writes reports from visual tokens: encoder and decoder with a memory that label queries read (M2KT, LAMRG).

Modules are named as in the published weights. Tokens of the scan, and one more per label, go through a transformer
encoder; the decoder writes words. The token of a label is what a query made of the label's logit finds in a memory of
slots. In training the published memory is first updated by the very report that is to be written, which no scan has
when one is predicted; `report_memory` says whether to do so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from training_backend.nn.text_beam import END, Beam, search
from training_backend.nn.text_layers import DecoderLayer, EncoderLayer, Reader, Stack, causal, word_embedding
from training_backend.nn.visual_tokens import VisualTokens, encoded

UNUSED = ("linear_fcfeat.", "linear_label.", "linear_mem.", "prior_memory.", "proj.", "visual_extractor.")
"""Tensors of published files that no published computation reads."""


@dataclass(frozen=True)
class WriterSizes:
    """Sizes of a `ReportWriter`; defaults are published.

    Attributes:
        words: words of the vocabulary, without the one that begins and ends a text.
        vision: channels of a visual token.
        width: channels of a word.
        hidden: channels inside feed-forward layers.
        layers: of the encoder, the decoder and the text encoder.
        heads: attention heads.
        memory_heads: attention heads of readers of the memory.
        slots: of the memory.
        labels: label queries.
        dropout: in training.
    """

    words: int
    vision: int
    width: int = 512
    hidden: int = 512
    layers: int = 1
    heads: int = 8
    memory_heads: int = 8
    slots: int = 60
    labels: int = 14
    dropout: float = 0.1


@dataclass(frozen=True)
class Written:
    """What a writer makes of a batch.

    Attributes:
        log_probs: [B, T, V + 1] of the word after each word.
        visual_labels: [B, labels] logits from the scan.
        text_labels: [B, labels] logits from the report, where the writer reads it.
        image: [B, E] summary of the scan.
        text: [B, E] summary of the report, where the writer reads it.
    """

    log_probs: Tensor
    visual_labels: Tensor
    image: Tensor
    text_labels: Tensor | None = None
    text: Tensor | None = None


class ReportWriter(nn.Module):
    """See the module.

    Args:
        sizes: of the parts.
        report_memory: in training, update the memory by the report that is to be written, as published.
    """

    memory: Tensor

    def __init__(self, sizes: WriterSizes, report_memory: bool = True) -> None:
        super().__init__()
        self.sizes, self.report_memory = sizes, report_memory
        width = sizes.width
        self.linear_z = nn.Linear(sizes.vision, width)
        self.classifier = nn.Linear(width, sizes.labels)
        self.embed_labels = nn.Linear(1, width)
        self.get_mem = nn.Linear(width, width)
        self.select_prior = Reader(width, sizes.memory_heads, sizes.dropout)
        self.linear_feat = nn.Linear(width, sizes.vision)
        if report_memory:
            self.txt_encoder = _TextReader(sizes)
            self.update_memory = Reader(width, sizes.memory_heads, sizes.dropout)
        self.encoder_decoder = _WordWriter(sizes)
        self.register_buffer("memory", torch.eye(sizes.slots, width)[None], persistent=False)
        for parameter in self.encoder_decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor, summary: Tensor, ids: Tensor) -> Written:
        """Probabilities of the words of reports whose words are known.

        Args:
            tokens: visual tokens [B, L, C].
            summary: of each scan [B, C], the mean of its tokens.
            ids: words [B, T] that begin with `END`; the word after each is predicted from it and those before.
        """
        labels, image = self._labels(summary)
        memory, read, text_labels = self._memory(len(tokens)), None, None
        if self.report_memory:
            features, text_labels = self.txt_encoder(ids)
            memory, read = self.update_memory(memory, features), features[:, 0]
        source = self._source(tokens, labels, memory)
        return Written(self.encoder_decoder(source, ids), labels, image, text_labels, read)

    @torch.no_grad()
    def write(self, tokens: Tensor, summary: Tensor, beam: Beam) -> Tensor:
        """Words [B, longest] of reports for `tokens` [B, L, C] and `summary` [B, C], padded with `END`."""
        labels, _ = self._labels(summary)
        source = self._source(tokens, labels, self._memory(len(tokens)))
        start = _Progress(source, ())
        return search(self.encoder_decoder.step, start, len(tokens), beam, tokens.device)

    def _labels(self, summary: Tensor) -> tuple[Tensor, Tensor]:
        image = self.linear_z(summary)
        return self.classifier(image), image

    def _memory(self, number: int) -> Tensor:
        slots: Tensor = self.get_mem(self.memory)
        return slots.expand(number, -1, -1)

    def _source(self, tokens: Tensor, labels: Tensor, memory: Tensor) -> Tensor:
        """Output [B, L + labels, E] of the encoder."""
        found = self.select_prior(self.embed_labels(labels[..., None]), memory)
        return self.encoder_decoder.encode(torch.cat([tokens, self.linear_feat(found)], dim=1))


class ReportNetwork(nn.Module):
    """Encoder, visual tokens and writer.

    Args:
        encoder: of any method.
        visual: makes tokens of its features.
        sizes: of the writer.
        report_memory: see `ReportWriter`.
        freeze: keep the encoder as it is.
    """

    def __init__(
        self, encoder: nn.Module, visual: VisualTokens, sizes: WriterSizes, report_memory: bool, freeze: bool
    ) -> None:
        super().__init__()
        self.encoder, self.visual, self.freeze = encoder, visual, freeze
        self.writer = ReportWriter(sizes, report_memory)
        if freeze:
            encoder.requires_grad_(False)

    def forward(self, volume: Tensor, ids: Tensor) -> Written:
        """Probabilities of the words `ids` [B, T] of the reports of `volume` [B, C, D, H, W]."""
        written: Written = self.writer(*self.visual(*encoded(self.encoder, volume, self.freeze)), ids)
        return written

    def write(self, volume: Tensor, beam: Beam) -> Tensor:
        """Words [B, longest] of reports of `volume` [B, C, D, H, W], padded with `END`."""
        tokens, summary = self.visual(*encoded(self.encoder, volume, self.freeze))
        return self.writer.write(tokens, summary, beam)

    def train(self, mode: bool = True) -> ReportNetwork:
        """As usual, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self


class _TextReader(nn.Module):
    """Encoder of a report: features [B, T, E] and logits of labels from its first word."""

    def __init__(self, sizes: WriterSizes) -> None:
        super().__init__()
        self.src_embed = word_embedding(sizes.width, sizes.words + 1, sizes.dropout)
        self.encoder = _encoder(sizes)
        self.classifier = nn.Linear(sizes.width, sizes.labels)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        features = _encoded(self.encoder, self.src_embed(ids), _words(ids)[:, None])
        return features, self.classifier(features[:, 0])


class _Transformer(nn.Module):
    def __init__(self, sizes: WriterSizes) -> None:
        super().__init__()
        self.encoder = _encoder(sizes)
        layers: list[nn.Module] = [
            DecoderLayer(sizes.width, sizes.hidden, sizes.heads, sizes.dropout) for _ in range(sizes.layers)
        ]
        self.decoder = Stack(layers, sizes.width)
        self.tgt_embed = word_embedding(sizes.width, sizes.words + 1, sizes.dropout)


class _WordWriter(nn.Module):
    def __init__(self, sizes: WriterSizes) -> None:
        super().__init__()
        width = sizes.width
        self.att_embed = nn.Sequential(nn.Linear(sizes.vision, width))
        self.model = _Transformer(sizes)
        self.logit = nn.Linear(width, sizes.words + 1)

    def encode(self, features: Tensor) -> Tensor:
        return _encoded(self.model.encoder, self.att_embed(features), None)

    def forward(self, source: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities [B, T, V + 1] of the word after each of `ids` [B, T]."""
        mask = causal(ids.shape[1], ids.device) & _words(ids)[:, None]
        x = self.model.tgt_embed(ids)
        for layer in self.model.decoder.layers:
            x = layer(x, source, mask)
        return self._scores(x)

    def step(self, last: Tensor, state: _Progress) -> tuple[Tensor, _Progress]:
        """Log-probabilities [N, V + 1] of the next word after the words `last` [N], and what to remember."""
        place = state.seen[0].shape[1] if state.seen else 0
        table, positions = self.model.tgt_embed
        x = positions(table(last[:, None]), place)
        seen = []
        for index, layer in enumerate(self.model.decoder.layers):
            before = state.seen[index] if state.seen else None
            own = layer.sublayer[0].norm(x)  # type: ignore[index, union-attr, operator]
            seen.append(own if before is None else torch.cat([before, own], dim=1))
            x = layer(x, state.source, None, before)
        return self._scores(x)[:, 0], replace(state, seen=tuple(seen))

    def _scores(self, x: Tensor) -> Tensor:
        logits: Tensor = self.logit(self.model.decoder.norm(x))
        return logits.float().log_softmax(-1)


@dataclass(frozen=True)
class _Progress:
    """Encoder's output of each row, and per layer the normalised words so far."""

    source: Tensor
    seen: tuple[Tensor, ...]

    def chosen(self, rows: Tensor) -> _Progress:
        return _Progress(self.source[rows], tuple(words[rows] for words in self.seen))


def words_loss(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Mean negative log-probability of each word of `ids` [B, T] but the first, the end of each text included.

    Args:
        log_probs: [B, T, V + 1] as `ReportWriter` gives.
        ids: words, `END` before and after each text and where it is padded.
    """
    wanted, given = ids[:, 1:], log_probs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    counts = _words(ids)[:, :-1]  # after each word of the text comes another one, or the end
    return -(given * counts).sum() / counts.sum().clamp_min(1) if wanted.numel() else given.sum()


def ranking_loss(image: Tensor, text: Tensor, margin: float = 1.0) -> Tensor:
    """How far each scan and its report are from being liker to each other than to those of the next case, a scalar.

    Likeness is a dot product. Hinge loss with a margin, mean over the cases, of both ways round; 0 for a single case.

    Args:
        image: summaries [B, E] of the scans.
        text: summaries [B, E] of their reports.
        margin: by which the own one should be liker.
    """
    if len(image) < 2:
        return 0.0 * (image.sum() + text.sum())
    own = (image * text).sum(1)
    other_image = (image.roll(-1, 0) * text).sum(1)
    other_text = (image * text.roll(-1, 0)).sum(1)
    return ((other_image - own + margin).relu() + (other_text - own + margin).relu()).mean()


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a published writer without those that nothing reads."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(UNUSED)}


def _words(ids: Tensor) -> Tensor:
    """True for the first place and for words, [B, T]."""
    words = ids != END
    words[:, 0] = True
    return words


def _encoder(sizes: WriterSizes) -> Stack:
    layers: list[nn.Module] = [
        EncoderLayer(sizes.width, sizes.hidden, sizes.heads, sizes.dropout) for _ in range(sizes.layers)
    ]
    return Stack(layers, sizes.width)


def _encoded(stack: Stack, x: Tensor, mask: Tensor | None) -> Tensor:
    for layer in stack.layers:
        x = layer(x, mask)
    normed: Tensor = stack.norm(x)
    return normed
