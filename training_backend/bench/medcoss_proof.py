"""Whether rehearsal keeps an encoder from forgetting: the same stages on generated patients, with it and without.

Everything goes through the product: ingest, the settings of a plan's stages, the engine, kept decoders, buffers and
the probe. Both plans have the same stages, data, seeds and steps; without rehearsal all steps are of the new modality,
with it some are of the buffers, so it sees less of the new one. What is compared are held-out cases that no stage saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_backend.config import IngestConfig
from training_backend.config.plan import PlanConfig
from training_backend.errors import RunError

ENGINE = {"device": "cpu", "threads": 1, "preview_minutes": 0, "val_steps": 10**6, "log_steps": 20}
"""The last weights of a stage count: none are chosen by a loss."""


def main(
    output: Path,
    cases: int = 80,
    steps: int = 400,
    batch: int = 8,
    lr: float = 2e-3,
    ratio: float = 0.1,
    seeds: tuple[int, ...] = (0,),
    modalities: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Loss of each modality after each stage, and how much of it was forgotten on average, for each seed.

    Args:
        output: folder of datasets and stages; what is there already is not made again.
        cases: of each modality, a fifth of them held out.
        steps: of each stage.
        batch: views of a step.
        lr: peak learning rate.
        ratio: share of the cases that is kept for rehearsal.
        seeds: of the plans.
        modalities: taught, in this order; empty for the five published ones.
    """
    from training_backend.data.phantom_modalities import MODALITIES

    output, taught = Path(output).resolve(), modalities or MODALITIES
    data = {name: _dataset(output / "data", name, cases, number) for number, name in enumerate(taught)}
    found: dict[str, Any] = {"steps": steps, "cases": cases, "modalities": list(taught)}
    for seed in seeds:
        for name, rehearse in (("rehearsal", True), ("none", False)):
            plan = PlanConfig.parse(
                {
                    "preset": "tiny",
                    "seed": seed,
                    "rehearse": rehearse,
                    "buffer": {"ratio": ratio, "centres": ratio / 2, "fill": True},
                    "probe": {"cases": cases},
                    "settings": {
                        "engine": ENGINE,
                        "data": {"workers": 0},
                        "optim": {"batch_size": batch, "lr": lr, "epochs": 10000},
                    },
                    "stages": [{"modality": each, "dataset": data[each], "steps": steps} for each in taught],
                }
            )
            found[f"{name} {seed}"] = _worked(plan, output / f"{name}_{seed}")
    return found


def _dataset(root: Path, modality: str, cases: int, seed: int) -> Path:
    from training_backend.data.ingest import ingest
    from training_backend.data.phantom_modalities import write_modality

    if not (root / modality / "dataset.json").exists():
        source = write_modality(root / "source" / modality, modality, cases, seed=seed + 1)
        ingest([source], root / modality, IngestConfig(crop_body=False, workers=0), name=modality)
    return root / modality


def _worked(plan: PlanConfig, folder: Path) -> dict[str, Any]:
    """Train all stages in this process, and measure after each; their table in short."""
    from training_backend.engine.rundir import RunDirectory
    from training_backend.engine.worker import execute
    from training_backend.evaluate.forgetting import Row, mean_forgotten
    from training_backend.evaluate.stage_end import end_stage
    from training_backend.jobs.plan_stages import Start, from_run, stage_config, stage_folder

    start, rows = Start(), list[Row]()
    for number, stage in enumerate(plan.stages, 1):
        place = stage_folder(folder, number, stage)
        exists = (place / "run.json").exists()
        run = RunDirectory.open(place) if exists else RunDirectory.create(place, stage_config(plan, number, start))
        if execute(run) != 0:
            raise RunError(f"The stage {place.name} did not finish.", f"See {run.log_path}.")
        rows = end_stage(place, run.config(), plan.buffer, plan.probe, previous=start.folder)
        start = from_run(place)
    last = max(row.number for row in rows)
    learnt = {row.modality: _rounded(row.loss) for row in rows if row.stage == row.modality}
    end = {row.modality: row for row in rows if row.number == last}
    return {
        "mean_forgotten": _rounded(mean_forgotten(rows)),
        "loss_when_taught": learnt,
        "loss_at_the_end": {name: _rounded(row.loss) for name, row in end.items()},
        "forgotten": {name: _rounded(row.forgotten) for name, row in end.items()},
        "accuracy": {name: _rounded(row.accuracy) for name, row in end.items() if row.accuracy is not None},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
