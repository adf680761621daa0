from __future__ import annotations

import numpy as np
import pytest
import torch

from training_backend.data.position import Sampling, base_starts, changed_crops, cut_plane, draw_starts, overlap, sample


@pytest.mark.parametrize(
    "centre, expected",
    [((96, 96), {4: 1.0}), ((64, 64), {0: 0.25, 1: 0.25, 3: 0.25, 4: 0.25}), ((32, 160), {2: 1.0})],
)
def test_overlap_of_known_places(centre: tuple[int, int], expected: dict[int, float]) -> None:
    row = overlap([np.subtract(centre, 32)], 3, 64)[0]
    assert {int(k): float(row[k]) for k in row.nonzero()[0]} == expected


def test_overlaps_add_up_to_the_whole_crop_wherever_it_lies() -> None:
    starts = draw_starts(200, 4, 24, torch.Generator().manual_seed(0))
    rows = overlap(starts, 4, 24)
    assert np.allclose(rows.sum(axis=1), 1)
    assert ((rows > 0).sum(axis=1) <= 4).all()
    assert starts.min() == 0
    assert 60 < starts.max() < 72  # never the last place


def test_bases_tile_the_slab_without_a_gap() -> None:
    slab = torch.arange(6 * 6 * 2.0).reshape(1, 6, 6, 2)
    bases = cut_plane(slab, base_starts(3, 2), 2, (1, 2))
    assert bases.shape == (9, 1, 2, 2, 2)
    assert torch.equal(bases[5], slab[:, 2:4, 4:6])  # k = 3 i + j
    assert sorted(bases.flatten().tolist()) == slab.flatten().tolist()
    assert np.array_equal(overlap(base_starts(3, 2), 3, 2), np.eye(9))


def test_crops_of_a_step_come_from_the_generator_and_lie_where_their_overlap_says() -> None:
    sampling = Sampling(cells=2, crop=8, depth=4, crops=3, plane=(1, 2))
    slabs = torch.stack([torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))] * 2)
    slabs = slabs[..., None].expand(-1, -1, -1, -1, 4)
    crops, labels, starts = sample(slabs, sampling, torch.Generator().manual_seed(5), changed=False)
    again, _, _ = sample(slabs, sampling, torch.Generator().manual_seed(5), changed=False)
    assert torch.equal(crops, again)
    assert (crops.shape, labels.shape) == ((2 * 3 + 2 * 4, 2, 8, 8, 4), (2, 3, 4))
    first = [crop[:, 0, 0, 0].int().tolist() for crop in crops[:6]]
    assert first == np.concatenate(starts).tolist()
    assert sampling.slab == (4, 16, 16)


def test_crops_can_be_resized_and_cut_along_other_axes() -> None:
    sampling = Sampling(cells=2, crop=8, depth=4, crops=1, plane=(2, 3), resized=16)
    crops, labels, _ = sample(torch.rand(1, 1, 4, 16, 16), sampling, torch.Generator(), changed=True)
    assert crops.shape == (5, 1, 16, 16, 16)
    assert float(labels.sum()) == pytest.approx(1)


def test_changes_keep_the_voxels_and_are_independent() -> None:
    crops = torch.rand(64, 1, 6, 6, 4)
    sampling = Sampling(flip=0.5, rotate=0.5, shift=0.0)
    changed = changed_crops(crops, sampling, torch.Generator().manual_seed(0))
    assert torch.equal(changed.flatten(1).sort().values, crops.flatten(1).sort().values)
    same = [torch.equal(a, b) for a, b in zip(changed, crops, strict=True)]
    assert 0 < sum(same) < 32
    shifted = changed_crops(crops, Sampling(flip=0, rotate=0, shift=1.0), torch.Generator().manual_seed(0)) - crops
    offsets = shifted.flatten(1).mean(1)
    assert float(shifted.flatten(1).std(1).max()) < 1e-6
    assert 0.08 < float(offsets.abs().max()) <= 0.1
    untouched = Sampling(flip=0, rotate=0, shift=0)
    assert torch.equal(changed_crops(crops, untouched, torch.Generator()), crops)
