"""Checkpoints of ours and of the authors, and the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from training_backend.api.progress import progress_bar
from training_backend.errors import ConfigError
from training_backend.report import Table


def weights_inspect(file: str) -> Any:
    """Say what a checkpoint holds, without running any of it: family, kind, sizes, wrapper.

    Args:
        file: .safetensors, .pt, .pth or .ckpt file, run directory, model folder, or zoo:NAME.
    """
    from training_backend.weights.inspect import inspect

    return inspect(file)


def weights_import(
    file: str,
    output: Path,
    heads: int | None = None,
    recipe: str = "",
    size: tuple[int, int, int] | None = None,
) -> Any:
    """Turn the authors' file into a model folder of ours, with a report of every key.

    Args:
        file: The authors' checkpoint, or zoo:NAME.
        output: Folder to write model.safetensors and card.json into.
        heads: Attention heads when the width does not tell them.
        recipe: Published settings that a fine-tuned file was made with (med3dssl recipes list): axes, views,
            intensities, spacing and classes are taken from it.
        size: Voxels of a view along z, y, x when neither file nor recipe tells them.
    """
    from training_backend.weights.convert import import_file

    changes = {"data": {"size": size}} if size else {}
    return import_file(file, output, heads=heads, changes=changes, recipe=recipe)


def weights_export(
    file: str, output: Path, layout: Literal["authors", "nnunet"] = "authors", channels: int | None = None
) -> Any:
    """Write a model in the authors' layout for their own scripts, or as nnU-Net v2's trainers read it.

    Args:
        file: Run directory or model folder; for nnU-Net also a checkpoint.
        output: .pth file to write.
        layout: authors: of the method. nnunet: plain U-Nets and VoCo's SwinUNETR under `network_weights`.
        channels: nnunet: channels of the scans there, where they differ.
    """
    if layout == "nnunet":
        from training_backend.weights.nnunet import export_nnunet

        return export_nnunet(file, output, channels=channels)
    if channels is not None:
        raise ConfigError("Channels can be changed for nnU-Net only.", "Add --layout nnunet, or leave them out.")
    from training_backend.weights.export import export

    return export(file, output)


def weights_probe_orientation(weights: str, input: Path, mask_ratio: float = 0.75, seed: int = 0) -> Table:
    """Measure in which axis order and direction a masked autoencoder knows a scan best.

    Args:
        weights: Pre-trained model.
        input: Scan.
        mask_ratio: Share of hidden patches.
        seed: Of the mask, the same for all orientations.
    """
    from training_backend.data.read import read_volume
    from training_backend.evaluate.orientation import probe_orientation

    table = Table(("axes", "flipped", "loss"))
    for row in probe_orientation(weights, read_volume(input), mask_ratio=mask_ratio, seed=seed):
        table.add(row.axes, row.flipped or "-", f"{row.loss:.6f}")
    return table


def zoo_list() -> Table:
    """List the published weights with their licences."""
    from training_backend.weights.zoo import entries

    table = Table(("name", "family", "size", "licence", "what"))
    for entry in entries():
        size = f"{entry.size_mb} MB" if entry.size_mb else "-"
        table.add(entry.name, entry.family, size, entry.licence or "unknown", entry.title)
    return table


def zoo_download(entry: str, accept_licence: bool = False) -> Table:
    """Download published weights with resume and verification.

    Args:
        entry: Name in ``med3dssl zoo list``.
        accept_licence: Say that you have read the entry's licence and accept it.
    """
    from training_backend.weights.zoo import download

    return Table(("written",)).add(str(download(entry, progress_bar("download"), accept_licence=accept_licence)))
