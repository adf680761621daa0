"""UNETR's decoder: published names and shapes, any axes, any power-of-two patch, any volume."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from training_backend.errors import ConfigError
from training_backend.nn.ar import ArEncoder
from training_backend.nn.unetr_published import PublishedUnetr
from training_backend.nn.vit import VitEncoder

PARITY = Path(__file__).parents[1] / "fixtures" / "parity" / "ar"


def vit(patch: tuple[int, int, int] = (16, 16, 16), depth: int = 4, channels: int = 1) -> VitEncoder:
    torch.manual_seed(0)
    return VitEncoder((32, 32, 32), patch, channels, 12, depth, 2)


@pytest.mark.parametrize(
    "name, size, classes", [("seg_3cls_96", (96,) * 3, 3), ("seg_LA_192_192_64", (64, 192, 192), 2)]
)
def test_names_and_shapes_are_the_published_ones(name: str, size: tuple[int, int, int], classes: int) -> None:
    with torch.device("meta"):
        network = PublishedUnetr(ArEncoder(size, (16, 16, 16)), classes)
    state = {re.sub("^encoder[.]", "vit.", key): list(value.shape) for key, value in network.state_dict().items()}
    assert state == json.loads((PARITY / f"{name}_keys.json").read_text())


@pytest.mark.parametrize(
    "depth, taps", [(12, (3, 6, 9)), (24, (6, 12, 18)), (4, (1, 2, 3)), (2, (0, 1, 1)), (1, (0, 0, 0))]
)
def test_tokens_of_a_quarter_half_and_three_quarters_of_the_blocks_join(depth: int, taps: tuple[int, ...]) -> None:
    network = PublishedUnetr(vit(depth=depth), 2, feature_size=2)
    assert network.taps == taps
    assert network(torch.rand(1, 1, 32, 32, 32))[0].shape == (1, 2, 32, 32, 32)


@pytest.mark.parametrize("patch", [(2, 2, 2), (8, 8, 8), (4, 8, 16), (16, 16, 16), (32, 16, 16)])
def test_patches_of_any_power_of_two_and_volumes_of_any_size_give_logits_of_that_size(
    patch: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    encoder = VitEncoder(tuple(2 * each for each in patch), patch, 1, 12, 4, 2)
    network = PublishedUnetr(encoder, 3, feature_size=2).eval()
    shape = tuple(2 * each - 1 for each in patch)
    assert network(torch.rand(2, 1, *shape))[0].shape == (2, 3, *shape)


@pytest.mark.parametrize("patch", [(12, 12, 12), (64, 16, 16)])
def test_other_patches_are_refused_with_what_to_do(patch: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"Set task\.decoder to lean"):
        PublishedUnetr(VitEncoder(patch, patch, 1, 12, 2, 2), 2)


def test_a_network_of_the_published_axes_sees_the_volume_turned_and_answers_in_ours() -> None:
    torch.manual_seed(0)
    ours = ArEncoder((16, 32, 48), (8, 8, 8), 1, 12, 4, 2, 24, axes="xyz")
    theirs = ArEncoder((48, 32, 16), (8, 8, 8), 1, 12, 4, 2, 24, axes="zyx")
    networks = [PublishedUnetr(encoder, 2, feature_size=2).eval() for encoder in (ours, theirs)]
    networks[1].load_state_dict(networks[0].state_dict())
    volume = torch.rand(1, 1, 16, 32, 48)
    turned = volume.permute(0, 1, 4, 3, 2).flip(2, 3)
    with torch.no_grad():
        (found,), (expected,) = networks[0](volume), networks[1](turned)
    torch.testing.assert_close(found, expected.flip(2, 3).permute(0, 1, 4, 3, 2), atol=1e-5, rtol=1e-4)


def test_several_channels_reach_encoder_and_first_convolution() -> None:
    network = PublishedUnetr(vit(channels=4), 2, feature_size=2)
    volume = torch.rand(1, 4, 32, 32, 32, requires_grad=True)
    network(volume)[0].square().sum().backward()
    assert volume.grad is not None
    assert (volume.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()
    assert network.encoder1.layer.conv1.conv.weight.shape[1] == 4


def test_a_frozen_encoder_stays_as_it_is_while_everything_new_learns() -> None:
    network = PublishedUnetr(vit(), 2, feature_size=2, freeze=True).train()
    assert not network.encoder.training
    network(torch.rand(1, 1, 32, 32, 32))[0].square().sum().backward()
    learnt = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert learnt == {name for name, _ in network.named_parameters() if not name.startswith("encoder.")}
