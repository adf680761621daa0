"""SwinUNETR for segmentation: names, frame, any size, freezing, and starting from weights with a decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training_backend.config.presets import finetune_config
from training_backend.config.registry import method, task
from training_backend.errors import ConfigError
from training_backend.nn.swin_segmenter import SwinSegmenter
from training_backend.nn.swin_unetr import SwinUnetr

SMALL = {"feature_size": 6, "window": (4, 4, 4)}


def whole(classes: int = 3, seed: int = 0, **options: object) -> SwinUnetr:
    torch.manual_seed(seed)
    return SwinUnetr(decoder=True, classes=classes, **SMALL, **options).eval()  # type: ignore[arg-type]


def segmenter(classes: int = 3, **options: object) -> SwinSegmenter:
    return SwinSegmenter(SwinUnetr(**SMALL), classes, **options).eval()  # type: ignore[arg-type]


def plain(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("encoder."): tensor for name, tensor in network.state_dict().items()}


def test_it_is_the_published_network_in_our_frame() -> None:
    published, network = whole(), segmenter()
    names = {name.removeprefix("encoder."): name for name in network.state_dict()}
    assert set(names) == set(published.state_dict())
    network.load_state_dict({names[name]: tensor for name, tensor in published.state_dict().items()})
    volume = torch.rand(1, 1, 40, 32, 64)
    with torch.no_grad():
        (found,) = network(volume)
        expected = published.logits(volume)
    assert found.shape == (1, 3, 40, 32, 64)
    torch.testing.assert_close(found, expected)


def test_a_frozen_encoder_learns_nothing() -> None:
    network = segmenter(freeze=True).train()
    network(torch.rand(1, 1, 64, 32, 32))[0].square().mean().backward()
    assert not network.encoder.training
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert network.decoder5.transp_conv.conv.weight.grad is not None  # type: ignore[union-attr]


def test_the_segmentation_task_builds_it_for_this_encoder_alone() -> None:
    wishes = {"task": {"decoder": "swinunetr", "classes": ("rest", "organ")}, "method": {"feature_size": 6}}
    run = finetune_config("segmentation", "tiny", Path(), "voco", wishes)
    network = task("segmentation").build(run, method("voco").build_encoder(run))
    assert isinstance(network, SwinSegmenter)
    layer_id = task("segmentation").layer_id
    assert layer_id(network, "encoder.swinViT.patch_embed.proj.weight") == 0
    assert layer_id(network, "decoder1.transp_conv.conv.weight") == layer_id(network, "out.conv.conv.bias") == 9
    other = finetune_config("segmentation", "tiny", Path(), changes={"task": wishes["task"]})
    with pytest.raises(ConfigError, match="belongs to VoCo's encoder"):
        task("segmentation").build(other, method("mae3d").build_encoder(other))
