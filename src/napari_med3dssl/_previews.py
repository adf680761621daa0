"""Pictures that a run writes, read as the viewer draws them; see `training_backend.engine.preview` for the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from napari_med3dssl._layers import token_geometry
from training_backend.data.classes import class_table
from training_backend.data.volume import Geometry
from training_backend.errors import DataError

BELOW = ("mask", "error")
"""Roles of pictures that would hide what there is to see first, so that their layers begin hidden."""


def read_pictures(folder: Path) -> list[dict[str, Any]]:
    """Pictures of one preview folder: name, array, geometry of the array's own grid, role, limits, classes.

    Raises:
        DataError: the run replaced the folder while it was read; the next one will do.
    """
    try:
        facts = json.loads((folder / "preview.json").read_text(encoding="utf-8"))
        return [_picture(folder, Geometry.from_dict(facts["geometry"]), entry) for entry in facts["arrays"]]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"The pictures in {folder.name} cannot be read: {error}.") from error


def picture_line(folder: Path) -> str:
    """Which case and step the pictures of a preview folder are of; empty when it is gone."""
    try:
        facts = json.loads((folder / "preview.json").read_text(encoding="utf-8"))
        return f"Pictures of {facts['case']} at step {facts['step']}."
    except (OSError, ValueError, KeyError):
        return ""


def picture_of(array: Any, geometry: Geometry, entry: dict[str, Any]) -> dict[str, Any]:
    """A picture from an array, the grid of the network input, and what a method says about it."""
    z, y, x = (int(n) for n in entry.get("voxels") or (1, 1, 1))
    shape = array.shape[:3]
    grid = geometry if (z, y, x) == (1, 1, 1) else token_geometry(geometry, (z, y, x), shape)
    classes = {int(value): name for value, name in (entry.get("classes") or {}).items()}
    return {
        "name": str(entry["name"]),
        "array": array,
        "geometry": grid,
        "role": str(entry["role"]),
        "limits": entry.get("limits"),
        "classes": class_table(classes, classes) if classes else (),
        "facts": {"derived": True},
    }


def _picture(folder: Path, geometry: Geometry, entry: dict[str, Any]) -> dict[str, Any]:
    array = np.load(folder / Path(entry["file"]).name, allow_pickle=False)
    return picture_of(array, geometry, entry)
