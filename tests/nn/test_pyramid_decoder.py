"""SwinUNETR's decoder on an encoder with a pyramid: names, sizes, pooling, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training_backend.config.presets import finetune_config
from training_backend.config.registry import method, task
from training_backend.errors import ConfigError
from training_backend.methods.base import Batch
from training_backend.nn.output import EncoderOutput
from training_backend.nn.pyramid_decoder import DecodedMean
from training_backend.nn.registration_net import published_registration_net


class Halving(nn.Module):
    """An encoder whose maps halve from full size, of 4, 4 and 8 channels."""

    width, depth, patch_size = 8, 2, (4, 4, 4)

    def __init__(self, in_channels: int = 1, first: int = 1) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.fine = nn.Conv3d(in_channels, 4, first, first)
        self.middle, self.coarse = nn.Conv3d(4, 4, 2, 2), nn.Conv3d(4, 8, 2, 2)

    def encode(self, volume: Tensor, hidden: Sequence[int] = ()) -> EncoderOutput:
        fine = self.fine(volume)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        grid = tuple(coarse.shape[2:])
        return EncoderOutput(coarse.flatten(2).transpose(1, 2), grid, pyramid=(fine, middle, coarse))  # type: ignore[arg-type]

    def layer_id(self, parameter: str) -> int:
        return {"fine": 0, "middle": 1, "coarse": 2}[parameter.partition(".")[0]]

    def attention(self, volume: Tensor, block: int) -> Tensor:
        raise NotImplementedError


def test_displacements_start_close_to_none_and_have_the_size_of_the_scan() -> None:
    torch.manual_seed(0)
    network = published_registration_net(Halving(2), freeze=True)
    pair = torch.rand(1, 2, 13, 10, 15)
    (displacement,) = network(pair)
    assert displacement.shape == (1, 3, 13, 10, 15)
    assert float(displacement.detach().abs().max()) < 0.01
    assert {name.split(".")[1] for name in network.state_dict() if name.startswith("decoder.")} == {
        "decoder1",
        "decoder2",
    }
    network.train()
    assert not network.encoder.training
    displacement.sum().backward()
    assert network.encoder.fine.weight.grad is None  # type: ignore[union-attr]
    assert network.decoder.decoder2.transp_conv.conv.weight.grad is not None  # type: ignore[union-attr]


def test_classes_come_from_the_mean_of_the_decoded_map() -> None:
    torch.manual_seed(0)
    network = DecodedMean(Halving(), 3, repeat_depth=True).eval()
    volume = torch.rand(2, 1, 8, 12, 16)
    doubled = torch.cat([volume, volume], dim=2)
    expected = network.head(network.decoded(doubled).mean((2, 3, 4)))
    assert torch.allclose(network(volume), expected)
    network.repeat_depth = False
    assert not torch.allclose(network(volume), expected)


def test_the_classification_task_pools_over_the_decoder() -> None:
    wishes = {"pooling": "decoder", "repeat_depth": True, "kind": "multiclass", "classes": 3}
    run = finetune_config("classification", "tiny", Path(), changes={"task": wishes})
    network = task("classification").build(run, Halving())  # type: ignore[arg-type]
    batch = Batch(torch.rand(2, 1, 8, 8, 8), ["a", "b"], target=torch.tensor([0.0, 2.0]))
    loss = task("classification").training_step(network, batch, torch.Generator()).loss
    loss.backward()
    assert network.encoder.fine.weight.grad is not None  # type: ignore[union-attr]
    probabilities = task("classification").predict(network.eval(), run, batch.volume[:1], None)
    assert float(probabilities.sum()) == pytest.approx(1)
    assert task("classification").layer_id(network, "head.weight") == 3


def test_what_cannot_be_decoded_or_combined_is_refused() -> None:
    run = finetune_config("classification", "tiny", Path(), changes={"task": {"pooling": "decoder"}})
    with pytest.raises(ConfigError, match="gives tokens"):
        task("classification").build(run, method("mae3d").build_encoder(run))
    with pytest.raises(ConfigError, match="gives other maps"):
        DecodedMean(Halving(first=2), 3)
    with pytest.raises(ConfigError, match="leave hidden empty"):
        run.updated({"task": {"hidden": (8,)}})
    with pytest.raises(ConfigError, match="repeat_depth needs pooling over a decoder"):
        run.updated({"task": {"pooling": "global", "repeat_depth": True}})
