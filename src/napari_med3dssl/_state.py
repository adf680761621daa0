"""What the panels of one viewer share: the dataset in use, the model in use, the model process, and what to show.

One state per viewer, found from the viewer; panels docked apart and the workbench follow the same one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from psygnal import Signal, SignalInstance

from napari_med3dssl import _compat
from napari_med3dssl._settings import Settings, preference

if TYPE_CHECKING:
    from qtpy.QtCore import QObject

    from training_backend.jobs.client import ServeClient


class State:
    """Shared by all panels of one viewer; made by `state_of`, never directly.

    Signals:
        dataset_changed: folder of the dataset in use, or None.
        model_changed: run folder or weights source in use by Explore and Predict, as text.
        runs_changed: a run was made, started or deleted; panels look at the disk again.
        message: a sentence for the footer.
        tab_wanted: name of the tab to show, and what it shall show (a run folder) or None.
    """

    dataset_changed = Signal(object)
    model_changed = Signal(str)
    runs_changed = Signal()
    message = Signal(str)
    tab_wanted = Signal(str, object)

    def __init__(self, viewer: Any) -> None:
        self._viewer = ref(viewer)
        self.settings = Settings()
        remembered = self.settings.get("dataset")
        self._dataset = Path(remembered) if remembered and Path(remembered, "dataset.json").is_file() else None
        self._model = ""
        self._client: ServeClient | None = None

    @property
    def viewer(self) -> Any:
        """The viewer, without napari's proxy around it."""
        viewer = self._viewer()
        if viewer is None:
            raise RuntimeError("The viewer of this panel is closed.")
        return viewer

    @property
    def dataset(self) -> Path | None:
        """Folder of the dataset in use."""
        return self._dataset

    @dataset.setter
    def dataset(self, folder: Path | None) -> None:
        if folder == self._dataset:
            return
        self._dataset = folder
        self.settings.set("dataset", str(folder) if folder else None)
        if folder is not None:
            self.settings.recent("datasets", str(folder))
        self.dataset_changed.emit(folder)

    @property
    def model(self) -> str:
        """Run folder, weights file or ``zoo:NAME`` that Explore and Predict use; empty when none is chosen."""
        return self._model

    @model.setter
    def model(self, source: str) -> None:
        if source != self._model:
            self._model = source
            self.model_changed.emit(source)

    @property
    def client(self) -> ServeClient:
        """The warm model process of this viewer, started at its first request; never imports torch here."""
        if self._client is None:
            from training_backend.jobs.client import ServeClient

            device = str(preference("model.device", "auto"))
            self._client = ServeClient(device, idle_s=60.0 * float(preference("model.idle_minutes", 5.0)))
        return self._client

    def close(self) -> None:
        """End the model process, which frees its memory."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def follow(self, owner: QObject, signal: SignalInstance, slot: Callable[..., Any]) -> None:
        """Connect a signal of this state to `slot` for as long as the widget `owner` exists."""
        signal.connect(slot)
        owner.destroyed.connect(lambda: signal.disconnect(slot, missing_ok=True))


_states: WeakKeyDictionary[Any, State] = WeakKeyDictionary()


def state_of(viewer: Any) -> State:
    """The state of `viewer`, made at the first call."""
    viewer = _compat.unwrapped(viewer)
    if viewer not in _states:
        _states[viewer] = State(viewer)
    return _states[viewer]


def dataset_name(folder: Path) -> str:
    """Name of a dataset and of its folder, for lists."""
    try:
        name = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError):
        return folder.name
    return f"{name} ({folder.name})"
