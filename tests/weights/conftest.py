"""Small networks, their settings, and the reference's own checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.data.manifest import DatasetInfo
from training_backend.data.prepare import InputProfile
from training_backend.weights.save import save_model

PARITY = Path(__file__).parents[1] / "fixtures" / "parity" / "mae3d"
CASES = json.loads((PARITY / "manifest.json").read_text(encoding="utf-8"))["cases"]

SMALL: dict[str, Any] = {
    "method": {
        "embed_dim": 24,
        "heads": 2,
        "depth": 3,
        "patch_size": (4, 4, 4),
        "decoder_embed_dim": 12,
        "decoder_heads": 3,
        "decoder_depth": 1,
    },
    "data": {"size": (8, 8, 8), "view": "volume"},
}


def pretrain(**changes: Any) -> RunConfig:
    return pretrain_config("mae3d", "tiny", Path("data"), SMALL).updated(changes)


def finetune(name: str = "classification", **changes: Any) -> RunConfig:
    given = {"classes": ("background", "organ")} if name == "segmentation" else {}
    return finetune_config(name, "tiny", Path("data"), changes={**SMALL, "task": given}).updated(changes)


def network(config: RunConfig, seed: int = 0) -> nn.Module:
    """Network of a run with every weight and table made distinct, zeros and ones of fresh ones too."""
    torch.manual_seed(seed)
    chosen = method(config.method.name)
    if config.task is None:
        built = chosen.build(config)
    else:
        built = task(config.task.name).build(config, chosen.build_encoder(config))
    with torch.no_grad():
        for value in built.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.randn_like(value))
    return built.eval()


def card(config: RunConfig) -> dict[str, Any]:
    profile = InputProfile.of(config, DatasetInfo(name="phantoms"))
    return {"kind": config.kind, "config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}


def saved(folder: Path, config: RunConfig, seed: int = 0) -> nn.Module:
    """Model folder of a network with random weights, and that network."""
    built = network(config, seed)
    save_model(folder, built, card(config))
    return built


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def reference(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint of the reference implementation as its scripts do; `change` edits the tensors first."""

    def make(
        case: str, wrap: bool = True, prefix: str = "", change: Callable[[dict[str, Tensor]], Any] | None = None
    ) -> Path:
        state = load_file(PARITY / f"{case}.safetensors")
        if change:
            change(state)
        state = {prefix + key: value for key, value in state.items()}
        path = tmp_path / f"{case}.pth"
        torch.save({"model": state, "epoch": 3} if wrap else state, path)
        return path

    return make


def arrays(case: str) -> dict[str, np.ndarray]:
    with np.load(PARITY / f"{case}_io.npz", allow_pickle=False) as stored:
        return {key: stored[key] for key in stored}


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """Makers of small configurations, networks and model folders."""
    return SimpleNamespace(
        pretrain=pretrain,
        finetune=finetune,
        network=network,
        card=card,
        saved=saved,
        same=same,
        arrays=arrays,
        cases=CASES,
        parity=PARITY,
    )
