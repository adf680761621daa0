"""MedCoSS: one encoder for reports, 2-D images and volumes, taught stage after stage.

Ye et al., CVPR 2024. Parameters are named as in the published files. Only the parts that a stage needs are built: the
tokenizers of the modalities that it sees, and the decoder of the one that it learns. Images are always volumes
[B, C, D, H, W]; a 2-D one has a single slice, and one or three channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.errors import ConfigError, GeometryError
from training_backend.nn.attention import NORM_EPS as DECODER_EPS
from training_backend.nn.attention import Block
from training_backend.nn.axes import Axes, sizes_back, turned, turned_back
from training_backend.nn.mae import (
    Masking,
    Reconstruction,
    decoder_tokens,
    denormalised_patches,
    hidden_error,
    normalised_patches,
    take_rows,
    voxels_that_count,
)
from training_backend.nn.medcoss_layers import SharedEncoder
from training_backend.nn.medcoss_text import MlmHead
from training_backend.nn.medcoss_tokens import COLOURS, ImageTokens, Kind, TextTokens, text_mask, with_colours
from training_backend.nn.output import EncoderOutput
from training_backend.nn.patch import Triple, patch_grid, patchify, unpatchify
from training_backend.nn.position import resize_table

KINDS: tuple[Kind, ...] = ("text", "2d", "3d")
NOT_LABELLED = -100
"""Label of tokens that are not to be guessed."""


@dataclass(frozen=True)
class MedcossSettings:
    """Sizes and options of the networks; the defaults are the published ones.

    Attributes:
        width: channels E of a token.
        depth: layers of the shared encoder.
        heads: its attention heads.
        mlp_dim: hidden channels of its MLPs.
        drop_path: probability of skipping a branch while training, the same in every layer.
        vocabulary: rows of the table of words.
        text_rows: rows of the table of places in a text.
        patch_2d: pixels of a patch of an image along (1, y, x).
        patch_3d: voxels of a patch of a volume along the axes of the network.
        size_2d: pixels (1, y, x) of the images that the position tables are trained on.
        size_3d: voxels along the axes of the network of the volumes that the position tables are trained on.
        axes: frame of the network for volumes; all that goes in and comes out of it is along ours.
        rows_2d: rows of the table of places in an image.
        rows_3d: rows of the table of places in a volume.
        channels_3d: channels of a volume.
        frames: rows of the table of moments.
        random_row: while training, take a random row of the table of moments for every forward pass, as published;
            otherwise row 0, as in evaluation mode.
        positions: "interpolate" the trained positions to other grids, or take the first rows of the table one after
            the other ("flat", as published).
        text_mask: "fixed", or "compatible": padding of samples mixed up as published, see
            `medcoss_tokens.text_mask`.
        decoder_width: channels of a token of the image decoder.
        decoder_depth: its blocks.
        decoder_heads: its attention heads.
        mask_ratio: share of patches hidden, unless a call says otherwise.
        unused_rows: rows of a table that the authors' pre-training files hold and nothing uses (1600); 0 leaves it out.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    drop_path: float = 0.1
    vocabulary: int = 49411
    text_rows: int = 512
    patch_2d: Triple = (1, 16, 16)
    patch_3d: Triple = (16, 16, 16)
    size_2d: Triple = (1, 224, 224)
    size_3d: Triple = (16, 192, 192)
    axes: Axes = "zyx"
    rows_2d: int = 1024
    rows_3d: int = 4096
    channels_3d: int = 1
    frames: int = 8
    random_row: bool = True
    positions: Literal["interpolate", "flat"] = "interpolate"
    text_mask: Literal["fixed", "compatible"] = "fixed"
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.75
    unused_rows: int = 0

    def patch(self, kind: Kind) -> Triple:
        """Voxels of a patch along the axes of the network."""
        return self.patch_2d if kind == "2d" else self.patch_3d

    def grid(self, kind: Kind) -> Triple:
        """Patches of the images that the position tables are trained on, along the axes of the network."""
        return patch_grid(self.size_2d if kind == "2d" else self.size_3d, self.patch(kind))

    def turned(self, x: Tensor, kind: Kind, first: int = 2) -> Tensor:
        """`x`, whose space begins at dimension `first`, along the axes of the network."""
        return x if kind == "2d" else turned(x, self.axes, first)

    def turned_back(self, x: Tensor, kind: Kind, first: int = 2) -> Tensor:
        """Inverse of `turned`."""
        return x if kind == "2d" else turned_back(x, self.axes, first)

    def our_patch(self, kind: Kind) -> Triple:
        """Voxels (z, y, x) of a patch along our axes."""
        return self.patch_2d if kind == "2d" else sizes_back(self.patch_3d, self.axes)

    def channels(self, kind: Kind) -> int:
        """Channels of the patches."""
        return COLOURS if kind == "2d" else self.channels_3d


class MedcossEncoder(nn.Module):
    """Tokenizers and shared encoder: what a stage hands on, the teacher of the next, and the encoder of a task.

    Args:
        settings: sizes and options.
        encodes: kinds that it can read; only their tokenizers are built.
        learns: the one of them that is its own, whose channels and patch it states (`in_channels`, `patch_size`);
            by default the last of text, 2d, 3d that it reads.
        class_token: whether images have a class token in front, as in pre-training and classification; the published
            segmentation networks have none.
        grey: whether the 2-D images that a task gives have one channel (`in_channels`); the network takes both.
    """

    def __init__(
        self,
        settings: MedcossSettings,
        encodes: Iterable[Kind] = ("3d",),
        *,
        learns: Kind | None = None,
        class_token: bool = True,
        grey: bool = False,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.encodes = tuple(kind for kind in KINDS if kind in set(encodes))
        if not self.encodes:
            raise ConfigError(f"An encoder reads at least one of {', '.join(KINDS)}.")
        self.width, self.depth = settings.width, settings.depth
        self.learns: Kind = learns or self.encodes[-1]
        self.layout, images = settings, self.image_kinds
        self.in_channels = (
            1 if self.learns == "text" or (self.learns == "2d" and grey) else settings.channels(self.learns)
        )
        self.patch_size: Triple = settings.our_patch(self.learns)
        _check(settings, images)
        self.fused_encoder = SharedEncoder(
            settings.width, settings.depth, settings.heads, settings.mlp_dim, settings.drop_path
        )
        if "text" in self.encodes:
            self.token_embed = TextTokens(settings.vocabulary, settings.text_rows, settings.width)
        if images:
            self.video_embed = ImageTokens(settings, images)
        self.has_summary = bool(images) and class_token
        if self.has_summary:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, settings.width))
        _initialise(self)

    @property
    def image_kinds(self) -> tuple[Kind, ...]:
        """Kinds of images that it can read."""
        return tuple(kind for kind in self.encodes if kind != "text")

    @property
    def planar(self) -> bool:
        """Whether it reads 2-D images only, for which a decoder has two dimensions."""
        return self.image_kinds == ("2d",)

    @property
    def colours(self) -> int:
        """Channels that a decoder sees, also of a grey 2-D image."""
        return COLOURS if self.planar else self.in_channels

    def kind_of(self, volume: Tensor) -> Kind:
        """Whether `volume` [B, C, D, H, W] is a 2-D image or a volume, or a `GeometryError` if it cannot be read."""
        if len(self.image_kinds) == 2:
            return "2d" if volume.shape[2] == 1 else "3d"
        (kind,) = self.image_kinds or (None,)
        if kind is None:
            raise ConfigError("This encoder reads reports only.", "Choose weights of a stage with images.")
        if kind == "2d" and volume.shape[2] != 1:
            raise GeometryError(
                f"This encoder reads 2-D images, but the view has {volume.shape[2]} slices.",
                "Choose views of one slice, or weights of a stage with volumes.",
            )
        return kind

    def encode(self, volume: Tensor, hidden: Sequence[int] = ()) -> EncoderOutput:
        """Features of `volume` [B, C, D, H, W]; `hidden` are indices of layers whose tokens are wanted too."""
        x, kind, grid = self._embedded(volume)
        first, kept = int(self.has_summary), {}
        for index, x in enumerate(self.fused_encoder.states(x)):  # noqa: B020 each follows from the one before
            if index in hidden:
                kept[index] = self._ours(x[:, first:], kind, grid)
        d, h, w = volume.shape[2:]
        our_grid = patch_grid((d, h, w), self.settings.our_patch(kind))
        summary = x[:, 0] if first else None
        tokens = self._ours(x[:, first:], kind, grid)
        return EncoderOutput(tokens, our_grid, summary=summary, hidden=tuple(kept[index] for index in hidden))

    def attention(self, volume: Tensor, block: int) -> Tensor:
        """Attention [B, heads, d, h, w] of the class token, or on average over tokens where there is none."""
        x, kind, grid = self._embedded(volume)
        weights = self.fused_encoder.attention(x, block)
        paid = weights[:, :, 0, 1:] if self.has_summary else weights.mean(dim=2)
        return self.settings.turned_back(paid.unflatten(-1, grid), kind)

    def token_attention(self, volume: Tensor, block: int, token_index: int) -> Tensor:
        """Attention [heads, d, h, w] that one patch pays to all patches in layer number `block`.

        What it pays to the class token, where there is one, is missing from the sum of 1.

        Args:
            volume: one view [1, C, D, H, W].
            block: index of the layer.
            token_index: number of the patch in raster order (d, h, w) of the volume.
        """
        x, kind, grid = self._embedded(volume)
        first = int(self.has_summary)
        numbers = torch.arange(x.shape[1] - first).reshape(1, 1, *grid)
        place = int(self.settings.turned_back(numbers, kind).flatten()[token_index])
        weights = self.fused_encoder.attention(x, block)[:, :, first + place, first:]
        return self.settings.turned_back(weights.unflatten(-1, grid), kind)[0]

    def layer_id(self, parameter: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 embeddings, i + 1 layer i, depth + 1 anything later."""
        first, _, rest = parameter.partition(".")
        if first in ("cls_token", "token_embed", "video_embed"):
            return 0
        return int(rest.split(".")[1]) + 1 if first == "fused_encoder" else self.depth + 1

    def encode_image(
        self, volume: Tensor, noise: Tensor | None = None, row: int = 0, mask_ratio: float | None = None
    ) -> Tensor:
        """Output [B, 1 + n, E] of the last layer, class token first.

        Args:
            volume: [B, C, D, H, W].
            noise: [B, L] uniform numbers: the patches with the smallest are seen, in their order; None sees all.
            row: of the table of moments, see `draw_row`.
            mask_ratio: share of patches hidden; None takes that of the settings.
        """
        kind = self.kind_of(volume)
        masking = None if noise is None else self._masking(noise, mask_ratio)
        return self._encode_visible(self.settings.turned(volume, kind), kind, masking, row)

    def encode_text(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Output [B, T, E] of the last layer for token numbers and mask (1: a token) [B, T], padding included."""
        compatible = self.settings.text_mask == "compatible"
        mask = text_mask(attention, self.settings.heads, compatible=compatible)
        features: Tensor = self.fused_encoder(self.token_embed(ids), mask)
        return features

    def draw_row(self, generator: torch.Generator) -> int:
        """Row of the table of moments for one forward pass: random while training, else 0."""
        if not (self.training and self.settings.random_row):
            return 0
        return int(torch.randint(self.settings.frames, (), generator=generator))

    def draw_noise(self, volume: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform numbers [B, L], one per patch; drawn on the CPU, so that every device hides the same patches."""
        d, h, w = patch_grid(tuple(volume.shape[2:]), self.settings.our_patch(self.kind_of(volume)))
        return torch.rand(len(volume), d * h * w, generator=generator).to(volume.device, non_blocking=True)

    def _masking(self, noise: Tensor, ratio: float | None) -> Masking:
        return Masking.draw(noise, self.settings.mask_ratio if ratio is None else ratio)

    def _embedded(self, volume: Tensor) -> tuple[Tensor, Kind, Triple]:
        """Input of the first layer for all patches of a volume of ours, its kind, and the network's grid."""
        kind = self.kind_of(volume)
        seen = self.settings.turned(volume, kind)
        grid = patch_grid(tuple(seen.shape[2:]), self.settings.patch(kind))
        return self._with_class(self.video_embed(seen, kind)), kind, grid

    def _ours(self, tokens: Tensor, kind: Kind, grid: Triple) -> Tensor:
        """Patch tokens [B, L, E] in our raster order of those in the network's."""
        return self.settings.turned_back(tokens.unflatten(1, grid), kind, first=1).flatten(1, 3)

    def _encode_visible(self, seen: Tensor, kind: Kind, masking: Masking | None, row: int) -> Tensor:
        """Output of the last layer for the visible patches of `seen`, which lies along the axes of the network."""
        features: Tensor = self.fused_encoder(self._with_class(self.video_embed(seen, kind, masking, row)))
        return features

    def _with_class(self, tokens: Tensor) -> Tensor:
        if not self.has_summary:
            return tokens
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)


class MedcossNetwork(MedcossEncoder):
    """Encoder and what a stage learns by: masked patches for images, masked words for reports.

    Args:
        settings: sizes and options.
        learns: kind of the stage's own modality; its decoder is built.
        encodes: kinds of all modalities that it sees, those of its buffer included; that of `learns` always is.
        decodes: further kinds whose decoders are wanted, e.g. all for a published file.
        grey: see `MedcossEncoder`.
    """

    def __init__(
        self,
        settings: MedcossSettings,
        learns: Kind,
        encodes: Iterable[Kind] = (),
        decodes: Iterable[Kind] = (),
        *,
        grey: bool = False,
    ) -> None:
        super().__init__(settings, {learns, *encodes, *decodes}, learns=learns, grey=grey)
        self.decodes = tuple(kind for kind in KINDS if kind in {learns, *decodes})
        wide, kinds = settings.decoder_width, set(self.decodes)
        if kinds - {"text"}:
            self.decoder_embed = nn.Linear(settings.width, wide)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, wide))
            self.decoder_blocks = nn.ModuleList(
                Block(wide, settings.decoder_heads) for _ in range(settings.decoder_depth)
            )
            self.decoder_norm = nn.LayerNorm(wide, eps=DECODER_EPS)
        if "2d" in kinds:
            self.decoder_pos_embed_2D = nn.Parameter(torch.zeros(1, 1 + _count(settings.grid("2d")), wide))
            self.decoder_pred_2D = nn.Linear(wide, _count(settings.patch_2d) * settings.channels("2d"))
        if "3d" in kinds:
            self.decoder_pos_embed_3D = nn.Parameter(torch.zeros(1, 1 + _count(settings.grid("3d")), wide))
            self.decoder_pred_3D = nn.Linear(wide, _count(settings.patch_3d) * settings.channels("3d"))
        if "text" in kinds:
            self.decoder_pos_embed_1D = nn.Embedding(2, settings.width)
            self.mlm_head = MlmHead(settings.width, settings.vocabulary)
        _initialise(self)

    @property
    def limits(self) -> str:
        """A sentence on what it reads but cannot reconstruct; empty where there is nothing of the kind."""
        names = {"text": "reports", "2d": "2-D images", "3d": "volumes"}
        lacking = [names[kind] for kind in self.encodes if kind not in self.decodes]
        if not lacking:
            return ""
        return (
            f"It reads {' and '.join(lacking)} too but holds no decoder for them, so it cannot reconstruct them; a run "
            "keeps the decoders of its earlier stages."
        )

    def image_loss(
        self,
        volume: Tensor,
        noise: Tensor,
        row: int = 0,
        padding: Tensor | None = None,
        mask_ratio: float | None = None,
    ) -> Tensor:
        """Mean squared error of hidden patches, each normalised to zero mean and unit variance.

        Args:
            volume: [B, C, D, H, W].
            noise: [B, L] uniform numbers, see `draw_noise`.
            row: of the table of moments, see `draw_row`.
            padding: [B, D, H, W] bool, true for voxels outside the scan, which do not count; None counts all.
            mask_ratio: share of patches hidden; None takes that of the settings.
        """
        kind, masking = self.kind_of(volume), self._masking(noise, mask_ratio)
        seen = self.settings.turned(volume, kind)
        latent = self._encode_visible(seen, kind, masking, row)
        hidden = masking.hidden.shape[1]
        prediction = self._decode(latent, kind, masking, seen, first=latent.shape[1] if hidden else 0)
        if not hidden:
            return prediction.sum() * 0.0
        seen, patch = with_colours(seen, kind), self.settings.patch(kind)
        target = normalised_patches(take_rows(patchify(seen, patch), masking.hidden))
        if padding is None:
            return hidden_error(prediction, target)
        outside = self.settings.turned(padding, kind, first=1)
        return hidden_error(prediction, target, voxels_that_count(outside, seen, masking.hidden, patch))

    def reconstruct(
        self, volume: Tensor, noise: Tensor, mask_ratio: float | None = None, row: int = 0
    ) -> Reconstruction:
        """Prediction of every patch, visible ones too, normalised as the targets; arguments as `image_loss`."""
        kind, masking = self.kind_of(volume), self._masking(noise, mask_ratio)
        seen = self.settings.turned(volume, kind)
        latent = self._encode_visible(seen, kind, masking, row)
        prediction = take_rows(self._decode(latent, kind, masking, seen, first=1), masking.restore)
        patch, grid = self.settings.patch(kind), patch_grid(tuple(seen.shape[2:]), self.settings.patch(kind))
        target = normalised_patches(patchify(with_colours(seen, kind), patch))
        error = (prediction.float() - target).square().mean(dim=-1)
        mask = masking.mask
        loss = (error * mask).sum() / mask.sum().clamp(min=1)
        drawn = self.settings.turned_back(unpatchify(prediction, patch, grid, self.settings.channels(kind)), kind)
        our_patch = self.settings.our_patch(kind)
        our_grid = patch_grid(tuple(volume.shape[2:]), our_patch)
        our_mask = self.settings.turned_back(mask.unflatten(1, grid), kind, first=1).flatten(1)
        return Reconstruction(loss, patchify(drawn, our_patch), our_mask, our_grid)

    def denormalise(self, prediction: Tensor, volume: Tensor) -> Tensor:
        """Predicted patches [B, L, p] in the intensities of `volume`, whose own patch statistics are used."""
        kind = self.kind_of(volume)
        return denormalised_patches(prediction, patchify(with_colours(volume, kind), self.settings.our_patch(kind)))

    def text_loss(self, ids: Tensor, labels: Tensor, attention: Tensor) -> Tensor:
        """Mean cross entropy of the masked words; 0 where there is none.

        Args:
            ids: [B, T] token numbers, some of them masked.
            labels: [B, T] true numbers, -100 where nothing is to be guessed.
            attention: [B, T], 1 where there is a token.
        """
        asked = labels != NOT_LABELLED
        logits = self.word_logits(self.encode_text(ids, attention)[asked])  # the rest of the big product is spared
        if not len(logits):
            return logits.sum() * 0.0
        return F.cross_entropy(logits.float(), labels[asked])

    def word_logits(self, features: Tensor) -> Tensor:
        """Scores [..., V] of words, from features [..., E] of `encode_text`."""
        logits: Tensor = self.mlm_head(features + self.decoder_pos_embed_1D.weight[0])
        return logits

    def _decode(self, latent: Tensor, kind: Kind, masking: Masking, seen: Tensor, first: int) -> Tensor:
        """Predictions of the tokens from number `first` of the sequence [class, visible, hidden] on."""
        if kind not in self.decodes:
            raise ConfigError(
                f"This network has no decoder for {kind} images, only for {', '.join(self.decodes)}.",
                "Choose the decoder that the stage of this modality left behind; the published file holds that of its "
                "last stage only.",
            )
        table, head = (
            (self.decoder_pos_embed_2D, self.decoder_pred_2D)
            if kind == "2d"
            else (self.decoder_pos_embed_3D, self.decoder_pred_3D)
        )
        grid = patch_grid(tuple(seen.shape[2:]), self.settings.patch(kind))
        positions = resize_table(table, self.settings.grid(kind), grid)[0]
        x = decoder_tokens(self.decoder_embed(latent), self.mask_token, positions, masking)
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        x = self.decoder_blocks[-1](x, first)
        prediction: Tensor = head(self.decoder_norm(x))
        return prediction


def _initialise(network: nn.Module) -> None:
    """Published initial weights; embeddings and convolutions keep those of torch."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif name == "decoder_pos_embed_1D":
            nn.init.normal_(module.weight, std=0.02)  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        if name in ("cls_token", "mask_token"):
            nn.init.normal_(parameter, std=0.02)


def _check(settings: MedcossSettings, images: Iterable[Kind]) -> None:
    """Refuse tables that have no row for every patch of the images that they are trained on."""
    for kind in images:
        rows = settings.rows_2d if kind == "2d" else settings.rows_3d
        if _count(settings.grid(kind)) > rows:
            raise ConfigError(
                f"Views of {settings.grid(kind)} patches need more than the {rows} positions of the network.",
                f"Choose smaller views, or more rows_{kind}.",
            )


def _count(sizes: Triple) -> int:
    return sizes[0] * sizes[1] * sizes[2]
