"""Pictures of what a network does, as layers beside each other: made once, updated in place, put into a 2 x 2 grid."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from napari_med3dssl import _compat
from napari_med3dssl._layers import KEY, LayerData, add, labels_layer, picture_layer, vectors_layer
from training_backend.data.manifest import ClassEntry
from training_backend.data.volume import Geometry

Picture = Mapping[str, Any]
"""What the model process sends: `name`, `array`, `geometry` (of the array's own grid), `role`, `limits` or None."""

GRID_OF_FOUR = ("original", "masked", "reconstruction", "error")
"""Pictures of a masked reconstruction."""
OPACITY = {"heatmap": 0.5, "labels": 0.5}
"""Of pictures that lie over others, by role."""
_hidden: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()
"""Layers of each viewer that a grid hid, shown again when the last grid goes."""
_fronted: WeakSet[Any] = WeakSet()
"""Colour maps that were brought to the front."""


class PictureLayers:
    """The layers of one kind of result in a viewer; showing the next result changes them in place.

    Args:
        viewer: the viewer.
        suffix: put behind each name, to tell the results of several panels apart.
        grid: names of the pictures in the grid, at most four; empty takes the first four that are shown.
    """

    def __init__(self, viewer: Any, suffix: str = "", grid: Sequence[str] = GRID_OF_FOUR) -> None:
        self._viewer, self._suffix, self._grid = viewer, suffix, tuple(grid)
        self._layers: dict[str, Any] = {}
        self._roles: dict[str, str] = {}

    def __getitem__(self, name: str) -> Any:
        """Layer of a picture, or None when it was never shown or was removed by the user."""
        layer = self._layers.get(name)
        return layer if layer is not None and layer in self._viewer.layers else None

    def show(self, pictures: Sequence[Picture]) -> list[Any]:
        """Add or update one layer per picture; the selection stays as it was."""
        active = self._viewer.layers.selection.active
        shown = [self._show_one(picture) for picture in pictures]
        if active is not None and active in self._viewer.layers:
            self._viewer.layers.selection.active = active
        return shown

    def to_front(self, name: str) -> None:
        """Let a colour map be seen over the scan, and none of another section with it: mixed colours mean nothing."""
        layer = self[name]
        if layer is None or _compat.grid(self._viewer).enabled:
            return
        for other in _fronted & set(self._viewer.layers) - set(self._layers.values()):
            see(other, False)
        _fronted.add(layer)
        see(layer, True)

    def link_contrast(self) -> None:
        """Let the pictures in the scan's own units share their contrast limits and gamma."""
        layers = [self[name] for name, role in self._roles.items() if role == "image" and self[name] is not None]
        if len(layers) > 1:
            self._viewer.layers.link_layers(layers, ("contrast_limits", "gamma"))

    @property
    def in_grid(self) -> bool:
        """Whether the viewer shows these layers side by side now."""
        return bool(_compat.grid(self._viewer).enabled) and any(layer.visible for layer in self._in_grid())

    def to_grid(self, on: bool = True) -> None:
        """Show the four pictures side by side, hiding all other layers, or put everything back as it was."""
        four = self._in_grid()
        if on and four:
            enter_grid(self._viewer, four, self._layers.values())
        elif not on:
            leave_grid(self._viewer, four)

    def over_scan(self, names: Collection[str] = ()) -> None:
        """Show these layers, or only some of them, over the scan, leaving the grid that pictures are in."""
        if _compat.grid(self._viewer).enabled:
            leave_grid(self._viewer, [layer for layer in self._viewer.layers if layer.visible])
        for name, role in self._roles.items():
            if self[name] is not None:
                self[name].visible, self[name].opacity = not names or name in names, OPACITY.get(role, 1.0)

    def _in_grid(self) -> list[Any]:
        names = self._grid or tuple(self._layers)[:4]
        return [self[name] for name in names if self[name] is not None]

    def _show_one(self, picture: Picture) -> Any:
        made = layer_of(picture, picture["name"] + self._suffix)
        layer = self[picture["name"]]
        self._roles[picture["name"]] = picture["role"]
        if layer is not None and _same_grid(layer, made):
            layer.data = made[0]
            if "features" in made[1]:
                layer.features = made[1]["features"]
            layer.metadata = made[1]["metadata"]
            if picture.get("follow", True) and "contrast_limits" in made[1]:
                layer.contrast_limits = made[1]["contrast_limits"]
            return layer
        if layer is not None:
            self._viewer.layers.remove(layer)
        self._layers[picture["name"]] = add(self._viewer, made)
        return self._layers[picture["name"]]


def enter_grid(
    viewer: Any,
    layers: Sequence[Any],
    ours: Collection[Any] = (),
    stride: int = 1,
    named: Collection[Any] | None = None,
) -> None:
    """Show layers side by side, two by two, hiding all others.

    Args:
        viewer: the viewer.
        layers: those that are shown.
        ours: layers that are not shown again when the grid ends, because they are results.
        stride: of napari's grid: layers in a cell, negative to count from the end of the list.
        named: those whose names are drawn; None for all that are shown.
    """
    named = layers if named is None else named
    grid = _compat.grid(viewer)
    if not grid.enabled:
        _hidden[viewer] = [one for one in viewer.layers if one.visible and one not in ours]
    for layer in viewer.layers:
        see(layer, layer in layers)
        _compat.show_name(layer, layer in named)
    for layer in layers:
        if abs(stride) == 1:
            layer.opacity = 1.0  # there is nothing below it
    grid.shape, grid.stride = (2, 2), stride
    grid.enabled = True
    _come_to(viewer, layers[0])
    viewer.fit_to_view(layers=list(layers))


def _come_to(viewer: Any, layer: Any) -> None:
    """Show the middle slice of a layer that the slices miss, as those of another scan may."""
    low, high = np.sort(np.asarray(layer.extent.world)[:, -3:], axis=0)
    at = np.asarray(viewer.dims.point)[-3:]
    for axis in np.flatnonzero((at < low) | (at > high)):
        viewer.dims.set_point(int(axis) - 3 + viewer.dims.ndim, float(low[axis] + high[axis]) / 2)


def leave_grid(viewer: Any, layers: Sequence[Any]) -> None:
    """End the grid that shows `layers`; what it hid is seen again."""
    _compat.grid(viewer).enabled = False
    hidden = _hidden.pop(viewer, [])
    for layer in layers:
        _compat.show_name(layer, False)
        if layer not in hidden:
            see(layer, False)
    for layer in hidden:
        see(layer, True)
    viewer.reset_view()


def see(layer: Any, visible: bool) -> None:
    """Show or hide a layer; one that is so already is left alone, for napari would draw it anew."""
    if layer.visible != visible:
        layer.visible = visible


def layer_of(picture: Picture, name: str) -> LayerData:
    """Layer of one picture."""
    geometry: Geometry = picture["geometry"]
    if picture["role"] == "labels":
        table = [
            entry if isinstance(entry, ClassEntry) else ClassEntry(**entry) for entry in picture.get("classes", ())
        ]
        return labels_layer(picture["array"], geometry, name, table, **picture.get("facts", {}))
    if picture["role"] == "vectors":
        return vectors_layer(picture["array"], geometry, name, **picture.get("facts", {}))
    limits = picture.get("limits")
    return picture_layer(
        picture["array"],
        geometry,
        name,
        role=picture["role"],
        limits=None if limits is None else (float(limits[0]), float(limits[1])),
        **picture.get("facts", {}),
    )


def _same_grid(layer: Any, made: LayerData) -> bool:
    data, options, kind = made
    old = Geometry.from_dict(layer.metadata[KEY]["geometry"])
    new = Geometry.from_dict(options["metadata"][KEY]["geometry"])
    same_kind = bool(getattr(layer, "rgb", False)) == bool(options.get("rgb", False))
    same_shape = kind == "vectors" or np.shape(layer.data) == data.shape  # there may be more arrows than before
    return same_kind and same_shape and old.same_grid(new)
