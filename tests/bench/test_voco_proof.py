"""The proof that VoCo learns: what guessing gives, and that positions and embeddings are measured rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from training_backend.bench import voco_proof
from training_backend.config.presets import pretrain_config
from training_backend.data.position import Sampling
from training_backend.errors import ConfigError
from training_backend.methods.voco import METHOD

SMALL: dict[str, Any] = {
    "method": {"feature_size": 3, "window": 3, "cells": 2, "crop": 32, "depth": 64, "hidden": 8, "projected": 6}
}


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return METHOD.build(pretrain_config("voco", "tiny", Path("d"), SMALL)).eval()


def test_the_blind_guess_is_the_middle_cell() -> None:
    assert voco_proof.chance(Sampling(cells=3, crop=32)) == pytest.approx(0.25)
    assert voco_proof.chance(Sampling(cells=2, crop=32)) == pytest.approx((17 / 32) ** 2)


class Seeing(nn.Module):
    """Predicts what it is told, in place of comparing projections."""

    def __init__(self, network: Any, right: bool) -> None:
        super().__init__()
        self.sampling, self.axes, self.right = network.sampling, network.axes, right

    def project(self, crops: torch.Tensor, keep: None) -> tuple[torch.Tensor, ...]:
        return crops, crops, crops

    def contrast(self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> Any:
        class Found:
            predicted = labels if self.right else labels.roll(1, dims=-1)

        return Found


@pytest.mark.parametrize("right", [True, False])
def test_positions_are_counted_per_crop(network: Any, right: bool) -> None:
    slabs = [torch.rand(1, 1, 64, 64, 64) for _ in range(2)]
    found, error = voco_proof._found(Seeing(network, right), slabs)  # type: ignore[arg-type]
    assert len(found) == len(error) == 2 * voco_proof._VAL_CROPS
    assert found.all() if right else not found.any()
    assert error.max() == 0 if right else error.min() > 0


def test_the_probe_learns_what_embeddings_tell(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voco_proof, "_PROBE_CROPS", {"train": 6, "val": 6})
    slabs = []
    for index in range(4):  # halves of the slab differ in class and in brightness
        labels = np.zeros((64, 64, 64), np.uint8)
        labels[:, :, 32:] = 1 + index % 2
        volume = torch.from_numpy(labels / 2.0).float()[None, None]
        slabs.append((volume, labels))
    found = voco_proof._probed(network, {"train": slabs, "val": slabs})
    assert set(found["classes"]) == {0, 1, 2}
    assert found["accuracy"] > 0.9


def test_left_atria_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a folder of left atria"):
        voco_proof.main(tmp_path, parts=("atria",))
