"""The Swin transformer of the published weights: fast attention, windows, merging, and what tasks get of it."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import swin_unetr as monai_swin
from torch import Tensor, nn

from training_backend.errors import ConfigError
from training_backend.nn import swin_window
from training_backend.nn.axes import turned, turned_back
from training_backend.nn.patch import check_halved
from training_backend.nn.swin import PatchMerging, SwinBlock, SwinTransformer, WindowAttention
from training_backend.nn.swin_unetr import SwinUnetr
from training_backend.nn.swin_window import attend, clipped, cut, joined, relative_index, shift_groups


def slow(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v


SIDES = {"small": 27, "large": swin_window.SMALL_WINDOW + 1}
"""Voxels of a window on either side of where a CPU takes fused kernels."""


@pytest.mark.parametrize("voxels", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("weights", [1 << 24, 100])
def test_fast_attention_and_its_gradients_equal_the_slow_path(
    weights: int, voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swin_window, "MOST_WEIGHTS", weights)
    torch.manual_seed(0)
    given = [torch.randn(5, 3, voxels, 8, requires_grad=True) for _ in range(3)]
    given.append(torch.randn(3, voxels, voxels, requires_grad=True))
    upper = torch.randn(5, 3, voxels, 8)
    results = []
    for function in (attend, slow):
        out = function(*given)
        results.append((out, *torch.autograd.grad(out, given, upper)))
    for fast, reference in zip(*results, strict=True):
        torch.testing.assert_close(fast, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("voxels", SIDES.values(), ids=SIDES)
def test_attention_without_a_gradient_equals_the_slow_path(voxels: int) -> None:
    torch.manual_seed(0)
    q, k, v, bias = (*(torch.randn(4, 2, voxels, 4) for _ in range(3)), torch.randn(2, voxels, voxels))
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, bias), slow(q, k, v, bias), atol=1e-5, rtol=1e-5)


def test_small_windows_have_the_bits_of_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of two voxels turn the last bit into visible differences, so a CPU computes as the reference does."""
    monkeypatch.setattr(monai_swin, "rearrange", _rearranged)
    monkeypatch.setattr(monai_swin.PatchMerging, "forward", PatchMerging.forward)
    torch.manual_seed(0)
    network = SwinTransformer(1, 6, window=(3, 3, 3))
    other = monai_swin.SwinTransformer(
        1, 6, (3, 3, 3), (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24), use_v2=True, spatial_dims=3
    )
    for module in other.modules():
        if isinstance(module, monai_swin.PatchMerging):
            module.merging = "legacy"
    other.load_state_dict(network.state_dict())
    volume = torch.rand(3, 1, 32, 32, 64)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            pairs = zip(network(volume), other(volume), strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs), f"gradient {grad}"


def _rearranged(x: Tensor, pattern: str) -> Tensor:
    """What MONAI asks of einops here: the axes in another order."""
    before, after = (names.split() for names in pattern.split("->"))
    return x.permute([before.index(name) for name in after])


def test_windows_are_joined_as_they_were_cut() -> None:
    x = torch.rand(2, 4, 6, 8, 3)
    windows = cut(x, (2, 3, 4))
    assert windows.shape == (2, 8, 24, 3)
    assert torch.equal(windows[0, 0], x[0, :2, :3, :4].flatten(0, 2))
    assert torch.equal(joined(windows, (2, 3, 4), (4, 6, 8)), x)


def test_relative_positions_share_a_row_where_offsets_agree() -> None:
    index = relative_index((2, 3, 3))
    assert index.shape == (18, 18)
    assert len(index.unique()) == 3 * 5 * 5
    assert len(index.diagonal().unique()) == 1
    assert index[0, 1] == index[1, 2] != index[1, 0]


def test_small_axes_are_one_window_that_does_not_shift() -> None:
    assert clipped((8, 6, 7), (7, 7, 7)) == ((7, 6, 7), (3, 0, 0))


def test_a_clipped_window_reads_the_first_rows_of_the_bias_table() -> None:
    attention = WindowAttention(6, 3, (3, 3, 3))
    expected = attention.relative_position_bias_table[attention.relative_position_index[:8, :8]]
    assert torch.equal(attention.bias(8), expected.permute(2, 0, 1))
    assert not torch.equal(relative_index((3, 3, 3))[:8, :8], relative_index((2, 2, 2)))


def test_shifted_windows_do_not_join_both_ends_of_the_map() -> None:
    groups = shift_groups((8, 8, 8), (4, 4, 4), (2, 2, 2), torch.device("cpu"))
    assert sorted(int(number) for members, _ in groups for number in members) == list(range(8))
    assert sum(mask is None for _, mask in groups) == 1
    torch.manual_seed(0)
    block = SwinBlock(6, 3, (4, 4, 4), shifted=True).eval()
    x = torch.randn(1, 8, 8, 8, 6)
    changed = x.clone()
    changed[0, 0, 0, 0] += torch.randn(6)
    with torch.no_grad():
        moved = (block(changed) - block(x)).abs().sum(-1)[0]
    assert float(moved[:2, :2, :2].min()) > 0  # the shifted window of the corner
    moved[:2, :2, :2] = 0
    assert float(moved.max()) < 1e-6  # voxels at the other end share its window, but are hidden


def test_legacy_merging_never_sees_two_voxels_and_fixed_merging_sees_all() -> None:
    torch.manual_seed(0)
    merging = {name: PatchMerging(4, name) for name in ("legacy", "fixed")}
    x = torch.randn(1, 2, 2, 2, 4)
    unseen = {"legacy": set(), "fixed": set()}
    for name, module in merging.items():
        for place in ((a, b, c) for a in range(2) for b in range(2) for c in range(2)):
            other = x.clone()
            other[(0, *place)] += torch.randn(4)
            if torch.equal(module(other), module(x)):
                unseen[name].add(place)
    assert unseen == {"legacy": {(1, 1, 0), (0, 1, 1)}, "fixed": set()}


@pytest.fixture(scope="module")
def network() -> SwinUnetr:
    torch.manual_seed(0)
    return SwinUnetr(1, 3, window=(3, 3, 3)).eval()


def test_the_mean_of_all_tokens_is_the_embedding(network: SwinUnetr) -> None:
    volume = torch.rand(2, 1, 64, 32, 32)
    with torch.no_grad():
        out = network.encode(volume, hidden=(0, 7))
        embedding = network.maps(turned(volume, "xyz")).embedding()
    assert out.grid == (4, 2, 2)
    assert out.tokens.shape == (2, 16, network.width)
    torch.testing.assert_close(out.tokens.mean(dim=1), embedding, atol=1e-5, rtol=1e-4)
    assert [tuple(x.shape[1:]) for x in out.hidden] == [(16, 3), (16, 24)]


def test_maps_lie_where_the_volume_does(network: SwinUnetr) -> None:
    volume = torch.rand(1, 1, 32, 48, 40)  # neither a cube nor whole
    volume[..., 32:, :, :] = 0
    with pytest.raises(Exception, match="multiples of the patch"):
        network.encode(volume)
    volume = volume[..., :32]
    with torch.no_grad():
        out = network.encode(volume)
    shapes = [tuple(x.shape[1:]) for x in out.pyramid]
    assert shapes == [(3, 32, 48, 32), (3, 16, 24, 16), (6, 8, 12, 8), (12, 4, 6, 4), (24, 2, 3, 2), (48, 1, 2, 1)]
    assert out.grid == (2, 3, 2)
    changed = volume.clone()
    changed[0, 0, 3, 40, 5] += 5
    with torch.no_grad():
        moved = (network.encode(changed).pyramid[0] - out.pyramid[0]).abs().sum(1)[0]
    assert [int(n) for n in (moved == moved.max()).nonzero()[0] // 3] == [1, 13, 1]


def test_turning_a_volume_back_undoes_it() -> None:
    volume = torch.rand(1, 2, 3, 4, 5)
    assert turned(volume, "xyz").shape == (1, 2, 5, 4, 3)
    assert turned(volume, "xyz")[0, 0, 0, 0, 0] == volume[0, 0, 0, -1, -1]
    assert torch.equal(turned_back(turned(volume, "xyz"), "xyz"), volume)
    assert turned(volume, "zyx") is volume


def test_received_attention_adds_up_to_the_windows(network: SwinUnetr) -> None:
    attention: nn.Module = network.swinViT.stage(0).blocks[0].attn  # type: ignore[assignment, union-attr]
    with torch.no_grad():
        received = attention.received(torch.randn(1, 6, 6, 3, 3))  # type: ignore[operator]
        of_block = network.attention(torch.rand(1, 1, 64, 32, 32), 5)
    assert received.shape == (1, 3, 6, 6, 3)
    torch.testing.assert_close(received.sum(dim=(2, 3, 4)), torch.full((1, 3), 4.0))  # four windows
    assert of_block.shape == (1, 12, 4, 2, 2)


def test_learning_slows_towards_the_input(network: SwinUnetr) -> None:
    depths = [network.layer_id(name) for name, _ in network.named_parameters()]
    assert set(depths) == set(range(10))
    assert network.layer_id("swinViT.patch_embed.proj.weight") == 0
    assert network.layer_id("swinViT.layers3c.0.layer.conv1.conv.weight") == 5
    assert network.layer_id("swinViT.layers3.0.blocks.1.attn.qkv.weight") == 6
    assert network.layer_id("swinViT.layers3.0.downsample.reduction.weight") == 6
    assert network.layer_id("encoder4.layer.conv1.conv.weight") == 9


@pytest.mark.parametrize("size, sentence", [((64, 64, 48), "multiples of 32"), ((32, 32, 32), "one position")])
def test_sizes_that_cannot_be_halved_five_times_get_a_sentence(size: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_halved(size, "SwinUNETR")


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ConfigError, match="cannot be divided among 3"):
        SwinUnetr(1, 8)
