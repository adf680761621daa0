"""Notices when the voxels of a scan change after something was computed of them."""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QObject, Signal

from napari_med3dssl import _work


class ScanWatch(QObject):
    """Tells of scans whose voxels are not those any more that were looked at.

    New data of a layer is told by napari at once. Voxels that were changed in place are found by their hash, which
    takes a quarter of a second for a CT and is therefore computed in a thread, when `check` asks for it.
    """

    changed = Signal(object)
    """The layer; told once, until it is watched again."""

    def __init__(self, owner: QObject) -> None:
        super().__init__(owner)
        self._seen: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def watch(self, layer: Any, fingerprint: str) -> None:
        """Tell when the voxels of a layer are not those of a `fingerprint_of` any more."""
        if layer not in self._seen:
            layer.events.data.connect(self._on_data)
        self._seen[layer] = fingerprint

    def forget(self) -> None:
        """Watch nothing."""
        for layer in list(self._seen):
            self._leave(layer)

    def check(self, layer: Any) -> None:
        """Look whether the voxels of a watched layer are the same still."""
        if layer in self._seen:
            data = np.asarray(layer.data)
            _work.start(self, lambda: fingerprint_of(data), done=lambda found: self._compare(layer, found))

    def _on_data(self, event: Any) -> None:
        if event.source in self._seen:
            self._tell(event.source)

    def _compare(self, layer: Any, found: str) -> None:
        if self._seen.get(layer, found) != found:
            self._tell(layer)

    def _tell(self, layer: Any) -> None:
        self._leave(layer)
        self.changed.emit(layer)

    def _leave(self, layer: Any) -> None:
        layer.events.data.disconnect(self._on_data)
        del self._seen[layer]


def fingerprint_of(array: npt.NDArray[Any]) -> str:
    """Hash of the voxels of a scan, with their type and shape."""
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
