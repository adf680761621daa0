"""What the model process does with two label maps: distances between surfaces take too long for the viewer's thread."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from training_backend.data.classes import class_table
from training_backend.data.volume import Volume
from training_backend.errors import RunError

if TYPE_CHECKING:
    from training_backend.jobs.serve import Progress
    from training_backend.jobs.serve_ops import Params, Values


def compare_masks(params: Params, progress: Progress) -> Values:
    """Where `one` and `other` agree: `labels` with their `classes`, `scores`, `places` and how many were `left_out`."""
    from training_backend.evaluate.agreement import NAMES, agreement

    one, other = params.get("one"), params.get("other")
    if not isinstance(one, Volume) or not isinstance(other, Volume):
        raise RunError("Two label maps are needed.", "Choose both.")
    progress(0.0, "Comparing")
    classes = {int(value): str(name) for value, name in (params.get("names") or {}).items()}
    found = agreement(one, other, classes, params.get("chosen"))
    return {
        "labels": found.labels,
        "geometry": one.geometry,
        "classes": [entry.model_dump() for entry in class_table(NAMES, NAMES)],
        "scores": [asdict(score) for score in found.scores],
        "places": [asdict(place) for place in found.places],
        "left_out": found.left_out,
    }
