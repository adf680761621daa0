"""Registration of scans as they come: prepared like in training, registered, and drawn on the fixed scan's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training_backend.data.deform import Deformation, Floats, write_field
from training_backend.data.pairs import PairInput, prepare_pair, settings
from training_backend.data.volume import Volume
from training_backend.errors import ConfigError, GeometryError
from training_backend.tasks.base import Progress

if TYPE_CHECKING:
    from training_backend.evaluate.predict import Prediction
    from training_backend.weights.load import LoadedModel


@dataclass(frozen=True)
class Registration:
    """A moving scan on the grid of a fixed one, and how it got there.

    Attributes:
        warped: moving scan.
        labels: its label map, if there was one.
        grid: lines that were straight in the moving scan, 0 to 1.
        jacobian: volume in the moving scan of each voxel, relative to its own; 0 or less where space folds.
        deformation: of any point.
        folded: share of the view where space folds.
        notes: sentences about what was done differently, e.g. when memory was short.
    """

    warped: Volume
    labels: Volume | None
    grid: Volume
    jacobian: Volume
    deformation: Deformation
    folded: float
    notes: tuple[str, ...] = ()

    def field_mm(self) -> Floats:
        """Displacement [3, z, y, x] in millimetres along (L, P, S) on the grid of the fixed scan."""
        return self.deformation.field_mm(self.warped.geometry)

    def summary(self) -> str:
        """One sentence on the displacement."""
        length = float(np.linalg.norm(self.deformation.displacement, axis=0).max())
        return f"Largest displacement {length:.1f} voxels of the view; space folds in {100 * self.folded:.2f} %."


def register_volumes(
    loaded: LoadedModel,
    moving: Volume,
    fixed: Volume,
    labels: Volume | None = None,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Registration:
    """Move a scan onto another one.

    Args:
        loaded: registration model; moved to the device that is used.
        moving: scan to be moved; any size and spacing.
        fixed: scan that stays.
        labels: label map of the moving scan, on its grid.
        device: auto, cpu, cuda or cuda:N.
        progress: told the share done; answering False raises `Cancelled`.

    Raises:
        ConfigError: the model registers nothing.
        DataError: a scan cannot be used.
        GeometryError: labels of another grid, or scans that do not overlap though they should.
    """
    from training_backend.evaluate.predict import chosen_device, predict_whole

    check_registers(loaded)
    if labels is not None and not labels.geometry.same_grid(moving.geometry):
        raise GeometryError(
            f"The label map has {labels.geometry.shape} voxels (z, y, x) and another grid than the moving scan's "
            f"{moving.geometry.shape}.",
            "Give the label map that was drawn on the moving scan.",
        )
    pair = prepare_pair(moving, fixed, loaded.profile, settings(loaded.config).align)
    share = None if progress is None else lambda done: progress(0.6 * done)  # the rest is drawing
    found, notes = predict_whole(loaded, pair.array, chosen_device(device), share)
    drawn = draw(pair, found.numpy(), moving, fixed, labels, notes)
    if progress is not None:
        progress(1.0)
    return drawn


def draw(
    pair: PairInput,
    displacement: Floats,
    moving: Volume,
    fixed: Volume,
    labels: Volume | None = None,
    notes: tuple[str, ...] = (),
) -> Registration:
    """What the displacement [3, D, H, W] of a pair makes of the moving scan."""
    deformation = Deformation(displacement, pair.fixed.geometry, pair.moving.geometry)
    grid = fixed.geometry
    kept = {"nifti": fixed.meta["nifti"]} if "nifti" in fixed.meta else {}

    def on_fixed(volume: Volume, *, nearest: bool, fill: float) -> Volume:
        array = deformation.warp(volume.array, volume.geometry, grid, nearest=nearest, fill=fill)
        names = {key: volume.meta[key] for key in ("class_names", "kind") if key in volume.meta}
        return Volume(array, grid, volume.modality, f"{volume.name} warped", {**kept, **names})

    jacobian = deformation.jacobian(grid)
    return Registration(
        warped=on_fixed(moving, nearest=False, fill=float(moving.array.min())),
        labels=None if labels is None else on_fixed(labels, nearest=True, fill=0.0),
        grid=Volume(deformation.lines(grid), grid, name=f"{moving.name} deformation grid", meta=kept),
        jacobian=Volume(jacobian, grid, name=f"{moving.name} Jacobian", meta=kept),
        deformation=deformation,
        folded=float((deformation.local_jacobian() <= 0).mean()),
        notes=notes,
    )


def register_files(
    loaded: LoadedModel,
    inputs: Sequence[Path],
    output: Path,
    *,
    labels: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Prediction]:
    """Move one file onto another and write ``NAME_warped``, ``_grid``, ``_jacobian`` and ``_displacement`` as NIfTI.

    All lie on the fixed file's grid; the displacement is a vector per voxel in millimetres along (L, P, S), as ITK
    reads it. Existing files are never replaced.

    Args:
        loaded: registration model.
        inputs: moving file and fixed file.
        output: folder, made if need be.
        labels: label map of the moving file, written as ``NAME_warped_seg``.
        device: auto, cpu, cuda or cuda:N.
        progress: told the share done.
    """
    from training_backend.data.facts import scan_name
    from training_backend.data.read import read_classes, read_volume
    from training_backend.data.write import write_volume
    from training_backend.evaluate.predict import Prediction, free_path

    check_registers(loaded)
    if len(inputs) != 2:
        raise ConfigError(
            f"A registration model takes two scans, but {len(inputs)} were given.",
            "Give the scan to be moved first, then the one that stays.",
        )
    moving, fixed = (read_volume(path) for path in inputs)
    marks = None if labels is None else read_classes(labels)
    found = register_volumes(loaded, moving, fixed, marks, device=device, progress=progress)
    output.mkdir(parents=True, exist_ok=True)
    stem = inputs[0].name if inputs[0].is_dir() else scan_name(inputs[0])
    pictures = {"warped": found.warped, "warped_seg": found.labels, "grid": found.grid, "jacobian": found.jacobian}
    written = [
        write_volume(volume, free_path(output, f"{stem}_{name}", ".nii.gz"))
        for name, volume in pictures.items()
        if volume is not None
    ]
    written.append(write_field(free_path(output, f"{stem}_displacement", ".nii.gz"), found.field_mm(), fixed.geometry))
    notes = (found.summary(), *found.notes)
    return [Prediction(inputs[0], path, notes=notes if path == written[0] else ()) for path in written]


def check_registers(loaded: LoadedModel) -> None:
    """Refuse models of other tasks."""
    task = loaded.config.task.name if loaded.config.task else ""
    if task != "registration":
        what = f"for {task}" if task else "by pre-training alone"
        raise ConfigError(f"This model was made {what} and registers nothing.", "Choose a registration model.")
