"""The orientation that a network was trained in has the lowest masked reconstruction loss."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method
from training_backend.config.registry import task as find_task
from training_backend.data.manifest import DatasetInfo
from training_backend.data.prepare import InputProfile, prepare
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import WeightsError
from training_backend.evaluate.orientation import _turned, probe_orientation
from training_backend.methods.base import Batch
from training_backend.tasks.base import Cancelled
from training_backend.weights.save import save_model

SETTINGS = {
    "method": {
        "embed_dim": 48,
        "heads": 4,
        "depth": 2,
        "patch_size": (4, 4, 4),
        "decoder_embed_dim": 48,
        "decoder_heads": 4,
        "decoder_depth": 1,
    },
    "data": {
        "size": (16, 16, 16),
        "view": "volume",
        "keep_aspect": False,
        "intensity": {"profile": "window", "low": 0.0, "high": 1.0},
    },
}


def scan() -> Volume:
    """Bright towards one corner, differently along each axis."""
    z, y, x = np.meshgrid(*(np.linspace(0, 1, 16),) * 3, indexing="ij")
    array = (0.55 * z + 0.3 * y**2 + 0.15 * x).astype(np.float32)
    return Volume(array, Geometry.from_spacing((16, 16, 16), (1.0, 1.0, 1.0)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model folder of an autoencoder that has seen `scan` with its axes in the order (x, z, y), y backwards."""
    config = pretrain_config("mae3d", "tiny", Path(), SETTINGS)
    profile = InputProfile.of(config, DatasetInfo(name="one", crop_body=False))
    chosen = method("mae3d")
    torch.manual_seed(0)
    network = chosen.build(config)
    seen = np.ascontiguousarray(prepare([scan()], profile).array[:, :, ::-1].transpose(0, 3, 1, 2))
    batch = Batch(torch.from_numpy(seen)[None].expand(8, -1, -1, -1, -1), ["scan"] * 8)
    optimizer, generator = torch.optim.AdamW(network.parameters(), 2e-3), torch.Generator().manual_seed(1)
    for _ in range(60):
        optimizer.zero_grad()
        chosen.training_step(network, batch, generator).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("trained")
    card = {"config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
    save_model(folder, network, card)
    return SimpleNamespace(folder=folder)


def test_the_training_orientation_wins(trained: SimpleNamespace) -> None:
    scores = probe_orientation(trained.folder, scan())
    assert len({(score.axes, score.flipped) for score in scores}) == 48
    assert [score.loss for score in scores] == sorted(score.loss for score in scores)
    assert (scores[0].axes, scores[0].flipped) == ("xzy", "y")
    assert scores[0].loss < 0.7 * scores[1].loss


def test_masks_are_those_of_the_seed(trained: SimpleNamespace) -> None:
    first, again, other = (probe_orientation(trained.folder, scan(), seed=seed, masks=1) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert probe_orientation(trained.folder, scan(), seed=1, masks=1, mask_ratio=0.5) != first


def test_it_can_be_cancelled(trained: SimpleNamespace) -> None:
    with pytest.raises(Cancelled):
        probe_orientation(trained.folder, scan(), progress=lambda share: share < 0.2)


def test_a_model_without_decoder_is_refused(tmp_path: Path) -> None:
    config = finetune_config("classification", "tiny", Path(), changes=SETTINGS)
    network = find_task("classification").build(config, method("mae3d").build_encoder(config))
    profile = InputProfile.of(config, DatasetInfo(name="one"))
    card = {"config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
    save_model(tmp_path, network, card)
    with pytest.raises(WeightsError, match="with its decoder"):
        probe_orientation(tmp_path, scan())


def test_turning_keeps_the_centre_and_pads_edges() -> None:
    array = np.arange(2 * 4 * 6, dtype=np.float32).reshape(1, 2, 4, 6)
    turned = _turned(array, (2, 0, 1), (False, True, False), (4, 2, 6))
    assert turned.shape == (1, 4, 2, 6)
    np.testing.assert_array_equal(turned[0, 0, :, 1:5], array[0, :, ::-1, 1])
    np.testing.assert_array_equal(turned[..., 0], turned[..., 1])
