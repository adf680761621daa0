from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training_backend.config import RunConfig
from training_backend.config.data import AugmentConfig
from training_backend.config.presets import PRESETS, pretrain_config
from training_backend.errors import ConfigError
from training_backend.methods.base import Batch
from training_backend.methods.mae3d import METHOD, SIZES, ends_in_sigmoid

TINY = {
    "method": {
        "embed_dim": 24,
        "depth": 2,
        "heads": 3,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "data": {"size": (16, 16, 24)},
}


def config(**changes: dict) -> RunConfig:
    return pretrain_config("mae3d", "tiny", Path("d"), TINY).updated(changes)


def network(run: RunConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return METHOD.build(run)


def batch(run: RunConfig, number: int = 4) -> Batch:
    grid = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, n) for n in run.data.size), indexing="ij"))
    volume = (grid.sum(0) / 3)[None, None].repeat(number, 1, 1, 1, 1)
    return Batch(volume=volume, case_ids=[str(index) for index in range(number)])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_and_its_views_are_whole_patches(preset: str) -> None:
    run = pretrain_config("mae3d", preset, Path("d"))
    with torch.device("meta"):
        model = METHOD.build(run)
    width, depth, _ = SIZES[run.method.size]
    assert (model.width, model.depth) == (width, depth)
    assert (model.decoder_embed.in_features, model.decoder_pred[0].out_features) == (width, np.prod(model.patch_size))


def test_the_published_preset_is_the_published_recipe() -> None:
    run = pretrain_config("mae3d", "published", Path("d"))
    with torch.device("meta"):
        model = METHOD.build(run)
    assert sum(p.numel() for p in model.parameters()) == 340_647_424
    assert (run.data.size, run.data.view, run.data.keep_aspect) == ((256, 256, 256), "volume", False)
    assert (run.optim.lr, run.optim.betas, run.optim.weight_decay) == (1e-4, (0.9, 0.95), 0.05)
    assert (run.optim.batch_size, run.optim.epochs, run.optim.warmup) == (224, 400, 20 / 400)
    assert (run.optim.schedule, run.optim.min_lr, run.optim.clip_grad) == ("cosine", 0, None)
    assert (run.data.intensity.profile, run.data.intensity.low, run.data.intensity.high) == ("window", -1200, 800)
    assert run.data.augment == AugmentConfig(flip=(0, 0.2, 0.2))


def test_learning_one_volume_by_heart() -> None:
    run = config()
    model = network(run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        output = METHOD.training_step(model, batch(run), torch.Generator().manual_seed(step))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_masking_comes_from_the_generator_alone() -> None:
    run = config()
    model = network(run)
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed + len(losses))
        losses.append(METHOD.training_step(model, batch(run), torch.Generator().manual_seed(seed)).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_preview_pastes_predictions_into_the_visible_input() -> None:
    run = config()
    model = network(run).train()
    volume = batch(run, 1).volume
    options = {"seed": 3, "mask_ratio": 0.5}
    pictures = {p.name: p for p in METHOD.preview(model, volume, options, torch.Generator())}
    again = {p.name: p for p in METHOD.preview(model, volume, options, torch.Generator().manual_seed(99))}
    assert list(pictures) == ["original", "masked", "reconstruction", "error", "mask"]
    original, mask = pictures["original"].array, pictures["mask"]
    assert np.array_equal(original, volume[0, 0])
    assert (mask.array.shape, mask.voxels, mask.array.sum()) == ((2, 2, 3), (8, 8, 8), 6)
    hidden = np.kron(mask.array, np.ones(mask.voxels)).astype(bool)
    drawn, error = pictures["reconstruction"].array, pictures["error"].array
    assert np.array_equal(drawn[~hidden], original[~hidden])
    assert not np.array_equal(drawn[hidden], original[hidden])
    assert (pictures["masked"].array[hidden] == 0).all()
    np.testing.assert_allclose(error, np.abs(drawn - original), atol=1e-6)
    assert np.array_equal(again["mask"].array, mask.array)
    assert model.training


def test_preview_can_show_visible_patches_as_predicted_too() -> None:
    run = config()
    model = network(run)
    volume = batch(run, 1).volume
    full = {p.name: p.array for p in METHOD.preview(model, volume, {"seed": 3, "full": True}, torch.Generator())}
    hidden = np.kron(full["mask"], np.ones((8, 8, 8))).astype(bool)
    assert not np.allclose(full["reconstruction"][~hidden], full["original"][~hidden])


def test_the_encoder_shares_the_weights_and_equals_the_one_built_alone() -> None:
    run = config()
    model = network(run).eval()
    shared, alone = METHOD.encoder(model), METHOD.build_encoder(run)
    names = set(alone.state_dict())
    alone.load_state_dict({name: value for name, value in model.state_dict().items() if name in names})
    volume = batch(run, 2).volume
    assert torch.equal(shared.encode(volume).tokens, alone.eval().encode(volume).tokens)
    assert shared.blocks[0].attn.qkv.weight is model.blocks[0].attn.qkv.weight


@pytest.mark.parametrize(
    "method, profile, sigmoid",
    [
        ({}, "auto", True),
        ({"norm_pix_loss": True}, "auto", False),
        ({}, "zscore", False),
        ({"output": "sigmoid", "norm_pix_loss": True}, "auto", True),
        ({"output": "linear"}, "window", False),
    ],
)
def test_a_sigmoid_ends_the_decoder_only_where_it_can_fit(method: dict, profile: str, sigmoid: bool) -> None:
    run = config(method=method, data={"intensity": {"profile": profile}})
    assert ends_in_sigmoid(run) is sigmoid
    assert ("decoder_pred.0.weight" in network(run).state_dict()) is sigmoid


def test_contrasts_become_channels() -> None:
    run = config(data={"contrasts": ("T1", "PD")})
    assert network(run).in_channels == 2


@pytest.mark.parametrize(
    "method, sentence", [({"heads": 5}, "does not divide"), ({"decoder_heads": 3}, "does not divide")]
)
def test_impossible_settings_get_a_sentence(method: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        network(config(method=method))


def test_views_that_are_no_whole_patches_are_refused_before_training() -> None:
    with pytest.raises(Exception, match="multiples of the patch size"):
        network(config(data={"size": (16, 16, 20)}))


def test_normalised_patches_are_shown_in_the_intensities_of_the_volume() -> None:
    run = config(method={"norm_pix_loss": True})
    model = network(run)
    with torch.no_grad():
        model.decoder_pred.weight.zero_()
    volume = batch(run, 1).volume
    pictures = {p.name: p.array for p in METHOD.preview(model, volume, {"full": True}, torch.Generator())}
    means = torch.nn.functional.avg_pool3d(volume, 8)[0, 0].numpy()
    np.testing.assert_allclose(pictures["reconstruction"], np.kron(means, np.ones((8, 8, 8))), atol=1e-5)
