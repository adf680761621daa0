"""Largest parts and specks, and scores as MedCoSS's authors compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training_backend.evaluate.clean import clean_labels, clean_probabilities, larger_parts, largest_part
from training_backend.evaluate.published_scores import dice_pictures, dice_volumes, hd95_voxels

ORGAN, TUMOUR = (1, 2), (2,)


def liver() -> torch.Tensor:
    """A liver with a tumour of 8 voxels and a speck of 1, and a tumour far outside."""
    labels = torch.zeros(12, 20, 20, dtype=torch.uint8)
    labels[2:10, 2:12, 2:12] = 1
    labels[3:5, 3:5, 3:5] = 2
    labels[8, 8, 8] = 2
    labels[1:4, 15:18, 15:18] = 2
    return labels


def test_a_tumour_outside_the_organ_goes_and_a_speck_in_it_is_organ() -> None:
    labels = liver()
    before = labels.clone()
    found = clean_labels(labels, [ORGAN], [(TUMOUR, 2)], [ORGAN])
    assert torch.equal(labels, before)
    assert not found[1:4, 15:18, 15:18].any()
    assert int((found == 2).sum()) == 8
    assert found[8, 8, 8] == 1
    assert torch.equal(found[2:10, 2:12, 2:12] > 0, labels[2:10, 2:12, 2:12] > 0)


def test_without_a_region_around_it_a_speck_is_background() -> None:
    assert clean_labels(liver(), smallest=[(TUMOUR, 2)])[8, 8, 8] == 0


def test_probabilities_change_where_labels_do() -> None:
    labels = liver()
    probabilities = 0.2 + 0.5 * torch.nn.functional.one_hot(labels.long(), 3).movedim(-1, 0).float()
    found = clean_probabilities(probabilities, [ORGAN], [(TUMOUR, 2)], [ORGAN])
    expected = clean_labels(labels, [ORGAN], [(TUMOUR, 2)], [ORGAN])
    assert torch.equal(found.argmax(0), expected.long())
    same = expected == labels
    assert torch.equal(found[:, same], probabilities[:, same])
    assert clean_probabilities(found, [ORGAN]) is found


def test_parts_touch_at_edges_but_not_at_corners_and_nothing_has_no_part() -> None:
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 1, 2] = mask[2, 0, 0] = True
    assert largest_part(mask).sum() == 3
    assert larger_parts(mask, 1).sum() == 3
    mask[0, 1, 1] = False
    assert largest_part(mask).sum() == 1
    assert not larger_parts(mask, 1).any()
    assert not largest_part(np.zeros((2, 2, 2), bool)).any()


def test_empty_masks_score_as_the_table_says() -> None:
    nothing, something = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    something[1, 1, 1] = True
    assert [score(nothing, nothing) for score in (dice_volumes, dice_pictures, hd95_voxels)] == [0, 1, 0]
    assert [score(nothing, something) for score in (dice_volumes, dice_pictures, hd95_voxels)] == [0, 0, 500]
    assert dice_volumes(something, something) == pytest.approx(2 / 3)
    assert dice_pictures(something, something) == 1


def test_distances_are_counted_in_voxels_both_ways_together() -> None:
    found, truth = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    found[2, 2:7, 2:7], truth[5, 2:7, 2:7] = True, True
    assert hd95_voxels(found, truth) == 3
    truth[2, 2:7, 2:7] = True
    there = np.concatenate([np.zeros(25), np.zeros(25), np.full(25, 3.0)])
    assert hd95_voxels(found, truth) == pytest.approx(np.percentile(there, 95))
