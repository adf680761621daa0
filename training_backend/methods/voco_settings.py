"""Sizes, regions and presets of VoCo, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIZES = {"tiny": 6, "small": 24, "B": 48, "L": 96, "H": 192}
"""Channels at full resolution."""
SCALES = (1, 2, 4, 8, 16, 32)
"""Voxels along each axis of a place of each map of the encoder."""


VOCOMNI = (
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "liver tumor",
    "pancreas tumor",
    "kidney tumor",
    "covid-19",
    "colon",
    "colon cancer",
    "lung cancer",
)
"""Classes of the 20,000 scans that the authors labelled with networks, by label value."""


@dataclass(frozen=True)
class Region:
    """How the authors prepare scans of a region.

    Attributes:
        window: HU that become 0 and 1.
        spacing_mm: along (z, y, x).
        resize: the whole body becomes one slab, instead of a slab being cut from it.
    """

    window: tuple[float, float]
    spacing_mm: tuple[float, float, float]
    resize: bool = False


REGIONS: Mapping[str, Region] = {
    "abdomen": Region((-175.0, 250.0), (1.5, 1.5, 1.5)),
    "chest": Region((-1000.0, 500.0), (5.0, 1.25, 1.25)),
    "headneck": Region((-175.0, 250.0), (1.5, 1.5, 1.5), resize=True),
}
"""By the name in the settings. Scans of the abdomen without labels are resized by the authors too: data.view volume."""

_DATA = {
    "view": "crop",
    "foreground": 0.0,
    "crops_per_volume": 1,
    "augment": {"flip": (0.0, 0.0, 0.0)},
    "labelled": {},
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "method": {"size": "tiny", "crop": 32, "depth": 64, "window": 4, "hidden": 128, "projected": 64},
        "data": {**_DATA, "size": (64, 96, 96)},
        "optim": {"epochs": 1000, "max_steps": 200, "batch_size": 2, "lr": 1e-3, "warmup": 0.1},
        "engine": {"device": "auto", "val_steps": 50, "preview_minutes": 0.5},
    },
    "small": {
        "method": {"size": "small"},
        "data": {**_DATA, "size": (64, 192, 192)},
        "optim": {"epochs": 400, "batch_size": 8, "lr": 3e-4},
        "engine": {"micro_batch": 2},
    },
    "base": {
        "method": {"size": "B"},
        "data": {**_DATA, "size": (64, 192, 192)},
        "optim": {"epochs": 400, "batch_size": 16, "lr": 2e-4},
        "engine": {"micro_batch": 2, "activation_checkpointing": True},
    },
    "published": {
        "method": {"size": "B", "region": "abdomen"},
        "data": {
            **_DATA,
            "size": (64, 192, 192),
            "intensity": {"profile": "window", "low": -175.0, "high": 250.0},
        },
        "optim": {
            "max_steps": 2_000_000,
            "batch_size": 16,
            "lr": 1e-4,
            "min_lr": 0.0,
            "warmup": 0.0025,
            "warmup_start": "zero",
            "weight_decay": 0.01,
            "decay_all": True,
            "amsgrad": True,
            "betas": (0.9, 0.999),
        },
        "engine": {"micro_batch": 2, "activation_checkpointing": True},
    },
}
"""The authors train on eight devices with two volumes each; only the volumes of one device are compared. L and H differ
from "published" in `method.size` alone."""


def implied(method: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the data that follow from those of the method: the size of a slab, and what its region asks for.

    In the stage semi there are no slabs but crops, half as large again as those of the contrast.
    """
    cells, crop = int(method.get("cells", 3)), int(method.get("crop", 64))
    data: dict[str, Any] = {"size": (int(method.get("depth") or crop), cells * crop, cells * crop)}
    if method.get("stage") == "semi":
        data["size"] = (-(-3 * crop // 64) * 32,) * 3
        data["augment"] = {"flip": (0.2, 0.2, 0.2), "quarter_turn": 0.2, "shift": 0.1}
    if method.get("region", "custom") in REGIONS:
        region = REGIONS[method["region"]]
        data["intensity"] = {"profile": "window", "low": region.window[0], "high": region.window[1]}
        data |= {"view": "volume", "keep_aspect": False} if region.resize else {"view": "crop"}
    return {"data": data}
