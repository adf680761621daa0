"""Cleaning of reports and pre-processing of MedCoSS against the reference."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from tests.parity.cases import Case, Check
from training_backend.config.data import IntensityConfig
from training_backend.data import medcoss_published as published
from training_backend.data.intensity import Statistics, normalise
from training_backend.data.read import read_volume
from training_backend.data.report_clean import cleaned_sentences, joined_parts
from training_backend.data.volume import Geometry
from training_backend.nn.axes import turned


def check_preprocess(case: Case) -> None:
    """Spacing, slabs, sizes and what the loader makes of a file."""
    config = case.config
    assert not config, f"settings that are not understood: {sorted(config)}"
    arrays = case.arrays
    expected = arrays["resize_out_zyx"]
    case.compare("resize_out_zyx", published.resized(arrays["resize_in_zyx"], expected.shape))
    _check_spacing_of_resized(case)
    spacing = tuple(float(mm) for mm in arrays["respace_in_spacing_xyz"][::-1])
    case.compare("respace_out_zyx", published.respaced(arrays["respace_in_zyx"], spacing))
    assert published.respaced_shape(arrays["respace_in_zyx"].shape, spacing) == arrays["respace_out_zyx"].shape
    depth, count = _told_slabs(case, "DeepLesion")
    first = published.starts(depth, published.CT_SLICES, published.CT_STRIDE)
    assert len(first) == count
    case.compare("dl_tile_first_slice", first)
    case.compare("dl_tile_depth", [min(published.CT_SLICES, depth)] * len(first))
    scan = arrays["adni_in_zyx"]
    tiles = published.mr_starts(len(scan))
    assert (len(scan), len(tiles)) == _told_slabs(case, "ADNI")
    for name in (name for name in arrays if name.startswith("adni_tile")):
        start = tiles[int(name.removeprefix("adni_tile"))]
        case.compare(name, published.mr_normalised(scan[start : start + published.SLICES]))
    _check_loaders(case)


def check_report_clean(case: Case) -> None:
    """Sentences of each report; one that is left out has none."""
    assert not case.config
    said: dict[str, Any] = json.loads((case.folder / case.entry["parts"]["json"]).read_text(encoding="utf-8"))
    for path, impression, findings in said["rows"]:
        assert cleaned_sentences(joined_parts(impression, findings)) == said["path2sent"].get(path, []), path


def _told_slabs(case: Case, source: str) -> tuple[int, int]:
    """Slices of the volume that the manifest tells of, and how many slabs the reference made of it."""
    found = re.search(rf"{source} (\d+)-slice volume gives ([^|]+)", case.entry["notes"])
    assert found is not None, f"the manifest does not say what became of a volume of {source}"
    return int(found.group(1)), found.group(2).count("dep")


def _check_loaders(case: Case) -> None:
    """Files of the reference through our reader, intensities and the frame of its networks."""
    stored = case.arrays["loader_in_nib_xyz"]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "slab.nii.gz"
        nib.save(nib.Nifti1Image(stored, np.diag([-1.0, -1.0, 1.0, 1.0])), path)  # axes to L, P and S: no flips
        array = read_volume(path).array
    facts = [Statistics.measure(array, float(array.min()))]
    for modality, intensity in (
        ("ct", IntensityConfig(profile="scaled", high=published.CT_LIMIT)),
        ("mr", IntensityConfig(profile="identity")),
    ):
        seen = turned(torch.from_numpy(normalise(array[None], facts, intensity))[None], "zxy")
        case.compare(f"loader_{modality}_out_czxy", seen[0])


def _check_spacing_of_resized(case: Case) -> None:
    """The box keeps its extent: the spacing grows as voxels become fewer."""
    old = np.array(case.arrays["resize_in_zyx"].shape[::-1])
    new = np.array(case.arrays["resize_out_zyx"].shape[::-1])
    told = case.arrays["resize_out_spacing_xyz"]
    before = told * new / old
    (nz, ny, nx), (dz, dy, dx) = old[::-1].tolist(), before[::-1].tolist()
    source = Geometry.from_spacing((nz, ny, nx), (dz, dy, dx))
    geometry = published.resized_geometry(source, case.arrays["resize_out_zyx"].shape)
    case.compare("resize_out_spacing_xyz", geometry.spacing_mm[::-1])
    assert np.allclose(geometry.origin_lps, 0), "the first voxels stay where they were"


CHECKS: dict[str, Check] = {"preprocess": check_preprocess, "report_clean": check_report_clean}
