"""Which voxel of a scan is seen under the cursor: on a slice the one below it, in 3D what the rendering shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Voxel = tuple[int, int, int]
Ray = npt.NDArray[np.int_]
"""Voxels [N, 3] of a layer from the viewer's eye on, two for each voxel's length."""


def picked_voxel(viewer: Any, layer: Any, event: Any) -> Voxel | None:
    """Voxel (z, y, x) of the scan `layer` under the cursor, or None beside it.

    In 3D a label map in front is what is seen: its first label along the ray is picked. Else it is the voxel that the
    rendering of the scan shows, of a maximum intensity projection the brightest.
    """
    if len(event.dims_displayed) == 3:
        return _first_label(viewer, layer, event) or _rendered(layer, event)
    voxel = np.floor(np.asarray(layer.world_to_data(event.position)) + 0.5).astype(int)
    return _inside(voxel, layer.data.shape)


def _first_label(viewer: Any, scan: Any, event: Any) -> Voxel | None:
    """Voxel of the scan at the label nearest to the eye, of all label maps that are drawn."""
    found: list[tuple[float, npt.NDArray[Any]]] = []
    for layer in viewer.layers:
        if type(layer).__name__ != "Labels" or not layer.visible or layer.ndim != 3 or not layer.opacity:
            continue
        ray = _ray(layer, event)
        if ray is None:
            continue
        values = np.asarray(layer.data[tuple(ray.T)])
        seen = values == layer.selected_label if layer.show_selected_label else values != 0
        if seen.any():
            place = np.asarray(layer.data_to_world(ray[int(np.argmax(seen))]))
            found.append((float(np.dot(place, np.asarray(event.view_direction))), place))
    if not found:
        return None
    nearest = min(found, key=lambda one: one[0])[1]
    return _inside(np.floor(np.asarray(scan.world_to_data(nearest)) + 0.5).astype(int), scan.data.shape)


def _rendered(layer: Any, event: Any) -> Voxel | None:
    ray = _ray(layer, event)
    if ray is None:
        return None
    return _inside(ray[_shown(layer, np.asarray(layer.data[tuple(ray.T)], float))], layer.data.shape)


def _shown(layer: Any, values: npt.NDArray[Any]) -> int:
    """Number of the value that a rendering draws; the brightest for those that mix all."""
    rendering = str(layer.rendering)
    if rendering == "minip":
        return int(np.argmin(values))
    if rendering == "iso":
        above = values >= layer.iso_threshold
        return int(np.argmax(above)) if above.any() else int(np.argmax(values))
    if rendering == "attenuated_mip":
        low, high = layer.contrast_limits
        share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
        passed = np.cumsum(share) / 2  # there are two values for a voxel's length
        return int(np.argmax(values * np.exp(-layer.attenuation * passed)))
    return int(np.argmax(values))


def _ray(layer: Any, event: Any) -> Ray | None:
    """The voxels behind the cursor; None where it is beside the layer."""
    start, end = layer.get_ray_intersections(event.position, event.view_direction, event.dims_displayed)
    if start is None or end is None:
        return None
    length = int(np.ceil(np.abs(end - start).max())) + 1
    points = np.floor(np.linspace(start, end, 2 * length) + 0.5).astype(int)
    result: Ray = np.clip(points, 0, np.array(layer.data.shape[:3]) - 1)
    return result


def _inside(voxel: npt.NDArray[Any], shape: tuple[int, ...]) -> Voxel | None:
    if (voxel < 0).any() or (voxel >= shape[:3]).any():
        return None
    return (int(voxel[0]), int(voxel[1]), int(voxel[2]))
