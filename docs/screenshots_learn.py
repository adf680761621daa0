"""Pictures of "Correct and learn": the next cases with their reasons, and a corrected mask that was accepted."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from make_screenshots import Photographer

FINETUNE = {"optim": {"max_steps": 120}, "engine": {"val_steps": 120, "preview_minutes": 0, "threads": 1}}


def train_half(home: Path) -> tuple[Path, Path]:
    """The demo dataset with half of its training cases unlabelled, and a run on the others; both are made once."""
    from napari_med3dssl.tiny_demo import make_demo_dataset
    from training_backend.config.presets import finetune_config
    from training_backend.data.dataset import Dataset, relative_root
    from training_backend.jobs.launcher import launch
    from training_backend.jobs.registry import list_runs, new_run, summary

    folder = home / "half-labelled"
    if not folder.exists():
        whole = Dataset.open(make_demo_dataset(lambda share, text: None))
        shutil.copytree(whole.folder, folder)
        copy = Dataset.open(folder)
        root = (whole.folder / whole.info.root).resolve()
        copy.info = copy.info.model_copy(update={"root": relative_root(root, folder), "name": "half-labelled"})
        for case in copy.cases(split="train")[::2]:
            store = {name: entry for name, entry in case.store.items() if name != "label"}
            copy.put(case.model_copy(update={"label": None, "store": store}))
        copy.save()
    known = {run.name: run.path for run in list_runs() if run.state == "finished"}
    if "half" not in known:
        run = new_run(finetune_config("segmentation", "tiny", folder, changes=FINETUNE), "half")
        launch(run)
        while summary(run).alive:
            time.sleep(1)
        if summary(run).state != "finished":
            raise SystemExit(f"half: {summary(run).sentence}")
        known["half"] = run.path
    return folder, known["half"]


def photograph_learn(photographer: Photographer, dataset: Path, run: Path) -> None:
    """The list of next cases, and the first of them predicted, corrected and accepted; both are undone at the end."""
    with photographer.viewer():
        state, panel = photographer.bench.state, photographer.panels["Explore"]
        photographer.bench.show_tab("Explore")
        state.dataset, state.model = dataset, str(run)
        section = panel.learning
        for other in (panel.similarity, panel.strokes, panel.comparison, panel.embedding, panel.masking):
            other.fold(True)
        section.fold(False)
        photographer.settle(1)
        section.next_button.click()
        photographer.wait(lambda: section.list.count() > 0 and not section._jobs, 300)
        section.open_case(section.list.item(0).data(256))
        photographer.wait(lambda: not section._jobs and panel.scan is not None)
        section.predict_button.click()
        photographer.wait(lambda: not section._jobs, 300)
        layer = state.viewer.layers.selection.active
        middle = layer.data.shape[0] // 2
        some = layer.data[middle - 2 : middle + 2]
        some[some == 2] = 0
        layer.refresh()
        photographer.settle(1)
        _show(photographer, section)
        photographer.photograph("Explore", "learn-next")
        section.accept_button.click()
        photographer.wait(lambda: not section._jobs)
        photographer.settle(1)
        _show(photographer, section)
        photographer.photograph("Explore", "learn-accepted")
        section.undo_button.click()
        photographer.wait(lambda: not section._jobs)


def _show(photographer: Photographer, section: object) -> None:
    from napari_med3dssl._widgets import Page

    page = photographer.panels["Explore"].findChild(Page)
    page.ensureWidgetVisible(section.notice, 0, 40)  # type: ignore[attr-defined]
    photographer.settle(1)
