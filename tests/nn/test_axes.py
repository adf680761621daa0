"""Frames of networks: every turn is undone, and each frame is what its name says."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from training_backend.nn.ar import ArEncoder
from training_backend.nn.axes import Axes, sizes_back, sizes_turned, turned, turned_back
from training_backend.nn.unetr_published import PublishedUnetr

FRAMES: tuple[Axes, ...] = get_args(Axes)


@pytest.mark.parametrize("axes", FRAMES)
def test_turns_are_undone(axes: Axes) -> None:
    volume = torch.rand(2, 3, 4, 5, 6)
    there = turned(volume, axes)
    assert there.shape[2:] == sizes_turned((4, 5, 6), axes)
    assert sizes_back(there.shape[2:], axes) == (4, 5, 6)
    assert torch.equal(turned_back(there, axes), volume)
    tokens = volume[:, 0, ..., None].expand(-1, -1, -1, -1, 7)
    assert torch.equal(turned_back(turned(tokens, axes, first=1), axes, first=1), tokens)


def test_each_frame_is_what_its_name_says() -> None:
    volume = torch.zeros(1, 1, 4, 5, 6)
    volume[0, 0, 3, 0, 1] = 1.0  # the highest slice, most anterior, second from the right
    found = {axes: turned(volume, axes)[0, 0].nonzero().tolist() for axes in FRAMES}
    assert found == {
        "xyz": [[4, 4, 3]],
        "xyz-lps": [[1, 0, 3]],
        "yxz-pls": [[0, 1, 3]],
        "zxy": [[3, 1, 0]],
        "zyx": [[3, 0, 1]],
    }


@pytest.mark.parametrize("axes", FRAMES)
def test_a_network_sees_the_volume_in_its_frame_and_answers_in_ours(axes: Axes) -> None:
    torch.manual_seed(0)
    size, patch = (8, 32, 16), (4, 8, 2)
    ours = ArEncoder(size, patch, 1, 12, 4, 2, 24, axes=axes)
    theirs = ArEncoder(sizes_turned(size, axes), sizes_turned(patch, axes), 1, 12, 4, 2, 24, axes="zyx")
    networks = [PublishedUnetr(encoder, 2, feature_size=2).eval() for encoder in (ours, theirs)]
    networks[1].load_state_dict(networks[0].state_dict())
    volume = torch.rand(1, 1, *size)
    with torch.no_grad():
        mine, reference = ours.encode(volume), theirs.encode(turned(volume, axes))
        assert mine.grid == (2, 4, 8)
        there = turned(mine.tokens.unflatten(1, mine.grid), axes, first=1).flatten(1, 3)
        torch.testing.assert_close(there, reference.tokens, atol=1e-5, rtol=1e-4)
        (found,), (expected,) = networks[0](volume), networks[1](turned(volume, axes))
    torch.testing.assert_close(found, turned_back(expected, axes), atol=1e-5, rtol=1e-4)
