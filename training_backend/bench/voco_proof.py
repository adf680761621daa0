"""Whether VoCo learns within minutes of one processor: positions, what a frozen encoder knows, and left atria.

Everything goes through the product: ingest, run directories, the engine, its own prediction and metrics. Nothing is
chosen on the scans that are scored; the last weights count. Seconds are those of the processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training_backend.config import IngestConfig, RunConfig
from training_backend.config.model import merged
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.errors import ConfigError, RunError

if TYPE_CHECKING:
    from torch import Tensor

    from training_backend.data.dataset import Dataset
    from training_backend.data.position import Sampling
    from training_backend.nn.voco import Voco

PARTS = ("position", "probe", "atria")
ENGINE = {"device": "cpu", "threads": 1, "preview_minutes": 0, "val_steps": 10**6}
EASED = {
    "feature_size": 3,
    "window": 3,
    "cells": 2,
    "crops": 4,
    "hidden": 64,
    "projected": 32,
    "flip": 0.0,
    "rotate": 0.0,
    "shift": 0.0,
    "drop_rows": 0.0,
}
"""Settings that learn within minutes: a grid of 2 x 2, more crops, and none that is changed or dropped."""
ATRIA = {"method": {"cells": 2}, "data": {"size": (64, 64, 64), "workers": 0}, "optim": {"max_steps": 25}}
ATRIA_MM = (1.25, 1.25, 1.25)
_VAL_CROPS = 256
"""Random crops of a scan that are looked for."""
_PROBE_CROPS = {"train": 24, "val": 96}
"""Random crops of a scan that the probe learns from, or is scored on."""


def main(
    output: Path,
    parts: tuple[str, ...] = PARTS,
    steps: int = 180,
    cases: int = 20,
    as_preset: bool = False,
    data: Path | None = None,
    scans: int = 10,
    finetune_steps: int = 40,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> dict[str, Any]:
    """Figures of each part.

    position: share of random crops of held-out phantoms whose most overlapping cell is found, before and after
    ``pretrain --method voco --preset tiny`` with the settings of `EASED`. probe: balanced accuracy with which a linear
    classifier of embeddings of the frozen encoder tells the organ in the middle of a crop, beside that of random
    encoders. atria: Dice of held-out left atria after fine-tuning from a VoCo run on the same scans, and from random
    weights.

    Args:
        output: folder of datasets and runs; what is there already is not trained again.
        parts: of `PARTS`; the probe needs the run of "position".
        steps: of pre-training on phantoms.
        cases: phantoms, a fifth of them held out.
        as_preset: leave out the settings of `EASED`: a grid of 3 x 3 and crops that are flipped and turned.
        data: folder with .h5 files of left atria.
        scans: of them used, a fifth held out.
        finetune_steps: of either fine-tuning run.
        seeds: of the random encoders, and of fine-tuning.
    """
    output = Path(output).resolve()
    found: dict[str, Any] = {}
    if "position" in parts or "probe" in parts:
        folder = output / ("preset" if as_preset else "eased")
        changes = {} if as_preset else {"method": EASED, "optim": {"lr": 3e-3}}
        dataset = _phantoms(folder / "phantoms", cases, (64, 96, 96) if as_preset else (64, 72, 72))
        fixed = {"data": {"workers": 0}, "optim": {"max_steps": steps}, "engine": ENGINE}
        config = pretrain_config("voco", "tiny", dataset, merged(changes, fixed))
        seconds = finished(config, folder / "run")
        if "position" in parts:
            found["position"] = {**_positions(config, folder / "run"), "processor_s": seconds}
        if "probe" in parts:
            found["probe"] = _probe(config, folder / "run", seeds)
    if "atria" in parts:
        if data is None:
            raise ConfigError("The part atria needs a folder of left atria.", "Give --data FOLDER, or leave it out.")
        found["atria"] = _atria(Path(data), output, scans, finetune_steps, seeds)
    return found


def chance(sampling: Sampling) -> float:
    """Share of all places whose most overlapping cell is the one that is so most often: the best blind guess."""
    from training_backend.data.position import overlap

    line = np.arange(max((sampling.cells - 1) * sampling.crop, 1))
    places = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    best = overlap(places, sampling.cells, sampling.crop).argmax(axis=1)
    return float(np.bincount(best).max() / len(best))


def _phantoms(folder: Path, cases: int, shape: tuple[int, int, int]) -> Path:
    from training_backend.data.ingest import ingest
    from training_backend.data.phantoms import write_cohort

    if not (folder / "data" / "dataset.json").exists():
        settings = IngestConfig(crop_body=False, workers=0)
        ingest([write_cohort(folder / "cohort", cases, seed=3, shape=shape)], folder / "data", settings)
    return folder / "data"


def finished(config: RunConfig, folder: Path) -> float:
    """Train the run in `folder` unless that was done; processor seconds of its steps."""
    from training_backend.engine.events import EventReader
    from training_backend.engine.rundir import RunDirectory
    from training_backend.engine.worker import execute

    exists = (folder / "run.json").exists()
    run = RunDirectory.open(folder) if exists else RunDirectory.create(folder, config)
    if not (folder / "model.safetensors").exists() and execute(run) != 0:
        raise RunError(f"{folder.name} did not finish.", f"See {run.log_path}.")
    events = [event for event in EventReader(run.events_path).read() if event["type"] == "metrics"]
    return round(sum(event["processor_s"] for event in events if event["split"] == "train"), 1)


def made(config: RunConfig, source: Path | None, seed: int = 0) -> Any:
    """The network of a run, or one with random weights."""
    import torch

    from training_backend.config.registry import method
    from training_backend.weights.load import load_model

    if source is not None:
        return load_model(source).module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method(str(config.method.name)).build(config).eval()


def labelled_views(config: RunConfig, split: str) -> dict[str, tuple[Tensor, npt.NDArray[Any]]]:
    """View [1, C, D, H, W], as validation sees it, and label map [D, H, W] of every case of a split, by name."""
    from training_backend.data.dataset import Dataset
    from training_backend.data.loader import ViewLoader

    dataset: Dataset = Dataset.open(config.data.dataset)
    known = config.updated({"optim": {"max_steps": None, "batch_size": 1}})
    loader = ViewLoader(dataset, known, needs="labels", split="val")
    wanted = {case.id for case in dataset.cases(split=split)}  # type: ignore[arg-type]
    loader.cases = [case for case in dataset.cases(labelled=True) if case.id in wanted]
    loader.visits = len(loader.cases)
    found = {}
    for views in loader.batches():
        batch = loader.to_batch(views, "cpu")
        assert batch.labels is not None
        found[batch.case_ids[0]] = (batch.volume, batch.labels[0].numpy())
    return found


def _positions(config: RunConfig, run: Path) -> dict[str, Any]:
    """Share of crops that are found, with its standard error, before and after."""
    slabs = [slab for slab, _ in labelled_views(config, "val").values()]
    row: dict[str, Any] = {}
    for name, network in (("before", made(config, None, config.seed)), ("after", made(config, run))):
        right, error = _found(network, slabs)
        row |= {f"{name}": round(float(right.mean()), 3), f"{name}_overlap_error": round(float(error.mean()), 3)}
    spread = (row["after"] * (1 - row["after"]) / len(right)) ** 0.5
    row |= {"standard_error": round(spread, 3), "crops": len(right), "scans": len(slabs)}
    return {**row, "blind_guess": round(chance(network.sampling), 3)}


def _found(network: Voco, slabs: list[Tensor]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Whether each of many random crops is found, and the mean absolute error of its overlaps."""
    import dataclasses

    import torch

    from training_backend.data.position import sample
    from training_backend.nn.axes import turned

    assert network.sampling is not None
    sampling = dataclasses.replace(network.sampling, crops=16)
    right, error = [], []
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        for slab in slabs:
            for _ in range(_VAL_CROPS // sampling.crops):
                crops, labels, _ = sample(turned(slab, network.axes), sampling, generator, changed=False)
                _, student, teacher = network.project(crops, None)
                seen = network.contrast(student, teacher, labels).predicted
                right.append((seen.argmax(-1) == labels.argmax(-1)).numpy().ravel())
                error.append((seen - labels).abs().mean(-1).numpy().ravel())
    return np.concatenate(right), np.concatenate(error)


def _probe(config: RunConfig, run: Path, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Balanced accuracy of a linear classifier of frozen embeddings, pre-trained and random."""
    slabs = {split: list(labelled_views(config, split).values()) for split in ("train", "val")}
    trained = _probed(made(config, run), slabs)
    random = [_probed(made(config, None, seed), slabs) for seed in seeds]
    facts = {"pretrained": trained["accuracy"], "random": [one["accuracy"] for one in random]}
    return {**facts, "train_crops": trained["train"], "crops_by_class": trained["classes"]}


def _probed(network: Voco, slabs: dict[str, list[tuple[Tensor, npt.NDArray[Any]]]]) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = {split: _embedded(network, found, _PROBE_CROPS[split]) for split, found in slabs.items()}
    (x, y), (x_val, y_val) = rows["train"], rows["val"]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced")).fit(x, y)
    score = round(float(balanced_accuracy_score(y_val, model.predict(x_val))), 3)
    counts = {int(value): int(number) for value, number in zip(*np.unique(y_val, return_counts=True), strict=True)}
    return {"accuracy": score, "train": len(y), "classes": counts}


def _embedded(
    network: Voco, slabs: list[tuple[Tensor, npt.NDArray[Any]]], count: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Embeddings of `count` random crops of each slab, and the class that fills most of the middle of each."""
    import torch

    from training_backend.nn.axes import turned

    assert network.sampling is not None
    crop, depth = network.sampling.crop, network.sampling.depth
    rng = np.random.default_rng(7)
    embeddings, classes = [], []
    for slab, labels in slabs:
        ends = [n - size for n, size in zip(slab.shape[2:], (depth, crop, crop), strict=True)]
        views = []
        for _ in range(count):
            z, y, x = (int(rng.integers(end + 1)) for end in ends)
            views.append(slab[0, :, z : z + depth, y : y + crop, x : x + crop])
            quarter = (slice(z + depth // 4, z + 3 * depth // 4), *(slice(a + 8, a + crop - 8) for a in (y, x)))
            classes.append(int(np.bincount(labels[quarter].ravel()).argmax()))
        with torch.inference_mode():
            embeddings.append(network.embed(turned(torch.stack(views), network.axes)).numpy())
    return np.concatenate(embeddings), np.array(classes)


def _atria(data: Path, output: Path, scans: int, steps: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Dice on the grid of the files, from a VoCo run on the training scans and from random weights."""
    from training_backend.data.ingest import ingest

    dataset = output / "atria"
    if not (dataset / "dataset.json").exists():
        settings = IngestConfig(spacing_mm=ATRIA_MM, crop_body=False, workers=0)
        report = ingest(sorted(data.glob("*.h5"))[:scans], dataset, settings, name="left atria")
        if report.quarantined:
            raise RunError(f"Not every scan could be used: {report}")
    before = pretrain_config("voco", "tiny", dataset, merged(ATRIA, {"engine": ENGINE}))
    row: dict[str, Any] = {"pretrain_s": finished(before, output / "atria_pretrain"), "scans": scans, "steps": steps}
    for name, weights in (("voco", str(output / "atria_pretrain")), ("scratch", "")):
        scores = []
        for seed in seeds:
            folder = output / f"atria_{name}_{seed}"
            row[f"{name}_s"] = finished(_finetuning(dataset, weights, steps, seed), folder)
            scores.append(_dice(folder, dataset))
        row[f"{name}_dice"] = scores
    return row


def _finetuning(dataset: Path, weights: str, steps: int, seed: int) -> RunConfig:
    changes = {
        "seed": seed,
        "weights": weights,
        "task": {"overlap": 0.25},
        "data": {"size": (32, 64, 64), "workers": 0},
        "optim": {"max_steps": steps, "batch_size": 2, "lr": 2e-3, "layer_decay": 1.0},
        "engine": ENGINE,
    }
    return finetune_config("segmentation", "tiny", dataset, "voco", changes)


def _dice(run: Path, dataset: Path) -> float:
    from training_backend.evaluate.score import score_split

    table = score_split(run, dataset, "val")
    place = table.headings.index("dice")
    values = [float(row[place]) for row in table.rows if row[0] != "mean"]
    return round(float(np.mean(values)), 3)
