"""A head seen by several MR contrasts that never was; the same patient on any grid, oblique ones too."""

from __future__ import annotations

import numpy as np

from training_backend.data.manifest import ClassEntry
from training_backend.data.phantom_shapes import Field, Phantom, centred, ellipsoid, patient_axes, waves
from training_backend.data.volume import Geometry, Volume

CLASSES = tuple(
    ClassEntry(index=index, name=name, colour=colour)
    for index, name, colour in (
        (1, "grey matter", "#999999"),
        (2, "white matter", "#f0e442"),
        (3, "ventricles", "#56b4e9"),
        (4, "cerebellum", "#009e73"),
        (5, "lesion", "#d55e00"),
    )
)
_TISSUES = ("air", "fat", "bone", "muscle", "csf", "grey", "white", "lesion", "capsule")
_SIGNAL = {
    "T1": (2, 340, 25, 130, 45, 150, 225, 95, 320),
    "T2": (2, 170, 20, 60, 420, 175, 120, 310, 380),
    "PD": (2, 220, 25, 140, 260, 235, 190, 250, 330),
}


def mr_contrasts(
    seed: int,
    shape: tuple[int, int, int] = (64, 96, 80),
    spacing_mm: tuple[float, float, float] | None = None,
    *,
    contrasts: tuple[str, ...] = ("T1", "T2"),
    geometry: Geometry | None = None,
) -> Phantom:
    """Head with brain tissues, ventricles and, in half of the patients, a lesion, in several contrasts on one grid.

    An oil capsule lies at the patient's left temple, so that no left-right flip goes unseen.

    Args:
        seed: decides the patient; the grid does not.
        shape: voxels along (z, y, x).
        spacing_mm: along (z, y, x); None fits the field of view of 192 x 224 x 184 mm to `shape`.
        contrasts: any of "T1", "T2", "PD".
        geometry: grid to draw on instead, in patient coordinates centred on the brain.
    """
    spacing = spacing_mm or (192 / shape[0], 224 / shape[1], 184 / shape[2])
    grid = geometry or centred(shape, spacing)
    axes = patient_axes(grid)
    rng = np.random.default_rng([seed, 202])
    side = str(rng.choice(["left", "right"]))
    lesion_mm = float(rng.uniform(9, 16)) if rng.random() < 0.5 else 0.0
    tissue, labels = _anatomy(axes, rng, side, lesion_mm)
    bias = 1 + np.float32(0.12) * waves(axes, rng, 260, 3)
    texture = 1 + np.float32(0.03) * waves(axes, rng, 14)
    name = f"head-{seed}"
    volumes = tuple(
        Volume(
            _signal(tissue, np.array(_SIGNAL[contrast], np.float32), bias * texture, rng),
            grid,
            modality="MR",
            name=f"{name}-{contrast}",
            meta={"format": "phantom", "seed": seed, "contrast": contrast},
        )
        for contrast in contrasts
    )
    label = Volume(labels, grid, modality="MR", name=f"{name}-labels", meta={"format": "phantom"})
    found = f"There is a {2 * lesion_mm:.0f} mm lesion in the {side} hemisphere." if lesion_mm else "No focal lesion."
    return Phantom(volumes, label, CLASSES, f"MR of the head. {found}", int(lesion_mm > 0))


def oblique(
    seed: int, shape: tuple[int, int, int] = (56, 96, 80), angle_deg: float = 17.0, *, contrast: str = "T2"
) -> Phantom:
    """The head of `mr_contrasts` with the same seed, scanned with slices tilted by `angle_deg` about the left axis."""
    upright = centred(shape, (200 / shape[0], 224 / shape[1], 184 / shape[2]))
    angle = np.radians(angle_deg)
    cosine, sine = np.cos(angle), np.sin(angle)
    tilt = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]])
    tilted = Geometry(tilt @ upright.affine, upright.source_shape)
    return mr_contrasts(seed, shape, contrasts=(contrast,), geometry=tilted)


def _anatomy(
    axes: tuple[Field, Field, Field], rng: np.random.Generator, side: str, lesion_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    z, y, x = axes
    tissue = {name: index for index, name in enumerate(_TISSUES)}
    head = ellipsoid(axes, (0, 0, 0), (86, 98, 76), 2.2)
    neck = ellipsoid((0 * z, y, x), (0, 22, 0), (1, 52, 48))
    face = ellipsoid(axes, (-60, -62, 0), (42, 34, 46))
    outside = np.minimum(np.where(z < 0, np.minimum(neck, face), np.inf), head)
    kinds = np.zeros(head.shape, np.uint8)
    labels = np.zeros(head.shape, np.uint8)
    kinds[outside < 1] = tissue["fat"]
    kinds[np.minimum(outside * 1.06, np.where(z < -30, neck * 1.1, np.inf)) < 1] = tissue["muscle"]
    kinds[(head < 0.93) & (z > -38)] = tissue["bone"]
    kinds[(head < 0.86) & (z > -31)] = tissue["csf"]
    fold = 0.035 * waves(axes, rng, 17, 10)
    brain = ellipsoid(axes, (12, 4, 0), (62, 78, 60), 2.2) + fold
    grey = (brain < 0.99) & (z > -28) & (np.abs(x) > 1.2)
    white = (ellipsoid(axes, (12, 4, 0), (62, 78, 60), 2.2) + 2.2 * fold < 0.82) & (z > -22)
    cerebellum = ellipsoid((z, y, np.abs(x)), (-40, 46, 20), (20, 28, 30)) + fold < 1
    stem = (ellipsoid((0 * z, y, x), (0, 22, 0), (1, 13, 14)) < 1) & (z < -10)
    nuclei = ellipsoid((z, y, np.abs(x)), (8, 0, 17), (14, 22, 9)) < 1
    ventricles = ellipsoid((z - 0.1 * y, y, np.abs(x) - 0.12 * y), (24, 4, 10), (11, 34, 5.5)) < 1
    eyes = ellipsoid((z, y, np.abs(x)), (-26, -78, 31), (12, 12, 12)) < 1
    for mask, kind, value in (
        (grey, "grey", 1),
        (white, "white", 2),
        (nuclei, "grey", 1),
        (cerebellum, "grey", 4),
        (stem, "white", 2),
        (ventricles, "csf", 3),
        (eyes, "csf", 0),
    ):
        kinds[mask] = tissue[kind]
        labels[mask] = value
    if lesion_mm:
        sign = 1 if side == "left" else -1
        lesion = ellipsoid(axes, (28, 18, sign * 36), (lesion_mm,) * 3) < 1 + 0.12 * waves(axes, rng, 12, 5)
        kinds[lesion] = tissue["lesion"]
        labels[lesion] = 5
    kinds[ellipsoid(axes, (0, -5, 80), (9, 9, 6)) < 1] = tissue["capsule"]
    return kinds, labels


def _signal(kinds: np.ndarray, table: Field, gain: Field, rng: np.random.Generator) -> np.ndarray:
    """Tissue intensities times coil gain, blurred, with Rician noise, as unsigned integers."""
    from scipy.ndimage import gaussian_filter

    clean = gaussian_filter(table[kinds] * gain, 0.5)
    real = clean + np.float32(6) * rng.standard_normal(clean.shape, np.float32)
    imaginary = np.float32(6) * rng.standard_normal(clean.shape, np.float32)
    return np.asarray(np.rint(np.hypot(real, imaginary)), np.int16)
