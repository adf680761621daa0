"""Cases of a dataset that fit words or a scan, by the latents of a network that compares texts with volumes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.data.dataset import Dataset
from training_backend.data.prepare import Prepared, stored_input
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.feature_cache import cache_folder, content_hash, model_hash
from training_backend.evaluate.retrieval import LatentStore
from training_backend.evaluate.view import cut_view
from training_backend.tasks.base import Cancelled, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from training_backend.data.manifest import CaseRecord
    from training_backend.weights.load import LoadedModel

log = logging.getLogger(__name__)

Found = list[tuple[str, float]]
"""Ids of cases with their cosines, best first."""


def find_by_text(loaded: LoadedModel, store: LatentStore, text: str, top: int = 10) -> Found:
    """Cases whose scans fit `text` best.

    Raises:
        ConfigError: the model does not compare texts with volumes.
        DataError: no text.
    """
    import torch

    network = _network(loaded)
    if not text.strip():
        raise DataError("Nothing to look for was entered.", "Type a finding, or paste a report.")
    with torch.inference_mode():
        latent = network.text_latents(network.text_rows([text]))[0].float().cpu().numpy()
    return store.search(latent, top)


def find_by_scan(loaded: LoadedModel, store: LatentStore, prepared: Prepared, top: int = 10) -> Found:
    """Cases whose scans resemble a prepared scan most."""
    return store.search(_latent(loaded, prepared), top)


def latents_of(loaded: LoadedModel, dataset: Dataset, progress: Progress | None = None) -> LatentStore:
    """Latents of all scans of a dataset, computed once for a model and the state of the dataset, and kept on disk.

    Args:
        loaded: a model of the tasks retrieval or vocabulary, on its device.
        dataset: with scans.
        progress: told the share done; answering False raises `Cancelled`.
    """
    _network(loaded)
    cases = [case for case in dataset.cases() if case.images]
    if not cases:
        raise DataError(f"The dataset {dataset.info.name} has no scans to look in.", "Open another one.")
    path = cache_folder().parent / "latents" / f"{_key(loaded, dataset, cases)}.npz"
    if path.is_file():
        try:
            return LatentStore.load(path)
        except DataError as error:
            log.warning("Kept latents are damaged and will be made again: %s", error)
    found = []
    for done, case in enumerate(cases):
        if progress is not None and not progress(done / len(cases)):
            raise Cancelled
        found.append(_latent(loaded, stored_input(dataset, case, loaded.profile)))
    store = LatentStore.of([case.id for case in cases], found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.save(path)
    except OSError as error:
        log.warning("The latents could not be kept and will be computed again next time: %s", error)
    return store


def _key(loaded: LoadedModel, dataset: Dataset, cases: Sequence[CaseRecord]) -> str:
    """Name of what the latents depend on: weights, how scans are seen, and the scans."""
    images = json.dumps([[case.id, [image.model_dump(mode="json") for image in case.images]] for case in cases])
    return content_hash(model_hash(loaded.module), loaded.profile.model_dump_json(), _resolved(dataset.folder), images)


def _resolved(folder: Path) -> str:
    return str(Path(folder).resolve())


def _latent(loaded: LoadedModel, prepared: Prepared) -> Any:
    import torch

    network = _network(loaded)
    cut = cut_view(loaded.encoder, prepared, loaded.profile)
    device = next(loaded.module.parameters()).device
    with torch.inference_mode():
        volume: Tensor = torch.from_numpy(cut.array)[None].to(device)
        return network.image_latents(network.image_tokens(volume))[0].float().cpu().numpy()


def _network(loaded: LoadedModel) -> Any:
    from training_backend.nn.text_match import TextMatch

    if not isinstance(loaded.module, TextMatch):
        raise ConfigError(
            "This model does not compare texts with scans.",
            "Choose one that was fine-tuned for the task retrieval or vocabulary.",
        )
    return loaded.module
