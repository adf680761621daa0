"""Finished fine-tuning runs, written as training writes them: predictions that are wrong by a known amount."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from training_backend.config import IngestConfig
from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.data.read import read_classes
from training_backend.data.write import write_volume
from training_backend.engine.events import EventWriter
from training_backend.engine.rundir import RunDirectory
from training_backend.evaluate.segmentation_metrics import dice_per_class
from training_backend.files import write_json


def eight_patients(folder: Path) -> Path:
    """Dataset of nine phantom patients, eight of them to validate on."""
    write_cohort(folder / "cohort", 9, seed=5, shape=(16, 24, 24))
    made = folder / "patients"
    ingest(folder / "cohort", made, IngestConfig(splits=(0.1, 0.9, 0.0), workers=0), name="patients")
    return made


def scored_run(folder: Path, dataset: Path, shift: int, *, leave_out: int = 0, **changes: Any) -> RunDirectory:
    """A run that predicts the truth, moved by `shift` voxels more for every case; the first cases may be missing."""
    run = RunDirectory.create(folder, finetune_config("segmentation", "tiny", dataset, changes=changes))
    opened, entries = Dataset.open(dataset), []
    names = {row.index: row.name for row in opened.info.classes}
    run.predictions.mkdir()
    for number, case in enumerate(opened.cases(split="val")):
        if number < leave_out:
            continue
        truth = read_classes(opened.source(case.label))
        moved = np.roll(truth.array, shift + (number if shift else 0), axis=1)
        path = write_volume(truth.with_array(moved), run.predictions / f"{case.id}.nii.gz")
        dice = {names[k]: value for k, value in dice_per_class(moved, truth.array, names).items() if value == value}
        files = {"prediction": f"predictions/{path.name}", "image": case.images[0].path, "label": case.label.path}
        entries.append({"case": case.id, **files, "dice": dice})
    write_json(run.predictions / "cases.json", entries)
    write_events(run, shift + 1.0)
    run.update(state="finished")
    return run


def write_events(run: RunDirectory, loss: float) -> None:
    """Ten steps with a falling loss, and a score after five and ten."""
    events = EventWriter(run.events_path)
    for step in range(1, 11):
        events.write("metrics", step, split="train", epoch=0.1, values={"loss": loss / step}, lr=1e-3, steps=10)
        if step % 5 == 0:
            score = 1 / (1 + loss / step)
            told = {"values": {"dice": score}, "score": score, "best_score": score, "best_step": step}
            events.write("metrics", step, split="val", epoch=0.1, **told)
    events.close()
