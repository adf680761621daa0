"""Next-patch prediction as a method: presets, losses by group, fixed validation prefixes, preview, encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.config import RunConfig
from training_backend.config.data import AugmentConfig
from training_backend.config.presets import PRESETS, finetune_config, pretrain_config
from training_backend.engine.optim import make_optimizer
from training_backend.errors import ConfigError
from training_backend.methods.ar import METHOD, SIZES, prefix_lengths
from training_backend.methods.base import Batch
from training_backend.nn.heads import VolumeHead

TINY: dict[str, Any] = {
    "method": {"embed_dim": 24, "depth": 2, "heads": 3, "patch_size": (4, 4, 4)},
    "data": {"size": (16, 8, 8)},
}
LENGTH = 16


def config(**changes: Any) -> RunConfig:
    return pretrain_config("ar", "tiny", Path("d"), TINY).updated(changes)


def network(run: RunConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return METHOD.build(run)


def batch(number: int = 4, **extra: Any) -> Batch:
    volume = torch.rand(number, 1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(volume=volume, case_ids=[str(index) for index in range(number)], extra=extra)


def step(model: torch.nn.Module, given: Batch, seed: int = 0) -> Any:
    return METHOD.training_step(model, given, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_and_its_slabs_are_whole_patches(preset: str) -> None:
    run = pretrain_config("ar", preset, Path("d"))
    with torch.device("meta"):
        model = METHOD.build(run)
    width, depth, _, hidden = SIZES[run.method.size]
    assert (model.model.width, model.model.depth) == (width, depth)
    assert model.model.layers[0].mlp.linear1.out_features == hidden
    assert model.decoder_pred.out_features == np.prod(model.patch_size)
    assert run.data.view == "sequence"
    assert run.data.size[0] % (run.data.sequence.slabs * run.method.patch_size[0]) == 0


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_sine_cosine_positions_and_whole_heads(size: str) -> None:
    with torch.device("meta"):
        model = METHOD.build(config(method={"size": size, "embed_dim": None, "depth": None, "heads": None}))
    assert (model.model.width, model.model.depth) == SIZES[size][:2]


def test_the_published_preset_is_the_published_recipe() -> None:
    run = pretrain_config("ar", "published", Path("d"))
    with torch.device("meta"):
        model = METHOD.build(run)
    assert sum(p.numel() for p in model.parameters()) == 91_327_744
    assert len(model.state_dict()) == 163
    assert (run.data.size, run.method.patch_size) == ((128, 128, 128), (16, 16, 16))
    assert (run.optim.lr, run.optim.min_lr, run.optim.betas) == (1e-4, 0.0, (0.9, 0.999))
    assert (run.optim.weight_decay, run.optim.decay_all, run.optim.clip_grad) == (0.01, True, None)
    assert (run.optim.batch_size, run.optim.epochs, run.optim.warmup) == (288, 50, 0.0)
    assert (run.method.attention, run.method.norm_pixel_loss, run.method.positions) == ("prefix", True, "sincos3d")
    assert run.data.augment == AugmentConfig(flip=(0, 0, 0))
    assert (run.data.intensity.profile, run.data.intensity.low, run.data.intensity.high) == ("percentile", 1, 99.9)
    sequence = run.data.sequence
    assert min(sequence.spatial, sequence.contrast, sequence.semantic) > 0
    assert (sequence.slabs, sequence.stride) == (4, 8)


def test_published_decay_holds_for_biases_norms_and_embeddings_too() -> None:
    model = network(config())
    for everything, decays in ((True, {0.01}), (False, {0.0, 0.01})):
        optim = config(optim={"weight_decay": 0.01, "decay_all": everything}).optim
        groups = make_optimizer(model, optim).param_groups
        assert {group["weight_decay"] for group in groups} == decays
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_tasks_look_at_scans_and_not_at_sequences() -> None:
    for preset in PRESETS:
        assert finetune_config("segmentation", preset, Path("d"), "ar").data.view != "sequence"


def test_learning_one_batch_by_heart() -> None:
    model = network(config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for number in range(80):
        output = step(model, batch(2), number % 4)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert 1.0 < losses[0] < 2.5, "fresh networks are a little worse than the mean of a patch"
    assert losses[-1] < 0.7 * losses[0]


def test_prefixes_come_from_the_generator_alone_and_cover_everything() -> None:
    model = network(config())
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed + len(losses))
        losses.append(step(model, batch(), seed).loss.item())
    assert losses[0] == losses[1] != losses[2]
    drawn = prefix_lengths(model, batch(2000), torch.Generator().manual_seed(0))
    assert torch.bincount(drawn, minlength=LENGTH).min() > 60
    assert drawn.max() == LENGTH - 1


def test_causal_networks_are_given_nothing() -> None:
    model = network(config(method={"attention": "causal"}))
    assert prefix_lengths(model, batch(), torch.Generator()).tolist() == [0] * 4
    assert step(model, batch()).counts["loss"] == 4 * LENGTH


def test_validation_prefixes_belong_to_the_view_and_are_spread_evenly() -> None:
    model = network(config())
    whole = prefix_lengths(model, batch(64, slots=range(64)), torch.Generator().manual_seed(0))
    parts = [
        prefix_lengths(model, batch(16, slots=range(k, k + 16)), torch.Generator().manual_seed(k))
        for k in range(0, 64, 16)
    ]
    assert torch.equal(whole, torch.cat(parts)), "whatever the micro-batch and the generator"
    assert torch.bincount(whole, minlength=LENGTH).tolist() == pytest.approx([4] * LENGTH, abs=1)


def test_losses_are_told_by_prefix_length_and_by_kind_and_add_up() -> None:
    model = network(config())
    kinds = ("spatial", "contrast", "spatial", "semantic")
    output = step(model, batch(kinds=kinds))
    assert {"loss_spatial", "loss_contrast", "loss_semantic"} <= set(output.scalars)
    assert set(output.scalars) | {"loss"} == set(output.counts)
    for names in (["loss_spatial", "loss_contrast", "loss_semantic"], [n for n in output.counts if "prefix" in n]):
        total = sum(output.counts[name] for name in names)
        mean = sum(float(output.scalars[name]) * output.counts[name] for name in names) / total
        assert total == output.counts["loss"]
        assert mean == pytest.approx(output.loss.item(), rel=1e-5)
    alone = step(model, batch(kinds=("spatial",) * 4))
    assert "loss_contrast" not in alone.scalars
    assert not [name for name in step(model, batch()).scalars if "prefix" not in name]


def test_preview_shows_prefix_prediction_error_and_slabs() -> None:
    model = network(config()).train()
    volume = batch(1).volume
    pictures = {p.name: p for p in METHOD.preview(model, volume, {"prefix": 5}, torch.Generator())}
    assert list(pictures) == ["original", "prediction", "error", "mask", "slab"]
    mask = pictures["mask"]
    assert (mask.array.shape, mask.voxels, mask.array.sum()) == ((4, 2, 2), (4, 4, 4), LENGTH - 5)
    behind = np.kron(mask.array, np.ones((4, 4, 4))).astype(bool)
    original, drawn = pictures["original"].array, pictures["prediction"].array
    assert np.array_equal(original, volume[0, 0])
    assert np.array_equal(drawn[~behind], original[~behind])
    assert not np.isclose(drawn[behind], original[behind]).all()
    np.testing.assert_allclose(pictures["error"].array, np.abs(drawn - original), atol=1e-6)
    slabs = pictures["slab"]
    assert slabs.array[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert slabs.classes == {1: "slab 1", 2: "slab 2", 3: "slab 3", 4: "slab 4"}
    assert model.training


@pytest.mark.parametrize(
    ("options", "given"), [({}, 4), ({"mask_ratio": 0.5}, 8), ({"prefix": 99}, LENGTH - 1), ({"prefix": 0}, 0)]
)
def test_preview_takes_the_prefix_or_the_share_that_is_predicted(options: dict[str, Any], given: int) -> None:
    pictures = {p.name: p for p in METHOD.preview(network(config()), batch(1).volume, options, torch.Generator())}
    assert pictures["mask"].array.sum() == LENGTH - given


@pytest.mark.parametrize("positions", ["sincos3d", "learnable"])
def test_the_encoder_shares_the_weights_and_equals_the_one_built_alone(positions: str) -> None:
    run = config(method={"positions": positions})
    model = network(run).eval()
    shared, alone = METHOD.encoder(model), METHOD.build_encoder(run)
    state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    if positions == "learnable":
        state["pos_embed"] = state.pop("pos_embed_learn")[:-1]
    alone.load_state_dict({name: state[name] for name in alone.state_dict()})
    given = batch(2).volume
    assert torch.equal(shared.encode(given).tokens, alone.eval().encode(given).tokens)
    assert shared.layers[0].self_attn.q_proj.weight is model.model.layers[0].self_attn.q_proj.weight


@pytest.mark.parametrize("pooling", ["global", "class", "tokens"])
def test_every_head_takes_the_encoder(pooling: Any) -> None:
    head = VolumeHead(METHOD.build_encoder(config()), 3, pooling).eval()
    assert head(batch(2).volume).shape == (2, 3)


def test_contrasts_become_channels() -> None:
    run = config(data={"contrasts": ("T1", "PD")})
    model = network(run)
    assert METHOD.encoder(model).in_channels == 2
    assert model.decoder_pred.out_features == 2 * 4**3


@pytest.mark.parametrize(
    ("method", "sentence"), [({"heads": 5}, "does not divide"), ({"embed_dim": 32, "heads": 2}, "multiple of 6")]
)
def test_impossible_settings_get_a_sentence(method: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        network(config(method=method))


def waves(number: int, seed: int) -> torch.Tensor:
    """Volumes [number, 1, 16, 8, 8] of one plane wave each, of any direction, length and phase."""
    draw = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (16.0, 8.0, 8.0)), indexing="ij"))
    direction = 0.25 * torch.randn(number, 3, generator=draw)
    phase = 6.3 * torch.rand(number, 1, 1, 1, generator=draw)
    return torch.sin(torch.einsum("na,azyx->nzyx", direction, grid) + phase)[:, None]


def test_unseen_volumes_are_predicted_better_than_by_the_mean_or_by_the_patch_before() -> None:
    model = network(config(method={"embed_dim": 48, "heads": 4}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for number in range(250):
        given = Batch(volume=waves(32, number), case_ids=[""] * 32)
        step(model, given, number).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    unseen, prefix = waves(64, 10_000), torch.full((64,), 6)
    with torch.no_grad():
        loss = model.eval()(unseen, prefix).item()
        targets = model.target(model.model.layout.raster_patches(unseen))
    copied = (targets[:, 6:] - targets[:, 5:-1]).square().mean().item()
    mean = targets[:, 6:].square().mean().item()
    assert mean == pytest.approx(1, abs=0.05)
    assert loss < 0.5 * mean
    assert loss < 0.5 * copied
