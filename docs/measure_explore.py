"""Measures what Explore draws by itself, for docs/benchmarks/explore.md: the cohort's map and the three planes.

xvfb-run -a -s "-screen 0 1280x800x24 +extension GLX" python docs/measure_explore.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "src")]
ROUNDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--shape", type=int, nargs=3, default=(400, 512, 512))
    arguments = parser.parse_args()
    from qtpy.QtWidgets import QApplication

    app = QApplication([])
    measured = {**cohort(app, arguments.points), **planes(app, tuple(arguments.shape))}
    print(json.dumps({name: round(value, 2) for name, value in measured.items()}, indent=1))


def cohort(app: object, count: int) -> dict[str, float]:
    """Frames per second while a map is dragged, and milliseconds to hover and to choose by a lasso of 96 corners."""
    from napari_med3dssl.forgetting_plot import INKS
    from napari_med3dssl.point_cloud import PointPlot, within

    generator = np.random.default_rng(0)
    places = generator.normal(size=(count, 2)).astype(np.float32)
    plot = PointPlot("measured")
    plot.widget.resize(700, 440)
    plot.widget.show()
    inks = [(dark, symbol) for dark, _, symbol in INKS]
    chosen = generator.random(count) < 0.1
    plot.cloud.show_points(places, generator.integers(0, len(inks), count), inks, chosen)
    plot.widget.autoRange()
    app.processEvents()
    box, took = plot.widget.getViewBox(), []
    for step in range(ROUNDS):
        begun = time.perf_counter()
        box.translateBy(x=0.02 * (-1) ** step)
        app.processEvents()  # paints
        took.append(time.perf_counter() - begun)
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    lasso = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    begun = time.perf_counter()
    for _ in range(10):
        within(places, lasso)
    lasso_ms = 100 * (time.perf_counter() - begun)
    begun = time.perf_counter()
    for _ in range(10):
        plot.cloud.nearest(plot.widget.mapToScene(100, 100))
    hover_ms = 100 * (time.perf_counter() - begun)
    plot.widget.close()
    return {
        "frames per second": 1 / float(np.median(took)),
        "slowest frame ms": 1000 * max(took),
        "lasso ms": lasso_ms,
        "hover ms": hover_ms,
    }


def planes(app: object, shape: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds to draw the three planes of a scan with a label map, anew at each place."""
    from napari.components import ViewerModel

    from napari_med3dssl._layers import add, labels_layer, volume_layer
    from napari_med3dssl.three_planes import ThreePlanes
    from training_backend.data.manifest import ClassEntry
    from training_backend.data.volume import Geometry, Volume

    array = np.random.default_rng(0).integers(-1000, 1000, shape, dtype=np.int16)
    geometry = Geometry.from_spacing(shape, (1.0, 0.8, 0.8), (0.0, 0.0, 0.0))
    viewer = ViewerModel()
    layer = add(viewer, volume_layer(Volume(array, geometry, "CT", "scan")))
    classes = (ClassEntry(index=1, name="dense", colour="#e69f00"),)
    add(viewer, labels_layer((array > 500).astype(np.uint8), geometry, "mask", classes))
    shown = ThreePlanes(viewer)
    shown.resize(1260, 300)
    shown.show()
    app.processEvents()
    took = []
    worked = time.process_time()
    for step in range(ROUNDS):
        voxel = [int((step + 1) * n / (ROUNDS + 2)) for n in shape]
        viewer.dims.set_point(range(3), layer.data_to_world(voxel))
        begun = time.perf_counter()
        shown.draw()
        for pane in shown.panes.values():
            pane.viewport().repaint()
        took.append(time.perf_counter() - begun)
    worked_ms = 1000 * (time.process_time() - worked) / ROUNDS
    shown.close()
    return {
        "three planes processor ms": worked_ms,
        "three planes ms": 1000 * float(np.median(took)),
        "three planes slowest ms": 1000 * max(took),
    }


if __name__ == "__main__":
    main()
