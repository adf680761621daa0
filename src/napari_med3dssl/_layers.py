"""The one place that makes napari layers, and the way back from a layer to a volume.

Every layer has ``scale=(-sz, sy, sx)``, ``units='mm'`` and ``axis_labels=('z', 'y', 'x')``, and neither affine nor
rotation: napari cannot draw axis-permuting affines, would mirror plain (S, P, L) arrays in 3D (the minus sign undoes
that), and drops all units when one layer has none. World coordinates are therefore (-S, P, L) millimetres.

An oblique scan is drawn along its own axes. Its layers' ``translate`` is the position of the first voxel expressed
along these axes, so that all grids parallel to each other (contrasts of one session, crops, token grids, predictions)
overlay exactly; for axis-aligned scans this is the plain (-z0, y0, x0) in millimetres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training_backend.data.manifest import ClassEntry
from training_backend.data.volume import Geometry, Shape, Volume
from training_backend.errors import GeometryError

KEY = "med3dssl"
"""Where a layer's metadata keep what is known of its scan; plain JSON types only."""

LayerData = tuple[Any, dict[str, Any], str]
"""(data, keyword arguments, layer type), as napari's readers return it."""

ROLES: Mapping[str, Mapping[str, Any]] = {
    "image": {"colormap": "gray", "interpolation2d": "linear"},
    "mask": {"colormap": "gray", "interpolation2d": "nearest"},
    "heatmap": {"colormap": "inferno", "interpolation2d": "nearest", "blending": "translucent", "opacity": 0.5},
    "error": {"colormap": "magma", "interpolation2d": "nearest"},
    "rgb": {"rgb": True, "interpolation2d": "nearest"},
}
"""How each kind of picture is drawn."""


LENGTH = "length (mm)"
"""Feature of an arrow that the status bar tells."""
ARROWS = "#56b4e9"
"""Colour of arrows; seen on grey and on most labels."""


def placement(geometry: Geometry) -> dict[str, Any]:
    """Keyword arguments that put a layer of this grid where it belongs in the viewer's world."""
    sz, sy, sx = geometry.spacing_mm
    directions = geometry.to_lps[:3, :3] / np.asarray(geometry.spacing_mm)
    z, y, x = np.linalg.solve(directions, geometry.to_lps[:3, 3])
    return {
        "scale": (-sz, sy, sx),
        "translate": (-float(z), float(y), float(x)),
        "units": ("mm", "mm", "mm"),
        "axis_labels": ("z", "y", "x"),
    }


def token_geometry(geometry: Geometry, voxels: Shape, grid: Shape) -> Geometry:
    """Grid of tokens that each cover `voxels` voxels (z, y, x) of the network input that `geometry` describes.

    Padding and cropping are part of the input's geometry, so the token that holds a voxel is drawn over that voxel.
    """
    dz, dy, dx = geometry.spacing_mm
    return geometry.resampled((dz * voxels[0], dy * voxels[1], dx * voxels[2]), grid)


def volume_layer(volume: Volume, *, name: str = "", visible: bool = True) -> LayerData:
    """Image layer of a scan, with the window of its file or modality; a colour of a picture is drawn in that colour.

    The colours of a picture are layers of their own, whose light is added: so each stays a contrast with its numbers.
    """
    from training_backend.data.windows import display_limits

    data, options, kind = picture_layer(
        volume.array,
        volume.geometry,
        name or volume.name,
        limits=display_limits(volume),
        modality=volume.modality,
        provenance=dict(volume.meta),
    )
    colour = {"colormap": volume.meta["contrast"], "blending": "additive"} if is_colour(volume.meta) else {}
    return data, {**options, **colour, "visible": visible}, kind


def is_picture(facts: Mapping[str, Any]) -> bool:
    """Whether a layer with these facts shows a plain picture, which has no sides of a patient."""
    return facts.get("provenance", {}).get("format") == "picture"


def is_colour(provenance: Mapping[str, Any]) -> bool:
    """Whether a volume is one colour of a plain picture."""
    return provenance.get("format") == "picture" and bool(provenance.get("contrast"))


def picture_layer(
    array: npt.NDArray[Any],
    geometry: Geometry,
    name: str,
    *,
    role: str = "image",
    voxels: Shape = (1, 1, 1),
    limits: tuple[float, float] | None = None,
    **facts: Any,
) -> LayerData:
    """Layer of numbers or colours on a grid.

    Args:
        array: (z, y, x), or (z, y, x, 3) for role "rgb".
        geometry: grid of `array`, or of the network input where `voxels` makes an element a token.
        name: layer name.
        role: key of `ROLES`.
        voxels: input voxels per element along (z, y, x).
        limits: contrast limits; None takes the array's own range.
        facts: further metadata, plain JSON types: modality, run, provenance.
    """
    shape = _shape3(array)
    grid = geometry if voxels == (1, 1, 1) else token_geometry(geometry, voxels, shape)
    _check_shape(shape, grid)
    options: dict[str, Any] = {"name": name, **placement(grid), **ROLES[role], "metadata": _facts(grid, role, facts)}
    data = _drawable(array)
    if role != "rgb":
        low, high = limits if limits is not None else _range(data)
        options["contrast_limits"] = (float(low), float(max(high, np.nextafter(low, np.inf))))
    return data, options, "image"


def labels_layer(
    array: npt.NDArray[Any],
    geometry: Geometry,
    name: str,
    classes: Sequence[ClassEntry] = (),
    **facts: Any,
) -> LayerData:
    """Labels layer whose classes are named in the status bar and coloured by the class table.

    Without `classes` the table is made from the values found.
    """
    from training_backend.data.classes import class_table

    data = _label_dtype(array)
    _check_shape(_shape3(data), geometry)
    table = tuple(classes) or class_table(np.unique(data))
    metadata = _facts(geometry, "labels", {**facts, "classes": [entry.model_dump() for entry in table]})
    options = {"name": name, **placement(geometry), "opacity": 0.5, "metadata": metadata, **class_look(table)}
    return data, options, "labels"


def class_look(table: Sequence[ClassEntry]) -> dict[str, Any]:
    """Colour map and features (class names on hover) of a labels layer."""
    import pandas as pd
    from napari.utils.colormaps import DirectLabelColormap

    shown = [entry for entry in table if entry.index != 0]
    colours: dict[int | None, Any] = {None: "#999999", 0: "transparent"}
    colours.update({entry.index: entry.colour for entry in shown})
    features = pd.DataFrame(
        {"index": [0, *(e.index for e in shown)], "class": ["background", *(e.name for e in shown)]}
    )
    return {"colormap": DirectLabelColormap(color_dict=colours), "features": features}


def points_layer(voxels: npt.NDArray[Any], geometry: Geometry, name: str, **options: Any) -> LayerData:
    """Points at voxel positions [N, 3] (z, y, x) of a grid; sizes are in voxels of the finest axis."""
    placed = {"name": name, **placement(geometry), "metadata": _facts(geometry, "points", {}), **options}
    return np.asarray(voxels, float).reshape(-1, 3), placed, "points"


def vectors_layer(arrows: npt.NDArray[Any], geometry: Geometry, name: str, **facts: Any) -> LayerData:
    """Arrows [N, 2, 3], each its beginning and its extent along (z, y, x) in voxels of a grid."""
    import pandas as pd

    data = np.asarray(arrows, float).reshape(-1, 2, 3)
    finest = min(geometry.spacing_mm[1:])
    options = {
        "name": name,
        **placement(geometry),
        "metadata": _facts(geometry, "vectors", facts),
        "features": pd.DataFrame({LENGTH: np.linalg.norm(data[:, 1] * geometry.spacing_mm, axis=1)}),
        "vector_style": "arrow",
        "edge_width": max(2.5, 0.012 * max(n * mm for n, mm in zip(geometry.shape, geometry.spacing_mm, strict=True)))
        / finest,
        "edge_color": ARROWS,
    }
    return data, options, "vectors"


def facts_of(layer: Any) -> dict[str, Any] | None:
    """What this plugin knows of a layer's scan, or None for layers of other origin."""
    facts = layer.metadata.get(KEY)
    return facts if isinstance(facts, dict) and "geometry" in facts else None


def geometry_of(layer: Any) -> Geometry:
    """Exact grid of a layer; layers of other origin are read by their scale and translate."""
    facts = facts_of(layer)
    shape = _shape3(np.empty(0) if layer.data is None else layer.data, rgb=bool(getattr(layer, "rgb", False)))
    if facts is not None:
        geometry = Geometry.from_dict(facts["geometry"])
        if geometry.shape == shape:
            return geometry
        raise GeometryError(
            f"The layer {layer.name!r} has {shape} voxels, but the scan it was made from has {geometry.shape}.",
            "Undo the change of its shape, or open the file again.",
        )
    return geometry_of_scale(shape, layer.scale, layer.translate)


def set_geometry(layer: Any, geometry: Geometry) -> None:
    """Put an image of other origin onto a grid, as if this plugin had opened it.

    Raises:
        GeometryError: the grid has another shape.
    """
    _check_shape(_shape3(layer.data), geometry)
    identity = np.eye(layer.ndim)
    layer.affine, layer.rotate, layer.shear = np.eye(layer.ndim + 1), identity, identity
    for name, value in placement(geometry).items():
        setattr(layer, name, value)
    layer.metadata = {**layer.metadata, **_facts(geometry, "image", {"modality": "unknown"})}


def geometry_of_scale(shape: Shape, scale: Sequence[float], translate: Sequence[float]) -> Geometry:
    """Grid that a layer's scale and translate describe, taken as (-S, P, L) millimetres."""
    z, y, x = (abs(float(value)) for value in scale[-3:])
    origin_z, origin_y, origin_x = (float(value) for value in translate[-3:])
    return Geometry.from_spacing(shape, (z, y, x), (origin_x, origin_y, -origin_z))


def volume_of(layer: Any) -> Volume:
    """The scan of an image or labels layer, as the backend wants it."""
    facts = facts_of(layer) or {}
    meta = dict(facts.get("provenance", {}))
    return Volume(np.asarray(layer.data), geometry_of(layer), str(facts.get("modality", "unknown")), layer.name, meta)


def classes_of(layer: Any) -> tuple[ClassEntry, ...]:
    """Class table of a labels layer."""
    facts = facts_of(layer) or {}
    if facts.get("classes"):
        return tuple(ClassEntry(**entry) for entry in facts["classes"])
    from training_backend.data.classes import class_table

    return class_table(np.unique(layer.data))


def add(viewer: Any, layer: LayerData) -> Any:
    """Add a layer made here to a viewer and return it."""
    data, options, kind = layer
    return getattr(viewer, f"add_{kind}")(data, **options)


def layers_of_volumes(volumes: Sequence[Volume]) -> list[LayerData]:
    """Layers of the volumes of one file: labels layers for label maps, image layers for everything else.

    Of several contrasts only the first is visible, of a picture all colours.
    """
    layers: list[LayerData] = []
    for volume in volumes:
        if is_labels(volume):
            provenance = {**volume.meta, "kind": "labels"}
            layers.append(
                labels_layer(volume.array, volume.geometry, volume.name, _named(volume), provenance=provenance)
            )
        else:
            layers.append(volume_layer(volume, visible=not layers or is_colour(volume.meta)))
    return layers


def _named(volume: Volume) -> tuple[ClassEntry, ...]:
    """Class table with the names that the file itself gives."""
    from training_backend.data.classes import class_table

    names = volume.meta.get("class_names")
    return class_table((int(value) for value in np.unique(volume.array)), names) if names else ()


def is_labels(volume: Volume) -> bool:
    """Whether a volume looks like a label map: said so by its reader, or few small non-negative integers."""
    if "kind" in volume.meta:
        return bool(volume.meta["kind"] == "labels")
    array = volume.array
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool) or array.size == 0:
        return False
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 1024:
        return False
    background = np.count_nonzero(array == 0) / array.size
    few = np.count_nonzero(np.bincount(array.ravel())) <= 128
    return bool(background > 0.3 and few and _is_flat(array))


def _is_flat(array: npt.NDArray[Any]) -> bool:
    """Whether neighbours are almost always equal, as in label maps and hardly ever in scans of few grey values."""
    changes = np.count_nonzero(array[:, :, 1:] != array[:, :, :-1])
    return bool(changes < 0.2 * array.size)


def _facts(geometry: Geometry, role: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in facts.items() if value is not None}
    return {
        KEY: {"version": 1, "role": role, "geometry": geometry.to_dict(), "oblique_deg": geometry.oblique_deg, **plain}
    }


def _shape3(array: Any, rgb: bool | None = None) -> Shape:
    shape = tuple(int(n) for n in array.shape)
    if rgb or (rgb is None and len(shape) == 4):
        shape = shape[:-1]
    if len(shape) != 3:
        raise GeometryError(f"A volume has the three axes (z, y, x), found an array of shape {tuple(array.shape)}.")
    return shape


def _check_shape(shape: Shape, geometry: Geometry) -> None:
    if shape != geometry.shape:
        raise GeometryError(f"The array has {shape} voxels, but its geometry describes {geometry.shape}.")


def _drawable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`array` in a type that OpenGL draws; nothing that could be kept is converted."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16 or array.dtype.kind == "V":
        return array.astype(np.float32)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def _label_dtype(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Smallest unsigned type that napari colours fast, or the array's own for negative or huge values."""
    if array.dtype in (np.uint8, np.uint16):
        return array
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high > np.iinfo(np.uint16).max:
        return array.astype(np.int32)
    return array.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)


def _range(array: npt.NDArray[Any]) -> tuple[float, float]:
    finite = array if np.issubdtype(array.dtype, np.integer) else array[np.isfinite(array)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
