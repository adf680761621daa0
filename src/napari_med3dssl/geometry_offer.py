"""What the workbench says about geometry: scans rotated against each other, with the offer to resample."""

from __future__ import annotations

from typing import Any

from napari_med3dssl import _layers, _work
from napari_med3dssl._canvas import parallel
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Notice
from training_backend.errors import Med3dError


class GeometryOffer(Notice):
    """Appears when a scan is opened whose axes are rotated against those of the first one.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state
        self._declined: set[str] = set()
        events = state.viewer.layers.events
        for event in (events.inserted, events.removed):
            event.connect(self.look)
        self.destroyed.connect(lambda: [event.disconnect(self.look) for event in (events.inserted, events.removed)])
        self.look()

    def look(self, event: Any = None) -> None:
        """Offer to resample the first scan that is not parallel to the bottom one."""
        pair = self.rotated_pair()
        if pair is None:
            self.clear()
            return
        first, other = pair
        text = (
            f"{other.name} is rotated against {first.name}, so they do not overlay truly. "
            f"A copy of it resampled onto the grid of {first.name} does."
        )
        self.say("warning", text, [("Resample", self.resample), ("Leave as it is", self.decline)])

    def rotated_pair(self) -> tuple[Any, Any] | None:
        """The bottom scan and the first scan above it with other axes, unless that was declined or done."""
        scans = [layer for layer in self._state.viewer.layers if _is_scan(layer)]
        names = {layer.name for layer in scans}
        for other in scans[1:]:
            done = f"{other.name} · resampled" in names or str(other.unique_id) in self._declined
            try:
                if not done and not parallel(scans[0], other):
                    return scans[0], other
            except Med3dError:
                continue
        return None

    def resample(self) -> None:
        """Add a copy of the rotated scan on the grid of the bottom one, and hide the original."""
        pair = self.rotated_pair()
        if pair is None:
            return
        from training_backend.data.resample import resample_like

        first, other = pair
        volume, reference = _layers.volume_of(other), _layers.volume_of(first)
        self.say("busy", f"Resampling {other.name}…")

        def show(resampled: Any) -> None:
            _layers.add(self._state.viewer, _layers.volume_layer(resampled, name=f"{other.name} · resampled"))
            other.visible = False
            self.look()

        _work.start(self, resample_like, volume, reference, done=show, failed=lambda text: self.say("error", text))

    def decline(self) -> None:
        """Do not offer this again."""
        pair = self.rotated_pair()
        if pair is not None:
            self._declined.add(str(pair[1].unique_id))
        self.look()


def _is_scan(layer: Any) -> bool:
    facts = _layers.facts_of(layer) or {}
    return facts.get("role") == "image" and not facts.get("derived")
