"""The pre-processing of 3D-MAE / TANGERINE (McConnell et al. 2026, Methods): whole thorax, fixed grid, HU window.

The authors resample every CT to 256 voxels along each axis with cubic B-splines, clip to [-1200, 800] HU and scale to
[0, 1]. Their resampler keeps the origin at the first voxel's centre, which shifts the picture by half a voxel, and
stretches each axis by itself. `resample_published` does exactly that; ``med3dssl data prepare --keep-aspect`` pads
instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from training_backend.data.facts import scan_name
from training_backend.errors import DataError, Med3dError
from training_backend.files import atomic, write_text

if TYPE_CHECKING:
    import SimpleITK as sitk

HU_WINDOW = (-1200.0, 800.0)


def window_hu(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Clip to [-1200, 800] HU and scale to [0, 1]; any shape."""
    low, high = HU_WINDOW
    clipped = np.clip(np.asarray(array, np.float32), np.float32(low), np.float32(high))
    return np.asarray((clipped - np.float32(low)) / np.float32(high - low), np.float32)


def resample_published(image: sitk.Image, size_xyz: tuple[int, int, int], *, linear: bool = False) -> sitk.Image:
    """`image` on `size_xyz` voxels, origin and direction copied, 0 HU outside, same pixel type.

    By cubic B-splines as TANGERINE's, or `linear` as AR-SSL4M's.
    """
    import SimpleITK as sitk

    spacing = [n * s / m for n, s, m in zip(image.GetSize(), image.GetSpacing(), size_xyz, strict=True)]
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(size_xyz)
    resampler.SetOutputSpacing(spacing)
    resampler.SetOutputOrigin(image.GetOrigin())
    resampler.SetOutputDirection(image.GetDirection())
    resampler.SetTransform(sitk.Transform())
    resampler.SetInterpolator(sitk.sitkLinear if linear else sitk.sitkBSpline)
    resampler.SetDefaultPixelValue(0)
    return resampler.Execute(image)


def resample_keeping_aspect(
    array: npt.NDArray[np.generic], spacing_mm: Sequence[float], size: int
) -> npt.NDArray[np.float32]:
    """`array` (z, y, x) in HU on a cube of `size` isotropic voxels, centred, padded with air (-1200 HU)."""
    import torch
    from torch.nn import functional

    extent = np.asarray(array.shape) * np.asarray(spacing_mm, float)
    shape = np.maximum(1, np.round(extent / (extent.max() / size))).astype(int)
    voxels = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
    inner = functional.interpolate(voxels, size=tuple(shape.tolist()), mode="trilinear", align_corners=False)[0, 0]
    cube = np.full((size, size, size), HU_WINDOW[0], np.float32)
    start = (size - shape) // 2
    cube[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))] = inner.numpy()
    return cube


def read_list(path: Path) -> tuple[list[Path], list[str]]:
    """Volumes named by a list file (one path per line), and the lines that are no ``.npz``.

    The reference keeps only lines ending in ``.npz`` and says nothing about the others; here they are returned.
    """
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    kept = [Path(line) for line in lines if line.endswith(".npz")]
    return kept, [line for line in lines if line and not line.endswith(".npz")]


@dataclass
class PrepareReport:
    """Files written by `prepare`, and a sentence for each that was not."""

    list_file: Path
    written: list[Path] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every input was written."""
        return not self.refused

    def __str__(self) -> str:
        """A summary to read."""
        lines = [f"{len(self.written)} volumes listed in {self.list_file}"]
        return "\n".join(lines + [f"not written: {name}: {reason}" for name, reason in self.refused.items()])


def prepare(
    paths: Sequence[Path],
    output: Path,
    *,
    size: int = 256,
    keep_aspect: bool = False,
    progress: Callable[[float], object] | None = None,
) -> PrepareReport:
    """Write one ``.npz`` (array `volume`, float32 [size, size, size] in [0, 1], axes z, y, x) per scan, and the list.

    Args:
        paths: CT files or DICOM folders in Hounsfield units.
        output: folder for ``NAME.npz`` and ``volumes.txt``.
        size: voxels per axis; 256 as published.
        keep_aspect: isotropic voxels and padding in place of the authors' stretching.
        progress: told the share done after each scan.
    """
    if not paths:
        raise DataError("No scan was given.", "Give CT files or DICOM folders.")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    report = PrepareReport(output / "volumes.txt")
    for done, path in enumerate(map(Path, paths), 1):
        try:
            volume = window_hu(_on_cube(path, size, keep_aspect))
        except Med3dError as error:
            report.refused[str(path)] = str(error)
            continue
        target = _target(output, path.name if path.is_dir() else scan_name(path), report.written)
        with atomic(target) as stream:
            np.savez_compressed(stream, volume=volume)
        report.written.append(target)
        if progress:
            progress(done / len(paths))
    write_text(report.list_file, "".join(f"{path}\n" for path in report.written))
    return report


def _target(output: Path, name: str, taken: Sequence[Path]) -> Path:
    """File for a scan called `name`, numbered where another scan of this list has that name."""
    numbered = (
        output / f"{name}{number}.npz" for number in itertools.chain([""], (f"_{n}" for n in itertools.count(2)))
    )
    return next(path for path in numbered if path not in taken)


def _on_cube(path: Path, size: int, keep_aspect: bool) -> npt.NDArray[np.float32]:
    import SimpleITK as sitk

    from training_backend.data.read import read_volume

    volume = read_volume(path)
    if keep_aspect:
        return resample_keeping_aspect(volume.array, volume.geometry.spacing_mm, size)
    image = sitk.GetImageFromArray(volume.array)
    dz, dy, dx = volume.geometry.spacing_mm
    image.SetSpacing((dx, dy, dz))
    return sitk.GetArrayFromImage(resample_published(image, (size, size, size))).astype(np.float32)
