"""The tutorial "From a scan to a corrected and re-trained model", walked through in the real window by clicks::

    xvfb-run -a -s "-screen 0 1280x800x24 +extension GLX" python docs/tutorial_correct.py --home FOLDER

Every step is what a reader does: buttons are clicked, voxels painted with the mouse. Only a reader's hand is stood in
for: a predicted mask is corrected by putting the true one in its place, which is known for generated patients. Writes
the pictures and ``tutorial.json`` (seconds of each step, Dice before and after), and fails unless the model got better.
``--scans FOLDER --spacing 2`` does the same with other labelled scans.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from screenshot_home import screenshot_home

LABELLED = 1
"""Training cases whose label map is kept at first."""
CORRECTED = 3
"""Cases that are corrected."""
log = logging.getLogger("tutorial")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--home", type=Path, help="empty folder for datasets and runs; a temporary one when missing")
    parser.add_argument("--scans", type=Path, help="folder of labelled scans in place of generated patients")
    parser.add_argument("--spacing", type=float, help="millimetres that --scans are stored at")
    parser.add_argument("--steps", type=int, help="of each run in place of the preset's, to try this script")
    arguments = parser.parse_args()
    faulthandler.enable()
    with screenshot_home(arguments.home) as home:
        from make_screenshots import Photographer

        photographer = Photographer(arguments.output)
        arguments.output.mkdir(parents=True, exist_ok=True)
        with photographer.viewer():
            told = Walk(photographer, arguments.steps).all(arguments.scans, arguments.spacing)
        (home / "tutorial.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        log.info("%s", json.dumps(told, indent=1))
    return 0 if told["dice_after"] > told["dice_before"] else 1


class Walk:
    """The steps of the tutorial, in their order; each method is one of its headings."""

    def __init__(self, photographer: Any, steps: int | None = None) -> None:
        self.camera, self.steps = photographer, steps
        self.viewer, self.panels, self.state = photographer.napari, photographer.panels, photographer.bench.state
        self.explore, self.learn = self.panels["Explore"], self.panels["Explore"].learning
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        self.pictured = 0.0
        self.truth: dict[str, Any] = {}

    def all(self, scans: Path | None, spacing: float | None) -> dict[str, Any]:
        """Walk through everything; answers seconds by step, reasons of the choices, and Dice before and after."""
        with self.step("data"):
            self.make_dataset(scans, spacing)
        with self.step("pre-train"):
            self.pretrain()
        with self.step("features and similarity"):
            self.look()
        with self.step("strokes"):
            self.stroke()
        with self.step("fine-tune"):
            first = self.finetune()
        reasons = []
        for number in range(CORRECTED):
            with self.step(f"correct {number + 1}"):
                reasons.append(self.correct(first, number))
        with self.step("continue from best"):
            second = self.train_on(first)
        before, after = dice(first), dice(second)
        return {
            "seconds": self.seconds,
            "processor_seconds": self.processor,
            "all": [round(sum(kind.values()), 1) for kind in (self.seconds, self.processor)],
            "load": os.getloadavg()[2],
            "reasons": reasons,
            "said": self.learn.notice.text,
            "dice_before": round(statistics.fmean(before.values()), 4),
            "dice_after": round(statistics.fmean(after.values()), 4),
            "cases": {case: [round(before[case], 4), round(after[case], 4)] for case in before},
        }

    def make_dataset(self, scans: Path | None, spacing: float | None) -> None:
        """Step 1: a dataset of which one case is labelled."""
        panel = self.tab("Data")
        if scans is None:
            self.click(self.button(panel, "Use sample phantom"))
        else:
            from qtpy.QtTest import QTest

            panel.folder.edit.setText("")
            QTest.keyClicks(panel.folder.edit, str(scans))
            panel.folder.edit.editingFinished.emit()
            self.camera.wait(lambda: panel.described is not None, 300)
            if spacing is not None:
                panel.form.editor("spacing_mm").show_value((spacing,) * 3)
                panel.form.changed.emit()
            self.click(self.button(panel, "Save dataset"))
        self.camera.wait(lambda: panel.dataset is not None and not panel._job.running, 900)
        self.truth = dict(panel.dataset.records)
        names = [case.id for case in panel.dataset.cases(split="train")][LABELLED:]
        for row, shown in enumerate(panel.table.rows):
            if shown.case is not None and shown.case.id in names:
                self.choose_row(panel.table, row, add=row != 0 and bool(panel.table.chosen()))
        if {case.id for case in panel.table.chosen()} != set(names):
            raise SystemExit(f"chose {[case.id for case in panel.table.chosen()]}")
        self.click(self.button(panel, "Without label"))
        self.camera.wait(lambda: len(panel.dataset.cases(split="train", labelled=True)) == LABELLED)
        row = next(n for n, shown in enumerate(panel.table.rows) if shown.case.id == names[0])
        self.choose_row(panel.table, row, twice=True)
        self.camera.wait(lambda: len(self.viewer.layers) == 1 and not panel._job.running, 60)
        self.picture("data", panel.table)

    def pretrain(self) -> None:
        """Step 2: an encoder from the scans alone."""
        panel = self.tab("Pre-train")
        self.camera.wait(panel.launch.start_button.isEnabled, 60)
        self.start(panel, "encoder")
        self.wait_for_run(0)
        self.picture("pre-train", None)

    def look(self) -> None:
        """Step 3: what the encoder sees alike."""
        panel = self.tab("Explore")
        self.camera.wait(lambda: bool(self.state.model) and panel.scan is not None, 60)
        self.click(panel.compute_button)
        self.camera.wait(lambda: panel.features is not None, 300)
        self.click(panel.similarity.pick_button)
        depth, height, width = panel.scan.data.shape
        self.press([(depth // 2, height // 2, int(width * 0.3))])
        self.camera.wait(lambda: panel.similarity.labels_button.isEnabled())
        self.picture("similarity", panel.similarity.labels_button)
        self.click(panel.similarity.pick_button)
        self.click(panel.similarity.clear_button)

    def stroke(self) -> None:
        """Step 4: a few strokes, and the region that they fill."""
        panel, section = self.explore, self.explore.strokes
        self.unfold(section, panel.similarity)
        self.click(section.paint_button)
        self.camera.wait(lambda: not panel.busy and section.fill_button.isEnabled(), 120)
        layer = self.viewer.layers.selection.active
        record = self.truth[panel.scan.name]
        mask = self.true_mask(record)
        inside, outside = places(mask)
        self.press(inside)
        layer.selected_label = 1
        self.press(outside)
        self.camera.wait(lambda: "Filled in" in section.told.text(), 60)
        self.picture("strokes", section.told)
        section.fold(True)
        for one in list(self.viewer.layers):
            if one.name.endswith(("painted", "strokes")):
                self.viewer.layers.remove(one)

    def finetune(self) -> Path:
        """Step 5: a first model from one labelled case."""
        from training_backend.jobs.registry import list_runs

        panel = self.tab("Fine-tune")
        backbone = str(list_runs()[0].path)
        self.camera.wait(lambda: panel.weights.box.findData(backbone) > 0, 60)
        self.pick(panel.weights.box, backbone)
        self.camera.wait(panel.launch.start_button.isEnabled, 60)
        self.start(panel, "first")
        return self.wait_for_run(1)

    def correct(self, model: Path, number: int) -> str:
        """Step 6: the next case with its reason, predicted, corrected, accepted."""
        panel, section = self.tab("Explore"), self.learn
        if not number:
            self.camera.wait(lambda: panel.model.box.findData(str(model)) > 0, 60)
            self.pick(panel.model.box, str(model))
            self.unfold(section)
            self.click(section.next_button)
            self.camera.wait(lambda: section.list.count() > 0 and not section._jobs, 300)
        item = section.list.item(0)
        reason = item.text()
        self.click_item(section.list, item)
        self.camera.wait(lambda: not section._jobs and panel.scan is not None, 120)
        id = panel.scan.name
        if not number:
            self.picture("next", section.predict_button)
        self.click(section.predict_button)
        self.camera.wait(lambda: not section._jobs, 300)
        layer = self.viewer.layers.selection.active
        if not layer.name.startswith(f"{id} · pred"):
            raise SystemExit(section.notice.text)
        if not number:
            self.picture("predicted", section.accept_button)
        layer.data = self.true_mask(self.truth[id])
        self.click(section.accept_button)
        self.camera.wait(lambda: not section._jobs, 120)
        if not section.notice.text.startswith("The mask was accepted"):
            raise SystemExit(section.notice.text)
        if number == CORRECTED - 1:
            self.picture("accepted", section.notice)
        return reason

    def train_on(self, model: Path) -> Path:
        """Step 7: the run that goes on, and what it gained."""
        self.click(self.learn.train_button)
        run = self.wait_for_run(2)
        self.tab("Explore")
        self.camera.wait(lambda: self.learn.notice.text.startswith("Mean Dice"), 60)
        self.picture("gain", self.learn.notice)
        self.click(self.button(self.learn.notice, "Use this model"))
        if self.state.model != str(run):
            raise SystemExit("the new model is not in use")
        self.tab("Runs")
        panel = self.panels["Runs"]
        self.viewer.layers.clear()
        panel.act("open")
        self.camera.wait(lambda: len(self.viewer.layers) == 3, 60)
        self.picture("results", None)
        return run

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step without the pictures taken in it."""
        start, used, self.pictured = time.monotonic(), processor_seconds(), 0.0
        log.info("%s ...", name)
        yield
        self.seconds[name] = round(time.monotonic() - start - self.pictured, 1)
        self.processor[name] = round(processor_seconds() - used, 1)
        log.info("%s: %.1f s, %.1f s of processors", name, self.seconds[name], self.processor[name])

    def start(self, panel: Any, name: str) -> None:
        """Name a run and press Start of Pre-train or Fine-tune."""
        from qtpy.QtTest import QTest

        QTest.keyClicks(panel.launch.name, name)
        if self.steps:
            panel.form.editor("optim.max_steps").show_value(self.steps)
            panel.form.changed.emit()
            self.camera.settle(1)
        self.click(panel.launch.start_button)

    def tab(self, name: str) -> Any:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        tabs = self.camera.bench.tabs
        index = next(n for n in range(tabs.count()) if tabs.tabText(n) == name)
        QTest.mouseClick(tabs.tabBar(), Qt.MouseButton.LeftButton, pos=tabs.tabBar().tabRect(index).center())
        self.camera.wait(lambda: tabs.currentWidget() is self.panels[name])
        return self.panels[name]

    def click(self, button: Any) -> None:
        """Click a button that can be seen and pressed."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        self.scroll_to(button)
        if not (button.isVisible() and button.isEnabled()):
            raise SystemExit(f"{button.text()!r} cannot be pressed")
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)
        self.camera.settle(0.1)

    def button(self, panel: Any, text: str) -> Any:
        from qtpy.QtWidgets import QPushButton

        return next(one for one in panel.findChildren(QPushButton) if one.text() == text and one.isVisible())

    def unfold(self, section: Any, *others: Any) -> None:
        """Click the heading of a section; fold others to make room."""
        for one in others:
            one.fold(True)
        self.click(section._button)

    def pick(self, box: Any, value: str) -> None:
        """Choose an entry of a list as its user does."""
        box.setCurrentIndex(box.findData(value))
        box.activated.emit(box.currentIndex())
        self.camera.settle(0.3)

    def choose_row(self, table: Any, row: int, add: bool = False, twice: bool = False) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        table.scrollToItem(table.item(row, 1))
        place = table.visualItemRect(table.item(row, 1)).center()
        keys = Qt.KeyboardModifier.ControlModifier if add else Qt.KeyboardModifier.NoModifier
        QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, keys, place)
        if twice:
            QTest.mouseDClick(table.viewport(), Qt.MouseButton.LeftButton, keys, place)
        self.camera.settle(0.05)

    def click_item(self, box: Any, item: Any) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        self.scroll_to(box)
        QTest.mouseClick(box.viewport(), Qt.MouseButton.LeftButton, pos=box.visualItemRect(item).center())

    def press(self, voxels: list[tuple[int, int, int]]) -> None:
        """Press the mouse on the canvas at the first voxel, move over the others, and let it go."""
        from qtpy.QtCore import QPoint, Qt
        from qtpy.QtTest import QTest

        self.camera.settle(0.3)
        native = self.viewer.window._qt_viewer.canvas.native
        points = [QPoint(*self.pixel(voxel)) for voxel in voxels]
        QTest.mouseMove(native, points[0])
        self.camera.settle(0.1)
        QTest.mousePress(native, Qt.MouseButton.LeftButton, pos=points[0])
        for point in points[1:]:
            QTest.mouseMove(native, point)
            self.camera.settle(0.05)
        QTest.mouseRelease(native, Qt.MouseButton.LeftButton, pos=points[-1])
        self.camera.settle(0.3)

    def pixel(self, voxel: tuple[int, int, int]) -> tuple[int, int]:
        """Pixel of the canvas under which a voxel of the scan lies; its slice is shown."""
        world = self.explore.scan.data_to_world(voxel)
        self.viewer.dims.set_point(range(3), world)
        shown = [world[axis] for axis in self.viewer.dims.displayed]
        camera, (height, width) = self.viewer.scene.camera, self.viewer.canvas.size
        y, x = (
            (place - centre) * camera.zoom + size / 2
            for place, centre, size in zip(shown, camera.center[-2:], (height, width), strict=True)
        )
        return round(x), round(y)

    def true_mask(self, record: Any) -> Any:
        """Label map of a case before it was dropped, on the grid of its scan."""
        from training_backend.data.dataset import Dataset
        from training_backend.data.read import read_classes

        dataset = Dataset.open(self.state.dataset)
        return read_classes(dataset.source(record.label), key=record.label.key, values=record.label.values).array

    def wait_for_run(self, before: int) -> Path:
        """Wait in Runs until the run that was started has finished; answers its folder."""
        from training_backend.jobs.registry import list_runs

        panel = self.panels["Runs"]
        self.camera.wait(lambda: len(list_runs()) > before and self.camera.bench.tabs.currentWidget() is panel, 60)
        path = list_runs()[0].path

        def ended() -> bool:
            run = next((one for one in panel.runs if one.path == path), None)
            if run is not None and run.state in ("failed", "stopped", "lost", "damaged"):
                raise SystemExit(run.sentence)
            return run is not None and run.state == "finished"

        self.camera.wait(ended, 1800)
        return Path(path)

    def scroll_to(self, widget: Any) -> None:
        from napari_med3dssl._widgets import Page

        page = widget.parent()
        while page is not None and not isinstance(page, Page):
            page = page.parent()
        if page is not None:
            self.camera.settle(0.1)
            page.ensureWidgetVisible(widget, 0, 30)
            self.camera.settle(0.05)

    def picture(self, name: str, widget: Any) -> None:
        """Picture of the window with a widget in sight."""
        from make_screenshots import save_small

        start = time.monotonic()
        if widget is not None:
            self.scroll_to(widget)
        self.camera.settle(1)
        path = self.camera.folder / f"tutorial-{name}.png"
        save_small(self.viewer.window.screenshot(canvas_only=False, flash=False), path)
        log.info("%s", path.name)
        self.pictured += time.monotonic() - start


def processor_seconds() -> float:
    """Seconds that processors have worked for this process and those that it started."""
    import psutil

    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def places(mask: Any) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Voxels to paint in the slice with most of the largest structure.

    A line from side to side inside it, and one from front to back that it does not touch, through air and body.
    """
    import numpy as np

    values, counts = np.unique(mask[(mask > 0) & (mask < 255)], return_counts=True)
    inside = mask == values[counts.argmax()]
    z = int(inside.sum(axis=(1, 2)).argmax())
    y, first, last = max(((y, *longest(row)) for y, row in enumerate(inside[z])), key=lambda one: one[2] - one[1])
    line = [(z, int(y), x) for x in range(first + 2, last - 2, 2)]
    free = np.flatnonzero(~inside[z].any(axis=0))
    x = int(free[np.abs(free - np.argwhere(inside[z])[:, 1].mean()).argmin()])
    return line, [(z, y, x) for y in range(4, inside.shape[1] - 4, 2)]


def longest(row: Any) -> tuple[int, int]:
    """Begin and end of the longest run of true values."""
    import numpy as np

    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    runs = list(zip(edges[::2], edges[1::2], strict=True))
    begin, end = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
    return int(begin), int(end)


def dice(run: Path) -> dict[str, float]:
    """Mean Dice over classes of the validation cases of a run."""
    from training_backend.evaluate.score import case_dice

    return case_dice(run)


if __name__ == "__main__":
    sys.exit(main())
