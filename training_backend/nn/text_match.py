"""How well texts fit volumes: latents, gates between tokens and sentences, and scores of prompts (CT-CLIP, MG-3D).

Parameters are named as in the published weights: ``text_transformer``, ``local_img_cross_multihead_attention``,
``to_visual_latent``, ``to_text_latent``, ``temperature``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.gates import SentenceGates
from training_backend.nn.mg3d_encoders import ProjectionHead
from training_backend.nn.visual_tokens import encoded

if TYPE_CHECKING:
    from training_backend.nn.text_encoder import Tokeniser
    from training_backend.nn.visual_tokens import VisualTokens

IMAGE = 1
"""Row of the type embedding that marks tokens of an image."""
TUNED = (
    "latent",
    "cross_multihead_attention",
    "multi_modal_vision_proj",
    "modality_type_embeddings",
    "proj_head",
    "visual.",
)
"""Parts that learn with `latents_only`, the first alone without gates; the last is new wherever there is one."""

USUAL = 0.1
"""Weight of a batch in the mean of the tokens that were learnt from, once there were many: what the network made of
them many steps ago says little of what it makes of a scan now."""

Reading = Literal["first", "mean"]
"""first: the vector of a text is that of its first token. mean: the mean of its tokens."""


class TextMatch(nn.Module):
    """Visual tokens and a text encoder, each with a linear map to common latents.

    Args:
        encoder: of the volumes; None where tokens come from elsewhere.
        visual: makes tokens [B, L, E] of its features; None likewise.
        text: text model of ``transformers``.
        tokeniser: of the text model.
        latent: channels of a latent.
        tokens: number L and channels E of the visual tokens.
        gates: layers of `SentenceGates` before the latents: 0 as CT-CLIP, 2 as MG-3D, for which E must be the width of
            the text model.
        reading: vector of a text.
        temperature: start of the learnt temperature; scores are cosines times its exponential.
        freeze_encoder: keep the encoder as it is.
        freeze_text: keep the text model as it is.
        latents_only: learn nothing but the maps to the latents, and, as MG-3D, the gates and what projects tokens.
        pretrained: channels of the visual tokens before they are projected and marked as in MG-3D's pre-training, from
            whose weights these parts come by name; 0 leaves them out.

    Attributes:
        usual: tokens [L, E] of a usual scan, a running mean over those that were learnt from; only with an encoder.
    """

    usual: Tensor
    usual_batches: Tensor
    optional = ("usual", "usual_batches")
    """Tensors that older weights lack."""

    def __init__(
        self,
        encoder: nn.Module | None,
        visual: VisualTokens | None,
        text: nn.Module,
        tokeniser: Tokeniser | None,
        latent: int,
        tokens: tuple[int, int],
        *,
        gates: int = 0,
        reading: Reading = "first",
        temperature: float = 1.0,
        freeze_encoder: bool = False,
        freeze_text: bool = True,
        latents_only: bool = False,
        pretrained: int = 0,
    ) -> None:
        super().__init__()
        settings: Any = text.config
        self.encoder, self.visual, self.tokeniser, self.reading = encoder, visual, tokeniser, reading
        self.freeze_encoder, self.freeze_text = freeze_encoder or latents_only, freeze_text or latents_only
        self.starts_whole = gates > 0  # weights of MG-3D hold gates too, and nothing else that a task has
        self.text_transformer = text
        self.local_img_cross_multihead_attention = nn.ModuleList(
            SentenceGates(tokens[1], pooled=True) for _ in range(gates)
        )
        wide = bool(pretrained) and pretrained != tokens[1]
        self.proj_head = ProjectionHead(pretrained, tokens[1]) if wide else None
        self.multi_modal_vision_proj = nn.Linear(tokens[1], tokens[1]) if pretrained else None
        self.modality_type_embeddings = nn.Embedding(2, tokens[1]) if pretrained else None
        self.to_visual_latent = nn.Linear(tokens[0] * tokens[1], latent, bias=False)
        self.to_text_latent = nn.Linear(settings.hidden_size, latent, bias=False)
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        if encoder is not None:
            self.register_buffer("usual", torch.zeros(tokens))
            self.register_buffer("usual_batches", torch.zeros(()))
        if encoder is not None and self.freeze_encoder:
            encoder.requires_grad_(False)
        if self.freeze_text:
            text.requires_grad_(False)
        if latents_only:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(any(part in name for part in (TUNED if gates else TUNED[:1])))

    def image_tokens(self, volume: Tensor) -> Tensor:
        """Tokens [B, L, E] of `volume` [B, C, D, H, W]."""
        assert self.encoder is not None  # networks of tasks have both
        assert self.visual is not None
        tokens: Tensor = self.visual(*encoded(self.encoder, volume, self.freeze_encoder))[0]
        tokens = self.marked(tokens)
        if self.training:
            self._remember(tokens.detach())
        return tokens

    def _remember(self, tokens: Tensor) -> None:
        """Let a batch of tokens [B, L, E] count for those of a usual scan."""
        self.usual_batches += 1
        self.usual.lerp_(tokens.float().mean(0), (1 / self.usual_batches).clamp_min(USUAL))

    def marked(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, E] projected and marked as an image's where the pre-training does so, else as they are."""
        if self.proj_head is not None:
            tokens = self.proj_head(F.layer_norm(tokens, tokens.shape[-1:]))
        if self.multi_modal_vision_proj is None:
            return tokens
        assert self.modality_type_embeddings is not None  # they come together
        projected: Tensor = self.multi_modal_vision_proj(tokens) + self.modality_type_embeddings.weight[IMAGE]
        return projected

    def text_rows(self, texts: Sequence[str]) -> Tensor:
        """Vectors [N, W] of texts."""
        assert self.tokeniser is not None  # networks of tasks have one
        ids, mask = self.tokeniser.batch(texts, self.to_text_latent.weight.device)
        return self.read(ids, mask)

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors [N, W] of texts of token numbers [N, T] and mask [N, T]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_text):
            states: Tensor = self.text_transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.reading == "first":
            return states[:, 0]
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp_min(1)

    def image_latents(self, tokens: Tensor) -> Tensor:
        """Unit vectors [B, latent] of tokens [B, L, E]."""
        return F.normalize(self.to_visual_latent(tokens.flatten(1)), dim=-1)

    def text_latents(self, rows: Tensor) -> Tensor:
        """Unit vectors [N, latent] of the vectors of texts [N, W]."""
        return F.normalize(self.to_text_latent(rows), dim=-1)

    def scores(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Scores [B, S] of texts against each volume: cosine times the exponential of the temperature.

        With gates the texts of a call are looked at together: the tokens are gated by all of them, as published.

        Args:
            tokens: [B, L, E].
            rows: vectors [S, W] of texts.
        """
        if not len(self.local_img_cross_multihead_attention):
            return self.image_latents(tokens) @ self.text_latents(rows).T * self.temperature.exp()
        said = rows.expand(len(tokens), -1, -1)
        for gate in self.local_img_cross_multihead_attention:
            tokens, _, said, _ = gate(tokens, said)
        cosine = torch.einsum("bl,bsl->bs", self.image_latents(tokens), self.text_latents(said))
        return cosine * self.temperature.exp()

    def table(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Scores [B, S] as `scores`, but each text meets the tokens alone; the same without gates."""
        if not len(self.local_img_cross_multihead_attention):
            return self.scores(tokens, rows)
        return torch.cat([self.scores(tokens, row[None]) for row in rows], dim=1)

    def contributions(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """What each place of a scan adds to its `scores`, which are the sums over places: [B, S, L].

        A latent is a linear map of all tokens, so a score is a sum over them once the length of the latent is known.

        Args:
            tokens: [B, L, E].
            rows: vectors [S, W] of texts, which are looked at together.
        """
        said = rows.expand(len(tokens), -1, -1)
        for gate in self.local_img_cross_multihead_attention:
            tokens, _, said, _ = gate(tokens, said)
        length = self.to_visual_latent(tokens.flatten(1)).norm(dim=-1).clamp_min(1e-12)
        wanted = (self.text_latents(said) @ self.to_visual_latent.weight).unflatten(2, tokens.shape[1:])
        shares: Tensor = (wanted * tokens[:, None]).sum(-1)
        return shares / length[:, None, None] * self.temperature.exp()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        for name, tensor in self.named_buffers(recurse=False):
            state_dict.setdefault(prefix + name, tensor)  # of weights from before there was a usual scan
        super()._load_from_state_dict(state_dict, prefix, *others)  # type: ignore[no-untyped-call]

    def presence(self, tokens: Tensor, findings: Sequence[str]) -> Tensor:
        """Probability [B, K] that each finding is there: softmax over the scores of "X." and "not X."."""
        return self.preference(tokens, [prompts(finding) for finding in findings])

    def preference(self, tokens: Tensor, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Probability [B, K] of the first text of each pair: softmax over the scores of both.

        Args:
            tokens: [B, L, E].
            pairs: two texts each.
        """
        rows = self.text_rows([text for pair in pairs for text in pair])
        if not len(self.local_img_cross_multihead_attention):
            return self.scores(tokens, rows).unflatten(1, (len(pairs), 2)).softmax(-1)[..., 0]
        scores = [self.scores(tokens, rows[2 * index : 2 * index + 2]) for index in range(len(pairs))]
        return torch.stack(scores, dim=1).softmax(-1)[..., 0]

    def gates(self, tokens: Tensor, text: str) -> Tensor | None:
        """How much a text attends to each of `tokens` [B, L, E]: [B, L] within (0, 1), a mean over layers.

        None where there are no gates.
        """
        said, found = self.text_rows([text]).expand(len(tokens), -1, -1), []
        for gate in self.local_img_cross_multihead_attention:
            tokens, _, said, weights = gate(tokens, said)
            found.append(weights[:, 0])
        return torch.stack(found).mean(0) if found else None

    def train(self, mode: bool = True) -> TextMatch:
        """As usual, except that what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.train(mode and not self.freeze_encoder)
        self.text_transformer.train(mode and not self.freeze_text)
        return self


def prompts(finding: str) -> tuple[str, str]:
    """The two sentences about a finding: that it is there, and that it is not."""
    return f"{finding}.", f"not {finding}."


def contrast(images: Tensor, texts: Tensor, temperature: Tensor, same: Tensor | None = None) -> Tensor:
    """Symmetric cross entropy of matching pairs: latents [B, E] of volumes and of their reports, in the same order.

    `same` [B, B] is true for volumes and reports that fit too, as cases with the same words do; they share the target.
    """
    return contrast_of((images @ texts.T).float() * temperature.exp(), same)


def contrast_of(logits: Tensor, same: Tensor | None = None) -> Tensor:
    """`contrast` of scores [B, B] of volumes against reports."""
    fits = torch.eye(len(logits), device=logits.device) if same is None else same.to(logits)
    target = fits / fits.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
