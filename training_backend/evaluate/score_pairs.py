"""Scores of registration models: label maps of moving scans, warped onto the fixed files' own grids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from training_backend.data.pairs import choose_pairs
from training_backend.errors import DataError
from training_backend.evaluate.segmentation_metrics import METRICS, ClassScore, score_case, summarise
from training_backend.report import Table
from training_backend.tasks.base import Cancelled, Progress

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import CaseRecord, ImageRecord, Split
    from training_backend.data.volume import Volume
    from training_backend.weights.load import LoadedModel


def pair_table(model: LoadedModel, dataset: Dataset, split: Split, progress: Progress | None) -> Table:
    """A row per pair and class, and the means with 95 % bootstrap intervals; the column `folded` is of the pair.

    Raises:
        DataError: no pair of the split has label maps, or the source files are gone.
    """
    from training_backend.data.read import read_classes
    from training_backend.evaluate.register import register_volumes

    config = model.config.updated({"data": {"dataset": dataset.folder}})
    pairs = [pair for pair in choose_pairs(dataset, config, split).listed() if all(case.label for case in pair)]
    if not pairs:
        raise DataError(f"The split {split!r} of {dataset.info.name} has no pair of cases with label maps.")
    classes: Mapping[int, str] = {entry.index: entry.name for entry in dataset.info.classes}
    table, scores = Table(("pair", "class", *METRICS, "folded")), list[ClassScore]()
    for done, (moving, fixed) in enumerate(pairs, 1):
        marks, truth = (
            read_classes(dataset.source(each), key=each.key, values=each.values) for each in _labels(moving, fixed)
        )
        first, second = (_image(dataset, case, config.data.contrasts) for case in (moving, fixed))
        found = register_volumes(model, first, second, marks)
        assert found.labels is not None  # labels were given
        name = f"{moving.id} to {fixed.id}"
        for score in score_case(found.labels.array, truth.array, truth.geometry.spacing_mm, classes, case_id=name):
            numbers = [f"{getattr(score, metric):.4f}".replace("nan", "-") for metric in METRICS]
            table.add(name, score.class_name, *numbers, f"{found.folded:.4f}")
            scores.append(score)
        if progress is not None and not progress(done / len(pairs)):
            raise Cancelled
    for name, means in summarise(scores).items():
        table.add("mean", name, *(means.get(metric, "-") for metric in METRICS), "-")
    return table


def _labels(moving: CaseRecord, fixed: CaseRecord) -> list[ImageRecord]:
    return [case.label for case in (moving, fixed) if case.label is not None]


def _image(dataset: Dataset, case: CaseRecord, contrasts: tuple[str, ...]) -> Volume:
    from training_backend.data.read import read_volume, rescaled

    record = next((image for image in case.images if image.contrast in contrasts), case.images[0])
    return rescaled(read_volume(dataset.source(record), key=record.key), record.rescale)
