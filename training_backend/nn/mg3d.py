"""MG-3D (arXiv 2412.05876): a scan and its report explain each other, by words, by sentences and as wholes.

A step has three passes. Words: hidden words of the report are guessed with the help of the whole scan. Voxels: hidden
blocks of the scan are drawn with the help of the report. Wholes: scan and report are aligned, and sentences of
different patients are compared. Names are those of the published file; parts of it that no loss reads are not built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.gates import OneWayGate, SentenceGates, SentencePool, masked_mean
from training_backend.nn.gather import gathered
from training_backend.nn.mg3d_encoders import VisionEncoder
from training_backend.nn.mg3d_heads import (
    COMMON,
    ContrastHead,
    MeanPooler,
    SentencePooler,
    TokenPooler,
    VoxelHead,
    WordHead,
    contrast,
    patients_loss,
    sentence_loss,
    voxel_loss,
)
from training_backend.nn.patch import Triple
from training_backend.nn.reports import IGNORED, Reports

if TYPE_CHECKING:
    from training_backend.nn.text_encoder import Tokeniser

Routing = Literal["sentences", "words"]
"""What helps to draw hidden blocks. sentences: the sentences of the report, as the paper describes. words: its words
through the gates of the other pass, as the published code does by a slip of the pen."""
Gating = Literal["means", "learnt"]
"""How gates are reduced: by means, as published for Swin, or by learnt sums and pools, as for the U-Net."""

LAYERS = 2
"""Layers of gates."""
TEXT, IMAGE = 0, 1
"""Rows of the type embedding."""
SENTENCE_WEIGHT = 0.1
"""Of the reconstruction of sentences beside that of words."""
INIT_STD = 0.02


@dataclass(frozen=True)
class Said:
    """What the text model makes of reports.

    Attributes:
        embedded: [B, T, E] its embedding layer on the whole text, without gradient.
        masked: [B, T, E] its output for the text with hidden words, projected.
        whole: [B, T, E] the same of the whole text.
        alone: [B, S, E] mean over the tokens of each sentence as the embedding layer sees it on its own.
        words: [B, T], true for the words that gates average over; None for all, padding included.
    """

    embedded: Tensor
    masked: Tensor
    whole: Tensor
    alone: Tensor
    words: Tensor | None


@dataclass(frozen=True)
class WordPass:
    """Guessed words.

    Attributes:
        logits: [B, T, K].
        words: cross entropy of hidden words.
        sentences: reconstruction of sentences, weighted.
        accuracy: share of the hidden words that are guessed.
        gates: of each layer, the weights [B, T, L] of words to tokens and [B, L, T] of tokens to words.
    """

    logits: Tensor
    words: Tensor
    sentences: Tensor
    accuracy: Tensor
    gates: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class VoxelPass:
    """Drawn voxels.

    Attributes:
        drawn: [B, C, D, H, W].
        loss: squared error of hidden voxels.
        tokens: [B, L, E] what the volume is drawn from.
    """

    drawn: Tensor
    loss: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class WholePass:
    """Aligned scans and reports, and compared patients; B counts the volumes of all processes in logits and losses.

    Attributes:
        cross: contrast of the summaries that looked at the other side with those that did not.
        aggregated: contrast of the image's summary with that gathered from its sentences.
        patients: soft-target matching of sentences between patients.
        pairs: pairs of patients in it.
        cross_logits: [B, B].
        aggregated_logits: [B, B].
        seen: [B, 2E] summaries of report and scan that looked at the other side.
        own: [B, 2E] those that did not.
        gathered: [B, E] the image's summary from its sentences.
        sentences: [B, S, 128] sentences seen through the image.
        gates: of each layer, the weights [B, L, S] of tokens to sentences and [B, S, L] of sentences to tokens.
    """

    cross: Tensor
    aggregated: Tensor
    patients: Tensor
    pairs: int
    cross_logits: Tensor
    aggregated_logits: Tensor
    seen: Tensor
    own: Tensor
    gathered: Tensor
    sentences: Tensor
    gates: tuple[tuple[Tensor, Tensor], ...]

    @property
    def loss(self) -> Tensor:
        """Sum of the three."""
        return self.cross + self.aggregated + self.patients


class Mg3d(nn.Module):
    """Image encoder, text model, and all that learns between them.

    Args:
        vision: image encoder, whose pre-training tokens are as wide as the text model.
        language: text model of ``transformers``.
        grid: tokens along (d, h, w) that learnt sums over tokens are made for.
        routing: see `Routing`.
        gating: see `Gating`.
        freeze_text: keep the text model as it is.
        all_padding: let padding take part where gates average over words, as published.

    Attributes:
        tokeniser: of the text model; given by who builds a network to be trained.
        settings: of the method, likewise.
        told: whether it was said that a step sees a single patient.
    """

    tokeniser: Tokeniser
    settings: Any
    told: bool = False

    def __init__(
        self,
        vision: VisionEncoder,
        language: nn.Module,
        grid: Triple,
        *,
        routing: Routing = "sentences",
        gating: Gating = "means",
        freeze_text: bool = True,
        all_padding: bool = True,
    ) -> None:
        super().__init__()
        settings: Any = language.config
        width = int(settings.hidden_size)
        self.grid, self.width, self.patch_size = grid, width, vision.patch_size
        self.routing: Routing = routing
        self.freeze_text, self.all_padding = freeze_text, all_padding
        self.vision_encoder, self.language_encoder = vision, language
        self.multi_modal_vision_proj = nn.Linear(width, width)
        self.multi_modal_language_proj = nn.Linear(width, width)
        self.modality_type_embeddings = nn.Embedding(2, width)
        learnt = gating == "learnt"
        self.local_text_cross_multihead_attention = nn.ModuleList(
            SentenceGates(width, first="weigh" if learnt else "mean", grid=grid) for _ in range(LAYERS)
        )
        self.local_img_cross_multihead_attention = nn.ModuleList(
            SentenceGates(width, first="pool" if learnt else "mean", second="weigh" if learnt else "mean", grid=grid)
            for _ in range(LAYERS)
        )
        self.agg_img_cross_attention = nn.ModuleList(OneWayGate(width) for _ in range(LAYERS))
        self.uni_global_text_attention, self.multi_global_text_attention = SentencePool(width), SentencePool(width)
        self.uni_modal_vision_pooler = TokenPooler(width, grid)
        self.multi_modal_vision_pooler = TokenPooler(width, grid)
        self.multi_modal_agg_vision_pooler = MeanPooler(width)
        self.multi_modal_sen_vision_pooler = SentencePooler(width)
        self.uni_emd_sen = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, COMMON))
        self.mlm_head = WordHead(width, int(settings.vocab_size))
        self.mim_swin_unter_head = VoxelHead(width, vision.in_channels)
        self.itc_cross_head = ContrastHead(2 * width, width)
        self.itc_agg_head = ContrastHead(width, width)
        for part in self._small_start():
            part.apply(_initialised)
        if freeze_text:
            language.requires_grad_(False)
        pooler = getattr(language, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)  # nothing reads it

    def read(self, reports: Reports, hidden: bool = True) -> Said:
        """What the text model makes of `reports`; both versions of a report go through it together, once.

        Without `hidden`, the version with hidden words is left out, and `Said.masked` is that of the whole text.
        """
        versions = 2 if hidden else 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_text):
            states = self.language_encoder(
                input_ids=torch.cat([reports.masked, reports.ids]) if hidden else reports.ids,
                attention_mask=reports.mask.repeat(versions, 1),
                output_hidden_states=True,
            )
            parts = states.last_hidden_state.chunk(versions)
        with torch.no_grad():
            embedded = states.hidden_states[0].chunk(versions)[-1].detach()
            number, sentences, length = reports.alone.shape
            single = self.language_encoder.embeddings(input_ids=reports.alone.view(-1, length))  # type: ignore[operator]
            alone = masked_mean(single, reports.alone_mask.view(-1, length).bool()).view(number, sentences, -1)
        words = None if self.all_padding else reports.mask.bool()
        whole = self._text(parts[-1])
        return Said(embedded, self._text(parts[0]) if hidden else whole, whole, alone, words)

    def look(self, volume: Tensor) -> Tensor:
        """Projected tokens [B, L, E] of `volume` [B, C, D, H, W]."""
        return self.image(self.vision_encoder.pretrained(volume))

    def words(self, said: Said, reports: Reports, tokens: Tensor, grid: Triple) -> WordPass:
        """First pass: hidden words from the rest and from the tokens [B, L, E] of the whole scan."""
        x, y, gates = said.masked, tokens, []
        for layer in self.local_text_cross_multihead_attention:
            x, p2, y, p1 = layer(x, y, mask1=said.words, grid=grid)
            gates.append((p2, p1))
        transformed = self.mlm_head.transformed(x)
        logits = self.mlm_head.logits(transformed)
        flat, labels = logits.flatten(0, 1).float(), reports.labels.flatten()
        hidden = labels != IGNORED
        number = hidden.sum().clamp_min(1)
        entropy = F.cross_entropy(flat, labels, ignore_index=IGNORED, reduction="sum") / number
        right = ((flat.argmax(-1) == labels) & hidden).sum() / number
        found = self.mlm_head.sentences(sentence_means(transformed, reports))
        wanted = self.uni_emd_sen(sentence_means(said.embedded, reports))
        rebuilt = SENTENCE_WEIGHT * sentence_loss(found, wanted, reports.present)
        return WordPass(logits, entropy, rebuilt, right, tuple(gates))

    def voxels(
        self, volume: Tensor, hidden: Tensor, ratio: float, said: Said, reports: Reports, grid: Triple
    ) -> VoxelPass:
        """Second pass: hidden voxels [D, H, W] from the rest of the scan and from the whole report."""
        tokens = self.look(volume.masked_fill(hidden, 0.0))
        if self.routing == "words":
            x = said.whole
            for layer in self.local_text_cross_multihead_attention:
                x, _, tokens, _ = layer(x, tokens, mask1=said.words, grid=grid)
        else:
            x = sentence_means(said.whole.detach(), reports)
            for layer in self.local_img_cross_multihead_attention:
                tokens, _, x, _ = layer(tokens, x, mask2=reports.present, grid=grid)
        drawn = self.mim_swin_unter_head(tokens, grid)
        return VoxelPass(drawn, voxel_loss(drawn, volume, hidden, ratio), tokens)

    def wholes(
        self,
        tokens: Tensor,
        said: Said,
        reports: Reports,
        grid: Triple,
        gather: bool = False,
    ) -> WholePass:
        """Third pass: alignment of scan and report, and of the sentences of different patients.

        The published code gathers the summaries of all processes, but compares the sentences of one process only.

        Args:
            tokens: [B, L, E] of the whole scan, as `look` gives them; they are projected a second time, as published.
            said: of the reports.
            reports: one per scan.
            grid: of the tokens.
            gather: compare with the cases of all processes.
        """
        present = reports.present
        sentences = sentence_means(said.whole.detach(), reports)
        image = self.image(tokens)
        own_text = self.uni_global_text_attention(sentences, present)
        y, x, gates = image, sentences, []
        for layer in self.local_img_cross_multihead_attention:
            y, p2, x, p1 = layer(y, x, mask2=present, grid=grid)
            gates.append((p2, p1))
        seen_image, own_image = self.multi_modal_vision_pooler(y, grid), self.uni_modal_vision_pooler(image, grid)
        seen = torch.cat([self.multi_global_text_attention(x, present), seen_image], dim=-1)
        own = torch.cat([own_text, own_image], dim=-1)
        rows, summary = sentences, own_image
        for gate in self.agg_img_cross_attention:
            rows = gate.each(rows, summary)  # type: ignore[operator]
            summary = self.multi_modal_agg_vision_pooler(rows, present)
        short = self.multi_modal_sen_vision_pooler(rows)
        vectors = [*self.itc_cross_head(seen, own), *self.itc_agg_head(seen_image, summary)]
        compared = (short, said.alone, present)
        if gather:
            vectors = list(gathered(torch.cat(vectors, dim=-1)).chunk(4, dim=-1))
            compared = _gathered_sentences(*compared)
        cross, cross_logits = contrast(vectors[0], vectors[1])
        aggregated, aggregated_logits = contrast(vectors[2], vectors[3])
        patients, pairs = patients_loss(*compared)
        return WholePass(
            cross=cross,
            aggregated=aggregated,
            patients=patients,
            pairs=pairs,
            cross_logits=cross_logits,
            aggregated_logits=aggregated_logits,
            seen=seen,
            own=own,
            gathered=summary,
            sentences=short,
            gates=tuple(gates),
        )

    def train(self, mode: bool = True) -> Mg3d:
        """As usual, except that a frozen text model stays in evaluation mode."""
        super().train(mode)
        self.language_encoder.train(mode and not self.freeze_text)
        return self

    def _text(self, states: Tensor) -> Tensor:
        out: Tensor = self.multi_modal_language_proj(states) + self.modality_type_embeddings.weight[TEXT]
        return out

    def image(self, tokens: Tensor) -> Tensor:
        """Projection of tokens [B, L, E] of the image encoder, marked as those of an image."""
        out: Tensor = self.multi_modal_vision_proj(tokens) + self.modality_type_embeddings.weight[IMAGE]
        return out

    def _small_start(self) -> list[nn.Module]:
        """Parts whose weights start small; gates, pools and convolutions start as PyTorch has it."""
        return [
            self.multi_modal_vision_proj,
            self.multi_modal_language_proj,
            self.modality_type_embeddings,
            self.uni_modal_vision_pooler,
            self.multi_modal_vision_pooler,
            self.multi_modal_agg_vision_pooler,
            self.multi_modal_sen_vision_pooler,
            self.mlm_head,
            self.itc_cross_head,
            self.itc_agg_head,
        ]


def sentence_means(features: Tensor, reports: Reports) -> Tensor:
    """Mean [B, S, E] of the features [B, T, E] of the tokens of each sentence; 0 for sentences that are not there."""
    numbers = torch.arange(1, reports.alone.shape[1] + 1, device=features.device)
    members = (reports.sentence[:, None] == numbers[:, None]).to(features.dtype)
    return members @ features / members.sum(-1, keepdim=True).clamp_min(1)


def _gathered_sentences(short: Tensor, alone: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sentences of all processes, which differ in the most that a report of theirs has."""
    most = int(gathered(torch.tensor([short.shape[1]], device=short.device)).max())
    missing = most - short.shape[1]
    rows = gathered(F.pad(torch.cat([short, alone], dim=-1), (0, 0, 0, missing)))
    there = gathered(F.pad(present.to(torch.uint8), (0, missing))).bool()
    return rows[..., : short.shape[-1]], rows[..., short.shape[-1] :].detach(), there


def _initialised(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
