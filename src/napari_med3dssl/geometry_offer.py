"""What the workbench says about geometry: scans rotated against each other, with the offer to resample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from napari_med3dssl import _layers, _work
from napari_med3dssl._canvas import parallel
from napari_med3dssl._scans import is_scan
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Notice
from training_backend.errors import Med3dError

if TYPE_CHECKING:
    from training_backend.data.volume import Volume


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
            f"{other.name} is rotated against {first.name}, so they do not overlay truly. A copy of it resampled onto "
            f"the grid of {first.name} does; if the patient moved between them, align the copy as well."
        )
        choices = [("Resample", self.resample), ("Align too", self.align), ("Leave as it is", self.decline)]
        self.say("warning", text, choices)

    def rotated_pair(self) -> tuple[Any, Any] | None:
        """The bottom scan and the first scan above it with other axes, unless that was declined or done."""
        scans = [layer for layer in self._state.viewer.layers if is_scan(layer)]
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
        self._add_copy(_resampled, "Resampling")

    def align(self) -> None:
        """Likewise, after a rigid alignment of the two by their mutual information."""
        self._add_copy(_aligned, "Aligning")

    def _add_copy(self, make: Callable[[Volume, Volume], Volume], verb: str) -> None:
        pair = self.rotated_pair()
        if pair is None:
            return
        first, other = pair
        volume, reference = _layers.volume_of(other), _layers.volume_of(first)
        self.say("busy", f"{verb} {other.name}…")

        def show(resampled: Any) -> None:
            _layers.add(self._state.viewer, _layers.volume_layer(resampled, name=f"{other.name} · resampled"))
            other.visible = False
            self.look()

        _work.start(self, make, volume, reference, done=show, failed=lambda text: self.say("error", text))

    def decline(self) -> None:
        """Do not offer this again."""
        pair = self.rotated_pair()
        if pair is not None:
            self._declined.add(str(pair[1].unique_id))
        self.look()


def _resampled(volume: Volume, reference: Volume) -> Volume:
    from training_backend.data.resample import resample_like

    return resample_like(volume, reference)


def _aligned(volume: Volume, reference: Volume) -> Volume:
    from training_backend.data.align import align

    return _resampled(align(volume, reference), reference)
