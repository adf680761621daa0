from __future__ import annotations

import pytest
import torch

from training_backend.nn.mae import MaskedAutoencoder, Masking
from training_backend.nn.patch import patchify

SMALL = {"width": 24, "depth": 2, "heads": 3, "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}


def network(
    size: tuple = (16, 16, 16), patch: tuple = (4, 4, 4), channels: int = 1, **changes: object
) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(size, patch, channels, **(SMALL | changes))


def noise(batch: int, tokens: int) -> torch.Tensor:
    return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.67, 0.7, 0.75, 0.9])
@pytest.mark.parametrize("tokens", [8, 64, 125, 216, 4096])
def test_so_many_patches_are_hidden(ratio: float, tokens: int) -> None:
    masking = Masking.draw(noise(2, tokens), ratio)
    assert masking.mask.sum(1).tolist() == [tokens - int(tokens * (1 - ratio))] * 2
    assert torch.equal(masking.mask.gather(1, masking.hidden), torch.ones(masking.hidden.shape))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("size, channels", [((16, 16, 16), 1), ((8, 16, 12), 2)])
def test_loss_over_hidden_tokens_alone_equals_the_masked_loss_over_all(
    size: tuple, channels: int, norm_pix_loss: bool
) -> None:
    model = network(size, channels=channels, norm_pix_loss=norm_pix_loss, sigmoid=not norm_pix_loss)
    volume = torch.rand(2, channels, *size)
    drawn = noise(2, model.pos_embed.shape[1] - 1)
    losses = [model(volume, drawn, 0.6), model.reconstruct(volume, drawn, 0.6).loss]
    torch.testing.assert_close(losses[0], losses[1])
    gradients = [torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]) for loss in losses]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_loss_does_not_see_predictions_of_visible_patches() -> None:
    model = network()
    volume = torch.rand(1, 1, 16, 16, 16)
    drawn = noise(1, 64)
    result = model.reconstruct(volume, drawn)
    target = patchify(volume, model.patch_size)
    hidden = result.mask[0] == 1
    torch.testing.assert_close((result.prediction - target)[0, hidden].square().mean(), model(volume, drawn))


def test_ratio_0_hides_nothing_keeps_the_order_and_costs_nothing() -> None:
    model = network().eval()
    volume = torch.rand(1, 1, 16, 16, 16)
    loss = model(volume, noise(1, 64), 0.0)
    assert loss.item() == 0.0
    loss.backward()
    result = model.reconstruct(volume, noise(1, 64), 0.0)
    assert (result.loss.item(), result.mask.sum().item()) == (0.0, 0.0)
    latent = model.encode_visible(volume, noise(1, 64), 0.0)
    out = model.encode(volume)
    torch.testing.assert_close(latent[:, 1:], model.norm(out.tokens))
    torch.testing.assert_close(latent[:, 0], model.norm(out.summary))


def test_denormalise_undoes_the_target_normalisation() -> None:
    model = network(norm_pix_loss=True, sigmoid=False)
    volume = torch.rand(1, 1, 16, 16, 16)
    pixels = patchify(volume, model.patch_size)
    torch.testing.assert_close(model.denormalise(model._target(pixels), volume), pixels)


def test_linear_head_drops_the_sequential_name() -> None:
    assert "decoder_pred.0.weight" in network().state_dict()
    assert "decoder_pred.weight" in network(sigmoid=False).state_dict()


def test_channels_change_only_embedding_and_prediction() -> None:
    one, two = network().state_dict(), network(channels=2).state_dict()
    differing = {name for name in one if one[name].shape != two[name].shape}
    assert differing == {"patch_embed.proj.weight", "decoder_pred.0.weight", "decoder_pred.0.bias"}


def test_other_grids_than_the_built_one_are_interpolated() -> None:
    model = network()
    volume = torch.rand(1, 1, 20, 16, 24)
    result = model.reconstruct(volume, noise(1, 5 * 4 * 6))
    assert result.grid == (5, 4, 6)
    assert result.prediction.shape == (1, 120, 64)
    assert torch.isfinite(model(volume, noise(1, 120)))


def test_a_huge_model_with_patches_of_14_takes_inputs_divisible_by_14() -> None:
    model = network((28, 28, 42), (14, 14, 14))
    assert model.grid == (2, 2, 3)
    assert torch.isfinite(model(torch.rand(1, 1, 28, 28, 42), noise(1, 12)))


def test_autocast_keeps_the_loss_in_single_precision() -> None:
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.rand(1, 1, 16, 16, 16), noise(1, 64))
    assert loss.dtype == torch.float32
    loss.backward()


@pytest.mark.parametrize("channels", [1, 2])
def test_voxels_outside_the_scan_do_not_count(channels: int) -> None:
    model = network(channels=channels)
    volume, drawn = torch.rand(2, channels, 16, 16, 16), noise(2, 64)
    padding = torch.zeros(2, 16, 16, 16, dtype=torch.bool)
    torch.testing.assert_close(model(volume, drawn, padding=padding), model(volume, drawn))
    padding[0, :6] = True  # a patch and a half
    result = model.reconstruct(volume, drawn)
    errors = (result.prediction - patchify(volume, model.patch_size)).square()
    inside = patchify((~padding)[:, None].expand_as(volume).float(), model.patch_size) * result.mask[..., None]
    expected = ((errors * inside).sum((1, 2)) / inside.sum((1, 2))).mean()
    torch.testing.assert_close(model(volume, drawn, padding=padding), expected)
    assert model(volume, drawn, padding=torch.ones_like(padding)).item() == 0.0
