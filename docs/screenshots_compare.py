"""Pictures of the comparison of runs: two runs marked in the list, and the window with curves, tables and pairs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from make_screenshots import Photographer

PATIENTS = 16
SETTINGS = {"optim": {"max_steps": 150}, "engine": {"val_steps": 15, "preview_minutes": 0, "threads": 1}}
RATES = {"organs-fast": 2e-3, "organs-slow": 2e-4}
"""Learning rate by name of the run."""


def train_two(home: Path) -> list[Path]:
    """Two runs on generated patients, half of them to validate on; the runs are made once."""
    from training_backend.config import IngestConfig
    from training_backend.config.presets import finetune_config
    from training_backend.data.ingest import ingest
    from training_backend.data.phantoms import write_cohort
    from training_backend.jobs.launcher import launch
    from training_backend.jobs.registry import list_runs, new_run, summary

    folder = home / "sixteen-patients"
    if not folder.exists():
        scans = write_cohort(home / "sixteen-scans", PATIENTS, seed=11, shape=(40, 56, 56))
        ingest(scans, folder, IngestConfig(splits=(0.5, 0.5, 0.0), workers=0), name="sixteen patients")
    known = {run.name: run.path for run in list_runs() if run.state == "finished"}
    for name, rate in RATES.items():
        if name in known:
            continue
        run = new_run(
            finetune_config("segmentation", "tiny", folder, changes=SETTINGS).updated({"optim": {"lr": rate}}), name
        )
        launch(run)
        while summary(run).alive:
            time.sleep(1)
        if summary(run).state != "finished":
            raise SystemExit(f"{name}: {summary(run).sentence}")
        known[name] = run.path
    return [known[name] for name in RATES]


def photograph_compare(photographer: Photographer, runs: list[Path]) -> None:
    """The runs marked in the list, then the window: its curves with the table of runs, and the pairs."""
    from qtpy.QtCore import QItemSelectionModel

    from napari_med3dssl.runs_compare import RunsCompareDialog

    with photographer.viewer():
        panel = photographer.panels["Runs"]
        photographer.bench.show_tab("Runs", runs[0])
        photographer.wait(lambda: {run.path for run in panel.runs} >= set(runs))
        flags = QItemSelectionModel.SelectionFlag
        panel.table.clearSelection()
        for row, run in enumerate(panel.runs):
            if run.path in runs:
                panel.table.selectionModel().select(panel.table.model().index(row, 0), flags.Select | flags.Rows)
        photographer.settle(1)
        photographer.photograph("Runs", "marked")
        panel.compare_button.click()
        dialog = panel.findChild(RunsCompareDialog)
        dialog.resize(1280, 800)
        photographer.wait(lambda: bool(dialog.found) and dialog._job is None, 120)
        dialog.curves.slider.setValue(80)
        photographer.settle(1)
        photographer.photograph_widget(dialog, "compare-runs")
        dialog.tabs.setCurrentIndex(1)
        dialog.curves.quantity.setCurrentIndex(1)
        photographer.settle(1)
        photographer.photograph_widget(dialog, "compare-pairs")
        dialog.close()
