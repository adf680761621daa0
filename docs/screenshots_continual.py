"""Pictures of continual learning: a plan over five generated modalities, its buffers, and what its last stage shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from make_screenshots import Photographer

STEPS, CASES = 60, 40
MEMBERS = {"ratio": 0.25, "clusters": 3}
ENGINE = {"threads": 1, "device": "cpu", "preview_minutes": 0}


def train_plan(home: Path) -> Path:
    """A finished tiny plan over five phantom modalities, made once; some minutes on a CPU."""
    from training_backend.config import IngestConfig
    from training_backend.config.plan import PlanConfig
    from training_backend.data.ingest import ingest
    from training_backend.data.phantom_modalities import MODALITIES, write_modality
    from training_backend.jobs.launcher import launch
    from training_backend.jobs.plan import create
    from training_backend.jobs.registry import runs_root, summary

    folder = runs_root() / "five-modalities"
    if (folder / "run.json").is_file() and summary(folder).state == "finished":
        return folder
    stages = []
    for seed, modality in enumerate(MODALITIES):
        dataset = home / "datasets" / modality
        if not (dataset / "dataset.json").is_file():
            source = write_modality(home / "source" / modality, modality, CASES, seed)
            ingest(source, dataset, IngestConfig(splits=(0.8, 0.2, 0.0), workers=0), name=f"phantoms {modality}")
        stages.append({"modality": modality, "dataset": dataset, "steps": STEPS})
    plan = {"name": "five modalities", "preset": "tiny", "buffer": MEMBERS, "settings": {"engine": ENGINE}}
    run = create(folder, PlanConfig.parse({**plan, "stages": stages}))
    launch(run)
    while summary(run).alive:
        time.sleep(1)
    if summary(run).state != "finished":
        raise SystemExit(f"{folder.name}: {summary(run).sentence}")
    return folder


def photograph_plan(photographer: Photographer, plan: Path) -> None:
    """The form of a further stage, the plan in Runs, its buffers, a mixture and the drift of CT since its own stage."""
    with photographer.viewer():
        _form(photographer, plan)
        _runs(photographer, plan)
    with photographer.viewer():
        _views(photographer, plan)


def _form(photographer: Photographer, plan: Path) -> None:
    from napari_med3dssl._widgets import Page
    from training_backend.jobs.plan_stages import read_plan

    panel = photographer.panels["Pre-train"]
    photographer.bench.state.dataset = read_plan(plan).stages[3].dataset
    photographer.bench.show_tab("Pre-train")
    box, page = panel.continual, panel.findChild(Page)
    panel.settings.fold(True)
    box.fold(False)
    box.weights.choose(str(plan / "stages" / "03-3D_CT"))
    box.fields.modality.setCurrentText("3D_MR")
    box.check_soon()
    photographer.wait(lambda: "Rehearses" in box.checks.text() and box.checks.height() > 20)
    photographer.settle(1)
    page.verticalScrollBar().setValue(page.verticalScrollBar().maximum())
    photographer.photograph("Pre-train", "continual")


def _runs(photographer: Photographer, plan: Path) -> None:
    from napari_med3dssl.buffer_gallery import BuffersDialog

    panel = photographer.panels["Runs"]
    photographer.bench.show_tab("Runs", plan)
    photographer.wait(lambda: panel.chosen is not None and panel.chosen.path == plan and panel.plan.chart.isVisible())
    dialog = BuffersDialog(panel, photographer.napari, "five modalities", plan)
    dialog.show()
    photographer.wait(lambda: len(dialog.buffers) == 5 and dialog.map.found is not None)
    dialog.which.setCurrentIndex(2)
    photographer.wait(lambda: dialog.gallery.list.count() > 0)
    photographer.settle(1)
    dialog.gallery.list.itemClicked.emit(dialog.gallery.list.item(0))
    photographer.wait(lambda: len(photographer.napari.layers) > 0)
    photographer.photograph("Runs", "plan")
    photographer.photograph_widget(dialog, "buffers-members")
    dialog.tabs.setCurrentIndex(1)
    photographer.photograph_widget(dialog, "buffers-map")
    dialog.close()


def _views(photographer: Photographer, plan: Path) -> None:
    panel, stages = photographer.panels["Explore"], plan / "stages"
    photographer.open_scan()
    photographer.bench.show_tab("Explore")
    photographer.bench.state.model = str(stages / "05-2D_path" / "decoders" / "3D_CT.safetensors")
    photographer.wait(lambda: panel.scan is not None and len(panel.views) > 0)
    photographer.show_view("mixture")
    drift = next(one for one in panel.views if one.view.name == "drift")
    drift.against.choose(str(stages / "03-3D_CT"))
    photographer.show_view("drift")
