"""Measures how long the window stands still in each thing that Explore does, for docs/benchmarks/explore.md.

xvfb-run -a -s "-screen 0 1280x800x24 +extension GLX" python docs/measure_stalls.py

Everything runs in a real window with a model process, on a generated thorax and an untrained masked autoencoder. Each
thing is done twice: OpenGL compiles at the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "src")]
IDLE_S = 0.3
POINTS = 2_000
"""Cases in the cohort's map."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 192, 192))
    parser.add_argument("--only", nargs="*", choices=THINGS, default=THINGS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        os.environ |= {"MED3DSSL_CACHE": str(home / "cache"), "MED3DSSL_RUNS": str(home / "runs")}
        os.environ |= {"NAPARI_CONFIG": str(home / "napari.yaml"), "PYTHONPATH": os.pathsep.join(sys.path[:2])}
        session = Session(home, tuple(arguments.shape))
        try:
            for name in arguments.only:
                getattr(session, name)()
        finally:
            session.close()
        print(json.dumps({"load": os.getloadavg(), "things": session.measured}, indent=1))


THINGS = ("clicks", "strokes", "masks", "beside", "label_maps", "planes", "cohort", "figures", "animations", "layers")


class Session:
    """A window with a scan, two label maps and a model, and what was measured in it."""

    def __init__(self, home: Path, shape: tuple[int, ...]) -> None:
        import napari

        from napari_med3dssl import _canvas
        from napari_med3dssl._layers import add, labels_layer, volume_layer
        from napari_med3dssl._state import state_of
        from napari_med3dssl.explore import ExplorePanel
        from tests.model_kit import untrained
        from training_backend.data.phantoms import thorax_ct

        self.home, self.measured = home, {}
        self.model = untrained(home / "model")
        self.phantom = thorax_ct(3, shape)
        self.viewer = napari.Viewer()
        self.viewer.window.resize(1280, 800)
        self.state = state_of(self.viewer)
        self.panel = ExplorePanel(self.state)
        self.viewer.window.add_dock_widget(self.panel, name="Explore", area="right")
        _canvas.attach(self.viewer)
        grid = self.phantom.volume.geometry
        for name, gain in (("scan", 1), ("contrast", 2)):
            array = (self.phantom.volume.array * np.float32(gain)).astype(np.float32)
            add(self.viewer, volume_layer(self.phantom.volume.with_array(array), name=name))
        moved = np.roll(self.phantom.labels.array, 2, axis=2)
        for name, array in (("truth", self.phantom.labels.array), ("prediction", moved)):
            add(self.viewer, labels_layer(array, grid, name, self.phantom.classes))
        self.viewer.layers["contrast"].visible = False
        self.viewer.reset_view()
        self.state.model = self.model
        self.settle(2)

    def settle(self, seconds: float) -> None:
        from qtpy.QtCore import QEventLoop, QTimer

        loop = QEventLoop()
        QTimer.singleShot(round(1000 * seconds), loop.quit)
        loop.exec()

    def measure(self, name: str, begin: Callable[[], object], ended: Callable[[], bool] = lambda: True) -> None:
        """Note the longest stall from `begin` until `ended` and the window is at rest."""
        from tests.plugin.stalls import Stalls

        self.settle(IDLE_S)
        stalls = Stalls()
        begun = time.perf_counter()
        self.settle(0.05)
        begin()
        while not ended():
            self.settle(0.01)
            if time.perf_counter() - begun > 300:
                raise SystemExit(f"{name}: waited in vain. {self.panel.notice.text}")
        took = time.perf_counter() - begun
        self.settle(IDLE_S)
        stalls.end()
        numbers = {"clock": stalls.clock, "unqueued": stalls.longest, "work": stalls.work, "took": 1000 * took}
        again = f"{name}, again" if name in self.measured else name
        self.measured[again] = {key: round(value) for key, value in numbers.items()}
        print(again, self.measured[again], file=sys.stderr, flush=True)

    def twice(self, name: str, begin: Callable[[], object], ended: Callable[[], bool] = lambda: True) -> None:
        for _ in range(2):
            self.measure(name, begin, ended)

    def at_rest(self) -> bool:
        """Whether neither the model process nor a thread works for the window."""
        from napari_med3dssl import _work

        return not self.panel.busy and not _work._running

    def clicks(self) -> None:
        """Features, then seeds for the heat map of similarity."""
        from tests.plugin.explore_kit import click

        self.panel.compute_button.click()
        self.measure("features computed", lambda: None, lambda: self.panel.features is not None and self.at_rest())
        similarity = self.panel.similarity
        similarity.pick_button.click()
        middle = tuple(n // 2 for n in self.phantom.volume.array.shape)
        for shift, modifiers in ((0, ()), (9, ()), (14, ("Shift",))):
            voxel = (middle[0], middle[1] + shift, middle[2] + shift)
            self.measure("seed clicked", lambda v=voxel, m=modifiers: click(self.panel, v, *m), self.at_rest)
        similarity.pick_button.click()
        self.hide("truth", "scan")

    def strokes(self) -> None:
        """Paint until the region follows."""
        section = self.panel.strokes
        section.fold(False)
        self.measure("strokes begun", section.paint_button.click, self.at_rest)
        layer = next(one for one in self.viewer.layers if one.name.endswith(" · painted"))
        layer.brush_size, layer.n_edit_dimensions = 4, 3
        inside = np.argwhere(self.phantom.labels.array == 1)
        outside = np.argwhere(self.phantom.labels.array == 0)
        generator = np.random.default_rng(0)

        def stroke(voxels: Any, value: int) -> Callable[[], object]:
            def paint() -> None:
                self.told = section.told.text()
                layer.paint(tuple(int(n) for n in voxels[generator.integers(len(voxels))]), value)

            return paint

        stroke(outside, 1)()
        stroke(inside, 2)()
        self.settle(4)
        for _ in range(3):
            self.measure("stroke painted, region filled", stroke(inside, 2), lambda: section.told.text() != self.told)
        self.hide("truth", "scan")

    def masks(self) -> None:
        section = self.panel.comparison
        section.fold(False)
        section.one.setCurrentText("prediction")
        section.other.setCurrentText("truth")
        self.twice("masks compared", section.compare_button.click, lambda: section._job is None)
        self.measure("next disagreement", section.next_button.click)
        self.hide("truth", "scan")

    def beside(self) -> None:
        self.grid("contrasts side by side", ("scan", "contrast"))

    def label_maps(self) -> None:
        self.grid("label maps side by side", ("truth", "prediction"))

    def planes(self) -> None:
        section = self.panel.beside
        self.measure("three planes opened", section.toggle_planes)
        for share in (0.4, 0.6):
            place = self.viewer.layers["scan"].data_to_world([int(share * n) for n in self.phantom.volume.array.shape])
            self.measure("point of the planes moved", lambda p=place: self.viewer.dims.set_point(range(3), p))
        self.measure("three planes closed", section.toggle_planes)

    def cohort(self) -> None:
        """The map of generated cases: nothing is computed, only shown."""
        from napari_med3dssl.cohort_files import Cohort, Point
        from napari_med3dssl.cohort_map import CohortMap

        generator = np.random.default_rng(0)
        places = generator.normal(size=(POINTS, 2)).astype(np.float32)
        points = [Point(self.home, f"case {k}") for k in range(POINTS)]
        traits = {"modality": [("CT", "MR")[k % 2] for k in range(POINTS)], "group": ["no group"] * POINTS}
        cohort = Cohort(points, places, {"principal axes": places}, traits, (0.5, 0.2), [], [])
        made: list[Any] = []

        def open_map() -> None:
            made.append(CohortMap(self.viewer.window._qt_window, self.state, []))
            made[0].show()
            made[0].show_cohort(cohort)

        self.measure("cohort map opened", open_map)
        turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        lasso = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        from napari_med3dssl.point_cloud import within

        self.twice("lasso in the cohort map", lambda: made[0].take(within(places, lasso)))
        made[0].close()

    def figures(self) -> None:
        section = self.panel.export
        section.fold(False)
        path = self.home / "figure.png"
        self.twice("figure of a slice, 170 mm", lambda: section.write_figure(path), self.at_rest)

        def written() -> bool:
            return section.told.text().startswith("Saved") and self.at_rest()

        self.viewer.dims.ndisplay = 3
        self.settle(2)
        self.twice("figure in 3D, 170 mm", lambda: section.write_figure(path), written)
        self.viewer.dims.ndisplay = 2

    def animations(self) -> None:
        section = self.panel.export
        section.frames.setValue(24)
        path = self.home / "film.gif"
        self.twice("animation of 24 slices", lambda: section.write_animation(path), self.at_rest)

        def written() -> bool:
            return section.told.text().startswith("Saved") and self.at_rest()

        self.viewer.dims.ndisplay = 3
        self.settle(2)
        section.frames.setValue(6)
        self.measure("animation in 3D, 6 frames", lambda: section.write_animation(path), written)
        self.viewer.dims.ndisplay = 2

    def layers(self) -> None:
        section = self.panel.export
        for name in ("scan", "truth"):
            section.which.setCurrentText(name)
            self.measure(f"layer saved: {name}", lambda: section.write_layer(self.home / "x.nii.gz"), self.at_rest)

    def grid(self, name: str, layers: tuple[str, ...]) -> None:
        """Enter the grid with these layers, and leave it, twice."""
        from screenshots_explore import tick

        section = self.panel.beside
        section.fold(False)
        tick(section, list(layers))
        for _ in range(2):
            self.measure(name, section.grid_button.click, lambda: section.in_grid and not section.busy)
            self.measure(f"{name}, and back", section.grid_button.click, lambda: not section.busy)
        self.hide("truth", "scan")

    def hide(self, *shown: str) -> None:
        """Show only some layers; what was made before stays out of the way."""
        for layer in self.viewer.layers:
            layer.visible = layer.name in shown

    def close(self) -> None:
        from napari_med3dssl import _work

        self.panel.leave_picking()
        _work.wait_all()
        if self.state._client is not None:
            self.state._client.close()
        self.viewer.close()


if __name__ == "__main__":
    main()
