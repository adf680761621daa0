"""What registration adds to a prediction: the choice of the scan that is moved, and the layers that come of it."""

from __future__ import annotations

from typing import Any

from napari_med3dssl import _layers
from napari_med3dssl._scans import may_be_scan
from napari_med3dssl._state import State
from napari_med3dssl._widgets import combo
from training_backend.data.manifest import ClassEntry
from training_backend.data.volume import Volume

CLEAR_TO_CYAN = [[0.1, 0.8, 0.9, 0.0], [0.1, 0.8, 0.9, 1.0]]
"""Colours of a drawn grid, red, green, blue and opacity: nothing between its lines."""


class MovingScan:
    """A list of the scans of a viewer that follows its layers.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        self.box = combo("Moving scan")
        self.box.setToolTip("The scan that is bent onto the selected one; visible labels on it come along.")
        self._viewer = state.viewer
        events = self._viewer.layers.events
        for event in (events.inserted, events.removed):
            event.connect(self.look)
        self.box.destroyed.connect(lambda: [each.disconnect(self.look) for each in (events.inserted, events.removed)])
        self.look()

    def look(self, _event: object = None) -> None:
        """List the scans again, keeping the choice."""
        chosen = self.box.currentText()
        self.box.clear()
        self.box.addItems([layer.name for layer in self._viewer.layers if may_be_scan(layer)])
        self.box.setCurrentIndex(max(0, self.box.findText(chosen)))

    def chosen(self, fixed: Any) -> Any | None:
        """The layer in the list, or the only other scan where that is `fixed`; None where there is no other."""
        scans = [layer for layer in self._viewer.layers if may_be_scan(layer) and layer is not fixed]
        named = next((layer for layer in scans if layer.name == self.box.currentText()), None)
        return named or (scans[0] if len(scans) == 1 else None)

    def labels(self, moving: Any) -> Volume | None:
        """The topmost visible labels on the grid of `moving`, or None."""
        here = _layers.geometry_of(moving)
        maps = (layer for layer in reversed(self._viewer.layers) if type(layer).__name__ == "Labels")
        found = (each for each in maps if each.visible and each.ndim == 3 and _layers.geometry_of(each).same_grid(here))
        top = next(found, None)
        return None if top is None else _layers.volume_of(top)

    def classes(self, labels: Volume | None) -> tuple[ClassEntry, ...]:
        """Class table of the layer that `labels` came from."""
        layer = (
            None if labels is None else next((each for each in self._viewer.layers if each.name == labels.name), None)
        )
        return () if layer is None else _layers.classes_of(layer)


def registered_layers(
    moving: Any, fixed: str, values: dict[str, Any], classes: tuple[ClassEntry, ...]
) -> list[_layers.LayerData]:
    """Warped scan, Jacobian (hidden at first), bent grid and warped labels, all on the fixed scan's grid.

    Args:
        moving: layer that was moved; gives its colours' limits.
        fixed: name of the scan that it was moved onto.
        values: what the model process answered.
        classes: table of the labels, if there are any.
    """
    title = f"{moving.name} onto {fixed}"
    warped: Volume = values["warped"]
    limits = tuple(float(limit) for limit in moving.contrast_limits)
    from napari.utils.colormaps import Colormap

    made = [
        _layers.picture_layer(
            warped.array, warped.geometry, f"{title} · warped", limits=(limits[0], limits[1]), derived=True
        ),
        _layers.picture_layer(
            values["jacobian"].array,
            warped.geometry,
            f"{title} · Jacobian",
            role="heatmap",
            limits=(0.0, 2.0),
            derived=True,
        ),
        _layers.picture_layer(
            values["grid"].array, warped.geometry, f"{title} · grid", role="mask", limits=(0.0, 1.0), derived=True
        ),
    ]
    made[1][1]["visible"] = False
    made[1][1]["colormap"] = "PiYG"
    made[2][1].update(blending="translucent", opacity=0.8, colormap=Colormap(CLEAR_TO_CYAN, name="lines"))
    if values["labels"] is not None:
        labels: Volume = values["labels"]
        made.append(_layers.labels_layer(labels.array, labels.geometry, f"{title} · labels", classes, derived=True))
    return made
