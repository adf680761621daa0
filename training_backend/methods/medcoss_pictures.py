"""What a stage of MedCoSS makes of an image or a volume, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from training_backend.methods.base import PreviewArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def reconstruction(
    network: Any, volume: Tensor, options: Mapping[str, Any], generator: torch.Generator
) -> list[PreviewArray]:
    """Original, masked view, reconstruction, errors and mask of one view [1, C, D, H, W]; see `medcoss.preview`.

    A colour image is shown in its colours, else the first channel is.
    """
    import torch

    from training_backend.nn.medcoss_tokens import with_colours
    from training_backend.nn.patch import patchify, unpatchify

    ratio = options.get("mask_ratio")
    if options.get("seed") is not None:
        generator = torch.Generator().manual_seed(int(options["seed"]))
    noise = network.draw_noise(volume, generator)
    kind = network.kind_of(volume)
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        result = network.reconstruct(volume, noise, ratio)
        predicted = network.denormalise(result.prediction.float(), volume)
        seen = with_colours(volume, kind).float()
        patch = network.settings.our_patch(kind)
        pixels = patchify(seen, patch)
        hidden = result.mask[..., None]
        drawn = predicted if options.get("full") else torch.where(hidden > 0, predicted, pixels)
        error = (predicted - pixels).abs() * hidden
        wanted = (pixels, pixels * (1 - hidden), drawn, error)
        arrays = [unpatchify(each, patch, result.grid, seen.shape[1])[0].cpu().numpy() for each in wanted]
    network.train(was_training)
    mask = result.mask[0].reshape(result.grid).cpu().numpy().astype("uint8")
    worst = float(np.quantile(arrays[3][:, :: max(1, arrays[3].shape[1] // 64)], 0.99)) or 1.0
    return [
        *(shown(name, array, network.shown) for name, array in zip(_NAMES, arrays, strict=False)),
        PreviewArray("error", arrays[3].mean(axis=0), "error", limits=(0.0, worst)),
        PreviewArray("mask", mask, "mask", voxels=patch, classes={0: "visible", 1: "hidden"}),
    ]


_NAMES = ("original", "masked", "reconstruction")


def shown(
    name: str,
    array: np.ndarray[Any, Any],
    channels: tuple[int, int, int] | None,
    limits: tuple[float, float] | None = None,
) -> PreviewArray:
    """Picture of `array` [C, D, H, W]: colours of the `channels` that are red, green and blue, else the first channel.

    Args:
        name: of the picture.
        array: values as the network sees them; colours lie within 0 and 1.
        channels: see `medcoss_settings.shown_channels`.
        limits: contrast limits of a picture without colours; its own range when None.
    """
    if channels is not None and len(array) > max(channels):
        colours = np.moveaxis(array[list(channels)], 0, -1).clip(0, 1)
        return PreviewArray(name, np.round(255 * colours).astype(np.uint8), "rgb")  # fractions would be stretched
    low, high = limits or (float(array[0].min()), float(array[0].max()))
    return PreviewArray(name, array[0], "image", limits=(low, high if high > low else low + 1.0))
