"""Abdominal organs from one labelled CT: pre-train, fine-tune, predict a DICOM series of another patient, compare.

The labelled scan has 30 slices of 3 mm, the series 20 slices of 2 mm with voxels of 1 mm; so this shows the way through
the product and what a single case teaches, not what organ segmentation can reach.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from training_backend.bench.left_atrium import train_for
from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.data.volume import Volume
from training_backend.errors import RunError

ORGANS: dict[str, tuple[str, ...]] = {
    "spleen": ("spleen",),
    "liver": ("liver",),
    "stomach": ("stomach",),
    "kidneys": ("kidney_left", "kidney_right"),
    "bowel": ("small_bowel", "duodenum", "colon"),
    "aorta": ("aorta",),
    "inferior vena cava": ("inferior_vena_cava",),
    "spine": ("vertebrae_*",),
    "back muscles": ("autochthon_left", "autochthon_right"),
}
"""Organs by the names in the label files; ``*`` stands for any ending."""

SIZE = (24, 64, 64)
PATCH = (8, 8, 8)
SPACING_MM = (3.0, 3.0, 3.0)
WINDOW = {"profile": "window", "low": -160.0, "high": 240.0}


def main(
    data: Path, output: Path, pretrain_s: float = 120, budget_s: float = 240, threads: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Dice per organ on the DICOM series; the label volume is written to ``predictions`` in `output`.

    Args:
        data: folder with TotalSegmentator's example scans and segmentations.
        output: folder for datasets, runs and the prediction.
        pretrain_s: seconds of pre-training on the long scan without labels.
        budget_s: seconds of fine-tuning on the labelled scan.
        threads: of PyTorch.
        seed: of weights and crops.
    """
    from training_backend.data.ingest import ingest
    from training_backend.data.read import read_labels
    from training_backend.evaluate.predict import predict_files
    from training_backend.evaluate.segmentation_metrics import dice_per_class

    data, output = Path(data), Path(output).resolve()
    config = IngestConfig(spacing_mm=SPACING_MM, splits=(1.0, 0.0, 0.0))
    for name, source in (("unlabelled", data / "example_ct.nii.gz"), ("labelled", _cohort(data, output / "cohort"))):
        if not (output / name / "dataset.json").exists():
            report = ingest([source], output / name, config, name=name)
            if report.quarantined:
                raise RunError(f"Not every scan could be used: {report}")
    train_for(_pretraining(output / "unlabelled", threads, seed), output / "pretrain", pretrain_s)
    run = output / "finetune"
    facts = train_for(_finetuning(output / "labelled", output / "pretrain", threads, seed), run, budget_s)
    (found,) = predict_files(run, [data / "example_ct_dicom"], output / "predictions")
    truth = grouped(read_labels(data / "example_seg_dicom.nii.gz"))
    prediction = read_labels(found.path)
    scores = dice_per_class(prediction.array, truth.array, range(1, len(ORGANS) + 1))
    return {
        "dice": {name: round(scores[index], 3) for index, name in enumerate(ORGANS, start=1) if scores[index] >= 0},
        "volumes_ml": {name: round(value, 1) for name, value in found.volumes_ml.items()},
        "prediction": str(found.path),
        "same_grid_as_truth": prediction.geometry.same_grid(truth.geometry),
        **facts,
    }


def grouped(labels: Volume) -> Volume:
    """`labels` with the classes of `ORGANS`, found by the names in the file."""
    names = {str(name): int(value) for value, name in labels.meta["class_names"].items()}
    table = np.zeros(256, np.uint8)
    for index, patterns in enumerate(ORGANS.values(), start=1):
        for pattern in patterns:
            stem = pattern.removesuffix("*")
            values = [
                value for name, value in names.items() if name == pattern or (stem != pattern and name.startswith(stem))
            ]
            table[values] = index
    table_names = {str(index): name for index, name in enumerate(("background", *ORGANS))}
    return labels.with_array(table[labels.array], meta={**labels.meta, "class_names": table_names})


def _cohort(data: Path, folder: Path) -> Path:
    """The labelled scan in the layout of the Medical Segmentation Decathlon."""
    from training_backend.data.read import read_labels, read_volume
    from training_backend.data.write import write_volume

    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_volume(read_volume(data / "example_ct_sm.nii.gz"), folder / "imagesTr" / "abdomen.nii.gz", overwrite=True)
    labels = grouped(read_labels(data / "example_seg.nii.gz"))
    write_volume(labels, folder / "labelsTr" / "abdomen.nii.gz", overwrite=True)
    description = {
        "name": "abdomen",
        "modality": {"0": "CT"},
        "labels": {str(index): name for index, name in enumerate(("background", *ORGANS))},
        "training": [{"image": "./imagesTr/abdomen.nii.gz", "label": "./labelsTr/abdomen.nii.gz"}],
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def _pretraining(dataset: Path, threads: int, seed: int) -> RunConfig:
    changes = {
        "seed": seed,
        "method": {"patch_size": PATCH},
        "data": {"size": SIZE, "workers": 0, "intensity": WINDOW},
        "engine": {"device": "cpu", "threads": threads, "preview_minutes": 0},
    }
    return pretrain_config("mae3d", "tiny", dataset, changes)


def _finetuning(dataset: Path, weights: Path, threads: int, seed: int) -> RunConfig:
    augment = {"rotate": 0.5, "scale": 0.5, "noise": 0.3, "contrast": 0.3}
    changes = {
        "seed": seed,
        "weights": str(weights),
        "method": {"patch_size": PATCH},
        "data": {"size": SIZE, "workers": 0, "intensity": WINDOW, "augment": augment, "crops_per_volume": 4},
        "engine": {"device": "cpu", "threads": threads, "preview_minutes": 0},
    }
    return finetune_config("segmentation", "tiny", dataset, "mae3d", changes)
