"""What `two_stage` needs to find cases for people: a store of scans in the cache, and scans that are prepared."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from training_backend.data.prepare import Prepared
from training_backend.errors import DataError
from training_backend.evaluate.feature_cache import cache_folder, content_hash, model_hash
from training_backend.evaluate.two_stage import LATENTS, ScanStore, scans_resembling, store_of
from training_backend.evaluate.view import cut_view
from training_backend.tasks.base import Progress

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import CaseRecord
    from training_backend.nn.text_match import TextMatch
    from training_backend.weights.load import LoadedModel

log = logging.getLogger(__name__)


def find_by_scan(loaded: LoadedModel, store: ScanStore, prepared: Prepared, top: int = 10) -> list[tuple[str, float]]:
    """Cases whose scans resemble a prepared scan most, with their cosines, best first."""
    import torch

    view = torch.from_numpy(cut_view(loaded.encoder, prepared, loaded.profile).array)[None]
    return scans_resembling(cast("TextMatch", loaded.module), store, view, top=top)


def kept_store(loaded: LoadedModel, dataset: Dataset, progress: Progress | None = None) -> ScanStore:
    """Store of all scans of a dataset, made once for a model and the state of the dataset.

    Args:
        loaded: a model of the task retrieval, on its device.
        dataset: with scans.
        progress: told the share done; answering False raises `Cancelled`.

    Raises:
        ConfigError: the model compares no texts with scans.
        DataError: the dataset has no scan.
    """
    cases = [case for case in dataset.cases() if case.images]
    folder = cache_folder().parent / "scans" / _key(loaded, dataset, cases)
    try:
        return store_of(loaded, dataset, folder, progress)
    except DataError as error:
        if not (folder / LATENTS).is_file():
            raise
        log.warning("A kept store of scans is damaged and will be made again: %s", error)
    shutil.rmtree(folder)
    return store_of(loaded, dataset, folder, progress)


def _key(loaded: LoadedModel, dataset: Dataset, cases: Sequence[CaseRecord]) -> str:
    """Name of what a store depends on: weights, how scans are seen, and the scans."""
    images = json.dumps([[case.id, [image.model_dump(mode="json") for image in case.images]] for case in cases])
    place = str(Path(dataset.folder).resolve())
    return content_hash(model_hash(loaded.module), loaded.profile.model_dump_json(), place, images)
