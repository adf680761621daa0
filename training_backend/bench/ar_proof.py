"""What next-patch prediction learns, on data that it has not seen: phantoms, a real head in contrasts, left atria.

Every part is a run of the product: a dataset is ingested, ``pretrain`` or ``finetune`` works in a run directory, and
the model that the run leaves is looked at. Predictions are held against two that need no learning: the mean of the
patch, whose loss is 1 where targets are normalised, and the patch before in the sequence.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training_backend.bench.left_atrium import followed
from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import pretrain_config
from training_backend.config.recipes import recipe_config
from training_backend.errors import ConfigError, RunError
from training_backend.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from training_backend.nn.ar_pretrain import NextPatch

Part = Literal["phantoms", "contrasts", "atria"]
ENGINE = {"device": "cpu", "threads": 1, "preview_minutes": 0}
HEAD = ("chris_t1", "chris_PD")
"""One head in two contrasts, on different grids."""
GAP_MM = 10.0
"""Between the half of the head that is learnt from and the half that is held out."""


def main(part: Part, output: Path, data: Path | None = None, steps: int | None = None) -> dict[str, Any]:
    """Train and measure one part; the figures are also written to ``PART.json`` in `output`.

    Args:
        part: phantoms: spatial sequences of generated scans, measured on phantoms of other seeds. contrasts: contrast
            sequences of a real head, measured on its other half. atria: segmentation by the recipe "la", scaled down,
            from an encoder pre-trained on the same scans, and from random weights.
        output: folder for datasets, runs and results; what is there already is used again.
        data: contrasts: folder of the head in NIfTI. atria: folder of UA-MT's .h5 files with train.list and val.list.
        steps: optimiser steps of a run; the default takes a few minutes of one processor.
    """
    output = Path(output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    if part != "phantoms" and data is None:
        raise ConfigError(f"The part {part} needs real scans.", "Give their folder with --data.")
    work = {"phantoms": _phantoms, "contrasts": _contrasts, "atria": _atria}[part]
    found = work(output, Path(data or "."), steps)
    write_json(output / f"{part}.json", found)
    return found


def _phantoms(output: Path, _: Path, steps: int | None) -> dict[str, Any]:
    from training_backend.data.phantoms import write_cohort

    train, unseen = output / "phantoms", output / "unseen"
    for folder, count, seed in ((train, 24, 1), (unseen, 8, 2)):
        if not folder.exists():
            source = write_cohort(output / f"{folder.name}_source", count, seed=seed, shape=(48, 64, 64))
            _ingest(source, folder, IngestConfig(workers=0))
    changes = {"data": {"workers": 0}, "optim": {"max_steps": steps or 400}, "engine": {**ENGINE, "val_steps": 100}}
    config = pretrain_config("ar", "tiny", train, changes)
    facts = _run(config, output / "phantoms_run")
    return {**facts, "unseen": _measured(output / "phantoms_run", config, unseen, ("train", "val"))}


def _contrasts(output: Path, data: Path, steps: int | None) -> dict[str, Any]:
    dataset = output / "head"
    if not dataset.exists():
        _ingest(_halves(data, output / "head_source"), dataset, IngestConfig(workers=0, spacing_mm=(1.5, 1.5, 1.5)))
    changes = {
        "method": {"size": "tiny", "patch_size": (4, 4, 4)},
        "data": {
            "size": (16, 24, 24),
            "crops_per_volume": 16,
            "workers": 0,
            "sequence": {"spatial": 0.0, "contrast": 1.0, "slabs": 2, "contrasts": HEAD},
        },
        "optim": {"max_steps": steps or 500, "batch_size": 16},
        "engine": {**ENGINE, "val_steps": 100},
    }
    config = pretrain_config("ar", "tiny", dataset, changes)
    facts = _run(config, output / "head_run")
    return {**facts, "other half": _measured(output / "head_run", config, dataset, ("val",), passes=8)}


def _atria(output: Path, data: Path, steps: int | None) -> dict[str, Any]:
    dataset = output / "atria"
    if not dataset.exists():
        _ingest(data, dataset, IngestConfig(workers=0, crop_body=False, spacing_mm=(1.25, 1.25, 1.25)))
    size, method = (32, 48, 48), {"size": "tiny", "patch_size": (8, 8, 8)}
    changes = {
        "method": {**method, "axes": "xyz-lps"},
        "data": {"size": size, "workers": 0, "sequence": {"stride": 4}},
        "optim": {"max_steps": steps or 200},
        "engine": {**ENGINE, "val_steps": 100},
    }
    found: dict[str, Any] = {"pre-training": _run(pretrain_config("ar", "tiny", dataset, changes), output / "atria_ar")}
    for name, weights in (("from the checkpoint", str(output / "atria_ar")), ("from random weights", "")):
        scaled = {
            "method": method,
            "data": {"size": size, "workers": 0},
            "task": {"feature_size": 8, "overlap": 0.25},
            "optim": {"max_steps": steps or 80, "lr": 1e-3, "weight_decay": 0.05, "batch_size": 2},
            "engine": {**ENGINE, "val_steps": 10**6},
        }
        config = recipe_config("la", dataset, weights=weights, changes=scaled)
        folder = output / ("atria_tuned" if weights else "atria_scratch")
        facts = _run(config, folder)
        found[name] = {**facts, "dice": _dice(folder)}
    return found


def measured(network: NextPatch, batches: Iterator[Tensor], seed: int = 0) -> dict[str, float]:
    """Mean squared errors on `batches` [B, C, D, H, W]: of the network, the mean, and the patch before.

    All are of the same patches, those behind prefixes drawn from `seed`, and in the same normalised units; the patch
    before is normalised as it is itself. Patches of one value alone, such as air, are left out: nothing is to be
    predicted there, and they would lower all three.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    sums, count = dict.fromkeys(("network", "mean", "patch before"), 0.0), 0
    for volume in batches:
        layout = network.model.layout
        grid = layout.raster_grid(volume)
        target = network.target(layout.to_sequence(layout.raster_patches(volume), grid))
        length = target.shape[1]
        prefix = torch.randint(1, length, (len(volume),), generator=draw)
        with torch.no_grad():
            predicted = network.predict(volume, prefix)
        before = torch.roll(target, 1, dims=1)
        scored = (torch.arange(length) >= prefix[:, None]) & target.any(dim=-1)
        count += int(scored.sum())
        for name, guess in (("network", predicted), ("mean", torch.zeros_like(target)), ("patch before", before)):
            sums[name] += float((guess - target).square().mean(dim=-1)[scored].sum())
    return {**{name: total / count for name, total in sums.items()}, "patches": count}


def _measured(
    run: Path, config: RunConfig, dataset: Path, splits: tuple[str, ...], passes: int = 2
) -> dict[str, float]:
    """`measured` on sequences of a dataset by the model of a run."""
    from training_backend.weights.load import load_model

    network: Any = load_model(run).module
    return measured(network, _sequences(config, dataset, splits, passes))


def _sequences(config: RunConfig, dataset: Path, splits: tuple[str, ...], passes: int) -> Iterator[Tensor]:
    from training_backend.data.dataset import Dataset
    from training_backend.data.loader import ViewLoader

    opened = Dataset.open(dataset)
    for split in splits:
        for number in range(passes):
            asked = config.updated({"seed": 100 + number, "data": {"dataset": dataset}})
            loader = ViewLoader(opened, asked, split=split)
            steps = -(-loader.views_per_epoch // config.optim.batch_size)
            for _, views in zip(range(steps), loader.batches(), strict=False):
                yield loader.to_batch(views, "cpu").volume


def _halves(data: Path, folder: Path) -> Path:
    """The head cut at its middle along x into a case to learn from and a held-out one, as a list with splits."""
    from training_backend.data.read import read_volume
    from training_backend.data.write import write_volume

    names = [data / f"{name}.nii.gz" for name in HEAD]
    volumes = [read_volume(path) for path in names]
    first = volumes[0].geometry
    middle = (first.to_lps @ np.array([*((n - 1) / 2 for n in first.shape), 1.0]))[0]
    entries: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for key, sign in (("training", 1.0), ("validation", -1.0)):
        (folder / key).mkdir(parents=True, exist_ok=True)
        for name, volume in zip(HEAD, volumes, strict=True):
            across = volume.geometry.to_lps[0, 2] * np.arange(volume.geometry.shape[2]) + volume.geometry.to_lps[0, 3]
            inside = np.flatnonzero(sign * (across - middle) > GAP_MM / 2)
            start, size = (0, 0, int(inside[0])), (*volume.geometry.shape[:2], len(inside))
            part = replace(volume, array=volume.array[..., inside], geometry=volume.geometry.cropped(start, size))
            write_volume(part, folder / key / f"{name}.nii.gz", overwrite=True)
        entries[key].append({"image": [f"{key}/{name}.nii.gz" for name in HEAD], "subject": f"half for {key}"})
    write_json(folder / "datalist.json", {"modality": dict(enumerate(HEAD)), **entries})
    return folder / "datalist.json"


def _ingest(source: Path, folder: Path, config: IngestConfig) -> None:
    from training_backend.data.ingest import ingest

    report = ingest([source], folder, config)
    if report.quarantined:
        raise RunError(f"Not every scan could be used: {report}")


def _run(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Steps, processor seconds, and the loss of the last 50 steps of a run that ends well."""
    events = followed(config, folder)
    return {
        "steps": events[-1]["step"],
        "processor_s": round(sum(event["processor_s"] for event in events), 1),
        "training loss": statistics.fmean(event["values"]["loss"] for event in events[-50:]),
    }


def _dice(run: Path) -> Mapping[str, float]:
    """Mean Dice of the validation cases on the grids of their files, as the run wrote it."""
    import json

    cases = json.loads((run / "predictions" / "cases.json").read_text(encoding="utf-8"))
    values = [value for case in cases for value in case["dice"].values()]
    return {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values), "cases": len(cases)}
