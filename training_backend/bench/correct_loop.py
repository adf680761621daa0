"""Left atria from 1, 2, 4 and 8 corrected scans: chosen at random, or by what the model and the encoder say.

The loop of the product, with the true masks in the place of a person: choose cases, accept their masks, continue from
the best model of the round before, score the validation scans. All orders start from one encoder, pre-trained on the
training scans without their labels, and train the same steps in every round. Nothing is chosen on the validation scans.
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.errors import RunError
from training_backend.files import write_json, write_text

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset

log = logging.getLogger(__name__)

SPACING_MM = (2.0, 2.0, 2.0)
SIZE = (32, 48, 48)
PATCH = (8, 8, 8)

Order = Literal["random", "uncertainty", "diversity", "both"]


def main(
    data: Path,
    output: Path,
    orders: tuple[Order, ...] = ("random", "both"),
    seeds: tuple[int, ...] = (0, 1, 2),
    rounds: tuple[int, ...] = (1, 2, 4, 8),
    steps: int = 60,
    pretrain_steps: int = 200,
    threads: int = 1,
) -> dict[str, Any]:
    """Mean Dice of the validation scans after each round; also ``correct_loop.json`` and ``.md`` in `output`.

    A second call goes on where the first one was cut off.

    Args:
        data: folder with the .h5 files, train.list and val.list of UA-MT.
        output: folder for datasets, runs and results.
        orders: of "random", "uncertainty", "diversity" and "both"; before there is a model, those by model or encoder
            take the scan that is most like all others.
        seeds: of crops, weights and random choices.
        rounds: corrected scans after each round.
        steps: of fine-tuning in a round.
        pretrain_steps: of the encoder, once.
        threads: of PyTorch.
    """
    output = Path(output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    whole = _dataset(Path(data), output / "dataset")
    pretrained = _trained(_pretraining(whole, pretrain_steps, threads), output / "pretrain")
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        for order in orders:
            place = output / f"{order}_{seed}"
            model = str(output / "pretrain")
            for count in rounds:
                row = _round(whole, place, model, order, seed, count, steps, threads)
                model = str(place / f"run_{count}")
                rows.append(row)
                log.warning("%s, seed %d, %d scans: Dice %.4f", order, seed, count, row["dice"])
                write_json(output / "correct_loop.json", {"pretrain": pretrained, "rows": rows})
    write_text(output / "correct_loop.md", markdown(rows))
    return {"pretrain": pretrained, "rows": rows, "table": markdown(rows)}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Table of means over seeds and validation scans, with the range over seeds."""
    orders = list(dict.fromkeys(row["order"] for row in rows))
    lines = ["| corrected scans |" + "".join(f" {order} |" for order in orders), "|--:|" + "--:|" * len(orders)]
    for count in dict.fromkeys(row["count"] for row in rows):
        cells = []
        for order in orders:
            found = [row["dice"] for row in rows if row["order"] == order and row["count"] == count]
            cells.append(
                f" {statistics.fmean(found):.3f} ({min(found):.3f} to {max(found):.3f}) |" if found else " – |"
            )
        lines.append(f"| {count} |" + "".join(cells))
    return "\n".join(lines) + "\n"


def _round(
    whole: Path, place: Path, model: str, order: Order, seed: int, count: int, steps: int, threads: int
) -> dict[str, Any]:
    """Choose, accept, train and score until `count` scans are corrected; read back if that was done before."""
    from training_backend.data.accept import Origin, accept
    from training_backend.data.dataset import Dataset
    from training_backend.data.read import read_classes

    done = place / f"row_{count}.json"
    if done.exists():
        kept: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return kept
    if not place.exists():
        _without_labels(whole, place / "dataset")
    truth, dataset = Dataset.open(whole), Dataset.open(place / "dataset")
    have = len(dataset.cases(split="train", labelled=True))
    for id in _chosen(dataset, model, order, seed, count - have) if count > have else ():
        record = truth.case(id).label
        assert record is not None  # all scans of this data set have one
        mask = read_classes(truth.source(record), key=record.key)
        accept(dataset.folder, id, mask, origin=Origin("the true mask", model))
    config = _finetuning(dataset.folder, model, seed, steps, threads)
    facts = _trained(config, place / f"run_{count}")
    scores = _dice_of(place / f"run_{count}")
    accepted = [case.id for case in Dataset.open(dataset.folder).records.values() if case.accepted]
    row = {"order": order, "seed": seed, "count": count, "dice": statistics.fmean(scores.values()), **facts}
    row |= {"cases": scores, "corrected": accepted}
    write_json(done, row)
    return row


def _chosen(dataset: Dataset, model: str, order: Order, seed: int, count: int) -> list[str]:
    """Ids of the scans to correct next."""
    from training_backend.evaluate.next_case import next_cases
    from training_backend.weights.load import load_model

    if order == "random":
        ids = [case.id for case in dataset.cases(split="train")]
        drawn = [ids[k] for k in np.random.default_rng(seed).permutation(len(ids))]
        left = {case.id for case in dataset.cases(split="train", labelled=False)}
        return [id for id in drawn if id in left][:count]
    loaded = load_model(model)
    by = order if loaded.kind == "finetune" else "diversity"
    return [choice.case_id for choice in next_cases(loaded, dataset, by, count, device="cpu")]


def _dataset(data: Path, folder: Path) -> Path:
    from training_backend.data.ingest import ingest

    if not (folder / "dataset.json").exists():
        report = ingest([data], folder, IngestConfig(spacing_mm=SPACING_MM, crop_body=False), name="left atria")
        if report.quarantined:
            raise RunError(f"Not every scan could be used: {report}")
    return folder


def _without_labels(whole: Path, folder: Path) -> None:
    """A copy of the dataset whose training scans have no label map."""
    from training_backend.data.dataset import Dataset, relative_root

    truth = Dataset.open(whole)
    shutil.copytree(whole, folder)
    copy = Dataset.open(folder)
    root = (whole / truth.info.root).resolve()
    copy.info = copy.info.model_copy(update={"root": relative_root(root, folder)})
    for case in copy.cases(split="train"):
        store = {name: entry for name, entry in case.store.items() if name != "label"}
        copy.put(case.model_copy(update={"label": None, "store": store}))
    copy.save()


def _trained(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Seconds of the processor that the steps of a run took; it is trained here, to its end."""
    from training_backend.engine.events import EventReader
    from training_backend.engine.rundir import RunDirectory
    from training_backend.engine.worker import execute

    exists = (folder / "run.json").exists()
    run = RunDirectory.open(folder) if exists else RunDirectory.create(folder, config)
    if execute(run) != 0:
        raise RunError(f"{folder.name} did not finish.", f"See {run.log_path}.")
    events = [e for e in EventReader(run.events_path).read() if e["type"] == "metrics" and e["split"] == "train"]
    return {"steps": events[-1]["step"], "processor_s": sum(event["processor_s"] for event in events)}


def _dice_of(run: Path) -> dict[str, float]:
    """Mean Dice of the classes of each validation scan of a finished run."""
    cases = json.loads((run / "predictions" / "cases.json").read_text(encoding="utf-8"))
    return {entry["case"]: statistics.fmean(entry["dice"].values()) for entry in cases}


def _pretraining(dataset: Path, steps: int, threads: int) -> RunConfig:
    changes = {
        "method": {"patch_size": PATCH},
        "data": {"size": SIZE, "workers": 0, "augment": {"flip": (0.5, 0.5, 0.5)}},
        "optim": {"batch_size": 4, "lr": 1e-3, "warmup": 0.05, "max_steps": steps},
        "engine": {"device": "cpu", "threads": threads, "preview_minutes": 0, "val_steps": steps},
    }
    return pretrain_config("mae3d", "tiny", dataset, changes)


def _finetuning(dataset: Path, weights: str, seed: int, steps: int, threads: int) -> RunConfig:
    changes = {
        "seed": seed,
        "weights": weights,
        "method": {"patch_size": PATCH},
        "data": {"size": SIZE, "workers": 0, "augment": {"flip": (0.5, 0.5, 0.5)}},
        "optim": {
            "batch_size": 2,
            "max_steps": steps,
            "lr": 2e-3,
            "betas": (0.9, 0.999),
            "ema": 0.95,
            "clip_grad": None,
        },
        "engine": {"device": "cpu", "threads": threads, "preview_minutes": 0, "val_steps": steps},
    }
    return finetune_config("segmentation", "tiny", dataset, "mae3d", changes)
