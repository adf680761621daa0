"""The 3D masked autoencoder: reconstruct hidden patches of a volume from the visible ones.

McConnell et al., Commun Med 6:83 (2026). The encoder sees the visible patches only. The decoder is permutation
equivariant once positions are added, so its tokens stay ordered [class, visible, hidden]: nothing is put back into
raster order, its last block and the prediction run on the hidden tokens alone, and the loss needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.attention import NORM_EPS, Block
from training_backend.nn.patch import Triple, patch_grid, patchify
from training_backend.nn.position import resize_table, sincos_table
from training_backend.nn.vit import VitEncoder, fixed_table


@dataclass(frozen=True)
class Reconstruction:
    """What the autoencoder makes of a batch; tokens in raster order (d, h, w).

    Attributes:
        loss: scalar, mean squared error over hidden patches.
        prediction: [B, L, p] every patch as predicted.
        mask: [B, L] 1 where a patch was hidden.
        grid: patches along (d, h, w).
    """

    loss: Tensor
    prediction: Tensor
    mask: Tensor
    grid: Triple


@dataclass(frozen=True)
class Masking:
    """Which patches of a batch are visible, as indices in the order in which the noise sorted them."""

    visible: Tensor
    hidden: Tensor

    @classmethod
    def draw(cls, noise: Tensor, ratio: float) -> Masking:
        """The ``int(L (1 - ratio))`` patches of smallest `noise` [B, L] stay visible; ratio 0 keeps raster order."""
        tokens = noise.shape[1]
        keep = int(tokens * (1 - ratio))
        if ratio == 0:
            order = torch.arange(tokens, device=noise.device).expand_as(noise)
        else:
            order = noise.argsort(dim=1)
        return cls(order[:, :keep], order[:, keep:])

    @property
    def restore(self) -> Tensor:
        """[B, L] place of each patch in the sequence visible + hidden."""
        return torch.cat([self.visible, self.hidden], dim=1).argsort(dim=1)

    @property
    def mask(self) -> Tensor:
        """[B, L] in raster order, 1 where hidden."""
        return (self.restore >= self.visible.shape[1]).float()


class MaskedAutoencoder(VitEncoder):
    """Masked autoencoder; an encoder itself, plus decoder. Parameters are named as in the published checkpoints.

    Args:
        size: voxels along (z, y, x) that the position tables are made for.
        patch_size: voxels of a patch along (z, y, x).
        in_channels: channels C of the volume.
        width: channels E of an encoder token.
        depth: encoder blocks.
        heads: attention heads of the encoder.
        decoder_width: channels of a decoder token.
        decoder_depth: decoder blocks.
        decoder_heads: attention heads of the decoder.
        mlp_ratio: hidden channels of the MLPs per channel of a token.
        mask_ratio: share of patches to hide, unless a call says otherwise.
        norm_pix_loss: compare with patches normalised to zero mean and unit (unbiased) variance.
        sigmoid: end in a sigmoid, as published (``decoder_pred.0.weight``), which only fits targets within [0, 1];
            without it the prediction is linear (``decoder_pred.weight``).
        drop_path: stochastic depth of the encoder.
        reference_positions: keep the published code's order of positions on grids that are not cubic.
    """

    def __init__(
        self,
        size: Triple,
        patch_size: Triple,
        in_channels: int = 1,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        sigmoid: bool = True,
        drop_path: float = 0.0,
        reference_positions: bool = False,
    ) -> None:
        super().__init__(size, patch_size, in_channels, width, depth, heads, mlp_ratio, drop_path, reference_positions)
        self.mask_ratio, self.norm_pix_loss = mask_ratio, norm_pix_loss
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        table = sincos_table(decoder_width, self.grid, reference_order=reference_positions)
        self.decoder_pos_embed = fixed_table(table)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads, mlp_ratio) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=NORM_EPS)
        head = nn.Linear(decoder_width, patch_size[0] * patch_size[1] * patch_size[2] * in_channels)
        self.decoder_pred: nn.Module = nn.Sequential(head, nn.Sigmoid()) if sigmoid else head
        self._initialise()

    def _initialise(self) -> None:
        # the published order, so that one seed gives the published initial weights
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.width, -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, volume: Tensor, noise: Tensor, mask_ratio: float | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Loss: mean squared error over hidden patches (0 if none is hidden).

        Args:
            volume: [B, C, D, H, W].
            noise: [B, L] uniform random numbers; the patches with the smallest stay visible.
            mask_ratio: share of patches to hide; None takes the network's own.
            padding: [B, D, H, W] bool, true for voxels that do not count, being outside the scan; None counts all.
        """
        pixels, masking = self._mask(volume, noise, mask_ratio)
        latent = self._encode_visible(pixels, masking, volume)
        hidden = masking.hidden.shape[1]
        prediction = self._decode(latent, masking, volume, first=latent.shape[1] if hidden else 0)
        if not hidden:
            return prediction.sum() * 0.0
        target = self._target(take_rows(pixels, masking.hidden))
        counts = None if padding is None else voxels_that_count(padding, volume, masking.hidden, self.patch_size)
        return hidden_error(prediction, target, counts)

    def reconstruct(self, volume: Tensor, noise: Tensor, mask_ratio: float | None = None) -> Reconstruction:
        """Prediction of every patch, visible ones too; arguments as `forward`."""
        pixels, masking = self._mask(volume, noise, mask_ratio)
        latent = self._encode_visible(pixels, masking, volume)
        prediction = take_rows(self._decode(latent, masking, volume, first=1), masking.restore)
        mask = masking.mask
        error = (prediction.float() - self._target(pixels)).square().mean(dim=-1)
        loss = (error * mask).sum() / mask.sum().clamp(min=1)
        return Reconstruction(loss, prediction, mask, patch_grid(tuple(volume.shape[2:]), self.patch_size))

    def encode_visible(self, volume: Tensor, noise: Tensor, mask_ratio: float | None = None) -> Tensor:
        """Latent [B, 1 + visible, E] after the final norm, class token first, visible patches in order of noise."""
        pixels, masking = self._mask(volume, noise, mask_ratio)
        return self._encode_visible(pixels, masking, volume)

    def denormalise(self, prediction: Tensor, volume: Tensor) -> Tensor:
        """Predicted patches [B, L, p] in the intensities of `volume`, whose own patch statistics are used."""
        if not self.norm_pix_loss:
            return prediction
        return denormalised_patches(prediction, patchify(volume, self.patch_size))

    def _mask(self, volume: Tensor, noise: Tensor, ratio: float | None) -> tuple[Tensor, Masking]:
        chosen = self.mask_ratio if ratio is None else ratio
        return patchify(volume, self.patch_size), Masking.draw(noise, chosen)

    def _encode_visible(self, pixels: Tensor, masking: Masking, volume: Tensor) -> Tensor:
        positions = self.positions(patch_grid(tuple(volume.shape[2:]), self.patch_size))
        tokens = self.patch_embed.embed(take_rows(pixels, masking.visible)) + positions[0, 1:][masking.visible]
        first = (self.cls_token + positions[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([first.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        latent: Tensor = self.norm(x)
        return latent

    def _decode(self, latent: Tensor, masking: Masking, volume: Tensor, first: int) -> Tensor:
        """Predictions of the tokens from number `first` of the sequence [class, visible, hidden] on."""
        grid = patch_grid(tuple(volume.shape[2:]), self.patch_size)
        positions = resize_table(self.decoder_pos_embed, self.grid, grid)[0]
        x = decoder_tokens(self.decoder_embed(latent), self.mask_token, positions, masking)
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        x = self.decoder_blocks[-1](x, first)
        prediction: Tensor = self.decoder_pred(self.decoder_norm(x))
        return prediction

    def _target(self, pixels: Tensor) -> Tensor:
        """What patches [B, n, p] should be predicted as, in float32 whatever the precision of the rest."""
        return normalised_patches(pixels) if self.norm_pix_loss else pixels.float()


def decoder_tokens(latent: Tensor, mask_token: Tensor, positions: Tensor, masking: Masking) -> Tensor:
    """Input [B, 1 + L, E] of a decoder, ordered [class, visible, hidden].

    Args:
        latent: [B, 1 + visible, E] output of the encoder in the decoder's width.
        mask_token: [1, 1, E], stands for every hidden patch.
        positions: [1 + L, E] table in raster order, class row first.
        masking: which patches are which.
    """
    first = positions[:1].expand(len(latent), 1, -1)
    seen = latent + torch.cat([first, positions[1:][masking.visible]], dim=1)
    unseen = mask_token + positions[1:][masking.hidden]
    return torch.cat([seen, unseen.to(seen.dtype)], dim=1)


def normalised_patches(pixels: Tensor) -> Tensor:
    """Patches [B, n, p] with zero mean and unit (unbiased) variance each, in float32."""
    variance, mean = torch.var_mean(pixels.float(), dim=-1, keepdim=True)
    return (pixels.float() - mean) / (variance + 1e-6).sqrt()


def denormalised_patches(prediction: Tensor, pixels: Tensor) -> Tensor:
    """Predicted patches [B, n, p] in the intensities of the true ones, `pixels`, whose statistics are used."""
    return prediction * (pixels.var(dim=-1, keepdim=True) + 1e-6).sqrt() + pixels.mean(dim=-1, keepdim=True)


def voxels_that_count(padding: Tensor, volume: Tensor, hidden: Tensor, patch_size: Triple) -> Tensor:
    """Weights [B, n, p] of the voxels of hidden patches: 0 outside the scan, where `padding` [B, D, H, W] is true."""
    return take_rows(patchify((~padding).unsqueeze(1).expand_as(volume).float(), patch_size), hidden)


def hidden_error(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of hidden patches [B, n, p] over the voxels that count (`weights` 0 or 1; None counts all)."""
    if weights is None:
        return F.mse_loss(prediction.float(), target)
    errors = ((prediction.float() - target).square() * weights).sum(dim=(1, 2))
    return (errors / weights.sum(dim=(1, 2)).clamp(min=1)).mean()  # per view: the same for any micro-batch


def take_rows(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` [B, n] of `tokens` [B, L, E]."""
    batch, length, width = tokens.shape
    rows = indices + torch.arange(batch, device=indices.device).unsqueeze(1) * length
    return tokens.reshape(-1, width).index_select(0, rows.flatten()).view(batch, -1, width)  # faster than gather
