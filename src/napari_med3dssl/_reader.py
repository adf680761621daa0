"""Opens scans in napari: every format of `training_backend.data.read`, as layers in the patient's geometry."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.errors import Med3dError

if TYPE_CHECKING:
    from napari_med3dssl._layers import LayerData
    from training_backend.data.dicom import Series
    from training_backend.data.volume import Volume

log = logging.getLogger(__name__)

NOTHING: list[tuple[None]] = [(None,)]
"""What a reader answers that has taken care of a file but has no layer for it."""

Reader = Callable[[Any], "list[LayerData] | list[tuple[None]]"]


def get_reader(path: str | Path | Sequence[str | Path]) -> Reader | None:
    """The reader of these paths, or None where one of them is nothing for this plugin. Reads first bytes only."""
    from training_backend.data.read import can_read

    return read if all(can_read(each) for each in _paths(path)) else None


def read(path: str | Path | Sequence[str | Path]) -> list[LayerData] | list[tuple[None]]:
    """Layers of all paths; what cannot be read is told in a notification, one sentence per file."""
    return [layer for each in _paths(path) for layer in read_or_tell(each)] or NOTHING


def read_or_tell(path: Path) -> list[LayerData]:
    """Layers of one file or DICOM folder; none after a notification that says why it cannot be read."""
    try:
        return read_layers(path)
    except Med3dError as error:
        log.info("not opened: %s", path, exc_info=error)
        _tell(str(error), error=True)
        return []


def read_layers(path: Path) -> list[LayerData]:
    """Layers of one file or DICOM folder: one per contrast; warnings of the reader are shown once.

    Raises:
        Med3dError: the file cannot be read.
    """
    from napari_med3dssl._layers import layers_of_volumes

    volumes = _volumes(path)
    for sentence in dict.fromkeys(sentence for volume in volumes for sentence in volume.warnings):
        _tell(f"{path.name}: {sentence}")
    return layers_of_volumes(volumes)


def _volumes(path: Path) -> list[Volume]:
    from training_backend.data.read import read_volumes

    chosen = _chosen_series(path)
    if not chosen:
        return read_volumes(path)
    return [volume for series in chosen for volume in read_volumes(path, series=series.id)]


def _chosen_series(path: Path) -> list[Series]:
    """Series to read of a DICOM folder with several; empty where there is nothing to choose."""
    if not path.is_dir():
        return []
    from training_backend.data.dicom import list_series

    found = [series for series in list_series(path) if not series.problem]
    if len(found) < 2:
        return []
    return _ask(path, found)


def _ask(path: Path, found: list[Series]) -> list[Series]:
    """Let the user choose; without a window all series are read."""
    from qtpy.QtWidgets import QApplication, QInputDialog

    window = QApplication.activeWindow() if QApplication.instance() is not None else None
    if window is None:
        return found
    everything = f"All {len(found)} series"
    names = [*map(str, found), everything]
    text = f"{path.name} holds {len(found)} DICOM series. Which one shall be opened?"
    name, agreed = QInputDialog.getItem(window, "DICOM series", text, names, 0, False)
    if not agreed:
        raise Med3dError(f"{path.name} was not opened: no series was chosen.")
    return found if name == everything else [found[names.index(name)]]


def _paths(path: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(path)] if isinstance(path, str | Path) else [Path(each) for each in path]


def _tell(sentence: str, *, error: bool = False) -> None:
    from napari.utils.notifications import show_error, show_warning

    (show_error if error else show_warning)(sentence)
