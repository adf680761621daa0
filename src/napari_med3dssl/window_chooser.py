"""Named display windows of the selected scan: lung, mediastinum, bone, brain, liver for CT, percentiles otherwise."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QHBoxLayout, QLabel, QWidget

from napari_med3dssl import _layers
from napari_med3dssl._scans import is_scan
from napari_med3dssl._state import State
from napari_med3dssl._widgets import combo
from training_backend.errors import Med3dError


class WindowChooser(QWidget):
    """A drop-down list that sets the contrast limits of the selected scan; hidden while none is selected.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state
        self.box = combo("Window of the selected scan")
        self.box.activated.connect(self._apply)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(QLabel("Window"))
        layout.addWidget(self.box, 1)
        event = state.viewer.layers.selection.events.active
        event.connect(self.look)
        self.destroyed.connect(lambda: event.disconnect(self.look))
        self.look()

    def look(self, event: Any = None) -> None:
        """Offer the windows of the selected scan."""
        from training_backend.data.windows import windows

        layer = self._scan()
        self.box.clear()
        self.setVisible(layer is not None)
        if layer is None:
            return
        self.box.addItem("choose…", None)
        try:
            offered = windows(_layers.volume_of(layer))
        except Med3dError:
            offered = []
        for window in offered:
            self.box.addItem(f"{window.name}: {window.low:.4g} to {window.high:.4g}", (window.low, window.high))

    def _apply(self, index: int) -> None:
        layer, limits = self._scan(), self.box.itemData(index)
        if layer is not None and limits is not None:
            layer.contrast_limits = limits

    def _scan(self) -> Any | None:
        layer = self._state.viewer.layers.selection.active
        return layer if is_scan(layer) else None
