"""One vector and one set of outputs per volume, on any encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.attention import NORM_EPS
from training_backend.nn.patch import fitting

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder

KINDS = ("class", "pooled", "concat", "pre_logits", "normalised")
"""Embeddings of a volume; see `embeddings`."""

Pooling = Literal["global", "class", "tokens", "patches", "projected"]


class VolumeHead(nn.Module):
    """Encoder, pooling, and a linear or multi-layer head.

    Parameters are named as in the authors' fine-tuned files (``fc_norm``, ``head``), those of the encoder with the
    prefix ``encoder.``; `authors_names` and `own_names` translate.

    Args:
        encoder: gives tokens, and a class token (or start token) if it has one.
        outputs: numbers K per volume.
        pooling: "global" joins the class token and the mean of the patch tokens and normalises the two; "class" takes
            the class token after the encoder's final norm; "tokens" gives every patch token after that norm its own
            outputs through ``score``, which has no bias, and takes their mean, so they add up to the outputs of the
            volume; "patches" normalises the mean of the patch tokens, as MedCoSS classifies; "projected" that of
            patch tokens that are standardised and sent through ``proj_head`` to half as many channels, as MG-3D
            classifies with Swin-L, whose weights hold that part. Encoders without class token are pooled over patches.
        hidden: widths of hidden layers of the head; empty for a linear one, as "tokens" must have. They are followed by
            leaky ReLU and batch norm, or with "patches" by layer norm and GELU.
        freeze: keep the encoder as it is.
    """

    def __init__(
        self,
        encoder: Encoder,
        outputs: int,
        pooling: Pooling = "global",
        hidden: Sequence[int] = (),
        freeze: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = cast(nn.Module, encoder)
        self.pooling, self.freeze = pooling, freeze
        has_class = hasattr(encoder, "cls_token") or getattr(encoder, "has_summary", False)
        width = encoder.width * (2 if pooling == "global" and has_class else 1)
        if pooling in ("global", "patches"):
            self.encoder.norm = nn.Identity()  # the norm of single tokens is not used, as published
            self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS)
        if pooling == "projected":
            from training_backend.nn.mg3d_encoders import ProjectionHead

            width = encoder.width // 2
            self.proj_head = ProjectionHead(encoder.width, width)
            self.fc_norm = nn.LayerNorm(width)
        self.starts_whole = pooling == "projected"  # weights of MG-3D hold the projection, and no head
        if pooling == "tokens":
            self.score = nn.Linear(width, outputs, bias=False)
        else:
            self.head = _head(width, outputs, hidden, layer_norm=pooling == "patches")
        if freeze:
            self.encoder.requires_grad_(False)

    def forward(self, volume: Tensor) -> Tensor:
        """Outputs [B, K] of `volume` [B, C, D, H, W], padded with zeros to whole patches."""
        features = self.features(volume)
        outputs: Tensor = self.score(features) if self.pooling == "tokens" else self.head(features)
        return outputs

    def evidence(self, volume: Tensor) -> Tensor:
        """What each token adds to the outputs [B, K, d, h, w] of a "tokens" head; their mean is the output.

        Raises:
            ConfigError: a head of another kind, whose outputs are no sum over tokens.
        """
        if self.pooling != "tokens":
            from training_backend.errors import ConfigError

            raise ConfigError(
                f"A head with {self.pooling} pooling does not say which part of a volume speaks for a class.",
                "Train one with task.pooling tokens.",
            )
        encoder = cast("Encoder", self.encoder)
        padded = fitting(encoder, volume)
        features = encoder.encode(padded)
        scores: Tensor = self.score(_final_norm(self.encoder)(features.tokens))
        return scores.transpose(1, 2).unflatten(2, features.grid)

    def features(self, volume: Tensor) -> Tensor:
        """What the head sees, [B, E] or [B, 2E]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            tokens, summary = _encode(cast("Encoder", self.encoder), volume)
        if self.pooling == "tokens":
            mean: Tensor = _final_norm(self.encoder)(tokens).mean(1)  # as the head is linear, before or after it
            return mean
        if self.pooling == "projected":
            projected: Tensor = self.proj_head(F.layer_norm(tokens, tokens.shape[-1:]))
            return self.fc_norm(projected.mean(1))  # type: ignore[no-any-return]
        if self.pooling == "patches":
            pooled: Tensor = self.fc_norm(tokens.mean(1))
            return pooled
        if self.pooling == "class":
            single: Tensor = _final_norm(self.encoder)(tokens.mean(1) if summary is None else summary)
            return single
        both: Tensor = self.fc_norm(_concat(tokens, summary))
        return both

    def train(self, mode: bool = True) -> VolumeHead:
        """As usual, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self


def embeddings(network: nn.Module | Encoder, volume: Tensor, normed: bool = False) -> dict[str, Tensor]:
    """All kinds of vectors of `volume` [B, C, D, H, W].

    Args:
        network: a `VolumeHead`, or an encoder of its own.
        volume: input, normalised.
        normed: apply the encoder's final norm to every token first; the published embeddings do not.

    Returns:
        By kind: "class" [B, E] the class token (mean of patches where there is none), "pooled" [B, E] mean of the
        patch tokens, "concat" [B, 2E] both, "pre_logits" [B, 2E] their layer norm (with the fine-tuned weights if
        `network` has them, else without), "normalised" the same, as the authors' "normalized_concat".
    """
    encoder = cast("Encoder", getattr(network, "encoder", network))
    tokens, summary = _encode(encoder, volume)
    if normed:
        norm = _final_norm(cast(nn.Module, encoder))
        tokens, summary = norm(tokens), None if summary is None else norm(summary)
    pooled, concat = tokens.mean(dim=1), _concat(tokens, summary)
    trained = getattr(network, "fc_norm", None)
    plain = F.layer_norm(concat, concat.shape[-1:], eps=NORM_EPS)
    pre_logits = trained(concat) if trained is not None and trained.weight.shape == concat.shape[-1:] else plain
    return {
        "class": pooled if summary is None else summary,
        "pooled": pooled,
        "concat": concat,
        "pre_logits": pre_logits,
        "normalised": pre_logits,
    }


def layer_id(network: nn.Module, parameter: str) -> int:
    """Depth of a parameter of a network with an ``encoder``: the encoder's own, and one more for anything else."""
    encoder = cast("Encoder", network.encoder)
    if parameter.startswith("encoder."):
        return encoder.layer_id(parameter.removeprefix("encoder."))
    return encoder.depth + 1


def own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an authors' fine-tuned file under the names of `VolumeHead`."""
    return {key if key.startswith(("head.", "fc_norm.")) else f"encoder.{key}": value for key, value in state.items()}


def authors_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `own_names`."""
    return {key.removeprefix("encoder."): value for key, value in state.items()}


def _encode(encoder: Encoder, volume: Tensor) -> tuple[Tensor, Tensor | None]:
    out = encoder.encode(fitting(encoder, volume))
    return out.tokens, out.summary


def _concat(tokens: Tensor, summary: Tensor | None) -> Tensor:
    pooled = tokens.mean(dim=1)
    return pooled if summary is None else torch.cat([summary, pooled], dim=1)


def _final_norm(encoder: nn.Module) -> nn.Module:
    return getattr(encoder, "norm", None) or nn.Identity()


def _head(width: int, outputs: int, hidden: Sequence[int], layer_norm: bool) -> nn.Module:
    """Linear layers with leaky ReLU *before* batch norm between, as TANGERINE's, or with layer norm and GELU.

    Outputs start close to 0.
    """
    layers: list[nn.Module] = []
    for inner, outer in pairwise([width, *hidden]):
        between = [nn.LayerNorm(outer), nn.GELU()] if layer_norm else [nn.LeakyReLU(0.01), nn.BatchNorm1d(outer)]
        layers += [nn.Linear(inner, outer), *between]
    last = nn.Linear([width, *hidden][-1], outputs)
    nn.init.trunc_normal_(last.weight, std=2e-5)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last) if layers else last
