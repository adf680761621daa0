"""Next-patch prediction of AR-SSL4M: the encoder with a mask, and a head that predicts the voxels of the next patch.

The prediction of patch i is read at place i of the sequence [start, patch 0, ..., patch L - 1, end]: it has seen the
start token, the patches before i, and of the prefix (the first p patches) all. Patches p to L - 1 are scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training_backend.nn.ar import END, START, ArEncoder
from training_backend.nn.ar_sequence import visible
from training_backend.nn.patch import Triple

EPS = 1e-6


@dataclass(frozen=True)
class Scored:
    """The scored patches of a batch, R of them in all.

    Attributes:
        loss: scalar, mean squared error over all scored patches of the batch alike: views with a short prefix count
            for more, as published.
        errors: [R] mean squared error of each patch.
        view: [R] number of the view that a patch belongs to, on the CPU.
        place: [R] its number in the sequence, on the CPU.
    """

    loss: Tensor
    errors: Tensor
    view: Tensor
    place: Tensor


@dataclass(frozen=True)
class Trace:
    """Everything that a pass over the whole sequence computes, end token included; N = L + 2.

    Attributes:
        patches: [B, L, E] embedded patches without positions, in the order of the sequence.
        positions: [N, E] of the sequence.
        layers: [B, N, E] after each layer.
        hidden: [B, N, E] after the final norm.
        logits: [B, N, p] float32.
        targets: [B, L, p] voxels of each patch, not normalised.
        mask: [B, 1, N, N], True where a row may attend to a column.
    """

    patches: Tensor
    positions: Tensor
    layers: tuple[Tensor, ...]
    hidden: Tensor
    logits: Tensor
    targets: Tensor
    mask: Tensor


class NextPatch(nn.Module):
    """Encoder (``model``) and head (``decoder_pred``), named as in the published pre-training file.

    Args:
        model: made with ``pretraining=True``.
        norm_pixel_loss: compare with patches normalised to zero mean and unit (unbiased) variance.
        causal: no prefix in training: every patch sees only what came before.
    """

    def __init__(self, model: ArEncoder, norm_pixel_loss: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.model, self.norm_pixel_loss, self.causal = model, norm_pixel_loss, causal
        z, y, x = model.patch_size
        self.decoder_pred = nn.Linear(model.width, z * y * x * model.in_channels)

    @property
    def patch_size(self) -> Triple:
        """Voxels of a patch along (z, y, x)."""
        return self.model.patch_size

    def forward(self, volume: Tensor, prefix: Tensor) -> Tensor:
        """Loss of `volume` [B, C, D, H, W] with the first `prefix` [B] patches of each view given as context."""
        return self.score(volume, prefix).loss

    def score(self, volume: Tensor, prefix: Tensor, padding: Tensor | None = None) -> Scored:
        """Loss, and the error of each scored patch.

        Only what the loss depends on is computed: the end token and the last patch are seen by no scored place and are
        left out; the last layer, the head and the targets run on scored patches alone, packed across the batch.

        Args:
            volume: [B, C, D, H, W].
            prefix: [B] patches given as context, 0 to L - 1; on the CPU, so that nothing waits for the device.
            padding: [B, D, H, W] bool, true outside the scan. Patches that lie there altogether are seen, but not
                scored. Published views have none; the loss is 0 where nothing else is left.
        """
        layout, grid = self.model.layout, self.model.layout.raster_grid(volume)
        pixels = layout.to_sequence(layout.raster_patches(volume), grid)
        length, prefix = pixels.shape[1], prefix.cpu()
        first = int(prefix.min())
        scored = torch.arange(length) >= prefix[:, None]
        if padding is not None:
            outside = layout.to_sequence(layout.raster_patches(padding.unsqueeze(1)), grid).all(dim=-1)
            scored &= ~outside.cpu()
        view, place = torch.nonzero(scored, as_tuple=True)
        rows = (view * (length - first) + place - first).to(volume.device, non_blocking=True)
        hidden = self._last(self._sequence(pixels[:, :-1], grid), prefix, first, rows)
        prediction = self.decoder_pred(hidden).float()
        target = self.target(pixels.flatten(0, 1)[(view * length + place).to(volume.device, non_blocking=True)])
        errors = (prediction - target).square().mean(dim=-1)
        return Scored(errors.mean() if len(view) else prediction.sum() * 0.0, errors, view, place)

    def predict(self, volume: Tensor, prefix: Tensor) -> Tensor:
        """Predictions [B, L, p] of all patches, in the order of the sequence and as the head gives them.

        Those of the prefix are made by places that have seen the patch already; they are not scored.
        """
        layout, grid = self.model.layout, self.model.layout.raster_grid(volume)
        pixels = layout.to_sequence(layout.raster_patches(volume), grid)
        hidden = self._last(self._sequence(pixels[:, :-1], grid), prefix.cpu())
        predicted: Tensor = self.decoder_pred(hidden).float()
        return predicted

    def trace(self, volume: Tensor, prefix: Tensor) -> Trace:
        """The published pass: every place of the whole sequence, end token included, at every layer."""
        model, layout = self.model, self.model.layout
        grid = layout.raster_grid(volume)
        pixels = layout.to_sequence(layout.raster_patches(volume), grid)
        patches = model.patchifier.embed(pixels)
        x = self._sequence(pixels, grid)
        end = model.end_position()
        x = torch.cat([x, model.special(END, end, x)], dim=1)
        mask, layers = visible(prefix.to(x.device), x.shape[1]), []
        for layer in model.layers:
            x = layer(x, mask)
            layers.append(x)
        hidden = model.norm(x)
        places = torch.cat([self.positions(grid), end[None]])
        logits = self.decoder_pred(hidden).float()
        return Trace(patches, places, tuple(layers), hidden, logits, pixels, mask)

    def target(self, pixels: Tensor) -> Tensor:
        """What patches [..., p] should be predicted as; in float32 whatever the precision of the rest."""
        pixels = pixels.float()
        if not self.norm_pixel_loss:
            return pixels
        mean, deviation = statistics(pixels)
        return (pixels - mean) / deviation

    def denormalise(self, prediction: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Predicted patches [..., p] as intensities, given the statistics of the patches that they shall have."""
        return prediction * deviation + mean if self.norm_pixel_loss else prediction

    def start(self, pixels: Tensor, grid: Triple) -> Tensor:
        """Input [B, 1 + n, E] of the first layer: start token and the first n patches [B, n, p] of a sequence."""
        return self._sequence(pixels, grid)

    def positions(self, grid: Triple) -> Tensor:
        """Positions [1 + L, E] in the order of the sequence; each patch keeps the code of its place in the volume."""
        table = self.model.positions(grid)
        order = self.model.layout.sequence(grid)
        return table if order is None else torch.cat([table[:1], table[1:][order.to(table.device)]])

    def _sequence(self, pixels: Tensor, grid: Triple) -> Tensor:
        positions = self.positions(grid)[: 1 + pixels.shape[1]]
        tokens = self.model.patchifier.embed(pixels) + positions[1:]
        return torch.cat([self.model.special(START, positions[0], tokens), tokens], dim=1)

    def _last(self, x: Tensor, prefix: Tensor, first: int = 0, rows: Tensor | None = None) -> Tensor:
        """Tokens after the final norm, of the places from `first` on or of the packed `rows`."""
        causal = not bool(prefix.any())
        mask = None if causal else visible(prefix.to(x.device, non_blocking=True), x.shape[1])
        *earlier, last = self.model.layers
        for layer in earlier:
            x = layer(x, mask, causal)
        x = last(x, mask if mask is None else mask[:, :, first:], causal, first, rows)
        hidden: Tensor = self.model.norm(x)
        return hidden


def statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [..., 1] of patches [..., p], and the root of their unbiased variance plus 1e-6."""
    variance, mean = torch.var_mean(pixels.float(), dim=-1, keepdim=True)
    return mean, (variance + EPS).sqrt()
