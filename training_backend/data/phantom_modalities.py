"""Generated material of the five modalities of MedCoSS: reports, radiographs, CT, MR and stained tissue; all seeded.

Nothing of it shows anybody. Each modality has its own look, so that an encoder can forget one while it learns another.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from training_backend.data.phantom_head import mr_contrasts
from training_backend.data.phantom_thorax import thorax_ct
from training_backend.data.pictures import save_picture
from training_backend.data.volume import Shape
from training_backend.files import write_text

MODALITIES = ("1D_text", "2D_xray", "3D_CT", "3D_MR", "2D_path")
"""In the order in which MedCoSS teaches them."""

_ATTENUATION = 0.02  # of water per millimetre
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))  # optical density of haematoxylin and eosin in red, green, blue
_PLACES = ("right upper lobe", "right lower lobe", "left upper lobe", "left lower lobe")


def write_modality(
    folder: Path, modality: str, n: int, seed: int = 0, *, size: int = 64, volume: Shape = (16, 48, 48)
) -> Path:
    """Write `n` cases of one modality and return what `ingest` takes: a folder of files, or the table of reports.

    Args:
        folder: made if needed.
        modality: one of `MODALITIES`.
        n: cases; each has a class, 0 or 1, in ``cases.csv`` (in the table itself for reports).
        seed: case `i` is drawn with ``1000 * seed + i``.
        size: pixels of a picture along each side.
        volume: voxels of a scan along (z, y, x).
    """
    writers: dict[str, Callable[[Path, int], int]] = {
        "2D_xray": lambda path, number: _picture(path, radiograph(number, size)),
        "2D_path": lambda path, number: _picture(path, tissue(number, size)),
        "3D_CT": lambda path, number: _scan(path, number, volume, ct=True),
        "3D_MR": lambda path, number: _scan(path, number, volume, ct=False),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if modality == "1D_text":
        rows = [(f"report_{i:03d}", *report(1000 * seed + i)) for i in range(n)]
        return _table(folder / "reports.csv", ("Id", "Report", "Label"), rows)
    ending = ".png" if modality.startswith("2D") else ".nii.gz"
    names = [f"case_{i:03d}{ending}" for i in range(n)]
    classes = [writers[modality](folder / name, 1000 * seed + i) for i, name in enumerate(names)]
    _table(folder / "cases.csv", ("Path", "Label"), list(zip(names, classes, strict=True)))
    return folder


def report(seed: int) -> tuple[str, int]:
    """A chest report of several sentences, and whether it tells of a nodule."""
    rng = np.random.default_rng((seed, 41))
    sick = int(rng.integers(2))
    place = _PLACES[int(rng.integers(len(_PLACES)))]
    lines = [
        f"There is a {int(rng.integers(6, 22))} mm nodule in the {place}." if sick else "No pulmonary nodule is seen.",
        str(rng.choice(["The heart is enlarged.", "The heart is of normal size."])),
        str(rng.choice(["There is a small pleural effusion on the left.", "There is no pleural effusion."])),
        str(rng.choice(["The mediastinum is unremarkable.", "The aorta is tortuous.", "No enlarged lymph nodes."])),
    ]
    order = rng.permutation(len(lines))
    return " ".join(lines[i] for i in order), sick


def radiograph(seed: int, size: int = 64) -> tuple[npt.NDArray[np.uint8], int]:
    """Projection of a chest phantom from front to back, [size, size] grey, and whether it has a nodule.

    Dense parts are bright, as on films: one minus what passes the body.
    """
    phantom = thorax_ct(seed, (size // 2, size // 2, size // 2))
    water = np.clip(phantom.volume.array.astype(np.float32) / 1000 + 1, 0, None)
    step = phantom.volume.geometry.spacing_mm[1]
    film = 1 - np.exp(-_ATTENUATION * step * water.sum(axis=1) * 0.5)
    film = film[::-1]  # the head is up
    film = (film - film.min()) / max(float(np.ptp(film)), 1e-6)
    noisy = film + np.random.default_rng((seed, 42)).normal(0, 0.01, film.shape)
    grey = np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)
    picture = np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC))
    return picture, int(phantom.target > 0)


def tissue(seed: int, size: int = 64) -> tuple[npt.NDArray[np.uint8], int]:
    """Stained tissue with round nuclei, [size, size, 3] red, green, blue, and whether the nuclei are large and many."""
    rng = np.random.default_rng((seed, 43))
    dense = int(rng.integers(2))
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    nuclei = np.zeros((size, size), np.float32)
    for _ in range(int((14 if dense else 7) * (size / 64) ** 2)):
        y, x = rng.uniform(0, size, 2)
        radius = rng.uniform(3.5, 5.5) if dense else rng.uniform(2, 3.2)
        nuclei = np.maximum(nuclei, np.clip(radius + 0.5 - np.hypot(rows - y, columns - x), 0, 1))
    fibres = ndimage.gaussian_filter(rng.normal(size=(size, size)), (1.5, 5))
    ground = 0.35 + 0.15 * fibres / max(float(np.abs(fibres).max()), 1e-6)
    amounts = np.stack([0.9 * nuclei, ground * (1 - 0.6 * nuclei)], axis=-1)
    light = np.exp(-amounts @ np.asarray(_STAINS)) + rng.normal(0, 0.01, (size, size, 3))
    return np.rint(255 * np.clip(light, 0, 1)).astype(np.uint8), dense


def _picture(path: Path, made: tuple[npt.NDArray[np.uint8], int]) -> int:
    save_picture(path, made[0])
    return made[1]


def _scan(path: Path, seed: int, shape: Shape, *, ct: bool) -> int:
    from training_backend.data.write import write_volume

    phantom = (thorax_ct if ct else mr_contrasts)(seed, shape)
    write_volume(phantom.volume, path, overwrite=True)
    return int(phantom.target > 0)


def _table(path: Path, names: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> Path:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([names, *rows])
    write_text(path, stream.getvalue())
    return path
