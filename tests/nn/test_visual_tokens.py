"""Tokens of volumes for texts, from encoders of tokens and of pyramids."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from training_backend.errors import ConfigError
from training_backend.nn.mg3d_encoders import GenesisVision, SwinVision
from training_backend.nn.output import EncoderOutput
from training_backend.nn.swin_unetr import SwinUnetr
from training_backend.nn.swin_vision_segmenter import SwinVisionSegmenter
from training_backend.nn.visual_tokens import VisualTokens, encoded
from training_backend.nn.voco_downstream import ClipVisual, ReportVisual

BLOCKS = ("encoder1", "encoder2", "encoder3", "encoder4")


def pyramid() -> EncoderOutput:
    torch.manual_seed(0)
    maps = tuple(torch.randn(2, c, n, n, n) for c, n in ((2, 12), (4, 6), (8, 3)))
    return EncoderOutput(torch.randn(2, 27, 6), (3, 3, 3), pyramid=maps)


def test_maps_are_averaged_joined_and_normalised_over_positions() -> None:
    features, encoder = pyramid(), SimpleNamespace(width=10, embedded_maps=(0, 2))
    model = VisualTokens(encoder)
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 2)
        model.norm.bias.uniform_(-1, 1)
    tokens, mean = model(features)
    joined = torch.cat([F.adaptive_avg_pool3d(features.pyramid[i], 3) for i in (0, 2)], 1).flatten(2)
    expected = F.layer_norm(joined, (27,), model.norm.weight, model.norm.bias).transpose(1, 2)
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(mean, expected.mean(1))
    assert model.number == 27


def test_tokens_are_averaged_on_their_grid_and_normalised_over_channels() -> None:
    tokens = torch.arange(4.0 * 2 * 6).reshape(1, 4 * 2 * 6, 1).repeat(1, 1, 3)
    features = EncoderOutput(tokens, (4, 2, 6))
    plain, _ = VisualTokens(SimpleNamespace(width=3), 2, "none")(features)
    grid = tokens[0, :, 0].reshape(4, 2, 6)
    assert plain.shape == (1, 8, 3)
    assert plain[0, 0, 0] == grid[:2, :1, :3].mean()
    assert plain[0, 7, 0] == grid[2:, 1:, 3:].mean()
    normed, _ = VisualTokens(SimpleNamespace(width=3), 2)(features)
    torch.testing.assert_close(normed, F.layer_norm(plain, (3,)))


def test_a_linear_layer_and_another_order_are_the_published_permutation() -> None:
    features, encoder = pyramid(), SimpleNamespace(width=10, embedded_maps=(0, 2))
    model = VisualTokens(encoder, norm="none", project=5, order=(1, 2, 0))
    expected = model.head(model.joined(features)).permute(0, 3, 4, 2, 1).flatten(1, 3)
    torch.testing.assert_close(model(features)[0], expected)


def test_maps_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 channels together, but it says 10"):
        VisualTokens(SimpleNamespace(width=10, embedded_maps=(1, 2)))(pyramid())


def test_tokens_may_lie_on_the_networks_own_grid_in_any_order() -> None:
    encoder = SimpleNamespace(width=2, embedded_maps=(0,))
    own = torch.arange(2 * 4 * 3 * 5, dtype=torch.float32).view(1, 2, 4, 3, 5)
    features = EncoderOutput(own.flatten(2).transpose(1, 2), (4, 3, 5), hidden=(), pyramid=(torch.zeros_like(own),))
    tokens, _ = VisualTokens(encoder, (4, 3, 5), "none", maps="tokens")(features)
    torch.testing.assert_close(tokens, features.tokens)
    turned = VisualTokens(encoder, (4, 3, 5), "none", maps="tokens", order=(2, 1, 0))
    assert turned.number == 60
    torch.testing.assert_close(turned(features)[0], own.permute(0, 4, 3, 2, 1).reshape(1, 60, 2))


def test_convolved_maps_are_those_that_the_decoder_sees() -> None:
    torch.manual_seed(0)
    encoder = SwinVision(1, 4, window=(3, 3, 3), heads=(1, 2, 2, 4)).eval()
    segmenter = SwinVisionSegmenter(encoder, 2).eval()
    visual = VisualTokens(encoder, 3, "positions", maps="convolved").eval()
    assert (visual.width, visual.number) == (24 * 4, 27)
    blocks = {name: value for name, value in segmenter.state_dict().items() if name.split(".")[0] in BLOCKS}
    assert visual.convolved is not None
    visual.convolved.load_state_dict(blocks)
    volume = torch.rand(2, 1, 64, 32, 32)
    with torch.no_grad():
        tokens, mean = visual(*encoded(encoder, volume, freeze=True))
        shown = encoder.shown(encoder.maps(volume))
        maps = [getattr(segmenter, name)(each) for name, each in zip(BLOCKS, (volume, *shown[:3]), strict=True)]
        wanted = torch.cat([F.adaptive_avg_pool3d(each, 3) for each in (*maps, shown[4])], 1).flatten(2)
        wanted = F.layer_norm(wanted, (27,)).transpose(1, 2)
    torch.testing.assert_close(tokens, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mean, wanted.mean(1), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"task\.maps to joined"):
        VisualTokens(GenesisVision(1, 2), maps="convolved")


def test_tokens_of_a_swin_unetr_are_the_published_ones() -> None:
    torch.manual_seed(0)
    options = {"window": (3, 3, 3), "axes": "zyx"}
    volume = torch.rand(1, 1, 64, 32, 32)
    published = ReportVisual(1, 6, **options).eval()
    with torch.no_grad():
        published.norm.weight.uniform_(0.5, 2)
    encoder = SwinUnetr(1, 6, **options)
    encoder.load_state_dict({name: value for name, value in published.state_dict().items() if name[:5] != "norm."})
    visual = VisualTokens(encoder)
    visual.norm.load_state_dict(published.norm.state_dict())
    with torch.no_grad():
        tokens, mean = visual(encoder.eval().encode(volume))
        torch.testing.assert_close(tokens, published.tokens(volume)[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mean, published.tokens(volume)[1], atol=1e-5, rtol=1e-4)


def test_regions_of_a_swin_unetr_are_the_published_ones() -> None:
    torch.manual_seed(0)
    options = {"window": (3, 3, 3), "axes": "zyx"}
    volume = torch.rand(1, 1, 64, 32, 32)
    published = ClipVisual(1, 6, 10, **options).eval()
    encoder = SwinUnetr(1, 6, **options)
    encoder.load_state_dict({name: value for name, value in published.state_dict().items() if name[:5] != "head."})
    visual = VisualTokens(encoder, norm="none", project=10, order=(1, 2, 0))
    visual.head.load_state_dict(published.head.state_dict())
    with torch.no_grad():
        tokens, _ = visual(encoder.eval().encode(volume))
        torch.testing.assert_close(tokens, published.regions(volume).flatten(1, 3), atol=1e-5, rtol=1e-4)
