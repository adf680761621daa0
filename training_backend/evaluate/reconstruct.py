"""What a method's network does with a scan, as pictures on the scan: masked view, reconstruction, errors.

The method's own `preview` makes the pictures on the grid of the network input; here the input is cut from the scan,
and the pictures get the place and the units (HU for CT) of the scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training_backend.data.volume import Geometry, Shape, Volume
from training_backend.errors import ConfigError, DataError
from training_backend.methods.base import PreviewArray

if TYPE_CHECKING:
    from torch import nn

    from training_backend.data.prepare import InputProfile, Prepared
    from training_backend.methods.base import Method
    from training_backend.weights.load import LoadedModel


@dataclass(frozen=True)
class Picture:
    """One picture and the grid that its array lies on (a token grid where an element is a token)."""

    picture: PreviewArray
    geometry: Geometry


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
    encoder = method.encoder(network)
    if len(prepared.array) != encoder.in_channels:
        raise DataError(
            f"This model looks at {encoder.in_channels} contrast(s) at once, but the scan has {len(prepared.array)}.",
            "Open the missing contrasts too.",
        )
    start, size = view_box(prepared, profile, encoder.patch_size, centre)
    view = _cut(prepared.array, start, size)
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(int(options.get("seed") or 0))
    found = method.preview(network, torch.from_numpy(view)[None].to(device), options, generator)
    grid = prepared.geometry.cropped(start, size)
    return [Picture(_in_units(one, prepared), _own_grid(grid, one)) for one in found]


def reconstruct_file(
    source: str, input: Path, output: Path, *, mask_ratio: float = 0.75, seed: int = 0, device: str = "auto"
) -> list[Path]:
    """Write the pictures of one scan as volumes into a folder: original, masked, reconstruction, error, mask.

    Args:
        source: pre-training run, model folder, weights file or ``zoo:NAME``.
        input: scan, in any format that is read.
        output: folder, made if need be.
        mask_ratio: share of hidden patches.
        seed: of the mask.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: for a fine-tuned model, which no longer reconstructs.
    """
    from training_backend.data.prepare import prepare
    from training_backend.data.read import read_volumes
    from training_backend.data.write import write_volume
    from training_backend.evaluate.predict import chosen_device
    from training_backend.weights.load import load_model

    loaded = load_model(source)
    check_reconstructs(loaded)
    name = chosen_device(device)
    prepared = prepare(read_volumes(input), loaded.profile)
    options = {"mask_ratio": mask_ratio, "seed": seed}
    found = reconstruct(loaded.method, loaded.module.to(name).eval(), prepared, loaded.profile, options=options)
    Path(output).mkdir(parents=True, exist_ok=True)
    written = []
    for one in found:
        volume = Volume(one.picture.array, one.geometry, name=one.picture.name)
        written.append(write_volume(volume, Path(output) / f"{one.picture.name}.nii.gz", overwrite=True))
    return written


def check_reconstructs(loaded: LoadedModel) -> None:
    """A `ConfigError` for models without their pre-training heads."""
    if loaded.kind != "pretrain":
        what = "was fine-tuned and no longer reconstructs" if loaded.kind == "finetune" else "is an encoder alone"
        raise ConfigError(f"This model {what}.", "Choose the pre-training run that it came from.")


def view_box(
    prepared: Prepared, profile: InputProfile, patch: Shape, centre: Sequence[float] | None
) -> tuple[Shape, Shape]:
    """First voxel and size of the network's view on the prepared grid; may reach beyond it, into padding."""
    shape = np.array(prepared.array.shape[1:])
    if profile.view == "volume":
        size = -(-shape // patch) * np.array(patch)
        start = np.zeros(3, int)
    else:
        size = np.array(profile.size)
        middle = (shape - 1) / 2 if centre is None else _on_prepared(prepared, centre)
        start = np.round(middle - (size - 1) / 2).astype(int)
        start = np.where(shape > size, np.clip(start, 0, np.maximum(shape - size, 0)), (shape - size) // 2)
    return _triple(start), _triple(size)


def mean_hidden_error(pictures: Sequence[Picture]) -> float | None:
    """Mean absolute error over hidden voxels, in the units of the scan; None where a method hides nothing."""
    named = {one.picture.name: one.picture for one in pictures}
    if "error" not in named or "mask" not in named:
        return None
    hidden = named["mask"].array.astype(bool)
    for axis, voxels in enumerate(named["mask"].voxels):
        hidden = hidden.repeat(voxels, axis)
    return float(named["error"].array[hidden].mean()) if hidden.any() else None


def _cut(array: np.ndarray[Any, Any], start: Shape, size: Shape) -> np.ndarray[Any, Any]:
    """Box of [C, D, H, W], with the darkest value outside the scan."""
    result = np.full((len(array), *size), array.min(), np.float32)
    source, target = [slice(None)], [slice(None)]
    for first, n, length in zip(start, size, array.shape[1:], strict=True):
        low, high = max(first, 0), min(first + n, length)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    result[tuple(target)] = array[tuple(source)]
    return result


def _on_prepared(prepared: Prepared, centre: Sequence[float]) -> np.ndarray[Any, Any]:
    """A voxel of the scan's own grid as a place on the prepared grid."""
    point = np.linalg.solve(prepared.geometry.to_lps, prepared.native.to_lps @ np.array([*centre, 1.0]))
    result: np.ndarray[Any, Any] = point[:3]
    return result


def _in_units(picture: PreviewArray, prepared: Prepared) -> PreviewArray:
    """Intensities back in the units of the scan; masks and token maps as they are."""
    if picture.role not in ("image", "error"):
        return picture
    differences = picture.role == "error"
    array = prepared.in_units(picture.array, differences=differences)
    limits = picture.limits
    if limits is not None:
        low, high = prepared.in_units(np.array(limits, np.float32), differences=differences)
        limits = (float(low), float(high))
    return replace(picture, array=array, limits=limits)


def _own_grid(view: Geometry, picture: PreviewArray) -> Geometry:
    if picture.voxels == (1, 1, 1):
        return view
    dz, dy, dx = (mm * n for mm, n in zip(view.spacing_mm, picture.voxels, strict=True))
    return view.resampled((dz, dy, dx), _triple(np.array(picture.array.shape[:3])))


def _triple(values: np.ndarray[Any, Any]) -> Shape:
    z, y, x = (int(value) for value in values)
    return (z, y, x)
