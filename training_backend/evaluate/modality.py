"""Whether a scan is of the kind that a model learnt from; a sentence where it is not, which forbids nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training_backend.data.volume import Volume

if TYPE_CHECKING:
    from training_backend.data.prepare import InputProfile

UNSAID = ("", "unknown", "text")
"""Modalities that tell nothing of the scans."""


def learnt_modality(profile: InputProfile) -> str:
    """Modality that a model learnt from; empty where it learnt from several, or that was not kept.

    Models of earlier versions did not keep it; a window of Hounsfield units tells it as well.
    """
    if profile.modality not in UNSAID:
        return profile.modality
    window = profile.intensity
    return "CT" if window.profile == "window" and (window.low is None or window.low < 0) else ""


def modality_warning(profile: InputProfile, volumes: Sequence[Volume]) -> str:
    """A sentence where the first scan looked at is of another modality than those learnt from; else empty.

    Args:
        profile: of the model.
        volumes: contrasts of the scan, the one that is looked at first.
    """
    learnt = learnt_modality(profile)
    if not learnt or not volumes:
        return ""
    scan = volumes[0]
    if scan.modality not in UNSAID:
        if scan.modality == learnt:
            return ""
        found = f"{scan.name} is {scan.modality}"
    elif learnt == "CT" and scan.array.size and float(scan.array.min()) >= 0:
        found = f"{scan.name} holds no Hounsfield units: its darkest voxel is {scan.array.min():g}, air is near -1000"
    else:
        return ""
    return f"This model learnt from {learnt}, but {found}. What it shows here may mean little."
