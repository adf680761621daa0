"""Views that were kept, and the way from one to the next: point, camera, and how every layer looked.

The way between them is that of napari-animation, which is asked for when the first view is kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np

from training_backend.errors import ConfigError, Med3dError

NEEDS_ANIMATION = "Views are kept by the package napari-animation."
HOW_TO_ANIMATION = "Install it with: pip install 'napari-med3dssl[animation]', and start the viewer anew."
FEWEST = 2


class KeptViews:
    """Views of one viewer, in the order in which they were kept."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._states: list[Any] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._states)

    def keep(self) -> None:
        """Remember what is seen now.

        Raises:
            ConfigError: napari-animation is not installed.
        """
        self._states.append(state_of_view(self._viewer))

    def forget(self) -> None:
        """Begin anew."""
        self._states = []

    def way(self, count: int) -> Iterator[int]:
        """Show `count` views from the first kept view to the last, one at each step.

        Raises:
            Med3dError: there are too few views, or a layer of theirs was closed.
        """
        if len(self) < FEWEST:
            raise Med3dError("A film between views needs two of them.", "Press Keep view at each.")
        from napari_animation.frame_sequence import FrameSequence
        from napari_animation.key_frame import KeyFrame, KeyFrameList

        names = {name for state in self._states for name in state.layers}
        gone = sorted(names - {layer.name for layer in self._viewer.layers})
        if gone:
            raise Med3dError(f"The kept views show {gone[0]!r}, which was closed.", "Press Forget, and keep them anew.")
        frames = KeyFrameList()
        between = len(self) - 1
        for number, state in enumerate(self._states):
            steps = max(1, (count - 1) * number // between - (count - 1) * (number - 1) // between) if number else 1
            frames.append(KeyFrame(state, np.zeros((1, 1, 4), np.uint8), steps))
        sequence = FrameSequence(frames)
        for number in range(len(sequence)):
            sequence.set_movie_frame_index(self._viewer, number)
            yield number


def state_of_view(viewer: Any) -> Any:
    """Point, camera and looks of all layers, whose ``apply(viewer)`` shows them again.

    Raises:
        ConfigError: napari-animation is not installed.
    """
    if importlib.util.find_spec("napari_animation") is None:
        raise ConfigError(NEEDS_ANIMATION, HOW_TO_ANIMATION)
    from napari_animation.viewer_state import ViewerState

    return ViewerState.from_viewer(viewer)
