"""Views of MedCoSS in a real viewer with a model process: mixtures, drift between two models, earlier modalities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_med3dssl._layers import add, geometry_of, volume_layer
from napari_med3dssl.explore import ExplorePanel
from tests.plugin.explore_kit import finish
from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method
from training_backend.data.phantoms import thorax_ct
from training_backend.data.prepare import InputProfile
from training_backend.weights.decoders import keep
from training_backend.weights.save import save_model

pytestmark = pytest.mark.gl

SMALL = {"embed_dim": 24, "depth": 1, "heads": 2, "mlp_dim": 32, "decoder_depth": 1}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages with random weights: CT, then pathology with the decoder of CT."""
    import torch

    folder, previous = tmp_path_factory.mktemp("stages"), None
    for number, (modality, kinds) in enumerate((("3D_CT", ()), ("2D_path", ("3d",))), 1):
        changes = {"modality": modality, "encodes": kinds, **SMALL}
        config = pretrain_config("medcoss", "tiny", Path("d"), {"method": changes})
        profile = InputProfile(size=config.data.size, crop_body=False, intensity=config.data.intensity)
        torch.manual_seed(number)
        card = {
            "kind": "pretrain",
            "config": config.model_dump(mode="json"),
            "profile": profile.model_dump(mode="json"),
        }
        save_model(folder / str(number), method("medcoss").build(config), card)
        keep(folder / str(number), folder / str(number), config, previous)
        previous = folder / str(number)
    return folder


@pytest.fixture
def ready(panel: ExplorePanel, stages: Path) -> ExplorePanel:
    """Panel with two scans, of which the first is explored by the second stage as CT."""
    for number in (3, 4):
        add(panel.viewer, volume_layer(thorax_ct(number, (20, 52, 56)).volume, name=f"scan {number}"))
    panel.scan_box.setCurrentText("scan 3")
    panel.state.model = str(stages / "2" / "decoders" / "3D_CT.safetensors")
    return panel


def test_two_scans_are_mixed_and_two_models_compared(ready: ExplorePanel, stages: Path, qtbot: Any) -> None:
    assert [one.view.name for one in ready.views] == ["mixture", "drift", "positions", "token-attention"]
    mixture, drift, positions, _ = ready.views
    assert mixture.against is None
    mixture.fold(False)
    mixture.show_button.click()
    finish(ready, qtbot)
    layers = {name: ready.viewer.layers[f"{name} · mixture"] for name in ("this scan", "other scan", "mixture", "seen")}
    mean = (layers["this scan"].data + layers["other scan"].data) / 2
    np.testing.assert_allclose(layers["mixture"].data, mean, atol=1)  # in HU
    assert all(one.visible for one in layers.values())
    mixture.settings.editor("share").bar.setValue(1.0)
    same = lambda: np.allclose(layers["mixture"].data, layers["this scan"].data, atol=1)  # noqa: E731
    qtbot.waitUntil(same, timeout=60_000)
    finish(ready, qtbot)
    drift.fold(False)
    drift.show_button.click()
    finish(ready, qtbot)
    assert "No teacher is kept beside this model" in ready.notice.text
    drift.against.choose(str(stages / "1"))
    finish(ready, qtbot)
    drift.show_button.click()
    finish(ready, qtbot)
    layer = ready.viewer.layers["drift · drift"]
    assert layer.data.max() > 0
    assert geometry_of(layer).spacing_mm == pytest.approx([8 * mm for mm in geometry_of(ready.scan).spacing_mm])
    assert "loss of distillation" in drift.text.text()
    assert positions.view.point


def test_an_earlier_modality_is_reconstructed_and_the_own_one_says_what_it_cannot(
    ready: ExplorePanel, stages: Path, qtbot: Any
) -> None:
    ready.masking.reconstruct()
    finish(ready, qtbot)
    assert ready.viewer.layers["reconstruction"].data.shape == (16, 48, 48)
    assert "no decoder" not in ready.summary.text()
    ready.state.model = str(stages / "2")
    ready.load()
    finish(ready, qtbot)
    assert "It reads volumes too but holds no decoder for them" in ready.summary.text()
