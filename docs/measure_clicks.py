"""Measures clicks and strokes in a real window, from the mouse to the painted canvas; see docs/benchmarks.

xvfb-run -a -s "-screen 0 1280x800x24 +extension GLX" python docs/measure_clicks.py --home FOLDER

``--home`` keeps the untrained models and their features, so that a second call takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from make_screenshots import Photographer

    from training_backend.data.volume import Volume

TICK_MS = 5
"""Between looks at the clock that tell how long the window did not answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="folder for models and features; a temporary one when missing")
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--strokes", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = (arguments.home or Path(temporary)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        os.environ |= {"MED3DSSL_CACHE": str(home / "cache"), "NAPARI_CONFIG": str(home / "napari.yaml")}
        os.environ["MED3DSSL_RUNS"] = str(Path(temporary) / "runs")
        sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "src")]
        from make_screenshots import Photographer

        from training_backend.bench._explore import generated_scan, load, untrained

        photographer = Photographer(home)
        scan, labels = generated_scan((256, 256, 256))
        told: dict[str, Any] = {"load": load()}
        told["click"] = clicks(photographer, scan, untrained(home, "wide"), arguments.clicks)
        told["stroke"] = strokes(photographer, scan, labels, untrained(home, "vit"), arguments.strokes)
        print(json.dumps({**told, "load after": load()}, indent=1))


def clicks(photographer: Photographer, scan: Volume, source: str, count: int) -> dict[str, float]:
    """From the press of the mouse to the canvas with the heat map, and the longest time without an answer."""
    with photographer.viewer():
        panel, canvas = _ready(photographer, scan, source)
        panel.compute_button.click()
        photographer.wait(lambda: panel.features is not None, 900)
        panel.similarity.pick_button.click()
        drawn = _Drawn(photographer)
        took = []
        for step in range(count + 1):
            place = _place(canvas, 0.35 + 0.3 * step / count, 0.5)
            took.append(drawn.after(lambda place=place: _press(canvas, [place]), lambda: panel.similarity._values))
        return drawn.told(took[1:])  # the first makes the layer


def strokes(photographer: Photographer, scan: Volume, labels: Volume, source: str, count: int) -> dict[str, float]:
    """From the end of a stroke to the canvas with the filled region, the rest of the brush included."""
    with photographer.viewer():
        panel, canvas = _ready(photographer, scan, source)
        section = panel.strokes
        section.paint_button.click()
        photographer.wait(lambda: not panel.busy and section.fill_button.isEnabled(), 900)
        layer = section._painted
        layer.brush_size = 6
        drawn = _Drawn(photographer)
        took = []
        for step in range(count + 2):
            layer.selected_label = 1 + step % 2
            height = 0.4 + 0.2 * step / (count + 2) + 0.1 * (step % 2)
            line = [_place(canvas, 0.4 + 0.02 * k, height) for k in range(6)]
            if not step:
                _press(canvas, line)
                photographer.wait(lambda: "second class" in section.told.text())
                continue
            took.append(drawn.after(lambda line=line: _press(canvas, line), lambda: _data(section._maps["filled"])))
        return drawn.told(took[1:])


class _Drawn:
    """Tells when something changed and was painted, and how long the window did not answer meanwhile."""

    def __init__(self, photographer: Photographer) -> None:
        from qtpy.QtCore import QTimer
        from qtpy.QtWidgets import QApplication

        self._photographer, self._app = photographer, QApplication.instance()
        self._last = time.perf_counter()
        self.stalls: list[float] = []
        self._stall = 0.0
        self._timer = QTimer()
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._tick)
        self._timer.start()

    def after(self, action: Callable[[], None], look: Callable[[], Any]) -> float:
        """Seconds from `action` until `look` answers something else and the canvas was painted with it."""
        self._photographer.settle(0.3)
        before = look()
        self._last, self._stall = time.perf_counter(), 0.0
        begun = time.perf_counter()
        action()
        while look() is before and time.perf_counter() - begun < 30:
            self._app.processEvents()
            self._tick()
            time.sleep(0.001)
        canvas_widget(self._photographer).update()
        self._app.processEvents()
        took = time.perf_counter() - begun
        self._tick()
        self.stalls.append(self._stall)
        return took

    def told(self, took: list[float]) -> dict[str, float]:
        """Medians and largest, in milliseconds."""
        stalls = self.stalls[1:]
        return {
            "calls": len(took),
            "median ms": round(1000 * statistics.median(took), 1),
            "max ms": round(1000 * max(took), 1),
            "longest stall, median ms": round(1000 * statistics.median(stalls), 1),
            "longest stall, max ms": round(1000 * max(stalls), 1),
        }

    def _tick(self) -> None:
        now = time.perf_counter()
        self._stall = max(self._stall, now - self._last)
        self._last = now


def _ready(photographer: Photographer, scan: Volume, source: str) -> tuple[Any, Any]:
    from napari_med3dssl._layers import add, volume_layer

    panel = photographer.panels["Explore"]
    photographer.bench.show_tab("Explore")
    add(photographer.napari, volume_layer(scan))
    photographer.bench.state.model = source
    photographer.napari.reset_view()
    photographer.napari.dims.set_point(range(3), [(r.start + r.stop) / 2 for r in photographer.napari.dims.range])
    photographer.wait(lambda: panel.scan is not None and panel.compute_button.isEnabled())
    photographer.settle(1)
    return panel, canvas_widget(photographer)


def _data(layer: Any) -> Any:
    return None if layer is None else layer.data


def canvas_widget(photographer: Photographer) -> Any:
    """The widget that napari draws in."""
    return photographer.napari.window._qt_viewer.canvas.native


def _place(canvas: Any, x: float, y: float) -> Any:
    from qtpy.QtCore import QPoint

    return QPoint(round(canvas.width() * x), round(canvas.height() * y))


def _press(canvas: Any, places: list[Any]) -> None:
    """Press the left button at the first place, move to the others, let go."""
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    QTest.mousePress(canvas, Qt.MouseButton.LeftButton, pos=places[0])
    for place in places[1:]:
        QTest.mouseMove(canvas, place)
    QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=places[-1])


if __name__ == "__main__":
    main()
