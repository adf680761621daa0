"""Sizes and presets of MG-3D, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES = {"tiny": 6, "small": 24, "B": 48, "L": 96}
"""Channels of the first map; a token has sixteen times as many."""
RADBERT = {"source": "StanfordAIMI/RadBERT", "longest": 250}
"""The published text model."""

CENTRE = (0.88, 0.65625, 0.875)
"""Share of a scan along (z, y, x) that the authors see."""

_DATA = {
    "view": "volume",
    "keep_aspect": False,
    "crops_per_volume": 1,
    "augment": {"flip": (0.0, 0.0, 0.0)},
}
"""Reports speak of left and right, so nothing flips."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "method": {
            "size": "tiny",
            "window": 4,
            "heads": (1, 2, 3, 6),
            "text": {"width": 96, "layers": 2, "longest": 96},
        },
        "data": {**_DATA, "size": (64, 64, 64)},
        "optim": {"epochs": 1000, "max_steps": 300, "batch_size": 4, "lr": 1e-3, "warmup": 0.1},
        "engine": {"device": "auto", "val_steps": 50, "preview_minutes": 0.5},
    },
    "small": {
        "method": {"size": "small", "text": {"width": 384, "layers": 4, "heads": 6}},
        "data": {**_DATA, "size": (96, 96, 96)},
        "optim": {"epochs": 100, "batch_size": 8, "lr": 1e-4},
    },
    "base": {
        "method": {"size": "B", "text": RADBERT},
        "data": {**_DATA, "size": (128, 96, 128)},
        "optim": {"epochs": 60, "batch_size": 16, "lr": 5e-5},
    },
    "published": {
        "method": {"size": "B", "level": "clause", "all_padding": True, "text": RADBERT},
        "data": {
            **_DATA,
            "size": (128, 96, 128),
            "centre": CENTRE,
            "intensity": {"profile": "window", "low": -1000.0, "high": 1000.0},
        },
        "optim": {
            "max_steps": 300_000,
            "batch_size": 16,
            "lr": 1e-5,
            "min_lr": 0.0,
            "schedule": "linear",
            "warmup": 10_000 / 300_000,
            "warmup_start": "zero",
            "weight_decay": 1e-8,
            "betas": (0.9, 0.999),
        },
    },
}
"""The authors train on four devices with four volumes each. Contrasts compare the volumes of a forward pass, so
engine.micro_batch stays empty. L differs from "published" in `method.size` alone."""
