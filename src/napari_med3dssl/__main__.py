"""``napari-med3dssl [FILE...]``: the viewer with the workbench docked, and files opened in it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_med3dssl.workbench import Workbench

SETTLE_S = 3.0
"""Seconds that panels get to read runs and datasets before a screenshot."""


def main(argv: Sequence[str] | None = None) -> int:
    """Open the viewer; returns the exit status."""
    parser = argparse.ArgumentParser("napari-med3dssl", description="napari with the Med3D SSL workbench.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="scans, label maps or DICOM folders")
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="dataset to begin with; the last one otherwise")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="write pictures of the window and close it")
    arguments = parser.parse_args(argv)
    import napari

    viewer = napari.Viewer(title="napari · Med3D SSL")
    workbench = dock_workbench(viewer)
    if arguments.dataset is not None:
        workbench.state.dataset = arguments.dataset.resolve()
    failed = open_files(viewer, arguments.files)
    if arguments.screenshots is not None:
        take_screenshots(viewer, workbench, arguments.screenshots)
        viewer.close()
        return 1 if failed else 0
    napari.run()
    return 0


def dock_workbench(viewer: Any) -> Workbench:
    """The workbench in a dock at the right, where napari would put it."""
    from napari_med3dssl.workbench import Workbench

    workbench = Workbench(viewer)
    viewer.window.add_dock_widget(workbench, name="Workbench", area="right", allowed_areas=["left", "right"])
    return workbench


def open_files(viewer: Any, paths: Sequence[Path]) -> list[Path]:
    """Open scans and label maps as layers; answers those that could not be opened, each of which is told."""
    from napari_med3dssl import _layers, _reader
    from napari_med3dssl.results import centre_slices

    failed, added = [], []
    for path in paths:
        layers = _reader.read_or_tell(path)
        added += [_layers.add(viewer, layer) for layer in layers]
        if not layers:
            failed.append(path)
    if added:
        viewer.reset_view()
        centre_slices(viewer, added)
    return failed


def take_screenshots(viewer: Any, workbench: Workbench, folder: Path) -> list[Path]:
    """Pictures of the whole window at 1280 x 800, one per tab of the workbench."""
    folder.mkdir(parents=True, exist_ok=True)
    viewer.window.resize(1280, 800)
    written: list[Path] = []
    for name in workbench.panels:
        workbench.show_tab(name)
        settle(SETTLE_S if not written else 1.0)
        written.append(folder / f"{name.lower()}.png")
        viewer.window.screenshot(str(written[-1]), canvas_only=False, flash=False)
    return written


def settle(seconds: float) -> None:
    """Let the window do its work for a while."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
