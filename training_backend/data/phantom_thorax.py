"""A chest CT that never was: organs, findings, labels and the report that fits them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training_backend.data.manifest import ClassEntry
from training_backend.data.phantom_shapes import (
    Field,
    Mask,
    Phantom,
    centred,
    ellipsoid,
    letter_l,
    patient_axes,
    waves,
)
from training_backend.data.volume import Volume

CLASSES = tuple(
    ClassEntry(index=index, name=name, colour=colour)
    for index, name, colour in (
        (1, "lung", "#56b4e9"),
        (2, "heart", "#d55e00"),
        (3, "liver", "#009e73"),
        (4, "spine", "#f0e442"),
        (5, "nodule", "#cc79a7"),
    )
)
LUNG, HEART, LIVER, SPINE, NODULE = 1, 2, 3, 4, 5
Axes = tuple[Field, Field, Field]


@dataclass(frozen=True)
class _Nodule:
    centre: tuple[float, float, float]
    radius_mm: float

    @property
    def place(self) -> str:
        side = "left" if self.centre[2] > 0 else "right"
        return f"{side} {'upper' if self.centre[0] > 10 else 'lower'} lobe"


@dataclass(frozen=True)
class _Patient:
    """What a seed decides, independent of the grid it is drawn on."""

    build: float
    heart: float
    effusion: str
    nodules: tuple[_Nodule, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator, nodules: int | None) -> _Patient:
        build = rng.uniform(0.93, 1.05)
        heart = float(rng.choice([1.0, 1.3], p=[0.7, 0.3])) * rng.uniform(0.95, 1.05)
        effusion = str(rng.choice(["", "left", "right"], p=[0.7, 0.15, 0.15]))
        count = int(rng.integers(1, 4)) * int(rng.random() < 0.5) if nodules is None else nodules
        found = []
        for _ in range(count):
            side = rng.choice([-1, 1])
            centre = (rng.uniform(-20, 65), rng.uniform(0, 28), side * rng.uniform(64, 90) * build)
            found.append(_Nodule((centre[0], centre[1], float(centre[2])), float(rng.uniform(6, 11))))
        return cls(build, heart, effusion, tuple(found))

    def report(self) -> str:
        lines = ["CT of the chest."]
        for nodule in self.nodules:
            lines.append(f"There is a {2 * nodule.radius_mm:.0f} mm solid nodule in the {nodule.place}.")
        if not self.nodules:
            lines.append("No pulmonary nodule.")
        lines.append("The heart is enlarged." if self.heart > 1.15 else "The heart is of normal size.")
        lines.append(f"There is a {self.effusion} pleural effusion." if self.effusion else "No pleural effusion.")
        return " ".join(lines)


def thorax_ct(
    seed: int,
    shape: tuple[int, int, int] = (64, 96, 96),
    spacing_mm: tuple[float, float, float] | None = None,
    *,
    nodules: int | None = None,
    noise_hu: float = 18.0,
) -> Phantom:
    """Chest CT in Hounsfield units with lungs, heart, liver, spine and nodules labelled.

    The heart lies to the left, the liver to the right, an air bubble in the stomach to the left, and a lead letter L
    in the air at the patient's left front: no flip goes unseen.

    Args:
        seed: decides build, findings, textures and noise; the patient does not depend on the grid.
        shape: voxels along (z, y, x).
        spacing_mm: along (z, y, x); None fits the field of view of 256 x 336 x 336 mm to `shape`.
        nodules: how many; None draws none in half of the patients and one to three in the others.
        noise_hu: standard deviation of the noise.
    """
    rng = np.random.default_rng([seed, 101])
    patient = _Patient.draw(rng, nodules)
    spacing = spacing_mm or (256 / shape[0], 336 / shape[1], 336 / shape[2])
    geometry = centred(shape, spacing)
    axes = patient_axes(geometry)
    hu, labels = _draw(axes, patient, rng)
    hu = _scanner(hu, rng, noise_hu)
    name = f"thorax-{seed}"
    meta = {"format": "phantom", "seed": seed, "window": [-1000.0, 400.0]}
    volume = Volume(hu, geometry, modality="CT", name=name, meta=meta)
    label = Volume(labels, geometry, modality="CT", name=f"{name}-labels", meta={"format": "phantom"})
    return Phantom((volume,), label, CLASSES, patient.report(), int(bool(patient.nodules)))


def _draw(axes: Axes, patient: _Patient, rng: np.random.Generator) -> tuple[Field, np.ndarray]:
    z, y, x = axes
    b = patient.build
    torso = ellipsoid((0 * z, y, x), (0, 0, 0), (1, 108 * b, 152 * b), 2.6) + 0.0 * z
    hu = np.full(torso.shape, -1000, np.float32)
    labels = np.zeros(torso.shape, np.uint8)
    tissue = waves(axes, rng, 30)
    hu[torso < 1] = -95
    hu[torso < 1] += 12 * tissue[torso < 1]
    wall = torso < 0.9 + 0.02 * waves(axes, rng, 60)
    hu[wall] = 52
    hu[(torso < 0.74) & (z < -60)] = -85  # fat around the upper abdominal organs
    cage = ellipsoid(axes, (0, 0, 0), (190, 88 * b, 122 * b), 2.3)
    ribs = (np.abs(cage - 1.0) < 0.055) & (np.mod(z + 0.45 * y, 26) < 10) & wall
    hu[ribs] = 420
    lungs = _lungs(axes, patient)
    vessels = np.abs(waves(axes, rng, 34)) + np.abs(waves(axes, rng, 34)) < 0.22
    hu[lungs] = -865 + 18 * tissue[lungs]
    hu[lungs & vessels] = -120
    labels[lungs] = LUNG
    if patient.effusion:
        side = 1 if patient.effusion == "left" else -1
        fluid = lungs & (x * side > 0) & (y - 0.35 * z > 48)
        hu[fluid] = 12
        labels[fluid] = 0
    _heart(axes, patient, hu, labels)
    _abdomen(axes, b, hu, labels, torso < 0.82, ~lungs, tissue)
    _spine(axes, hu, labels)
    for nodule in patient.nodules:
        r = nodule.radius_mm
        inside = ellipsoid(axes, nodule.centre, (r, r, r)) < 1 + 0.08 * waves(axes, rng, 9, 4)
        hu[inside] = 38
        labels[inside] = NODULE
    table = (np.abs(y - 128) < 4) & (np.abs(x) < 145) & (z < np.inf)
    hu[table & (torso > 1)] = -250
    hu[letter_l(axes, (-40, -130, 105), 60) & (torso > 1)] = 1800
    return hu, labels


def _lungs(axes: Axes, patient: _Patient) -> Mask:
    z, y, x = axes
    b = patient.build
    both = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape), bool)
    for side, dome in ((-1, -38.0), (1, -52.0)):  # the liver lifts the right diaphragm
        lung = ellipsoid(axes, (-10, 0, side * 66 * b), (128, 76 * b, 50 * b), 2.4) < 1
        lift = dome - 0.006 * ((x - side * 62 * b) ** 2 + y**2)
        both |= lung & (z > lift) & (x * side > 14)
    return both


def _heart(axes: Axes, patient: _Patient, hu: Field, labels: np.ndarray) -> None:
    z, y, x = axes
    scale = patient.heart * patient.build
    turned = (z, y, x - 0.35 * (z + 20) * -1)
    heart = ellipsoid(turned, (-22, -28, 24), (48 * scale, 40 * scale, 46 * scale))
    hu[heart < 1] = 48
    hu[heart < 0.62] = 150  # contrast medium in the chambers
    labels[heart < 1] = HEART
    tubes = (
        (ellipsoid((0 * z, y, x), (0, 40, 22), (1, 11, 11)) < 1) & (z < 55),  # descending aorta
        (ellipsoid((0 * z, y, x), (0, -12, -4), (1, 13, 13)) < 1) & (z > 0) & (z < 55),  # ascending aorta
        (np.abs(np.hypot(np.hypot(y - 14, x - 9), z - 52) - 30) < 11)
        & (z >= 50)
        & (np.abs(x - 9 - 0.5 * (y - 14)) < 13),
    )
    for tube in tubes:
        hu[tube & (labels != HEART)] = 165
        labels[tube & (labels == LUNG)] = 0
    trachea = (np.hypot(y - 4, x + 2) < 9) & (z > 30)
    hu[trachea] = -990


def _abdomen(axes: Axes, build: float, hu: Field, labels: np.ndarray, inner: Mask, free: Mask, tissue: Field) -> None:
    liver = ellipsoid(axes, (-96, -8, -52), (62, 78 * build, 86 * build), 2.2) < 1
    liver &= inner & free & (labels == 0)
    hu[liver] = 105 + 6 * tissue[liver]
    labels[liver] = LIVER
    stomach = ellipsoid(axes, (-104, -20, 72), (40, 44, 42)) < 1
    stomach &= inner & free & (labels == 0)
    hu[stomach] = 25
    hu[stomach & (axes[1] < -30)] = -980
    spleen = (ellipsoid(axes, (-100, 38, 92), (34, 30, 26)) < 1) & inner & free & (labels == 0)
    hu[spleen] = 120


def _spine(axes: Axes, hu: Field, labels: np.ndarray) -> None:
    z, y, x = axes
    level = np.mod(z, 28)
    vertebra = ellipsoid((0 * z, y, x), (0, 62, 0), (1, 17, 22), 2.4)
    arch = (np.abs(np.hypot(y - 88, x) - 12) < 5) | ((np.abs(x) < 4) & (y > 92) & (y < 106) & (level > 8))
    arch |= (np.abs(y - 86 - 0.1 * np.abs(x)) < 5) & (np.abs(x) < 36) & (level > 10) & (level < 22)
    arch &= np.hypot(y - 88, x) > 7
    body = vertebra < 1
    hu[body] = 210
    hu[body & (vertebra > 0.82)] = 480
    hu[body & (level < 5)] = 80  # discs
    hu[arch & (z < np.inf)] = 520
    labels[body | arch & (z < np.inf)] = SPINE
    sternum = ellipsoid((z, y, x), (10, -88, 0), (70, 7, 16), 3) < 1
    hu[sternum] = 300


def _scanner(hu: Field, rng: np.random.Generator, noise_hu: float) -> np.ndarray:
    """Blur by the point spread, add correlated noise, round to integers as scanners do."""
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(hu, 0.45)
    noise = gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0.3, 0.6, 0.6))
    image += noise * np.float32(noise_hu / max(float(noise.std()), 1e-6))
    return np.asarray(np.clip(np.rint(image), -1024, 3071), np.int16)
