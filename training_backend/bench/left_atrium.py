"""Left atria from 4, 8 and 24 labelled scans: pre-trained, from scratch, and a plain MONAI U-Net in the same time.

The product does all of it: ingest at half resolution, pre-training on the training scans without their labels,
fine-tuning runs in run directories. Fine-tuning and the peer run two at a time with one thread each, so all meet the
same load; each trains for the same seconds, of the wall or, on a busy machine, of the processor. Every label map is
scored at the resolution of the file. Nothing is chosen on the validation scans: the last weights count.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.errors import RunError
from training_backend.files import write_json, write_text

log = logging.getLogger(__name__)

SPACING_MM = (1.25, 1.25, 1.25)
SIZE = (40, 64, 80)
PATCH = (8, 16, 16)
ARMS = {
    "pretrained": "pre-trained",
    "scratch": "from scratch",
    "peer": "MONAI U-Net, 2 residual units",
    "plain": "MONAI U-Net, no residual units",
}
PEERS = {"peer": 2, "plain": 0}
"""Residual units of the peers' networks."""
CALIBRATION_STEPS = 25

Clock = Literal["wall", "processor"]
SECONDS = {"wall": "step_s", "processor": "processor_s"}
"""Key of a step's seconds in its event, by clock."""


def main(
    data: Path,
    output: Path,
    budget_s: float = 300,
    pretrain_s: float = 900,
    labelled: tuple[int, ...] = (4, 8, 24),
    seeds: tuple[int, ...] = (0, 1, 2),
    arms: tuple[str, ...] = tuple(ARMS),
    lanes: int = 2,
    threads: int = 1,
    clock: Clock = "wall",
) -> dict[str, Any]:
    """Dice, HD95 and surface Dice of each arm; also written to ``left_atrium.json`` and ``.md`` in `output`.

    A second call goes on where the first one was cut off.

    Args:
        data: folder with the .h5 files, train.list and val.list of UA-MT.
        output: folder for the dataset, the runs and the results.
        budget_s: seconds of training of each fine-tuning run and of the peer.
        pretrain_s: seconds of pre-training, done once.
        labelled: numbers of labelled scans.
        seeds: of weights, order, and choice of the labelled scans.
        arms: of "pretrained", "scratch", "peer" and "plain".
        lanes: processes at a time.
        threads: of each.
        clock: whose seconds `budget_s` counts: those of the wall, or those that the processor worked.
    """
    output = Path(output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    dataset = _dataset(Path(data), output / "dataset")
    pretrained = output / "pretrain"
    if "pretrained" in arms:
        train_for(_pretraining(dataset, threads * lanes), pretrained, pretrain_s, clock)
    rows: list[dict[str, Any]] = []
    settings = _settings(budget_s, pretrain_s, threads, clock)
    jobs = [(arm, count, seed) for count in labelled for seed in seeds for arm in arms]
    with ThreadPoolExecutor(lanes) as pool:
        for row in pool.map(lambda job: _job(job, Path(data), output, dataset, budget_s, threads, clock), jobs):
            rows.append(row)
            write_json(output / "left_atrium.json", {"settings": settings, "rows": rows})
    write_text(output / "left_atrium.md", markdown(rows))
    return {"rows": rows, "table": markdown(rows)}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Table of means over seeds and validation scans, with the range over seeds."""
    lines = [
        "| labelled scans | model | Dice (range over seeds) | HD95 mm | surface Dice at 2 mm | seconds | steps |",
        "|--:|:--|:--|--:|--:|--:|--:|",
    ]
    for count in dict.fromkeys(row["labelled"] for row in rows):
        for arm, title in ARMS.items():
            group = [row for row in rows if row["labelled"] == count and row["arm"] == arm]
            if not group:
                continue
            columns = ("dice", "hd95_mm", "nsd", "seconds", "steps")
            dice, hd95, nsd, seconds, steps = (statistics.fmean(row[key] for row in group) for key in columns)
            low, high = min(row["dice"] for row in group), max(row["dice"] for row in group)
            scores = f"{dice:.3f} ({low:.3f} to {high:.3f}) | {hd95:.1f} | {nsd:.3f}"
            lines.append(f"| {count} | {title} | {scores} | {seconds:.0f} | {steps:.0f} |")
    return "\n".join(lines) + "\n"


def _dataset(data: Path, folder: Path) -> Path:
    from training_backend.config import IngestConfig
    from training_backend.data.ingest import ingest

    if not (folder / "dataset.json").exists():
        report = ingest([data], folder, IngestConfig(spacing_mm=SPACING_MM, crop_body=False), name="left atria")
        if report.quarantined:
            raise RunError(f"Not every scan could be used: {report}")
    return folder


def _pretraining(dataset: Path, threads: int) -> RunConfig:
    changes = {
        "method": {"patch_size": PATCH},
        "data": {"size": SIZE, "workers": 0, "augment": {"flip": (0.5, 0.5, 0.5)}},
        "optim": {"batch_size": 8, "lr": 1e-3, "warmup": 0.05},
        "engine": {"device": "cpu", "threads": threads, "preview_minutes": 0},
    }
    return pretrain_config("mae3d", "tiny", dataset, changes)


def _finetuning(dataset: Path, weights: str, count: int, seed: int, threads: int) -> RunConfig:
    changes = {
        "seed": seed,
        "weights": weights,
        "method": {"patch_size": PATCH},
        "data": {
            "size": SIZE,
            "train_cases": count,
            "workers": 0,
            "augment": {"flip": (0.5, 0.5, 0.5)},
        },
        "optim": {"batch_size": 2, "lr": 2e-3, "betas": (0.9, 0.999), "ema": 0.99, "clip_grad": None},
        "engine": {"device": "cpu", "threads": threads, "preview_minutes": 0},
    }
    return finetune_config("segmentation", "tiny", dataset, "mae3d", changes)


def _job(
    job: tuple[str, int, int], data: Path, output: Path, dataset: Path, budget_s: float, threads: int, clock: Clock
) -> dict[str, Any]:
    """One trained and scored model of (arm, labelled scans, seed); read back if it was made before."""
    arm, count, seed = job
    folder = output / f"{arm}_{count}_{seed}"
    done = folder / "row.json"
    if done.exists():
        kept: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return kept
    pretrained = str(output / "pretrain") if arm == "pretrained" else ""
    config = _finetuning(dataset, pretrained, count, seed, threads)
    if arm in PEERS:
        facts = _peer(data, folder, _labelled_ids(config), budget_s, seed, threads, PEERS[arm], clock)
    else:
        facts = train_for(config, folder, budget_s, clock)
    scores = _scores(dataset, folder)
    means = {key: statistics.fmean(score[key] for score in scores) for key in ("dice", "hd95_mm", "nsd")}
    row = {"arm": arm, "labelled": count, "seed": seed, **facts, **means, "cases": scores}
    write_json(done, row)
    log.warning("%s, %d labelled, seed %d: Dice %.4f", arm, count, seed, means["dice"])
    return row


def train_for(config: RunConfig, folder: Path, budget_s: float, clock: Clock = "wall") -> dict[str, Any]:
    """Run of as many steps as fit into `budget_s` at the pace that a first short run has, without validation."""
    from training_backend.engine.rundir import RunDirectory

    if not (folder / "run.json").exists():
        trial = config.updated({"optim": {"max_steps": CALIBRATION_STEPS}, "engine": {"val_steps": 10**6}})
        pace = statistics.median(
            event[SECONDS[clock]] for event in followed(trial, folder.with_name(f"{folder.name}_trial"))[5:]
        )
        steps = max(CALIBRATION_STEPS, int(budget_s / pace))
        config = config.updated({"optim": {"max_steps": steps}, "engine": {"val_steps": steps}})
    else:
        config = RunDirectory.open(folder).config()
    events = followed(config, folder)
    seconds = sum(event[SECONDS[clock]] for event in events)
    losses = [event["values"]["loss"] for event in events[-50:]]
    return {"steps": events[-1]["step"], "seconds": seconds, "loss": statistics.fmean(losses)}


def followed(config: RunConfig, folder: Path) -> list[dict[str, Any]]:
    """Metrics of the training steps of a run that has ended well."""
    from training_backend.engine.events import EventReader
    from training_backend.engine.rundir import RunDirectory
    from training_backend.jobs.launcher import launch
    from training_backend.jobs.registry import summary

    exists = (folder / "run.json").exists()
    run = RunDirectory.open(folder) if exists else RunDirectory.create(folder, config)
    if summary(run).state != "finished":
        launch(run)
    while (now := summary(run)).alive:
        time.sleep(0.5)
    if now.state != "finished":
        raise RunError(f"{now.name} did not finish: {now.sentence}", f"See {run.log_path}.")
    events = EventReader(run.events_path).read()
    return [event for event in events if event["type"] == "metrics" and event["split"] == "train"]


def _labelled_ids(config: RunConfig) -> list[str]:
    """File names of the labelled scans that a run of `config` sees."""
    from training_backend.data.dataset import Dataset
    from training_backend.data.loader import ViewLoader

    cases = ViewLoader(Dataset.open(config.data.dataset), config, needs="labels").cases
    return [Path(case.images[0].path).stem for case in cases]


def _peer(
    data: Path,
    folder: Path,
    cases: list[str],
    budget_s: float,
    seed: int,
    threads: int,
    residual_units: int,
    clock: Clock,
) -> dict[str, Any]:
    arguments = ["--data", str(data), "--output", str(folder), "--budget-s", str(budget_s), "--seed", str(seed)]
    arguments += ["--threads", str(threads), "--residual-units", str(residual_units), "--clock", clock]
    arguments += ["--cases", *cases]
    command = [sys.executable, "-m", "training_backend", "bench", "peer_unet", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RunError(f"The peer ended with an error: {result.stderr.strip().splitlines()[-1:]}")
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def _scores(dataset: Path, folder: Path) -> list[dict[str, Any]]:
    """All metrics of every validation scan at the resolution of its file."""
    from training_backend.data.dataset import Dataset
    from training_backend.data.read import read_classes
    from training_backend.evaluate.segmentation_metrics import score_case

    opened = Dataset.open(dataset)
    rows = []
    for case in opened.cases(split="val", labelled=True):
        assert case.label is not None
        truth = read_classes(opened.source(case.label), key=case.label.key)
        prediction = _prediction(folder, case.id, Path(case.label.path).stem)
        (score,) = score_case(prediction, truth.array, truth.geometry.spacing_mm, {1: "left atrium"}, case_id=case.id)
        rows.append(asdict(score))
    return rows


def _prediction(folder: Path, case: str, stem: str) -> Any:
    """Label map (z, y, x) that a run or the peer wrote."""
    import numpy as np

    from training_backend.data.read import read_labels

    by_peer = folder / f"{stem}.npy"
    return np.load(by_peer) if by_peer.exists() else read_labels(folder / "predictions" / f"{case}.nii.gz").array


def _settings(budget_s: float, pretrain_s: float, threads: int, clock: Clock) -> dict[str, Any]:
    import platform

    import torch

    return {
        "budget_s": budget_s,
        "pretrain_s": pretrain_s,
        "threads": threads,
        "clock": clock,
        "spacing_mm": SPACING_MM,
        "size": SIZE,
        "patch": PATCH,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
