"""Attention without padding and masks equals that of padded, rolled and masked windows."""

from __future__ import annotations

import math

import pytest
import torch

from training_backend.nn import swin, swin_window
from training_backend.nn.patch import Triple
from training_backend.nn.swin import WindowAttention
from training_backend.nn.swin_regions import Span, regions, spans


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", [(7, 7, 7), (5, 4, 6)])
@pytest.mark.parametrize("size", [(9, 12, 8), (16, 7, 5), (8, 8, 8)])
def test_results_and_gradients_equal_those_of_padded_windows(
    size: Triple, window: Triple, shifted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(6, 3, window).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(2, *size, 6, dtype=torch.double, requires_grad=True)
    upper = torch.randn_like(x)
    results = []
    for small in (swin_window.SMALL_WINDOW, 1 << 20):  # the second takes the way of other devices
        monkeypatch.setattr(swin, "SMALL_WINDOW", small)
        out = attention(x, shifted)
        results.append((out, *torch.autograd.grad(out, [x, *attention.parameters()], upper)))
    for ours, padded in zip(*results, strict=True):
        torch.testing.assert_close(ours, padded)


@pytest.mark.parametrize("few", [1, 1000])
def test_gradients_do_not_depend_on_how_many_weights_are_held(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention, x = WindowAttention(6, 3, (5, 4, 6)).double(), torch.randn(2, 8, 8, 8, 6, dtype=torch.double)
    found = []
    for weights in (swin_window.FEW_WEIGHTS, few):
        monkeypatch.setattr(swin_window, "FEW_WEIGHTS", weights)
        found.append(torch.autograd.grad(attention(x, True).square().sum(), list(attention.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_axes_fall_apart_where_windows_wrap_or_reach_beyond_them() -> None:
    assert spans(14, 7, 0) == [Span(0, 2, 7, 0, 0)]
    assert spans(16, 7, 0) == [Span(0, 2, 7, 0, 0), Span(14, 1, 2, 0, 5)]
    assert spans(16, 7, 3) == [Span(0, 1, 3, 4, 0), Span(3, 1, 7, 0, 0), Span(10, 1, 6, 0, 1)]
    assert spans(32, 7, 3) == [Span(0, 1, 3, 4, 0), Span(3, 4, 7, 0, 0), Span(31, 1, 1, 0, 3)]


@pytest.mark.parametrize("shift", [(0, 0, 0), (3, 3, 0)])
def test_every_voxel_is_in_one_box(shift: Triple) -> None:
    size = (9, 16, 7)
    seen = torch.zeros(1, *size)
    for region in regions(size, (7, 7, 7), shift):
        region.boxes(seen).add_(1)
        assert len(region.places) == math.prod(span.length for span in region.spans)
    assert bool((seen == 1).all())
