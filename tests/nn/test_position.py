from __future__ import annotations

import numpy as np
import pytest
import torch

from training_backend.errors import WeightsError
from training_backend.nn.position import cubic_grid, resize_table, sincos_1d, sincos_table


@pytest.mark.parametrize("width, split", [(1024, (341, 341, 342)), (512, (170, 171, 171)), (768, (256, 256, 256))])
def test_channels_are_split_in_three_for_d_h_and_w(width: int, split: tuple) -> None:
    grid = (2, 3, 4)
    table = sincos_table(width, grid)[0]
    assert torch.equal(table[0], torch.zeros(width))
    rows = table[1:].reshape(*grid, width)
    first = split[0]
    second = first + split[1]
    expected = [sincos_1d(n, np.arange(size, dtype=np.float32)) for n, size in zip(split, grid)]
    for d, h, w in [(0, 0, 0), (1, 2, 3), (1, 0, 2)]:
        assert np.array_equal(rows[d, h, w, :first], expected[0][d])
        assert np.array_equal(rows[d, h, w, first:second], expected[1][h])
        assert np.array_equal(rows[d, h, w, second:], expected[2][w])


def test_reference_order_is_the_same_on_cubes_and_scrambled_elsewhere() -> None:
    assert torch.equal(sincos_table(50, (3, 3, 3)), sincos_table(50, (3, 3, 3), reference_order=True))
    assert not torch.equal(sincos_table(50, (2, 3, 4)), sincos_table(50, (2, 3, 4), reference_order=True))


def test_resizing_keeps_the_class_row_and_is_linear_between_tokens() -> None:
    grid = (2, 1, 3)
    ramp = torch.arange(6.0).reshape(1, 6, 1).repeat(1, 1, 2)
    table = torch.cat([torch.full((1, 1, 2), 9.0), ramp], dim=1)
    assert resize_table(table, grid, grid) is table
    larger = resize_table(table, grid, (4, 1, 3))
    assert torch.equal(larger[:, 0], table[:, 0])
    rows = larger[0, 1:, 0].reshape(4, 3)
    torch.testing.assert_close(rows[:, 0], torch.tensor([0.0, 0.75, 2.25, 3.0]))
    torch.testing.assert_close(rows[1], torch.tensor([0.75, 1.75, 2.75]))


def test_only_cubes_can_be_told_from_the_number_of_tokens() -> None:
    assert cubic_grid(4096) == (16, 16, 16)
    with pytest.raises(WeightsError, match="not a cubic grid"):
        cubic_grid(24)
