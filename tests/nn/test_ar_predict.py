"""Teacher-forced predictions, losses per patch, and drawing on from a prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.nn.test_ar_pretrain import LENGTH, network, volume
from training_backend.bench.ar_step import encoded_again
from training_backend.errors import ConfigError
from training_backend.nn.ar_predict import mean_losses, paste, patch_count, roll_out, teacher_forced, token_losses
from training_backend.nn.ar_pretrain import statistics


def patches(given: torch.Tensor) -> torch.Tensor:
    """[B, d, h, w, 64] voxels of each patch of 4³ on our grid."""
    return given[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)


@pytest.mark.parametrize("changes", [{}, {"norm": False}, {"order": "slab-major", "slabs": 2}, {"axes": "zyx"}])
def test_teacher_forced_shows_the_prefix_as_it_is_and_predictions_behind(changes: dict[str, Any]) -> None:
    net, given = network(**changes).eval(), volume(views=2)
    prefix = [5, 20]
    found = teacher_forced(net, given, prefix)
    assert torch.equal(found.predicted.sum((1, 2, 3)), torch.tensor([LENGTH - 5, LENGTH - 20]))
    for view, known in enumerate(prefix):
        assert torch.equal(found.predicted[view], found.numbers >= known)
    true, drawn = patches(given), patches(found.volume)
    assert torch.equal(drawn[~found.predicted], true[~found.predicted])
    torch.testing.assert_close(found.error, (found.volume - given).abs())
    if net.norm_pixel_loss:
        mean, deviation = statistics(true)
        true, drawn = (true - mean) / deviation, (drawn - mean) / deviation
    errors = (true - drawn).square().mean(-1)
    torch.testing.assert_close(found.losses[found.predicted], errors[found.predicted], atol=1e-4, rtol=1e-4)
    assert found.losses[~found.predicted].isnan().all()


def test_losses_of_patches_average_to_the_loss_of_training() -> None:
    net, given = network().eval(), volume(views=2)
    losses = token_losses(net, given, [4, 17])
    torch.testing.assert_close(losses.nanmean(), net(given, torch.tensor([4, 17])).detach())
    torch.testing.assert_close(losses, teacher_forced(net, given, [4, 17]).losses, equal_nan=True)


def test_mean_losses_average_what_was_predicted_so_far() -> None:
    net, given = network().eval(), volume(views=1)
    steps = list(mean_losses(net, given, [20, 6, 0]))
    singles = [token_losses(net, given, prefix) for prefix in (20, 6, 0)]
    assert [int(step.isnan().sum()) for step in steps] == [20, 6, 0]
    torch.testing.assert_close(steps[-1], torch.stack(singles).nanmean(0))


@pytest.mark.parametrize("source", ["last", "mean"])
@pytest.mark.parametrize("changes", [{}, {"order": "slab-major", "slabs": 2}, {"positions": "learnable"}])
def test_drawing_with_a_memory_equals_running_the_sequence_again(changes: dict[str, Any], source: str) -> None:
    net, given, prefix = network(**changes).eval(), volume(views=2), 7
    layout, grid = net.model.layout, net.model.layout.raster_grid(given)
    pixels = layout.to_sequence(layout.raster_patches(given), grid)
    known = pixels[:, :prefix]
    mean, deviation = statistics(known[:, -1:])
    if source == "mean":
        mean, deviation = statistics(known)
        mean, deviation = mean.mean(1, keepdim=True), deviation.square().mean(1, keepdim=True).sqrt()
    expected = given.clone()
    for number in range(prefix, LENGTH):
        raw = net.trace(expected, torch.tensor([prefix] * 2)).logits[:, number]
        pixels[:, number] = net.denormalise(raw[:, None], mean, deviation)[:, 0].detach()
        expected = layout.raster_volume(layout.from_sequence(pixels, grid), grid)
    drawn = given.clone()
    drawn_patches = list(roll_out(net, given, prefix, source))
    for each in drawn_patches:
        paste(drawn, each)
    assert [each.number for each in drawn_patches] == list(range(prefix, LENGTH))
    assert {each.total for each in drawn_patches} == {LENGTH}
    torch.testing.assert_close(drawn, expected, atol=2e-5, rtol=1e-4)


def test_the_benchmark_s_naive_way_draws_the_same() -> None:
    net, given = network(patch=(16, 16, 16), size=(32, 32, 32), axes="zyx").eval(), volume((32, 32, 32), views=1)
    again = given.clone()
    for each in roll_out(net, given, 3):
        patch = encoded_again(net, again, 3, each.number)
        torch.testing.assert_close(patch, each.patch, atol=2e-5, rtol=1e-4)
        box = tuple(slice(k * 16, (k + 1) * 16) for k in each.cell)
        again[(slice(None), slice(None), *box)] = patch


def test_drawing_looks_at_the_prefix_alone_and_can_be_stopped() -> None:
    net, given = network(axes="zyx").eval(), volume(views=1)
    other = given.clone()
    other[:, :, 4:] = 0.5  # all patches from number 12 on
    for first, second in zip(roll_out(net, given, 12), roll_out(net, other, 12), strict=True):
        assert torch.equal(first.patch, second.patch)
        assert first.cell == second.cell
    steps = roll_out(net, given, 12)
    assert next(steps).number == 12
    assert torch.is_grad_enabled(), "the caller's gradients stay as they are between two patches"
    steps.close()


def test_networks_of_raw_voxels_draw_without_any_context() -> None:
    net, given = network(norm=False).eval(), volume(views=1)
    assert len(list(roll_out(net, given, 0))) == patch_count(net, given) == LENGTH
    with pytest.raises(ConfigError, match="Give at least one"):
        next(roll_out(network(), given, 0))


@pytest.mark.parametrize("prefix", [-1, LENGTH, [1, 2]])
def test_impossible_prefixes_get_a_sentence(prefix: Any) -> None:
    with pytest.raises(ConfigError, match=f"0 to {LENGTH - 1}"):
        teacher_forced(network(), volume(views=1), prefix)
