"""The segmentation network on token and pyramid encoders, any patch size and any shape; its loss."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn

from training_backend.nn.dice import dice_ce
from training_backend.nn.output import EncoderOutput
from training_backend.nn.unetr import PyramidMap, TokenMap, Unetr
from training_backend.nn.vit import VitEncoder


def vit(patch: tuple[int, int, int] = (8, 8, 8), channels: int = 1) -> VitEncoder:
    return VitEncoder(tuple(2 * n for n in patch), patch, channels, width=24, depth=3, heads=2)


class Hierarchical(nn.Module):
    """Maps at strides 2, 4 and 8, as a hierarchical encoder gives them."""

    width, depth, in_channels, patch_size = 16, 3, 1, (8, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv3d(a, b, 2, 2) for a, b in ((1, 4), (4, 8), (8, 16)))

    def encode(self, volume: Tensor, hidden: Sequence[int] = ()) -> EncoderOutput:
        pyramid = []
        for stage in self.stages:
            volume = stage(volume)
            pyramid.append(volume)
        grid = tuple(volume.shape[2:])
        return EncoderOutput(volume.flatten(2).transpose(1, 2), grid, pyramid=tuple(pyramid))

    def layer_id(self, parameter: str) -> int:
        return int(parameter.split(".")[1]) + 1


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize(
    ("patch", "shape"),
    [((8, 8, 8), (16, 24, 32)), ((16, 16, 16), (33, 16, 20)), ((5, 7, 6), (11, 21, 13)), ((4, 16, 8), (7, 16, 9))],
)
def test_logits_lie_on_the_grid_of_any_volume(patch, shape, stem_stride: int) -> None:
    network = Unetr(vit(patch, 2), 3, channels=(4, 8, 8, 8), stem_stride=stem_stride).eval()
    (logits,) = network(torch.rand(1, 2, *shape))
    assert logits.shape == (1, 3, *shape)


def test_levels_receive_tokens_of_increasing_depth() -> None:
    network = Unetr(vit(), 2, channels=(4, 8, 8, 8), stem_stride=2)
    maps = [module for module in network.fuse.values() if isinstance(module, TokenMap)]
    assert [module.block for module in maps] == [0, 1, 2]
    assert [module.expansion for module in maps] == [(2, 2, 2), (1, 1, 1), (1, 1, 1)]


def test_levels_receive_the_pyramid_map_of_their_scale() -> None:
    network = Unetr(Hierarchical(), 2, channels=(4, 8, 8, 8))
    maps = [module for module in network.fuse.values() if isinstance(module, PyramidMap)]
    assert [module.index for module in maps] == [0, 1, 2]
    (logits,) = network.eval()(torch.rand(1, 1, 24, 16, 11))
    assert logits.shape == (1, 2, 24, 16, 11)


def test_a_token_changes_the_logits_around_its_own_place() -> None:
    torch.manual_seed(0)
    network = Unetr(vit((4, 4, 4)), 2, channels=(4, 4, 4)).eval()
    tokens = torch.zeros(1, 10 * 10 * 10, 24)
    module = network.fuse["1"]
    features = [EncoderOutput(tokens, (10, 10, 10), hidden=(tokens + 0.0,)) for _ in range(2)]
    features[1].hidden[0][0, 3 * 100 + 5 * 10 + 7] = torch.randn(24)
    with torch.no_grad():
        before, after = (module(f, (20, 20, 20), [module.block]) for f in features)
    changed = (before != after).any(1)[0].nonzero()
    assert changed.amin(0).tolist() == [6, 10, 14]
    assert changed.amax(0).tolist() == [7, 11, 15]


def test_frozen_encoders_stay_as_they_are() -> None:
    network = Unetr(vit(), 2, channels=(4, 8, 8), freeze=True)
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 0.1)
    network.train()
    network(torch.rand(2, 1, 16, 16, 16))[0].square().mean().backward()
    optimiser.step()
    assert not network.encoder.training
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())


def test_deep_supervision_adds_coarser_logits_in_training_only() -> None:
    network = Unetr(vit(), 3, channels=(4, 8, 8, 8), stem_stride=1, deep_supervision=True)
    shapes = [tuple(logits.shape[2:]) for logits in network(torch.rand(1, 1, 16, 24, 32))]
    assert shapes == [(16, 24, 32), (8, 12, 16), (4, 6, 8)]
    assert len(network.eval()(torch.rand(1, 1, 16, 16, 16))) == 1


def test_every_trainable_part_but_the_unused_norm_learns() -> None:
    network = Unetr(vit(), 2, channels=(4, 8, 8, 8), stem_stride=2, deep_supervision=True)
    sum(logits.square().mean() for logits in network(torch.rand(1, 1, 16, 16, 16))).backward()
    idle = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == ["encoder.norm.weight", "encoder.norm.bias"]


def test_loss_adds_up_to_that_of_monai() -> None:
    logits = torch.randn(2, 4, 5, 6, 7, requires_grad=True)
    labels = torch.randint(0, 4, (2, 5, 6, 7))
    ours = sum(dice_ce(logits, labels))
    (gradient,) = torch.autograd.grad(ours, logits)
    theirs = DiceCELoss(softmax=True, to_onehot_y=True)(logits, labels[:, None])
    (expected,) = torch.autograd.grad(theirs, logits)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_unlabelled_voxels_have_no_part_in_the_loss() -> None:
    logits, labels = torch.randn(1, 3, 4, 4, 8, requires_grad=True), torch.randint(0, 3, (1, 4, 4, 8))
    partly = F.pad(labels, (0, 3), value=255)
    padded = F.pad(logits, (0, 3), value=7.0)
    for alone, together in zip(dice_ce(logits, labels), dice_ce(padded, partly), strict=True):
        assert torch.allclose(alone, together, atol=1e-6)
    dice, entropy = dice_ce(logits, torch.full_like(labels, 255))
    (gradient,) = torch.autograd.grad(dice + entropy, logits)
    assert float(dice) == float(entropy) == 0.0
    assert not gradient.any()
