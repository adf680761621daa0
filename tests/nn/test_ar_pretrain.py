"""Next-patch prediction: what is scored, what is left out, precision, orders."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training_backend.nn.ar import ArEncoder
from training_backend.nn.ar_pretrain import NextPatch, statistics
from training_backend.nn.ar_sequence import visible

SMALL: dict[str, Any] = {"width": 24, "depth": 3, "heads": 3, "mlp_width": 48}
SIZE, PATCH = (8, 12, 16), (4, 4, 4)
LENGTH = 24


def network(
    size: tuple = SIZE, patch: tuple = PATCH, norm: bool = True, causal: bool = False, **changes: Any
) -> NextPatch:
    torch.manual_seed(0)
    built = NextPatch(ArEncoder(size, patch, pretraining=True, **(SMALL | changes)), norm, causal)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return built


def volume(size: tuple = SIZE, views: int = 3, channels: int = 1) -> torch.Tensor:
    return torch.rand(views, channels, *size, generator=torch.Generator().manual_seed(1))


def straight_loss(net: NextPatch, given: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    """The definition: the whole sequence, the last two predictions dropped, one flat mean."""
    trace = net.trace(given, prefix)
    pixels = trace.targets
    if net.norm_pixel_loss:
        pixels = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
    scored = torch.arange(pixels.shape[1]) >= prefix[:, None]
    return (trace.logits[:, :-2] - pixels)[scored].square().mean()


VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "raw targets": {"norm": False},
    "anisotropic patches": {"patch": (2, 4, 8), "size": (4, 8, 16)},
    "learnable positions": {"positions": "learnable"},
    "slab-major": {"order": "slab-major", "slabs": 2},
    "stored axes": {"axes": "zyx"},
    "two channels": {"in_channels": 2},
    "one layer": {"depth": 1},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("share", [(0.0, 0.0, 0.0), (0.1, 0.5, 1.0), (1.0, 1.0, 1.0)])
def test_what_is_left_out_changes_neither_loss_nor_gradient(name: str, share: tuple) -> None:
    changes = VARIANTS[name]
    net = network(**changes)
    given = volume(changes.get("size", SIZE), channels=changes.get("in_channels", 1))
    length = net.predict(given, torch.zeros(3, dtype=torch.int64)).shape[1]
    prefix = torch.tensor([int(part * (length - 1)) for part in share])
    losses = [net(given, prefix), straight_loss(net, given, prefix)]
    torch.testing.assert_close(losses[0], losses[1])
    parameters = list(net.parameters())
    for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_scored_patches_are_those_behind_each_prefix() -> None:
    net, prefix = network(), torch.tensor([3, 0, LENGTH - 1])
    scored = net.score(volume(), prefix)
    assert torch.bincount(scored.view).tolist() == [LENGTH - 3, LENGTH, 1]
    assert all(int(scored.place[scored.view == view].min()) == prefix[view] for view in range(3))
    torch.testing.assert_close(scored.loss, scored.errors.mean())
    losses = [net.score(volume()[k : k + 1], prefix[k : k + 1]).loss for k in range(3)]
    counts = [LENGTH - 3, LENGTH, 1]
    flat = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    torch.testing.assert_close(scored.loss, flat)
    assert not torch.isclose(scored.loss, torch.stack(losses).mean())


def test_patches_outside_the_scan_are_not_scored() -> None:
    net, given, prefix = network(), volume(), torch.tensor([3, 0, LENGTH - 1])
    whole = net.score(given, prefix)
    padding = torch.zeros(given[:, 0].shape, dtype=torch.bool)
    padding[0, -net.patch_size[0] - 1 :] = True  # the highest patches of one view, and a slice of those below
    assert torch.equal(net.score(given, prefix, torch.zeros_like(padding)).errors, whole.errors)
    inside = net.score(given, prefix, padding)
    top = net.model.layout.numbers(net.model.layout.raster_grid(given))[-1].flatten()
    left_out = (whole.view == 0) & torch.isin(whole.place, top)
    assert left_out.any()
    assert torch.equal(inside.place, whole.place[~left_out])
    torch.testing.assert_close(inside.errors, whole.errors[~left_out])
    torch.testing.assert_close(inside.loss, inside.errors.mean())
    nothing = net.score(given, prefix, torch.ones_like(padding))
    assert (nothing.loss.item(), len(nothing.errors)) == (0.0, 0)
    nothing.loss.backward()


def test_a_prediction_depends_on_prefix_and_past_alone() -> None:
    net, given = network(axes="zyx").eval(), volume(views=1)
    prefix = torch.tensor([5])
    before = net.predict(given, prefix)
    for changed in (4, 10, LENGTH - 1):
        other = given.clone()
        d, h, w = changed // 12, changed // 4 % 3, changed % 4
        other[:, :, 4 * d : 4 * d + 4, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4] += 1
        moved = (net.predict(other, prefix) - before).abs().amax(-1)[0] > 1e-6
        expected = torch.arange(LENGTH) > (changed if changed >= 5 else -1)
        assert torch.equal(moved, expected)


def test_predictions_equal_the_published_pass_and_the_end_token_matters_nowhere() -> None:
    net, given, prefix = network(), volume(), torch.tensor([3, 0, 9])
    predicted = net.predict(given, prefix)
    torch.testing.assert_close(predicted, net.trace(given, prefix).logits[:, :-2])
    with torch.no_grad():
        net.model.embed_tokens.weight[[0, 2, 3]] += 1
    assert torch.equal(net.predict(given, prefix), predicted)
    net(given, prefix).backward()
    gradient = net.model.embed_tokens.weight.grad
    assert (gradient[[0, 2, 3]] == 0).all()
    assert (gradient[1] != 0).any()


def test_no_prefix_is_causal_attention() -> None:
    none = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(visible(none, 5)[0, 0], torch.ones(5, 5).tril().bool())
    net, given = network(), volume(views=2)
    torch.testing.assert_close(net.predict(given, none), net.trace(given, none).logits[:, :-2])


def test_orders_differ_in_their_predictions_but_tokens_keep_their_positions() -> None:
    given, prefix = volume(views=1), torch.tensor([0])
    nets = [network(order=order, slabs=2) for order in ("interleaved", "slab-major")]
    sequences = [net.trace(given, prefix) for net in nets]
    grid = nets[1].model.layout.raster_grid(given)
    order = nets[1].model.layout.sequence(grid)
    assert order is not None
    assert not torch.equal(order, torch.arange(LENGTH))
    for field in ("patches", "targets"):
        torch.testing.assert_close(getattr(sequences[0], field)[:, order], getattr(sequences[1], field))
    torch.testing.assert_close(sequences[0].positions[1:-1][order], sequences[1].positions[1:-1])
    assert not torch.allclose(nets[0](given, prefix), nets[1](given, prefix))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_targets_stay_in_single_precision_under_autocast(precision: torch.dtype) -> None:
    net, given, prefix = network(), 100 + volume() * 0.1, torch.tensor([1, 2, 3])
    with torch.autocast("cpu", precision):
        scored = net.score(given, prefix)
        target = net.target(net.model.layout.raster_patches(given))
    assert (scored.loss.dtype, target.dtype) == (torch.float32, torch.float32)
    assert target.std(-1).mean().item() == pytest.approx(1, abs=0.05), "half precision knows no such contrast"
    scored.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_targets_are_normalised_with_the_unbiased_variance_and_constant_patches_are_zero() -> None:
    net = network()
    pixels = volume().flatten(1).view(3, -1, 64)
    mean, deviation = statistics(pixels)
    torch.testing.assert_close(deviation, (pixels.var(-1, keepdim=True, unbiased=True) + 1e-6).sqrt())
    torch.testing.assert_close(net.denormalise(net.target(pixels), mean, deviation), pixels)
    assert (net.target(torch.full((1, 1, 64), 0.3)) == 0).all()
    raw = network(norm=False)
    assert torch.equal(raw.target(pixels), pixels)
    assert torch.equal(raw.denormalise(pixels, mean, deviation), pixels)


@pytest.mark.parametrize("size", [(4, 8, 8), (16, 12, 8)])
@pytest.mark.parametrize("changes", [{}, {"scaling": "rescaled"}, {"positions": "learnable"}])
def test_other_grids_than_that_of_training_are_scored(size: tuple, changes: dict[str, Any]) -> None:
    net, given = network(**changes), volume(size)
    prefix = torch.tensor([0, 1, 2])
    torch.testing.assert_close(net(given, prefix), straight_loss(net, given, prefix))


def test_names_are_the_published_ones() -> None:
    names = set(network(positions="learnable").state_dict())
    assert {"model.embed_tokens.weight", "model.pos_embed_learn", "model.norm.bias", "decoder_pred.weight"} <= names
    assert all(name.startswith(("model.", "decoder_pred.")) for name in names)
