"""Pictures of similarity, its visits and its 3D picking, of attention from a voxel, and of VoCo's arrows::

    xvfb-run -a -s "-screen 0 1280x800x24 +extension GLX" python docs/screenshots_similarity.py \\
        --scan CT.nii.gz --labels ORGANS.nii.gz --model RUN --voco RUN --visits FIRST SECOND

The canvas is clicked like by a hand. Scans of the two visits become a dataset of one patient.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screenshot_home import screenshot_home

if TYPE_CHECKING:
    from make_screenshots import Photographer

log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="label map of the scan")
    parser.add_argument("--model", type=Path, required=True, help="run of a transformer")
    parser.add_argument("--voco", type=Path, help="run of VoCo")
    parser.add_argument("--visits", type=Path, nargs=2, help="scans of one patient")
    arguments = parser.parse_args()
    with screenshot_home(None) as home:
        from make_screenshots import Photographer

        photographer = Photographer(arguments.output)
        photograph_scan(photographer, arguments)
        if arguments.visits:
            photograph_visits(photographer, arguments.model, dataset_of(Path(home), arguments.visits))
        if arguments.voco:
            photographer.views(arguments.voco, arguments.scan, ["position-map"])


def photograph_scan(photographer: Photographer, arguments: argparse.Namespace) -> None:
    """Seeds and a label on a slice, a click in 3D, and the attention of a patch."""
    from qtpy.QtCore import Qt

    with photographer.viewer():
        viewer, panel = photographer.napari, photographer.panels["Explore"]
        photographer.bench.show_tab("Explore")
        open_file(viewer, arguments.scan, "scan")
        panel.state.model = str(arguments.model)
        photographer.centre()
        panel.compute_button.click()
        photographer.wait(lambda: not panel.busy, 900)
        log.info("%s %s", panel.notice.text, panel.estimate.text())
        section = panel.similarity
        section.pick_button.click()
        depth, height, width = panel.scan.data.shape
        click(photographer, (depth // 2, int(height * 0.45), int(width * 0.35)))
        click(photographer, (depth // 2, int(height * 0.45), int(width * 0.65)), Qt.KeyboardModifier.ShiftModifier)
        click(photographer, (depth // 2, int(height * 0.75), int(width * 0.5)), Qt.KeyboardModifier.ControlModifier)
        section.threshold.setValue(75)
        section.labels_button.click()
        photographer.settle(1)
        photographer.photograph("Explore", "similarity")
        section.clear_button.click()
        viewer.layers.remove(viewer.layers["scan · similar"])
        if arguments.labels:
            open_file(viewer, arguments.labels, "organs")
        panel.scan.contrast_limits = (100, 600)
        viewer.dims.ndisplay = 3
        viewer.reset_view()
        viewer.camera.angles = (0, 20, 80)
        photographer.settle(2)
        section.pick_button.setChecked(True)
        section._toggled()
        canvas = viewer.window._qt_viewer.canvas.native
        press(photographer, canvas.width() // 2, canvas.height() // 2)
        log.info("in 3D: %s", section._pick.seeds)
        photographer.settle(2)
        photographer.photograph("Explore", "similarity-3d")
        section.clear_button.click()
        viewer.dims.ndisplay = 2
        panel.scan.contrast_limits = (-200, 300)
        for layer in viewer.layers:
            layer.visible = layer is panel.scan
        photographer.centre()
        photographer.show_view("token-attention")


def photograph_visits(photographer: Photographer, model: Path, dataset: Path) -> None:
    """A place of the first visit in the second."""
    from napari_med3dssl.data_panel import layers_of_case
    from napari_med3dssl.results import replace_layers
    from training_backend.data.dataset import Dataset

    with photographer.viewer():
        viewer, panel = photographer.napari, photographer.panels["Explore"]
        photographer.bench.show_tab("Explore")
        opened = Dataset.open(dataset)
        root = dataset / opened.info.root
        replace_layers(viewer, layers_of_case(opened.case("sub-01_ses-1"), root, ()))
        panel.state.dataset, panel.state.model = dataset, str(model)
        photographer.centre()
        panel.compute_button.click()
        photographer.wait(lambda: not panel.busy, 900)
        section = panel.similarity
        section.pick_button.click()
        depth, height, width = panel.scan.data.shape
        click(photographer, (depth // 2, int(height * 0.45), int(width * 0.4)))
        section.after_button.click()
        photographer.wait(lambda: section.match_text.isVisibleTo(panel) and not panel.busy, 900)
        section.match_button.click()
        photographer.settle(1)
        log.info("%s %s %s", section.match_text.text(), panel.notice.text, panel.warning.text)
        photographer.photograph("Explore", "next-visit")
        section.after_button.click()
        photographer.wait(lambda: "last visit" in panel.notice.text, 60)
        log.info(panel.notice.text)


def open_file(viewer: Any, path: Path, name: str) -> None:
    from napari_med3dssl._layers import add
    from napari_med3dssl._reader import read

    for data, options, kind in read(path):
        add(viewer, (data, {**options, "name": name}, kind))


def dataset_of(home: Path, visits: list[Path]) -> Path:
    """A dataset of one patient."""
    from training_backend.config import IngestConfig
    from training_backend.data.ingest import ingest
    from training_backend.data.read import read_volume
    from training_backend.data.write import write_volume

    root = home / "bids"
    for number, path in enumerate(visits, 1):
        folder = root / "sub-01" / f"ses-{number}" / "anat"
        folder.mkdir(parents=True)
        target = folder / f"sub-01_ses-{number}_T1w.nii.gz"
        if path.name.endswith(".nii.gz"):
            shutil.copy(path, target)
        else:
            write_volume(read_volume(path), target)
    (root / "dataset_description.json").write_text('{"Name": "visits", "BIDSVersion": "1.8.0"}')
    ingest(root, home / "visits", IngestConfig(workers=0, splits=(1.0, 0.0, 0.0)), name="visits")
    return home / "visits"


def click(photographer: Photographer, voxel: tuple[int, int, int], modifier: Any = None) -> None:
    """Click where a voxel of the scan is on the canvas."""
    viewer = photographer.napari
    layer, canvas = photographer.panels["Explore"].scan, viewer.window._qt_viewer.canvas
    world = layer.data_to_world(voxel)
    zoom, centre = viewer.camera.zoom, viewer.camera.center
    y, x = (canvas.size[k] / 2 + (world[k + 1] - centre[k + 1]) * zoom for k in (0, 1))
    press(photographer, int(x), int(y), modifier)


def press(photographer: Photographer, x: int, y: int, modifier: Any = None) -> None:
    from qtpy.QtCore import QPoint, Qt
    from qtpy.QtTest import QTest

    canvas = photographer.napari.window._qt_viewer.canvas.native
    QTest.mouseMove(canvas, QPoint(x, y))
    photographer.settle(0.2)
    QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, modifier or Qt.KeyboardModifier.NoModifier, QPoint(x, y))
    photographer.settle(0.5)


if __name__ == "__main__":
    main()
