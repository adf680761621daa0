"""Phantoms and datasets as recipes expect them; recipes of one shape share a dataset."""

from __future__ import annotations

import numpy as np
import pytest

from training_backend.config.recipes import recipe
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, ClassEntry, DatasetInfo, Split
from training_backend.data.volume import Geometry, Volume

SHAPE = (24, 36, 36)
PICTURE = (1, 36, 44)


def phantom(name: str, seed: int) -> tuple[list[Volume], Volume | None, tuple[float, ...] | None]:
    """A scan as the recipe expects it: blocks of each class, brighter for larger label values."""
    found = recipe(name)
    facts, rng = found.dataset, np.random.default_rng(seed)
    spacing = facts.spacing_mm or (1.0, 1.0, 1.0)
    flat = facts.modality in ("XR", "histology")
    shape = PICTURE if flat else SHAPE
    geometry = Geometry.from_spacing(shape, spacing)
    labels = np.zeros(shape, np.uint8)
    segments = found.task == "segmentation"
    for value in range(1, len(facts.classes)) if segments else ():
        z, y, x = rng.integers(2, (14, 22, 22)) * (not flat, 1, 1)
        labels[z : z + 6, y : y + 9, x : x + 9] = value
    target = None if segments else (float(seed % len(facts.classes)),)
    shade = labels.astype(np.float32) + (0 if target is None else target[0])
    volumes = []
    for channel in facts.channels:
        noise = rng.standard_normal(shape)
        if flat:
            picture = np.clip(60 + 30 * shade + 8 * noise, 0, 255).astype(np.uint8)
            volumes.append(Volume(picture, geometry, "unknown", channel, {"contrast": channel, "largest": 255}))
            continue
        array = 100 + 60 * shade + 20 * noise if facts.modality == "MR" else -100 + 150 * shade + 40 * noise
        if found.run["data"]["intensity"]["profile"] == "identity" and facts.layout == "medmnist":
            array = np.clip(0.3 + 0.3 * shade + 0.1 * noise, 0, 1)
        volumes.append(Volume(array.astype(np.float32), geometry, facts.modality, channel, {"contrast": channel}))
    label = Volume(labels, geometry, "labels", "labels", {"kind": "labels"}) if segments else None
    return volumes, label, target


def told(dataset: Dataset, index: int, split: Split, classes: int) -> Dataset:
    """`dataset` with a sentence more of each class, and no scan."""
    added = [
        CaseRecord(
            id=f"case_{index}_{kind}",
            subject=f"case_{index}_{kind}",
            split=split,
            report=f"{'very ' * index}typical sentence of part {kind}",
            target=(float(kind),),
        )
        for kind in range(classes)
    ]
    info = dataset.info.model_copy(update={"modality": "text"})
    grown = Dataset(dataset.folder, info, [*dataset.cases(), *added])
    grown.save()
    return grown


class Cohorts:
    """Makes datasets of three cases, below a folder of the test session."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory
        self.made: dict[tuple[object, ...], Dataset] = {}

    def __call__(self, name: str) -> Dataset:
        """Dataset for the recipe called `name`."""
        found = recipe(name)
        facts = found.dataset
        key = (found.task, facts.modality, facts.channels, len(facts.classes), facts.spacing_mm, facts.layout)
        if key not in self.made:
            classes = tuple(
                ClassEntry(index=index, name=each, colour="#000000") for index, each in enumerate(facts.classes)
            )
            info = DatasetInfo(
                name="phantoms",
                contrasts=facts.channels,
                modality="unknown" if facts.modality in ("XR", "histology") else facts.modality,
                spacing_mm=facts.spacing_mm,
                crop_body=facts.crop_body,
                classes=classes if found.task == "segmentation" else (),
            )
            dataset = Dataset(self.factory.mktemp("recipe"), info)
            dataset.save()
            for index, split in enumerate(("train", "train", "val")):
                if found.task == "text_classification":
                    dataset = told(dataset, index, split, len(facts.classes))
                    continue
                volumes, label, target = phantom(name, index)
                dataset.add_case(volumes, label, id=f"case_{index}", split=split, target=target)
            self.made[key] = dataset
        return self.made[key]
