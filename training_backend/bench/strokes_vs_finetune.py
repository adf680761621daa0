"""Strokes in one scan beside fine-tuning on whole masks and on the same strokes, on the left atria of held-out scans.

Encoder, scans and steps are those of `correct_loop`. A scripted person draws lines of each class in a few slices of a
training scan, taken from its true mask. The strokes teach a stroke model, which fills its own scan and is then kept,
read back and applied to the validation scans, as ``Apply model…`` does. The same strokes as a partial label map train a
network, and so do whole masks. Nothing is chosen on the validation scans.
"""

from __future__ import annotations

import json
import logging
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training_backend.bench import correct_loop
from training_backend.bench._explore import Clocks, unwatched
from training_backend.bench.explore_strokes import scripted
from training_backend.files import write_json, write_text

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import CaseRecord
    from training_backend.data.volume import Volume

log = logging.getLogger(__name__)

CLASSES = [{"index": k, "name": name, "colour": "#009e73"} for k, name in enumerate(("background", "left atrium"))]
UNLABELLED = 255
BACKGROUND = 3
"""Lines of background in a slice, beside the one of the atrium."""


def main(
    data: Path,
    output: Path,
    slices: tuple[int, ...] = (3, 9),
    masks: tuple[int, ...] = (1, 4),
    seeds: tuple[int, ...] = (0, 1, 2, 3),
    voxels: int = 40,
    steps: int = 60,
    pretrain_steps: int = 200,
    threads: int = 1,
) -> dict[str, Any]:
    """Mean Dice of the validation scans by what was annotated; also ``strokes_vs_finetune.json`` and ``.md``.

    A second call goes on where the first one was cut off.

    Args:
        data: folder with the .h5 files, train.list and val.list of UA-MT.
        output: folder for datasets, runs and results.
        slices: numbers of slices with strokes, in one scan.
        masks: numbers of scans with whole masks.
        seeds: of the annotated scans, of strokes, weights and crops.
        voxels: length of a stroke.
        steps: of fine-tuning.
        pretrain_steps: of the encoder, once, on the training scans without their labels.
        threads: of PyTorch.
    """
    output = Path(output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    whole = correct_loop._dataset(Path(data), output / "dataset")
    pretrained = str(output / "pretrain")
    correct_loop._trained(correct_loop._pretraining(whole, pretrain_steps, threads), output / "pretrain")
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        for count in slices:
            rows += _by_strokes(
                whole, output / f"strokes_{count}_{seed}", pretrained, seed, count, voxels, steps, threads
            )
        for count in masks:
            place = output / f"masks_{count}_{seed}"
            row = correct_loop._round(whole, place, pretrained, "random", seed, count, steps, threads)
            rows.append({**row, "arm": "masks", "annotated": _scans(count)})
        write_json(output / "strokes_vs_finetune.json", rows)
    write_text(output / "strokes_vs_finetune.md", markdown(rows))
    return {"rows": rows, "table": markdown(rows)}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Table of means over seeds and scans, with the range over seeds."""
    titles = {
        "own": "stroke model, rest of the same scan",
        "applied": "stroke model, kept and applied",
        "strokes": "fine-tuned on the strokes",
        "masks": "fine-tuned on whole masks",
    }
    lines = ["| annotated | way | Dice (range over seeds) | processor time to learn |", "|:--|:--|:--|--:|"]
    for arm, annotated in dict.fromkeys((row["arm"], row["annotated"]) for row in rows):
        group = [row for row in rows if (row["arm"], row["annotated"]) == (arm, annotated)]
        dice = [row["dice"] for row in group]
        seconds = statistics.fmean(row["processor_s"] for row in group)
        scores = f"{statistics.fmean(dice):.3f} ({min(dice):.3f} to {max(dice):.3f})"
        lines.append(f"| {annotated} | {titles[arm]} | {scores} | {seconds:.2g} s |")
    return "\n".join(lines) + "\n"


def _by_strokes(
    whole: Path, place: Path, pretrained: str, seed: int, count: int, voxels: int, steps: int, threads: int
) -> list[dict[str, Any]]:
    """Rows of a stroke model and of a network that learnt from the same strokes; read back if that was done before."""
    from training_backend.data.accept import Origin, accept
    from training_backend.data.dataset import Dataset

    done = place / "rows.json"
    if done.exists():
        kept: list[dict[str, Any]] = json.loads(done.read_text(encoding="utf-8"))
        return kept
    if not place.exists():
        correct_loop._without_labels(whole, place / "dataset")
    truth = Dataset.open(whole)
    (id,) = correct_loop._chosen(Dataset.open(place / "dataset"), "", "random", seed, 1)
    case = truth.case(id)
    mask = _mask(truth, case)
    points, values = drawn_strokes(mask.array, count, voxels, seed)
    rows = _stroke_model(truth, case, points, values, pretrained, place / "atrium.safetensors")
    painted = np.full(mask.array.shape, UNLABELLED, np.uint8)
    painted[tuple(points.T)] = values
    accept(place / "dataset", id, mask.with_array(painted), origin=Origin("strokes from the true mask", pretrained))
    config = correct_loop._finetuning(place / "dataset", pretrained, seed, steps, threads)
    facts = correct_loop._trained(config, place / "run")
    dice = statistics.fmean(correct_loop._dice_of(place / "run").values())
    rows.append({"arm": "strokes", "dice": dice, **facts})
    label = f"strokes in {count} slices of 1 scan"
    rows = [{**row, "annotated": label, "seed": seed, "case": id, "voxels": len(points)} for row in rows]
    write_json(done, rows)
    log.warning("%s, seed %d: %s", label, seed, {row["arm"]: round(row["dice"], 4) for row in rows})
    return rows


def drawn_strokes(
    labels: np.ndarray[Any, Any], count: int, voxels: int, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Voxels [N, 3] and classes [N] of lines in `count` slices, evenly spread over those that show the atrium.

    Lines run in the slices that the scanner made, along the axis of which the array has fewest.
    """
    axis = int(np.argmin(labels.shape))
    turned = np.moveaxis(labels, axis, 0)
    with_class = np.flatnonzero(turned.any(axis=(1, 2)))
    chosen = with_class[np.linspace(0, len(with_class) - 1, count + 2).astype(int)[1:-1]]
    drawn = [scripted(turned, (0, 1), int(z), voxels, seed, BACKGROUND) for z in chosen]
    points, values = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    order = [1, 2]
    order.insert(axis, 0)
    return points[:, order], values


def _stroke_model(
    truth: Dataset,
    case: CaseRecord,
    points: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
    source: str,
    path: Path,
) -> list[dict[str, Any]]:
    """Rows of a stroke model: of the rest of its own scan, and of the validation scans, where it comes from a file."""
    from training_backend.jobs.serve_ops import Session

    operations = Session("cpu").operations()
    opened = operations["strokes_open"]({"source": source, "volumes": [_scan(truth, case)]}, unwatched())
    given = {"key": opened["key"], "points": points, "values": values, "classes": CLASSES, "size": None}
    clocks = Clocks()
    own = clocks.time(lambda: operations["strokes_fill"](given, unwatched()))["labels"]
    operations["strokes_save"]({"key": opened["key"], "path": str(path)}, unwatched())
    rest = np.ones(own.shape, bool)
    rest[tuple(points.T)] = False
    scores = {}
    for other in truth.cases(split="val", labelled=True):
        params = {"source": source, "volumes": [_scan(truth, other)], "path": str(path)}
        found = operations["strokes_apply"](params, unwatched())["labels"]
        scores[other.id] = _dice(found, _mask(truth, other).array)
    seconds = clocks.told()["processor_s"]
    own_dice = _dice(own[rest], _mask(truth, case).array[rest])
    return [
        {"arm": "own", "dice": own_dice, "processor_s": seconds},
        {"arm": "applied", "dice": statistics.fmean(scores.values()), "cases": scores, "processor_s": seconds},
    ]


def _dice(found: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    from training_backend.evaluate.segmentation_metrics import dice_per_class

    return float(dice_per_class(found, truth, [1])[1])


def _scan(dataset: Dataset, case: CaseRecord) -> Volume:
    from training_backend.data.read import read_volume

    return read_volume(dataset.source(case.images[0]), key=case.images[0].key)


def _mask(dataset: Dataset, case: CaseRecord) -> Volume:
    from training_backend.data.read import read_classes

    assert case.label is not None  # all scans of this data set have one
    return read_classes(dataset.source(case.label), key=case.label.key)


def _scans(count: int) -> str:
    return f"whole mask{'s' if count > 1 else ''} of {count} scan{'s' if count > 1 else ''}"
