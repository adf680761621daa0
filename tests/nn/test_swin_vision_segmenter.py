"""MG-3D's segmentation network has the numbers of the published one, which holds the same parts under other names."""

from __future__ import annotations

import pytest
import torch

from training_backend.errors import ConfigError
from training_backend.nn.mg3d_encoders import GenesisVision, SwinVision
from training_backend.nn.swin_segmenter import SwinSegmenter
from training_backend.nn.swin_unetr import SwinUnetr
from training_backend.nn.swin_vision_segmenter import SwinVisionSegmenter, swin_decoder

SIZES = {"feature_size": 3, "window": (3, 3, 3), "heads": (3, 6, 12, 24)}


def test_logits_are_those_of_the_published_network() -> None:
    torch.manual_seed(0)
    published = SwinUnetr(1, 3, window=(3, 3, 3), heads=(3, 6, 12, 24), convolutions=False, decoder=True, classes=3)
    own = SwinVisionSegmenter(SwinVision(1, **SIZES), 3)  # type: ignore[arg-type]
    state = {name.replace("swinViT.", "encoder."): value for name, value in published.state_dict().items()}
    assert own.load_state_dict(state, strict=False).unexpected_keys == []
    assert {name for name in own.state_dict() if name not in state} == set()
    volume = torch.rand(1, 1, 32, 64, 32)
    with torch.no_grad():
        wanted = published.out(published.decode(published.maps(volume)))  # type: ignore[operator]
        torch.testing.assert_close(own(volume)[0], wanted, rtol=1e-4, atol=1e-5)


def test_any_size_is_padded_and_cut_and_a_frozen_encoder_stays() -> None:
    network = swin_decoder(SwinVision(1, **SIZES), 2, freeze=True)  # type: ignore[arg-type]
    assert isinstance(network, SwinVisionSegmenter)
    network.train()
    (logits,) = network(torch.rand(1, 1, 40, 33, 50))
    assert logits.shape == (1, 2, 40, 33, 50)
    logits.sum().backward()
    assert not network.encoder.training
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert all(parameter.grad is not None for parameter in network.encoder10.parameters())


def test_each_transformer_gets_its_own_and_others_are_refused() -> None:
    assert isinstance(swin_decoder(SwinUnetr(1, 3, window=(3, 3, 3)), 2), SwinSegmenter)
    with pytest.raises(ConfigError, match="belongs to VoCo's encoder and MG-3D's swin"):
        swin_decoder(GenesisVision(1, 4), 2)
