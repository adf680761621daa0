"""Pictures of the documentation: each tab of the workbench empty, filled and in error, dark and light, at 1280 x 800.

Makes generated patients, trains a tiny model on them (a few minutes on a CPU), and photographs the real window::

    xvfb-run -a -s "-screen 0 1280x800x24 +extension GLX" python docs/make_screenshots.py [--output docs/images]

A home folder with finished runs (``--home``) is used again, so that a second call takes a minute. ``--views RUN
--scan FILE`` photographs only what one model shows of one scan, ``--plan`` only continual learning, ``--learn`` only
what corrects and trains on, ``--mg3d`` only what goes with reports, ``--compare`` only the comparison of runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from screenshots_compare import photograph_compare, train_two
from screenshots_continual import photograph_plan, train_plan
from screenshots_learn import photograph_learn, train_half
from screenshots_mg3d import photograph_mg3d, train_mg3d

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

THEMES = ("dark", "light")
PRETRAIN = {"optim": {"max_steps": 200}, "engine": {"val_steps": 25, "preview_minutes": 0.2, "threads": 1}}
FINETUNE = {"optim": {"max_steps": 250}, "engine": {"val_steps": 50, "preview_minutes": 0.2, "threads": 1}}
VOCO = {"optim": {"max_steps": 100}, "engine": {"val_steps": 50, "preview_minutes": 0, "threads": 1}}
SEMI = {**VOCO, "method": {"stage": "semi", "decoder_classes": 8}, "optim": {"max_steps": 150}}
VIEWS = {
    "ar": ("next-patch", "roll-out", "predictability", "sequence", "token-attention"),
    "voco": ("positions", "position-map", "likeness", "likeness-across", "scales"),
}
"""Views that are photographed, by method."""
TEACHER_VIEWS = ("teacher",)
"""Views of models that have a teacher."""
log = logging.getLogger("screenshots")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--home", type=Path, help="folder for datasets and runs; a temporary one when missing")
    parser.add_argument("--views", type=Path, help="photograph the views of this run only")
    parser.add_argument("--scan", type=Path, help="scan for --views; a generated patient when missing")
    parser.add_argument("--plan", action="store_true", help="photograph continual learning only")
    parser.add_argument("--learn", action="store_true", help="photograph the correction of masks only")
    parser.add_argument("--mg3d", action="store_true", help="photograph what goes with reports only")
    parser.add_argument("--compare", action="store_true", help="photograph the comparison of runs only")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        home = (arguments.home or Path(temporary)).resolve()
        (home / "empty").mkdir(parents=True, exist_ok=True)
        os.environ |= {"MED3DSSL_CACHE": str(home / "cache"), "NAPARI_CONFIG": str(home / "napari.yaml")}
        source = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "src")]
        os.environ["PYTHONPATH"] = os.pathsep.join([*source, os.environ.get("PYTHONPATH", "")])
        sys.path[:0] = source
        photographer = Photographer(arguments.output)
        if arguments.views:
            photographer.views(arguments.views, arguments.scan)
            return 0
        if arguments.plan:
            os.environ["MED3DSSL_RUNS"] = str(home / "runs")
            photograph_plan(photographer, train_plan(home))
            return 0
        if arguments.learn:
            os.environ["MED3DSSL_RUNS"] = str(home / "runs")
            photograph_learn(photographer, *train_half(home))
            return 0
        if arguments.mg3d:
            os.environ["MED3DSSL_RUNS"] = str(home / "runs")
            photograph_mg3d(photographer, train_mg3d(home))
            return 0
        if arguments.compare:
            os.environ["MED3DSSL_RUNS"] = str(home / "runs")
            photograph_compare(photographer, train_two(home))
            return 0
        photographer.empty(home / "empty" / "runs")
        os.environ["MED3DSSL_RUNS"] = str(home / "runs")
        dataset, pretrained, finetuned, sequence, positions, labelled = train(home)
        photographer.filled(dataset, pretrained, finetuned)
        with photographer.viewer():
            photographer.sequences()
        photographer.views(sequence)
        photographer.views(positions)
        photographer.views(labelled, names=TEACHER_VIEWS)
        with photographer.viewer():
            photographer.region(dataset)
        photographer.errors(home, dataset, pretrained)
        photograph_plan(photographer, train_plan(home))
        photograph_learn(photographer, *train_half(home))
        photograph_mg3d(photographer, train_mg3d(home))
        photograph_compare(photographer, train_two(home))
    log.info("%d pictures in %s", len(photographer.written), arguments.output)
    return 0


def train(home: Path) -> tuple[Path, ...]:
    """Demo dataset, and on it runs of masking, fine-tuning, next patches, positions and positions with labels.

    They are made once.
    """
    from napari_med3dssl.tiny_demo import make_demo_dataset
    from training_backend.config.presets import finetune_config, pretrain_config
    from training_backend.jobs.launcher import launch
    from training_backend.jobs.registry import list_runs, new_run, summary

    dataset = make_demo_dataset(lambda share, text: log.info("%s", text) if share == 0 else None)
    known = {run.name: run.path for run in list_runs() if run.state == "finished"}
    paths = []
    for name in ("mae-tiny", "organs", "ar-tiny", "voco-tiny", "semi-tiny"):
        if name not in known:
            if name == "mae-tiny":
                config = pretrain_config("mae3d", "tiny", dataset, PRETRAIN)
            elif name == "ar-tiny":
                config = pretrain_config("ar", "tiny", dataset, PRETRAIN)
            elif name == "voco-tiny":
                config = pretrain_config("voco", "tiny", dataset, VOCO)
            elif name == "semi-tiny":
                config = pretrain_config("voco", "tiny", dataset, SEMI)
            else:
                config = finetune_config(
                    "segmentation", "tiny", dataset, changes={**FINETUNE, "weights": str(paths[0])}
                )
            run = new_run(config, name)
            launch(run)
            log.info("training %s", name)
            while summary(run).alive:
                time.sleep(1)
            if summary(run).state != "finished":
                raise SystemExit(f"{name}: {summary(run).sentence}")
            known[name] = run.path
        paths.append(known[name])
    return dataset, *paths


class Photographer:
    """Opens viewers and takes their pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[Path] = []

    @contextmanager
    def viewer(self) -> Iterator[None]:
        """A viewer with the workbench docked, closed at the end."""
        import napari

        from napari_med3dssl import _work
        from napari_med3dssl.__main__ import dock_workbench

        self.napari = napari.Viewer(title="napari · Med3D SSL")
        self.napari.window.resize(1280, 800)
        self.bench = dock_workbench(self.napari)
        self.panels = self.bench.panels
        self.settle(1)
        try:
            yield
        finally:
            self.bench.state.close()
            _work.wait_all()
            self.napari.close()

    def empty(self, runs: Path) -> None:
        """The first look at each tab."""
        os.environ["MED3DSSL_RUNS"] = str(runs)
        with self.viewer():
            for name in self.panels:
                self.photograph(name, "empty")

    def filled(self, dataset: Path, pretrained: Path, finetuned: Path) -> None:
        """Each tab at work."""
        with self.viewer():
            self.bench.state.dataset = dataset
            self.fill_data()
            self.photograph("Data", "filled")
            self.fill_pretrain()
            self.photograph("Pre-train", "filled")
            self.napari.canvas.grid.enabled = False
            self.open_scan()
            self.fill_finetune(finetuned)
            self.photograph("Fine-tune", "filled")
            self.bench.show_tab("Runs", finetuned)
            self.wait(lambda: self.panels["Runs"].chosen is not None and self.panels["Runs"].chosen.path == finetuned)
            self.settle(2)
            self.photograph("Runs", "filled")
            (self.folder / "runs-filled.png").replace(self.folder / "workbench.png")
            self.fill_results()
            self.photograph("Runs", "filled")
            self.open_scan()
            self.fill_explore(pretrained)
            self.photograph("Explore", "filled")

    def views(self, run: Path, scan: Path | None = None, names: Sequence[str] = ()) -> None:
        """What a model shows, one picture per view, and where a place of its scan lies in another one.

        Args:
            run: the model.
            scan: a file; a generated patient when None.
            names: of the views; those of the method, and the other place, when empty.
        """
        with self.viewer():
            if scan is None:
                self.open_scan()
            else:
                from napari_med3dssl._layers import add
                from napari_med3dssl._reader import read

                for data, options, kind in read(scan):
                    add(self.napari, (data, {**options, "name": "scan"}, kind))
                self.centre()
            panel = self.panels["Explore"]
            self.bench.show_tab("Explore")
            self.bench.state.model = str(run)
            self.wait(lambda: panel.scan is not None and len(panel.views) > 0)
            for name in names or VIEWS[panel._facts.method]:
                self.show_view(name)
            if panel._facts.method == "voco" and not names:
                self.retrieval()
                self.scale()

    def sequences(self) -> None:
        """Example sequences beside the open scan, in a coronal slice."""
        panel = self.panels["Pre-train"]
        self.bench.show_tab("Pre-train")
        panel.method.setCurrentIndex(panel.method.findData("ar"))
        panel.preset.setCurrentIndex(panel.preset.findData("tiny"))
        panel._restart()
        self.open_scan()
        self.napari.dims.order = (1, 0, 2)
        panel.preview()
        self.wait(lambda: len(self.napari.layers) > 2 and "lie along z" in panel.launch.notice.text, 120)
        self.napari.reset_view()
        self.photograph("Pre-train", "sequences")

    def region(self, dataset: Path) -> None:
        """The settings that go with a region of the body."""
        from napari_med3dssl._widgets import Page

        panel = self.panels["Pre-train"]
        self.bench.state.dataset = dataset
        self.bench.show_tab("Pre-train")
        panel.method.setCurrentIndex(panel.method.findData("voco"))
        panel.preset.setCurrentIndex(panel.preset.findData("tiny"))
        panel._restart()
        self.open_scan()
        panel.form.editor("method.region").box.setCurrentText("chest")
        self.wait(lambda: "free for runs" in panel.launch.list.text() and panel.followed.height() > 20)
        self.settle(2)
        panel.findChild(Page).ensureWidgetVisible(panel.followed)
        self.photograph("Pre-train", "region")

    def scale(self) -> None:
        """Principal components of a fine map of the encoder, computed over the whole scan."""
        panel = self.panels["Explore"]
        for layer in self.napari.layers:
            layer.visible = layer is panel.scan
        panel.similarity.fold(True)
        panel.scale_box.setCurrentIndex(3)
        panel.compute_features()
        self.wait(lambda: panel.features is not None, 300)
        panel.embedding.fold(False)
        panel.embedding.show_button.click()
        self.wait(lambda: panel.embedding.explained.height() > 20, 60)  # laid out
        self.centre()
        self.photograph("Explore", "scale")

    def second_scan(self) -> object:
        """Another generated patient, opened once."""
        from napari_med3dssl._layers import add, volume_layer
        from training_backend.data.phantoms import thorax_ct

        if "second patient" not in self.napari.layers:
            add(self.napari, volume_layer(thorax_ct(77, (48, 72, 72)).volume, name="second patient"))
            self.settle(0.2)
        return self.napari.layers["second patient"]

    def retrieval(self) -> None:
        """A place picked in one scan, looked for in a generated second one."""
        from napari_med3dssl.explore_pick import Seeds

        panel = self.panels["Explore"]
        self.second_scan()
        for one in panel.views:
            one.fold(True)
        panel.similarity.fold(False)
        panel.compute_features()
        self.wait(lambda: panel.features is not None, 300)
        depth, height, width = panel.scan.data.shape
        panel.similarity._pick.seeds = Seeds(positive=[(depth // 2, height // 2, int(width * 0.3))])
        panel.similarity.where.setCurrentIndex(1)
        self.wait(lambda: not panel.busy and panel.similarity.match_text.text() != "", 300)
        panel.scan.visible = False
        panel.similarity.match_button.click()
        self.photograph("Explore", "retrieval")

    def show_view(self, name: str) -> None:
        """Unfold a section, let it draw, take its picture, and put everything back."""
        from napari_med3dssl._widgets import Page
        from napari_med3dssl.explore_pick import Seeds

        panel = self.panels["Explore"]
        for one in (panel.similarity, *panel.views):
            one.fold(True)
        section = next(one for one in panel.views if one.view.name == name)
        section.fold(False)
        if section.view.other:
            self.second_scan().visible = False
        self.settle(0.2)
        panel.findChild(Page).ensureWidgetVisible(section.text)
        if section.view.point:
            section.pick_button.click()
            depth, height, width = panel.scan.data.shape
            section._on_picked(Seeds(positive=[(depth // 2, int(height * 0.4), int(width * 0.4))]))
        else:
            section.show_button.click()
        if name == "roll-out":
            self.wait(lambda: "drawn" in section.text.text() or not panel.busy, 180)
            section.stop()
        self.wait(lambda: not panel.busy, 300)
        self.settle(1)
        last = section.matrices if section.view.other else section.text
        panel.findChild(Page).ensureWidgetVisible(last)
        self.photograph("Explore", name)
        section.leave()
        if section._maps.in_grid:
            section.toggle_grid()
        for layer in self.napari.layers:
            layer.visible = layer is panel.scan

    def errors(self, home: Path, dataset: Path, pretrained: Path) -> None:
        """What each tab says when something is wrong."""
        from training_backend.config.presets import pretrain_config
        from training_backend.jobs.launcher import launch
        from training_backend.jobs.registry import delete, new_run, summary

        broken = damaged_cohort(home)
        with self.viewer():
            data = self.panels["Data"]
            data.open_folder(broken)
            self.wait(lambda: data.described is not None)
            data.output.show_path(home / "hospital dataset")
            data.save_dataset()
            self.wait(lambda: data._job is not None and not data._job.running, 120)
            data.table.setCurrentCell(0, 1)
            self.photograph("Data", "error")
            self.bench.state.dataset = dataset
            self.panels["Pre-train"].form.editor("data.size").show_value((50, 48, 48))
            edit = self.panels["Pre-train"].form.editor("method.mask_ratio").edit
            edit.setText("1.5")
            edit.textEdited.emit("1.5")
            self.photograph("Pre-train", "error")
            wrong = home / "holiday.pth"
            wrong.write_bytes(b"not weights at all")
            finetune = self.panels["Fine-tune"]
            finetune.weights.choose(str(wrong))
            self.wait(lambda: finetune.launch.bar.isHidden() and finetune.launch.notice.text != "", 120)
            self.photograph("Fine-tune", "error")
            self.open_scan()
            self.bench.state.model = str(wrong)
            self.panels["Explore"].compute_features()
            self.wait(lambda: not self.panels["Explore"].busy, 120)
            self.photograph("Explore", "error")
            run = new_run(pretrain_config("mae3d", "tiny", home / "moved-away"), "dataset-moved-away")
            launch(run)
            self.wait(lambda: not summary(run).alive and summary(run).state != "starting", 120)
            self.bench.show_tab("Runs", run.path)
            self.settle(3)
            self.photograph("Runs", "error")
            delete(run)

    def fill_data(self) -> None:
        data = self.panels["Data"]
        self.bench.show_tab("Data")
        self.wait(lambda: data.table.rowCount() > 0)
        data.table.setCurrentCell(0, 1)
        data.preview()
        self.wait(lambda: len(self.napari.layers) == 2)
        self.napari.reset_view()

    def fill_pretrain(self) -> None:
        panel = self.panels["Pre-train"]
        self.bench.show_tab("Pre-train")
        self.open_scan()
        panel.preview_masking()
        self.wait(lambda: any(layer.name.startswith("masked") for layer in self.napari.layers), 120)
        self.napari.layers.remove("new patient")
        for layer in self.napari.layers:
            layer.visible = layer.name.startswith(("original", "masked"))
            layer.name_overlay.visible = True
        self.napari.canvas.grid.shape = (1, 2)
        self.napari.canvas.grid.enabled = True
        self.centre()
        panel.launch.estimate()
        self.wait(lambda: "About" in panel.launch.notice.text, 180)

    def fill_finetune(self, run: Path) -> None:
        panel = self.panels["Fine-tune"]
        self.bench.show_tab("Fine-tune")
        box = panel.predict
        self.wait(lambda: box.model.count() > 0)
        box.model.setCurrentIndex(box.model.findData(str(run)))
        box.predict()
        self.wait(lambda: len(self.napari.layers) == 2, 180)
        panel.findChildren(type(panel.settings))
        panel.class_section.fold(True)
        self.napari.layers[-1].opacity = 0.6

    def fill_results(self) -> None:
        from napari_med3dssl.results import ResultsDialog

        self.napari.layers.clear()
        self.panels["Runs"].act("open")
        self.wait(lambda: len(self.napari.layers) == 3)
        dialog = self.panels["Runs"].findChild(ResultsDialog)
        dialog.close()
        truth, prediction = self.napari.layers[1:]
        truth.contour = 1
        prediction.opacity = 0.5
        self.centre()

    def fill_explore(self, run: Path) -> None:
        from napari_med3dssl._layers import geometry_of

        panel = self.panels["Explore"]
        self.bench.show_tab("Explore")
        self.bench.state.model = str(run)
        self.wait(lambda: panel.scan is not None)
        panel.compute_features()
        self.wait(lambda: panel.features is not None, 180)
        from napari_med3dssl.explore_pick import Seeds

        depth, height, width = geometry_of(panel.scan).shape
        seeds = Seeds(positive=[(depth // 2, height // 2, int(width * 0.3))])
        panel.similarity._pick.seeds = seeds
        panel.similarity._update(seeds)

    def open_scan(self) -> None:
        """A generated patient that no run has seen, alone in the viewer."""
        from napari_med3dssl._layers import add, volume_layer
        from training_backend.data.phantoms import thorax_ct

        self.napari.layers.clear()
        self.napari.canvas.grid.enabled = False
        add(self.napari, volume_layer(thorax_ct(4242, (48, 72, 72)).volume, name="new patient"))
        self.centre()

    def centre(self) -> None:
        from napari_med3dssl.results import centre_slices

        self.napari.reset_view()
        centre_slices(self.napari, [self.napari.layers[0]])

    def photograph(self, tab: str, what: str) -> None:
        """Picture of the window with a tab shown, in each theme."""
        self.bench.show_tab(tab)
        for theme in THEMES:
            self.napari.theme = theme
            self.settle(1.2)
            folder = self.folder if theme == THEMES[0] else self.folder / theme
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{tab.lower()}-{what}.png"
            save_small(self.napari.window.screenshot(canvas_only=False, flash=False), path)
            self.written.append(path)
            log.info("%s", path.name)
        self.napari.theme = THEMES[0]

    def photograph_widget(self, widget: QWidget, name: str) -> None:
        """Picture of a window of its own, in each theme."""
        import numpy as np
        from PIL import Image

        for theme in THEMES:
            self.napari.theme = theme
            self.settle(1.2)
            path = (self.folder if theme == THEMES[0] else self.folder / theme) / f"{name}.png"
            widget.grab().save(str(path))
            save_small(np.asarray(Image.open(path).convert("RGB")), path)
            self.written.append(path)
            log.info("%s", path.name)
        self.napari.theme = THEMES[0]

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Let the window work until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            self.settle(0.05)
            if time.monotonic() > end:
                raise SystemExit(f"waited {seconds:g} s in vain: {condition.__code__.co_firstlineno}")

    @staticmethod
    def settle(seconds: float) -> None:
        from napari_med3dssl.__main__ import settle

        settle(seconds)


def damaged_cohort(home: Path) -> Path:
    """A copy of the demo's cohort in which one scan is truncated."""
    import shutil

    folder = home / "hospital export"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(home / "hospital dataset", ignore_errors=True)
    shutil.copytree(home / "demo" / "cohort", folder)
    scan = folder / "imagesTr" / "case_003.nii.gz"
    scan.write_bytes(scan.read_bytes()[:20_000])
    return folder


def save_small(picture: object, path: Path) -> None:
    """Write a picture with a palette of 256 colours, which documentation pages load faster."""
    from PIL import Image

    Image.fromarray(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
