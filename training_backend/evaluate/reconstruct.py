"""What a pre-trained network makes of a scan whose patches are hidden: masked view, reconstruction, errors.

The method's own `preview` makes the pictures on the grid of the network input; `evaluate.view` puts them on the scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.errors import ConfigError
from training_backend.evaluate.view import Picture, cut_view, write_pictures

if TYPE_CHECKING:
    from torch import nn

    from training_backend.data.prepare import InputProfile, Prepared
    from training_backend.methods.base import Method
    from training_backend.weights.load import LoadedModel


def reconstruct(
    method: Method,
    network: nn.Module,
    prepared: Prepared,
    profile: InputProfile,
    *,
    options: Mapping[str, Any],
    centre: Sequence[float] | None = None,
) -> list[Picture]:
    """Pictures of one view: the whole scan, or for models of crops the crop around `centre`.

    Args:
        method: whose network it is.
        network: with its pre-training heads, on the device where it shall compute.
        prepared: the scan as the network was trained to see it.
        profile: how it was trained to see it.
        options: of the method's preview: `mask_ratio` (0..1), `seed`, `full`.
        centre: (z, y, x) voxel on the scan's own grid; its middle when None.

    Raises:
        ConfigError: when the mask ratio is not below 1.
        DataError: when the network has another number of channels than the scan.
    """
    import torch

    ratio = options.get("mask_ratio")
    if ratio is not None and not 0 <= float(ratio) < 1:
        raise ConfigError(f"The mask ratio must lie from 0 to below 1, found {ratio}.")
    cut = cut_view(method.encoder(network), prepared, profile, centre)
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(int(options.get("seed") or 0))
    found = method.preview(network, torch.from_numpy(cut.array)[None].to(device), options, generator)
    return [cut.placed(one) for one in found]


def reconstruct_file(
    source: str,
    input: Path,
    output: Path,
    *,
    modality: str = "",
    mask_ratio: float = 0.75,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Write the pictures of one scan as volumes into a folder: original, masked, reconstruction, error, mask.

    Args:
        source: pre-training run, model folder, weights file or ``zoo:NAME``.
        input: scan, in any format that is read.
        output: folder, made if need be.
        modality: of an earlier stage, whose decoder the run kept.
        mask_ratio: share of hidden patches.
        seed: of the mask.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: for a fine-tuned model, which no longer reconstructs.
    """
    from training_backend.data.prepare import prepare
    from training_backend.data.read import read_volumes
    from training_backend.evaluate.predict import chosen_device
    from training_backend.weights.earlier import earlier_decoder
    from training_backend.weights.load import load_model

    loaded = load_model(earlier_decoder(source, modality) if modality else source)
    check_reconstructs(loaded)
    name = chosen_device(device)
    prepared = prepare(read_volumes(input), loaded.profile)
    options = {"mask_ratio": mask_ratio, "seed": seed}
    found = reconstruct(loaded.method, loaded.module.to(name).eval(), prepared, loaded.profile, options=options)
    return write_pictures(found, output)


def check_reconstructs(loaded: LoadedModel) -> None:
    """A `ConfigError` for models without their pre-training heads."""
    if loaded.kind != "pretrain":
        what = "was fine-tuned and no longer reconstructs" if loaded.kind == "finetune" else "is an encoder alone"
        raise ConfigError(f"This model {what}.", "Choose the pre-training run that it came from.")
    if loaded.config.data.view == "text":
        raise ConfigError("This model guesses words of reports and draws no scans.", "Choose one that reads scans.")


def mean_hidden_error(pictures: Sequence[Picture]) -> float | None:
    """Mean absolute error over hidden voxels, in the units of the scan; None where a method hides nothing."""
    named = {one.picture.name: one.picture for one in pictures}
    if "error" not in named or "mask" not in named:
        return None
    hidden = named["mask"].array.astype(bool)
    for axis, voxels in enumerate(named["mask"].voxels):
        hidden = hidden.repeat(voxels, axis)
    return float(named["error"].array[hidden].mean()) if hidden.any() else None
