"""Pictures of what MG-3D's networks, and those of tasks on texts, show: tiny runs on generated patients."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from make_screenshots import Photographer

CASES = 40
ENGINE = {"threads": 1, "device": "cpu", "val_steps": 50, "preview_minutes": 0}
STEPS = {"reports": 150, "find-by-words": 60, "write-reports": 80}
"""Steps of the runs by name."""
LOBES_STEPS, LOBES_CASES = 120, 300
"""Steps of the run that matches reports to scans of consolidated lobes, and how many such scans there are."""
QUERIES = ("nodule in the left upper lobe", "pleural effusion", "the heart is enlarged")


def train_mg3d(home: Path) -> Path:
    """A dataset with reports, and in the folder of runs those of `STEPS`; made once, in some minutes on a CPU."""
    from training_backend.config import IngestConfig
    from training_backend.config.presets import finetune_config, pretrain_config
    from training_backend.data.ingest import ingest
    from training_backend.data.phantoms import write_cohort

    dataset = home / "datasets" / "reports"
    if not (dataset / "dataset.json").is_file():
        source = write_cohort(home / "source" / "reports", CASES, seed=1, shape=(40, 64, 64))
        ingest(source, dataset, IngestConfig(splits=(0.8, 0.2, 0.0), workers=0), name="phantoms with reports")
    changes = {name: {"optim": {"max_steps": steps}, "engine": ENGINE} for name, steps in STEPS.items()}
    pretrained = _trained("reports", pretrain_config("mg3d", "tiny", dataset, changes["reports"]))
    for name, task, more in (
        ("find-by-words", "retrieval", {"task": {"gates": 2}}),
        ("write-reports", "report_generation", {}),
    ):
        beside: dict[str, Any] = {"weights": str(pretrained), **more, **changes[name]}
        _trained(name, finetune_config(task, "tiny", dataset, "mg3d", beside))
    return dataset


def photograph_mg3d(photographer: Photographer, dataset: Path) -> None:
    """Each view of the three runs, of a case of the dataset."""
    from training_backend.jobs.registry import runs_root

    with photographer.viewer():
        panel = _explore(photographer, dataset, runs_root() / "reports")
        for name in ("sentences", "voxels", "words", "patients"):
            _show(photographer, panel, name)
        _query(photographer, panel)
    with photographer.viewer():
        _find(photographer, _explore(photographer, dataset, runs_root() / "find-by-words"))
    with photographer.viewer():
        _findings(photographer, dataset.parent)
    with photographer.viewer():
        _show(photographer, _explore(photographer, dataset, runs_root() / "write-reports"), "written")


def _trained(name: str, config: Any) -> Path:
    """Folder of a finished run."""
    from training_backend.jobs.launcher import launch
    from training_backend.jobs.registry import new_run, runs_root, summary

    folder: Path = runs_root() / name
    if (folder / "run.json").is_file() and summary(folder).state == "finished":
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # what was interrupted
    run = new_run(config, name)
    launch(run)
    while summary(run).alive:
        time.sleep(1)
    if summary(run).state != "finished":
        raise SystemExit(f"{name}: {summary(run).sentence}")
    return run.path


def _explore(photographer: Photographer, dataset: Path, model: Path, said: str = "nodule in") -> Any:
    """The Explore panel with the first validation case whose report says so, its report and a model."""
    from napari_med3dssl._layers import add
    from napari_med3dssl.explore_retrieval import layers_in
    from training_backend.data.dataset import Dataset

    case = next(case for case in Dataset.open(dataset).cases(split="val") if said in case.report)
    state, panel = photographer.bench.state, photographer.panels["Explore"]
    state.dataset = dataset
    add(photographer.napari, layers_in(dataset, case.id)[0])
    photographer.centre()
    photographer.bench.show_tab("Explore")
    state.model = str(model)
    photographer.wait(lambda: panel.scan is not None and bool(panel.views) and bool(panel.report.text))
    for section in (panel.similarity, *panel.views):
        section.fold(True)
    return panel


def _section(photographer: Photographer, panel: Any, name: str) -> Any:
    section = next(one for one in panel.views if one.view.name == name)
    section.fold(False)
    photographer.settle(0.5)
    return section


def _show(photographer: Photographer, panel: Any, name: str) -> None:
    """One view, with its second sentence where sentences are chosen."""
    section = _section(photographer, panel, name)
    section.show_button.click()
    _done(photographer, panel)
    if name == "sentences":
        section.pick(2)
        _done(photographer, panel)
    shown = {"voxels": section.text, "patients": section.matrices}
    _photograph(photographer, panel, shown.get(name) or section.passages, name)
    _put_back(photographer, panel, section)


def _findings(photographer: Photographer, folder: Path) -> None:
    """What speaks for one of two consolidated lobes, by a model that has learnt which report fits which scan."""
    from training_backend.bench.mg3d_proof import LOBES, cohort, matching, sentence

    dataset = cohort(folder / "lobes", LOBES_CASES)
    model = _trained("find-lobes", matching(dataset, "", LOBES_STEPS, 0))
    panel = _explore(photographer, dataset, model, f"{sentence(LOBES[0])} {sentence(LOBES[3])}")
    section = _section(photographer, panel, "findings")
    section.table.setRowCount(0)
    for row, lobe in enumerate(LOBES):
        section.add_finding()
        section.table.item(row, 0).setText(lobe)
        section.table.item(row, 2).setText(sentence(lobe))
    section.table.setCurrentCell(0, 0)
    section.draw_button.click()
    _done(photographer, panel)
    photographer.napari.dims.set_current_step(0, 20)  # within the upper lobes
    _photograph(photographer, panel, section.text, "findings")


def _query(photographer: Photographer, panel: Any) -> None:
    """Three texts, whose maps lie over each other."""
    section = _section(photographer, panel, "query")
    section.stack.setChecked(True)
    for text in QUERIES:
        section.look_for(text)
        _done(photographer, panel)
    _photograph(photographer, panel, section.clear_button, "query")
    _put_back(photographer, panel, section)


def _find(photographer: Photographer, panel: Any) -> None:
    """Cases found by words."""
    panel.retrieval.fold(False)
    panel.retrieval.words.setEditText(QUERIES[1])
    panel.retrieval.text_button.click()
    _done(photographer, panel)
    _photograph(photographer, panel, panel.retrieval.open_button, "find-cases")


def _done(photographer: Photographer, panel: Any) -> None:
    photographer.settle(0.2)
    photographer.wait(lambda: not panel.busy, 300)
    photographer.settle(0.5)


def _photograph(photographer: Photographer, panel: Any, widget: Any, name: str) -> None:
    from napari_med3dssl._widgets import Page

    panel.findChild(Page).ensureWidgetVisible(widget)
    photographer.photograph("Explore", name)


def _put_back(photographer: Photographer, panel: Any, section: Any) -> None:
    if section._maps.in_grid:
        section.toggle_grid()
    section.fold(True)
    for layer in photographer.napari.layers:
        layer.visible = layer is panel.scan
