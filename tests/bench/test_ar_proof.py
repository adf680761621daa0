"""The yardsticks of next-patch prediction, and the head that is cut in halves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training_backend.bench.ar_proof import GAP_MM, HEAD, _halves, main, measured
from training_backend.data.importers import describe
from training_backend.data.read import read_volume
from training_backend.data.volume import Geometry, Volume
from training_backend.data.write import write_volume
from training_backend.errors import ConfigError
from training_backend.nn.ar import ArEncoder
from training_backend.nn.ar_pretrain import NextPatch


def network() -> NextPatch:
    torch.manual_seed(0)
    return NextPatch(ArEncoder((8, 8, 8), (4, 4, 4), 1, 12, 1, 2, 24, pretraining=True)).eval()


def test_errors_are_of_the_same_patches_and_air_is_left_out() -> None:
    volume = torch.rand(3, 1, 8, 8, 8)
    volume[:, :, :, :4] = 0.0  # half of the patches have one value alone
    found = measured(network(), iter([volume]))
    assert found["mean"] == pytest.approx(63 / 64, abs=1e-3), "unbiased variance of 64 voxels"
    assert found["patch before"] > 1.2, "noise tells nothing about noise"
    again = measured(network(), iter([volume[:1], volume[1:2], volume[2:]]))
    assert again == pytest.approx(found, rel=1e-5)
    assert 0 < found["patches"] <= 3 * 4


def test_volumes_that_repeat_along_the_sequence_are_told_by_the_patch_before() -> None:
    volume = torch.rand(2, 1, 4, 4, 4).tile(1, 1, 2, 2, 2)
    found = measured(network(), iter([volume]))
    assert found["patch before"] == pytest.approx(0.0, abs=1e-6)
    assert found["network"] > 0.5


def test_the_halves_of_a_head_do_not_touch(tmp_path: Path) -> None:
    for name, step in zip(HEAD, (2.0, 3.0), strict=True):
        shape = (6, 8, int(90 / step))
        geometry = Geometry.from_spacing(shape, (step, step, step), (-45.0 + step / 2, 0.0, 0.0))
        array = np.random.default_rng(0).random(shape, np.float32)
        write_volume(Volume(array, geometry, "MR", name), tmp_path / f"{name}.nii.gz")
    _halves(tmp_path, tmp_path / "halves")
    for name in HEAD:
        centres = []
        for key in ("validation", "training"):
            found = read_volume(tmp_path / "halves" / key / f"{name}.nii.gz").geometry
            centres.append(found.to_lps[0, 3] + found.to_lps[0, 2] * np.arange(found.shape[2]))
        low, high = centres
        assert low.max() < high.min()
        assert high.min() - low.max() >= GAP_MM
    cases = describe(tmp_path / "halves" / "datalist.json").cases
    assert [case.split for case in cases] == ["train", "val"]
    assert [tuple(image.contrast for image in case.images) for case in cases] == [HEAD, HEAD]


def test_real_scans_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs real scans"):
        main("contrasts", tmp_path)
