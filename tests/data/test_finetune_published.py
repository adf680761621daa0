"""The authors' preparation for fine-tuning, against MONAI's own transforms on oblique and permuted scans."""

from __future__ import annotations

import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from scipy.spatial.transform import Rotation

from training_backend.data.finetune_published import atrium_crop, decathlon_case
from training_backend.data.read import read_labels, read_volume
from training_backend.errors import DataError

WINDOW = (-87.0, 199.0)


def scan(folder: Path, angles: tuple[float, float, float], order: tuple[int, int, int], signs: tuple[int, int, int]):
    rng = np.random.default_rng(3)
    affine = np.eye(4)
    turned = Rotation.from_euler("zyx", angles, degrees=True).as_matrix()
    affine[:3, :3] = turned @ np.diag(signs) @ np.eye(3)[:, list(order)] @ np.diag([0.8, 1.1, 2.3])
    affine[:3, 3] = (12, -40, 7)
    image = rng.normal(0, 150, (21, 17, 13)).astype(np.float32)
    image[:3] = image[:, -2:] = -500
    label = rng.integers(0, 3, image.shape).astype(np.uint8)
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    return {name: folder / f"{name}.nii.gz" for name in ("image", "label")}


@pytest.mark.parametrize(
    "angles, order, signs",
    [
        ((0, 0, 0), (0, 1, 2), (-1, -1, 1)),
        ((12, -7, 5), (0, 1, 2), (-1, 1, 1)),
        ((0, 0, 0), (2, 0, 1), (1, -1, -1)),
        ((-9, 14, 3), (1, 2, 0), (1, 1, -1)),
    ],
)
def test_equals_the_transforms_that_the_authors_compose(tmp_path: Path, angles, order, signs) -> None:
    paths, spacing = scan(tmp_path, angles, order, signs), (1.0, 1.0, 1.5)
    keys = ["image", "label"]
    expected = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Orientationd(keys, "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd(keys, spacing, mode=("bilinear", "nearest")),
            ScaleIntensityRanged(["image"], *WINDOW, 0.0, 1.0, clip=True),
            CropForegroundd(keys, "image", allow_smaller=True),
        ]
    )(paths)
    image, label = decathlon_case(read_volume(paths["image"]), read_labels(paths["label"]), spacing, WINDOW)
    np.testing.assert_allclose(image, expected["image"][0].numpy(), atol=1e-4)
    assert (label != expected["label"][0].numpy()).mean() < 1e-3


def test_a_scan_below_the_window_is_a_sentence(tmp_path: Path) -> None:
    paths = scan(tmp_path, (0, 0, 0), (0, 1, 2), (1, 1, 1))
    with pytest.raises(DataError, match="above 5000"):
        decathlon_case(read_volume(paths["image"]), read_labels(paths["label"]), (1.0, 1.0, 1.0), (5000.0, 6000.0))


def test_atria_are_padded_at_the_far_end_and_cut_by_the_draw() -> None:
    image = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4) + 1
    label = (image % 3).astype(np.uint8)
    view, marks = atrium_crop(image, label, (4, 8, 4), random.Random(1))
    start = random.Random(1).randint(0, 2)
    assert np.array_equal(view[:, :5], image[start : start + 4])
    assert not view[:, 5:].any()
    assert set(np.unique(marks)) == {0.0, 1.0}
    assert np.array_equal(marks[:, :5] == 1, label[start : start + 4] == 1)
